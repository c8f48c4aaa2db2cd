"""Plan values that older files lack, and keys that no file may have."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.paths import plans_dir
from hssl_nnunet.plan_schema import FinetuningPlan, PretrainingPlan
from hssl_nnunet.typed_json import parse

FILES = ((PretrainingPlan, "pretraining.json"), (FinetuningPlan, "finetuning.json"))


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_from_before_a_key_was_added_reads_as_the_default(kind: type, name: str) -> None:
    content = read_json(plans_dir() / name)
    young = [f.name for f in fields(kind) if f.default is not MISSING]
    assert parse(kind, {k: v for k, v in content.items() if k not in young}, "old") == parse(kind, content, "new")


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_key_that_is_missing_unknown_or_wrong_is_named(kind: type, name: str) -> None:
    content = read_json(plans_dir() / name)
    for changed, said in (
        ({k: v for k, v in content.items() if k != "num_epochs"}, "num_epochs"),
        ({**content, "num_epoch": 3}, "num_epoch"),
        ({**content, "num_epochs": 0}, "num_epochs"),
    ):
        with pytest.raises(HSSLError, match=f"a file is not a valid {kind.__name__}:\n  {said}: "):
            parse(kind, changed, "a file")
