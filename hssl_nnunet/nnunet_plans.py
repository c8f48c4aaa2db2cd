"""nnU-Net's plans files, read and checked as far as we rely on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.files import read_json
from hssl_nnunet.typed_json import parse


@dataclass(frozen=True, slots=True)
class Plans:
    """The part of a plans file without which it is none."""

    plans_name: str
    configurations: dict[str, dict[str, Any]]


def read_plans(path: str | Path, remedy: str = "") -> dict[str, Any]:
    """Read a plans file.

    Args:
        path: the file.
        remedy: the sentence that tells how to get the file; added to the errors.

    Returns:
        All of its content; `plans_name` is text, and `configurations` an object of objects.

    Raises:
        HSSLError: the file is missing, is not JSON, or holds no plans.
    """
    plans: dict[str, Any] = read_json(path, remedy)
    parse(Plans, plans, path, remedy)
    return plans


def plans_in(folder: Path, pattern: str = "*.json") -> dict[Path, dict[str, Any]]:
    """The plans files of a preprocessed dataset, seeded ones too, and what they hold; damaged ones are passed over."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and isinstance(content.get("configurations"), dict):
            found[path] = content
    return found


def inherited(plans: dict[str, Any], configuration: str, source: str | Path) -> dict[str, Any]:
    """A configuration of the plans with what it inherits from others, as the file has it; nnU-Net is not asked.

    Raises:
        HSSLError: the configuration, or one that it inherits from, is not there; it inherits from itself.
    """
    entries: dict[str, dict[str, Any]] = {}
    name: str | None = configuration
    while name is not None:
        if name in entries:
            raise HSSLError(f"`inherits_from` in {source} goes round in a circle: {', '.join(entries)}. Correct it.")
        if name not in plans["configurations"]:
            what = f"`inherits_from` of {list(entries)[-1]} in" if entries else "configuration of"
            raise unknown_name(f"{what} {source}", name, plans["configurations"])
        entries[name] = plans["configurations"][name]
        name = entries[name].get("inherits_from")
    return {key: value for entry in reversed(entries.values()) for key, value in entry.items()}


def resolved_configuration(
    plans: dict[str, Any], configuration: str, source: str | Path, remedy: str = ""
) -> dict[str, Any]:
    """A configuration of the plans with what it inherits, as nnU-Net reads it; old plans get their `architecture`.

    Raises:
        HSSLError: nnU-Net cannot read it: it lacks keys, or inherits from what is not there.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        found: dict[str, Any] = PlansManager(plans).get_configuration(configuration).configuration
    except KeyError as error:
        reason = f"it has neither `architecture` nor the older {error}"
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error)
    else:
        return found
    raise HSSLError(f"{source}: nnU-Net cannot use the configuration '{configuration}': {reason}. {remedy}".rstrip())
