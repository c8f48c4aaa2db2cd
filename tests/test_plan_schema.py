"""Plan values that older files lack, and keys that no file may have."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

import pytest

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.paths import plans_dir
from hssl_nnunet.plan_schema import (
    TargetBlock,
    corpus_block,
    finetuning_plan,
    load_preset,
    pretraining_plan,
    target_block,
)
from hssl_nnunet.plan_values import FinetuningPlan, PretrainingPlan
from hssl_nnunet.typed_json import parse, to_json

ONLY = dict.fromkeys(("image", "task", "group", "reconstruction", "voxel"), 0.0)
LOSSES = (
    ({"loss": ONLY}, "nothing would be learned"),
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
        ({**content, "initial_lr": math.inf}, "initial_lr"),  # JSON as Python reads it may hold Infinity
        ({**content, "seed": 2**64}, "seed"),  # more than torch takes
    ):
        with pytest.raises(HSSLError, match=f"a file is not a valid {kind.__name__}:\n  {said}: "):
            parse(kind, changed, "a file")


def corpus_plans(groups: tuple[str, ...] = ("CT",), **changed: object) -> dict[str, object]:
    """Plans of a corpus of one domain for each group, of presets' values but for `changed`."""
    domains = [
        {
            "dataset_name": f"Dataset00{number}_A",
            "plans_name": "nnUNetPlans",
            "data_identifier": "x",
            "modality": "CT",
            "groups": [group],
            "num_images": 1,
            "spacing": [1, 1, 1],
            "patch_size": [8, 8, 8],
            "architecture": {},
        }
        for number, group in enumerate(groups)
    ]
    pretraining = to_json(pretraining_plan(load_preset("cpu"), **changed))
    return {"hssl": {"role": "corpus", "domains": domains, "pretraining": pretraining}}


@pytest.mark.parametrize(("changed", "told"), LOSSES)
def test_a_loss_that_learns_nothing_is_refused(changed: dict, told: str) -> None:
    with pytest.raises(HSSLError, match=f"loss` in plans.json.*{told}|plans.json has weight 0: {told}"):
        corpus_block(corpus_plans(**changed), "plans.json")


SINGLE = {"chunks_per_step": 1, "images_per_chunk": 1}
ELSEWHERE = {"image": 1.0, "negatives": "other_task"}
CONTRAST = {"task": 1.0, "group": 1.0, "task_loss": "contrast", "group_loss": "contrast"}


@pytest.mark.parametrize(
    ("groups", "loss", "step", "terms"),
    [
        (("CT",), {"task": 1.0}, {}, "`task`"),
        (("CT",), {"task": 1.0, "group": 1.0}, {}, "`task` and `group`"),
        (("CT", "CT"), {"group": 1.0}, {}, "`group`"),
        (("CT",), ELSEWHERE | {"queue_per_domain": 8}, {}, "`image`"),
        (("CT", "MR"), ELSEWHERE, {"chunks_per_step": 1}, "`image`"),
        (("CT", "MR"), {"image": 1.0}, SINGLE, "`image`"),
        (("CT", "MR"), CONTRAST, SINGLE, "`task` and `group`"),
        (("CT", "MR"), {"voxel": 1.0, "voxel_points": 1}, {}, "`voxel`"),
    ],
)
def test_terms_with_nothing_to_tell_apart_are_refused_unless_another_learns(
    groups: tuple[str, ...], loss: dict, step: dict, terms: str
) -> None:
    with pytest.raises(HSSLError, match=f"Nothing would be learned by {terms} of .* in p.json"):
        corpus_block(corpus_plans(groups, loss=ONLY | loss, **step), "p.json")
    corpus_block(corpus_plans(groups, loss=ONLY | loss | {"reconstruction": 1.0}, **step), "p.json")


@pytest.mark.parametrize(
    ("groups", "loss", "step"),
    [
        (("CT", "CT"), {"task": 1.0, "group": 1.0}, SINGLE),
        (("CT", "MR"), {"group": 1.0}, SINGLE),
        (("CT",), {"image": 1.0}, {"chunks_per_step": 1}),
        (("CT",), {"image": 1.0, "queue_per_domain": 8}, SINGLE),
        (("CT", "MR"), ELSEWHERE, {}),
        (("CT", "MR"), ELSEWHERE | {"queue_per_domain": 8}, SINGLE),
        (("CT",), CONTRAST, {}),
        (("CT",), {"voxel": 1.0}, SINGLE),
    ],
)
def test_terms_with_something_to_tell_apart_are_taken(groups: tuple[str, ...], loss: dict, step: dict) -> None:
    corpus_block(corpus_plans(groups, loss=ONLY | loss, **step), "p.json")


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    corpus_block(corpus_plans(num_epochs=4, warmup_epochs=3), "plans.json")
    with pytest.raises(HSSLError, match=r"`hssl.pretraining` in p.json has `warmup_epochs` 4 of `num_epochs` 4"):
        corpus_block(corpus_plans(num_epochs=4, warmup_epochs=4), "p.json")

    def read(**values: object) -> None:
        block = TargetBlock(weights=None, weights_sha256=None, finetuning=finetuning_plan(load_preset("cpu"), **values))
        target_block({"hssl": to_json(block)}, "p.json")

    read(num_epochs=5, warmup_epochs=4, decoder_epochs=9)
    read(num_epochs=4, warmup_epochs=4, schedule="stock")
    read(num_epochs=7, warmup_epochs=4, decoder_epochs=2, schedule="sawtooth")
    with pytest.raises(HSSLError, match=r"`hssl.finetuning` .*`warmup_epochs` 4 of `num_epochs` 4.*Lower `warmup_epo"):
        read(num_epochs=4, warmup_epochs=4)
    with pytest.raises(HSSLError, match=r"`warmup_epochs` 4 and `decoder_epochs` 2 of `num_epochs` 6"):
        read(num_epochs=6, warmup_epochs=4, decoder_epochs=2, schedule="sawtooth")


def test_a_whole_reconstruction_needs_no_mask() -> None:
    loss = pretraining_plan(load_preset("cpu"), loss={"mask_ratio": 0.0, "reconstruction_target": "full"}).loss
    assert (loss.decoded_views, loss.views, loss.embeds, loss.contrasts) == (2, 2, True, True)
