"""The commands that errors and reports suggest, whole: typed as they stand they do what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hssl_nnunet.paths import WEIGHTS_FILE
from hssl_nnunet.plan_schema import DEFAULT_PLANS, SEEDED_SUFFIX, known_presets, load_preset

DEFAULT_CONFIGURATION, DEFAULT_PRESET = "3d_fullres", "default"


def preset_name(plans_name: str) -> str | None:
    """Name of the preset that plans of this name, seeded or not, were made with; None where no preset has it."""
    own = plans_name.removesuffix(SEEDED_SUFFIX)
    return next((name for name in known_presets() if load_preset(name).plans_name == own), None)


def preprocess_command(
    dataset: str | int | Sequence[str | int],
    plans_name: str = DEFAULT_PLANS,
    configuration: str = DEFAULT_CONFIGURATION,
) -> str:
    """The command that preprocesses a configuration of a dataset, or of several.

    Args:
        dataset: id or name, or several.
        plans_name: the plans, seeded or not; those that no preset makes must be there.
        configuration: nnU-Net's configuration.
    """
    datasets = [dataset] if isinstance(dataset, (str, int)) else dataset
    chosen = _plans_option(plans_name)
    return _joined("hssl", "plan_and_preprocess", "-d", *datasets, *chosen, *_unless_default(configuration))


def _plans_option(plans_name: str) -> tuple[str, ...]:
    preset, own = preset_name(plans_name), plans_name.removesuffix(SEEDED_SUFFIX)
    if preset is None:
        return ("-p", own)
    return () if preset == DEFAULT_PRESET else ("--preset", preset)


def plan_command(dataset: str | int, plans_name: str) -> str:
    """The command that writes plans of a name; which of nnU-Net's planners a name of the user's own needs, is theirs.

    Args:
        dataset: id or name.
        plans_name: the plans.
    """
    if preset_name(plans_name) is not None:
        return preprocess_command(dataset, plans_name)
    number, named = _number(dataset), _joined("-overwrite_plans_name", plans_name.removesuffix(SEEDED_SUFFIX))
    measured = _joined("nnUNetv2_extract_fingerprint", "-d", number)  # what the planner reads; kept where it is there
    return f"{measured} && {_joined('nnUNetv2_plan_experiment', '-d', number)} -pl PLANNER {named}"


def corpus_command(corpus: str | int) -> str:
    """The command that makes a corpus; which datasets it joins is the user's choice.

    Args:
        corpus: id or name of the corpus.
    """
    number = _number(corpus)
    name = str(corpus).partition("_")[2] if number != str(corpus) else ""
    return f"hssl corpus -d DATASET... {_joined('-o', number, *(('-n', name) if name else ()))}"


def seed_command(
    dataset: str | int,
    weights: str | Path | None = None,
    plans_name: str = DEFAULT_PLANS,
    configuration: str = DEFAULT_CONFIGURATION,
) -> str:
    """The command that seeds a target.

    Args:
        dataset: id or name of the target.
        weights: the weights file; None where only the user knows it.
        plans_name: plans of the target, seeded or not.
        configuration: nnU-Net's configuration.
    """
    own = plans_name.removesuffix(SEEDED_SUFFIX)
    named = () if own == DEFAULT_PLANS else ("-p", own)
    file = WEIGHTS_FILE if weights is None else weights
    return _joined("hssl", "seed", "-d", dataset, "-w", file, *named, *_unless_default(configuration))


def finetune_command(
    dataset: str | int, configuration: str, plans_name: str, fold: str | int = 0, *, scratch: bool = False
) -> str:
    """The command that fine-tunes a seeded target, or its control.

    Args:
        dataset: id or name of the target.
        configuration: nnU-Net's configuration.
        plans_name: the seeded plans.
        fold: 0 to 4, or `all`.
        scratch: the control, without the weights.
    """
    control = ("--scratch",) if scratch else ()
    return _joined("hssl", "finetune", dataset, configuration, fold, "-p", plans_name, *control)


def _unless_default(configuration: str) -> tuple[str, ...]:
    return () if configuration == DEFAULT_CONFIGURATION else ("-c", configuration)


def _number(dataset: str | int) -> str:
    """`4` of `Dataset004_Hippocampus`; anything else stays as it is."""
    digits = str(dataset).removeprefix("Dataset").partition("_")[0]
    return str(int(digits)) if digits.isdecimal() else str(dataset)


def _joined(*words: str | int | Path) -> str:
    return shlex.join(map(str, words))
