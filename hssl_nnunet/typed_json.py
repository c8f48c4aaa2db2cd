"""JSON to dataclasses and back, with every wrong key named."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hssl_nnunet.errors import HSSLError

STRICT = ConfigDict(extra="forbid")  # as a dataclass' `__pydantic_config__`: an unknown key is an error
T = TypeVar("T")


def parse(kind: type[T], content: Any, source: str | Path, remedy: str = "") -> T:
    """Build `kind` from parsed JSON; every wrong, missing or unknown key is named.

    Args:
        kind: a dataclass, or a list, tuple or dictionary of such.
        content: the parsed JSON.
        source: the file, for errors.
        remedy: the sentence that tells how to get a good file; the last line of the errors.

    Raises:
        HSSLError: with each key (as `loss.tau`), what was got, the known keys where it is unknown, and the file.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        lines = [_line(kind, dict(e)) for e in error.errors()]
        told = [f"{source} is not a valid {kind.__name__}:", *lines, *([remedy] if remedy else [])]
        raise HSSLError("\n".join(told)) from None


def _line(kind: Any, error: dict[str, Any]) -> str:
    told = f"  {'.'.join(map(str, error['loc'])) or 'all of it'}: {error['msg']} (got {error['input']!r:.80})"
    if error["type"] != "unexpected_keyword_argument":
        return told
    for key in error["loc"][:-1]:
        kind = _member(kind, key)
    return f"{told}. Known: {', '.join(f.name for f in fields(kind))}" if is_dataclass(kind) else told


def _member(kind: Any, key: str | int) -> Any:
    """Type of what a key or index leads to; None where that is no type of ours."""
    if get_origin(kind) in (dict, list, tuple):
        return get_args(kind)[-1 if isinstance(key, str) else 0]
    return get_type_hints(kind).get(str(key)) if is_dataclass(kind) else None


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; dictionaries merge key by key."""
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if nested else value
    return result


def to_json(plan: Any) -> dict[str, Any]:
    """A plan as the JSON that `parse` reads back."""
    return TypeAdapter(type(plan)).dump_python(plan, mode="json")  # type: ignore[no-any-return]


def differences(key: str, was: Any, now: Any) -> list[str]:
    """What differs between two versions of parsed JSON, each value under its path: `key.loss.tau was 0.1, is 0.2`."""
    if isinstance(was, dict) and isinstance(now, dict):
        shared = dict.fromkeys((*was, *now))
        return [line for k in shared for line in differences(f"{key}.{k}", was.get(k), now.get(k))]
    return [f"{key} was {was}, is {now}"] if was != now else []
