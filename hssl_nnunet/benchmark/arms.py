"""Arms of a benchmark: each one a few plan values over the same machinery, in `plans/benchmark_arms.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.files import read_json
from hssl_nnunet.launch import FINETUNE_TRAINER, PRETRAIN_TRAINER, SCRATCH_TRAINER
from hssl_nnunet.paths import DATASET_WORDS, plans_dir, trainers_dir
from hssl_nnunet.typed_json import STRICT, parse

ARMS_FILE = "benchmark_arms.json"
NAME = re.compile(r"[A-Za-z0-9_.+-]+")
EXTERNAL = "external:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """How an arm differs from the others; plan, data, iterations and deep supervision are the same for all.

    Attributes:
        description: one line for the report.
        trainer: trainer class of the fine-tuning.
        pretrained_on: domains of its own pretraining: `all`, the `target`'s alone, or `none`.
        weights_of: another arm whose weights it takes instead; null = its own.
        weights_file: a weights file that it takes instead, by its whole path; null = none.
        continues: an arm whose weights its own pretraining goes on from; null = from nothing.
        groups: the corpus' `hierarchy`, or `shuffled` over the domains.
        pretraining: values that differ from the preset's pretraining; nested keys merge.
        finetuning: values that differ from the preset's fine-tuning.
    """

    description: str
    trainer: str = FINETUNE_TRAINER
    pretrained_on: Literal["none", "all", "target"] = "none"
    weights_of: str | None = None
    weights_file: str | None = None
    continues: str | None = None
    groups: Literal["hierarchy", "shuffled"] = "hierarchy"
    pretraining: dict[str, Any] = field(default_factory=dict)
    finetuning: dict[str, Any] = field(default_factory=dict)

    __pydantic_config__ = STRICT

    @property
    def seeded(self) -> bool:
        """Whether it starts from weights."""
        return self.trainer == FINETUNE_TRAINER

    def resolved(self) -> Arm:
        """The arm with the whole path of its weights file, which may be told from the current folder."""
        return self if self.weights_file is None else replace(self, weights_file=str(Path(self.weights_file).resolve()))


def known_arms() -> dict[str, Arm]:
    """The arms that ship with the package."""
    path = plans_dir() / ARMS_FILE
    return parse(dict[str, Arm], read_json(path), path)


def chosen_arms(names: Sequence[str], own: Mapping[str, Arm]) -> dict[str, Arm]:
    """Arms by name; `external:PATH` is any weights file, fine-tuned like the others, and called `external_<stem>`.

    Of a checkpoint of nnU-Net or nnssl it is what `hssl import` made of it.

    Args:
        names: the arms, as typed.
        own: arms of the user's own, beside those that ship.

    Raises:
        HSSLError: an unknown name, a name twice, an own arm of a known name, an arm whose weights nothing makes or
            several things do, an unknown trainer, or a weights file that is missing.
    """
    known, arms = known_arms(), dict[str, Arm]()
    if taken := sorted(own.keys() & known.keys()):
        raise HSSLError(f"Arms of your own must have new names; {', '.join(taken)} ship with hssl.")
    known |= own
    for text in names:
        name, arm = _external(text) if text.startswith(EXTERNAL) else (text, _known(text, known))
        if name in arms:
            raise HSSLError(f"Two arms are called {name}. Name each once; rename one of two files of the same name.")
        arms[name] = arm.resolved()
    for name, arm in arms.items():
        _check(name, arm, arms)
    return arms


def _check(name: str, arm: Arm, arms: Mapping[str, Arm]) -> None:
    if not NAME.fullmatch(name):
        raise HSSLError(f"Arm {name!r}: a name holds letters, digits and `_.+-` alone; it becomes a folder.")
    if arm.pretrained_on != "none" and not DATASET_WORDS.fullmatch(name):
        raise HSSLError(f"Arm {name!r}: an arm that is pretrained names a dataset: letters, digits, `_` and `-` alone.")
    trainers = sorted(p.stem for p in trainers_dir().glob("nnUNetTrainer*.py") if p.stem != PRETRAIN_TRAINER)
    if arm.trainer not in trainers:
        raise unknown_name("trainer", arm.trainer, trainers)
    _check_sources(name, arm)
    _check_continued(name, arm, arms)
    source = arms.get(arm.weights_of) if arm.weights_of is not None else arm
    if source is None:
        raise HSSLError(f"Arm {name} takes the weights of {arm.weights_of}: name {arm.weights_of} in `--arms` too.")
    if arm.seeded and source.weights_file is None and (source.pretrained_on == "none" or source.weights_of is not None):
        raise HSSLError(
            f"Arm {name} starts from weights that nothing makes. Set `pretrained_on` to all or target, or `weights_of` "
            f"to an arm that has it, or `trainer` to {SCRATCH_TRAINER}."
        )


def _check_continued(name: str, arm: Arm, arms: Mapping[str, Arm]) -> None:
    """Check that an arm goes on from weights that another one makes, or has, for each of its own pretrainings."""
    if arm.continues is None:
        return
    told = f"Arm {name} continues {arm.continues}"
    if (before := arms.get(arm.continues)) is None:
        raise HSSLError(f"{told}: name {arm.continues} in `--arms` too.")
    if arm.pretrained_on == "none":
        raise HSSLError(f"{told} without a pretraining: set `pretrained_on` to all or target.")
    if before.pretrained_on == "none" and before.weights_file is None:
        raise HSSLError(f"{told}, which has no weights of its own: name one with `pretrained_on` or `weights_file`.")
    if before.continues is not None:
        raise HSSLError(f"{told}, which continues {before.continues} itself: name one that begins from nothing.")
    if before.pretrained_on == "target" and arm.pretrained_on == "all":
        raise HSSLError(f"{told}, whose weights are made for each target: set `pretrained_on` to target too.")


def _check_sources(name: str, arm: Arm) -> None:
    values = {"weights_file": arm.weights_file, "weights_of": arm.weights_of}
    values |= {"pretrained_on": None if arm.pretrained_on == "none" else arm.pretrained_on}
    sources = [f"`{key}` {value}" for key, value in values.items() if value is not None]
    if len(sources) > 1:
        raise HSSLError(f"Arm {name} takes its weights from {' and '.join(sources)}: leave one.")
    if sources and not arm.seeded:
        raise HSSLError(f"Arm {name}: {arm.trainer} starts from no weights. Leave out {sources[0]}, or the `trainer`.")
    if arm.weights_file is not None and not Path(arm.weights_file).is_file():
        raise HSSLError(
            f"Arm {name}: {arm.weights_file} does not exist. Name a weights file, as `hssl pretrain` or `hssl import` "
            "writes it."
        )


def _known(name: str, known: Mapping[str, Arm]) -> Arm:
    if name not in known:
        raise unknown_name("arm", name, [*known, f"{EXTERNAL}PATH"])
    return known[name]


def _external(text: str) -> tuple[str, Arm]:
    path = Path(text.removeprefix(EXTERNAL)).resolve()
    return f"external_{path.stem}", Arm(description=f"weights of {path.name}", weights_file=str(path))
