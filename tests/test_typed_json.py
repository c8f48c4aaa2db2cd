"""What is wrong in a file is told key by key, with the keys that would be right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import Field

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.typed_json import STRICT, merged, parse, to_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    tau: float
    rate: float = 1.0
    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class Outer:
    one: Inner
    many: Annotated[tuple[Inner, ...], Field(min_length=1)] = (Inner(tau=1),)
    maybe: Inner | None = None
    __pydantic_config__ = STRICT


ONE = {"tau": 1}


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (Outer, {"one": ONE, "ohne": 1}, r"ohne: Unexpected keyword argument \(got 1\). Known: one, many, maybe$"),
        (Outer, {"one": {"tau": 1, "tauu": 2}}, r"one.tauu: .*\(got 2\). Known: tau, rate$"),
        (Outer, {"one": ONE, "many": [ONE, {"tau": 1, "rat": 3}]}, r"many.1.rat: .* Known: tau, rate$"),
        (Outer, {"one": ONE, "maybe": {"tau": 1, "rat": 3}}, r"maybe.rat: Unexpected keyword argument \(got 3\)$"),
        (dict[str, Inner], {"low": {"tau": 1, "rat": 3}}, r"low.rat: .* Known: tau, rate$"),
        (Outer, {"one": {}}, r"one.tau: Field required \(got {}\)$"),
        (Outer, {"one": {"tau": "x"}}, r"one.tau: .*valid number.*\(got 'x'\)$"),
    ],
)
def test_a_wrong_key_is_told(kind: Any, content: dict[str, Any], said: str) -> None:
    with pytest.raises(HSSLError, match=rf"(?m)^a.json is not a valid \w+:\n  {said}"):
        parse(kind, content, "a.json")


def test_content_that_is_no_object_is_told_with_the_remedy_last() -> None:
    with pytest.raises(HSSLError, match=r"(?s)^a.json is not a valid Inner:\n  all of it: .*\(got \[\]\)\nRun it\.$"):
        parse(Inner, [], "a.json", "Run it.")


def test_what_is_written_reads_back() -> None:
    outer = Outer(one=Inner(tau=0.5), many=(Inner(tau=2), Inner(tau=3, rate=4)), maybe=Inner(tau=1))
    assert parse(Outer, to_json(outer), "a.json") == outer


def test_nested_values_merge_and_the_originals_stay() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2], "e": {"f": 1}}
    assert merged(base, over) == {"a": {"b": 3, "c": 2}, "d": [2], "e": {"f": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}
