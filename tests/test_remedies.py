from __future__ import annotations

import shlex

import pytest
import typer

from hssl_nnunet.cli import app
from hssl_nnunet.plan_schema import known_presets, load_preset
from hssl_nnunet.remedies import (
    DEFAULT_PRESET,
    corpus_command,
    finetune_command,
    plan_command,
    preprocess_command,
    seed_command,
)

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize(
    "command, expected",
    [
        (preprocess_command(4), "hssl plan_and_preprocess -d 4"),
        (
            preprocess_command("Dataset004_X", "nnUNetPlans_HSSL", "2d"),
            "hssl plan_and_preprocess -d Dataset004_X -c 2d",
        ),
        (preprocess_command([4, "52"], "nnUNetCPUPlans", "2d"), "hssl plan_and_preprocess -d 4 52 --preset cpu -c 2d"),
        (preprocess_command(4, "nnUNetCPUPlans"), "hssl plan_and_preprocess -d 4 --preset cpu"),
        (
            preprocess_command("Dataset004_Toy", "MyPlans_HSSL", "2d"),
            "hssl plan_and_preprocess -d Dataset004_Toy -p MyPlans -c 2d",
        ),
        (seed_command(4), "hssl seed -d 4 -w hssl.safetensors"),
        (
            seed_command(4, "/a b/w.safetensors", "nnUNetCPUPlans_HSSL", "2d"),
            "hssl seed -d 4 -w '/a b/w.safetensors' -p nnUNetCPUPlans -c 2d",
        ),
        (finetune_command(4, "2d", "nnUNetPlans_HSSL"), "hssl finetune 4 2d 0 -p nnUNetPlans_HSSL"),
        (
            finetune_command(4, "2d", "nnUNetPlans_HSSL", "all", scratch=True),
            "hssl finetune 4 2d all -p nnUNetPlans_HSSL --scratch",
        ),
        (corpus_command(77), "hssl corpus -d DATASET... -o 77"),
        (corpus_command("Dataset077_Limbs"), "hssl corpus -d DATASET... -o 77 -n Limbs"),
    ],
)
def test_a_command_names_what_is_not_the_default_and_parses(command: str, expected: str):
    assert command == expected
    _, name, *words = shlex.split(command)
    assert COMMANDS[name].make_context(name, words).params


@pytest.mark.parametrize("preset", known_presets())
def test_preprocessing_with_the_suggested_preset_writes_the_plans_that_lack(preset: str):
    words = shlex.split(preprocess_command(4, load_preset(preset).plans_name))[2:]
    params = COMMANDS["plan_and_preprocess"].make_context("plan_and_preprocess", words).params
    assert (params["preset"] or DEFAULT_PRESET) == preset


def test_plans_come_from_the_preset_of_their_name_or_from_a_planner_of_the_users():
    assert plan_command(4, "nnUNetCPUPlans_HSSL") == "hssl plan_and_preprocess -d 4 --preset cpu"
    expected = (
        "nnUNetv2_extract_fingerprint -d 4 && nnUNetv2_plan_experiment -d 4 -pl PLANNER -overwrite_plans_name MyPlans"
    )
    assert plan_command("Dataset004_Toy", "MyPlans_HSSL") == expected
