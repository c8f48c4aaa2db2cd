"""Plan values that older files lack, and keys that no file may have."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.paths import plans_dir
from hssl_nnunet.plan_schema import corpus_block, load_preset, pretraining_plan
from hssl_nnunet.plan_values import FinetuningPlan, PretrainingPlan
from hssl_nnunet.typed_json import parse, to_json

LOSSES = (
    ({"loss": dict.fromkeys(("image", "task", "group", "reconstruction", "voxel"), 0.0)}, "nothing would be learned"),
    ({"loss": {"mask_ratio": 0.0}}, "`mask_ratio` 0"),
)
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


@pytest.mark.parametrize(("changed", "told"), LOSSES)
def test_a_loss_that_learns_nothing_is_refused(changed: dict, told: str) -> None:
    pretraining = to_json(pretraining_plan(load_preset("cpu"), **changed))
    domain = {
        "dataset_name": "Dataset001_A",
        "plans_name": "nnUNetPlans",
        "data_identifier": "x",
        "modality": "CT",
        "groups": ["CT"],
        "num_images": 1,
        "spacing": [1, 1, 1],
        "patch_size": [8, 8, 8],
        "architecture": {},
    }
    block = {"role": "corpus", "domains": [domain], "pretraining": pretraining}
    with pytest.raises(HSSLError, match=f"loss` in plans.json.*{told}|plans.json has weight 0: {told}"):
        corpus_block({"hssl": block}, "plans.json")


def test_a_whole_reconstruction_needs_no_mask() -> None:
    loss = pretraining_plan(load_preset("cpu"), loss={"mask_ratio": 0.0, "reconstruction_target": "full"}).loss
    assert (loss.decoded_views, loss.views, loss.embeds, loss.contrasts) == (2, 2, True, True)
