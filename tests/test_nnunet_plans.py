"""A plans file that is none is told by its wrong key, with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.nnunet_plans import read_plans, resolved_configuration

GOOD = {"plans_name": "nnUNetPlans", "configurations": {"2d": {"batch_size": 2}}, "more": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "all of it: "),
        ({}, "plans_name: Field required"),
        ({"plans_name": "a"}, "configurations: Field required"),
        (GOOD | {"plans_name": 3}, "plans_name: .*string"),
        (GOOD | {"configurations": ["2d"]}, "configurations: .*dictionary"),
        (GOOD | {"configurations": {"2d": 5}}, "configurations.2d: .*dictionary"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(content))
    with pytest.raises(HSSLError, match=rf"(?s)^{path} is not a valid Plans:.*  {said}.*\nRun it\.$"):
        read_plans(path, "Run it.")


def test_plans_are_returned_whole(tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text(json.dumps(GOOD))
    assert read_plans(tmp_path / "plans.json") == GOOD


def test_a_configuration_comes_with_what_it_inherits() -> None:
    base = {"architecture": {"network_class_name": "x"}, "batch_size": 2}
    plans = GOOD | {"configurations": {"base": base, "2d": {"inherits_from": "base", "batch_size": 3}}}
    assert resolved_configuration(plans, "2d", "a.json") == base | {"inherits_from": "base", "batch_size": 3}


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"inherits_from": "gone"}, "gone"),
        ({"inherits_from": "2d"}, "Circular"),
        pytest.param(
            {"batch_size": 2},
            "neither `architecture` nor the older 'UNet_class_name'",
            marks=pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans"),
        ),
    ],
)
def test_a_configuration_that_nnunet_cannot_use(configuration: dict[str, Any], said: str) -> None:
    with pytest.raises(HSSLError, match=rf"^a.json: .*'2d': .*{said}.* Run it\.$"):
        resolved_configuration(GOOD | {"configurations": {"2d": configuration}}, "2d", "a.json", "Run it.")
