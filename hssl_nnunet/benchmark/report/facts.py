"""`benchmark.json`, and what else the runner leaves beside the records: pretrainings, leakage, transfers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.job import PRETRAINING_FILE
from hssl_nnunet.benchmark.jobs import STATE_FILE, JobState, JobTable
from hssl_nnunet.benchmark.plan import LEAKAGE_FILE, PLAN_FILE
from hssl_nnunet.files import read_json
from hssl_nnunet.typed_json import parse

LENIENT = ConfigDict(extra="ignore")  # the runner may write more than the page shows
STATUSES = ("exact", "adapted", "fresh")  # of a tensor in a transfer, as in transfer.report
# keys of benchmark.json that are told with the environment
SETTINGS = (
    "configuration",
    "plans_name",
    "device",
    "domains",
    "test_fraction",
    "tune",
    "min_cases",
    "patient_regex",
    "nsd_tolerance_mm",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """One pretraining.

    Attributes:
        seconds: its wall time.
        weights: the weights file.
        sha256: its content.
        learned: its curves' last values: terms of the loss, probes of the embedding.
    """

    seconds: float
    weights: str = ""
    sha256: str = ""
    learned: dict[str, float] = field(default_factory=dict)

    __pydantic_config__ = LENIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What was asked for, and what the records do not say. Everything may be missing.

    Attributes:
        command: the only command that a file without `commands` keeps.
        commands: every command that added to the benchmark, the first one first; older files do not keep them.
        about: the environment: `versions` and whatever else is told; values may be nested.
        settings: values of the benchmark that hold for every arm.
        plan_values: every value of pretraining and fine-tuning that arms start from.
        datasets: dataset names asked for.
        budgets: label budgets asked for.
        arms: arms asked for, with or without their definitions.
        seeds: seeds asked for.
        pretraining: arm, or arm and target -> its pretraining.
        leakage: arm with a weights file -> `dataset:case` that it has seen; empty = looked for and not found. An arm
            that is not named was not looked at.
        transfer: dataset name -> arm -> `exact`, `adapted`, `fresh` -> number of tensors.
    """

    command: str = ""
    commands: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    plan_values: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    arms: tuple[str, ...] | dict[str, Arm] = ()
    seeds: tuple[int, ...] = ()
    pretraining: dict[str, Pretraining] = field(default_factory=dict)
    leakage: dict[str, tuple[str, ...]] = field(default_factory=dict)
    transfer: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    __pydantic_config__ = LENIENT

    @property
    def definitions(self) -> dict[str, Arm]:
        """Arm -> its definition; empty where only names are known."""
        return self.arms if isinstance(self.arms, dict) else {}

    def source(self, arm: str) -> str:
        """The arm that an arm's weights come from: itself, or the one that it takes them of."""
        defined = self.definitions.get(arm)
        return defined.weights_of if defined and defined.weights_of else arm

    def leaked(self, arm: str) -> dict[str, list[str]]:
        """Targets on which an arm was refused, and the test cases that its weights have seen."""
        cases: dict[str, list[str]] = {}
        for entry in self.leakage.get(self.source(arm), ()):
            dataset_name, _, case = entry.partition(":")
            cases.setdefault(dataset_name, []).append(case)
        return cases


def read_facts(folder: Path) -> Facts:
    """Read `benchmark.json`; what it does not hold comes from what the runner has left in the folder.

    Raises:
        HSSLError: a file has the wrong form.
    """
    path = folder / PLAN_FILE
    raw = read_json(path) if path.is_file() else {}
    facts = parse(Facts, _sorted_out(raw) if isinstance(raw, dict) else raw, path)
    return replace(
        facts,
        pretraining=facts.pretraining or _pretrainings(folder),
        leakage=_leakage(folder),
        transfer=facts.transfer or _transfers(folder, facts),
    )


def _sorted_out(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `Facts`: `pretraining` may hold times of pretrainings, and values that differ from the preset."""
    given = raw.get("pretraining", {})
    if not isinstance(given, Mapping):
        return dict(raw)
    timed = {arm: p for arm, p in given.items() if isinstance(p, Mapping) and "seconds" in p}
    settings = {key: raw[key] for key in (*SETTINGS, "finetuning") if raw.get(key)}
    settings |= {"pretraining": {key: value for key, value in given.items() if key not in timed}}
    return {**raw, "pretraining": timed, "settings": settings}


def _pretrainings(folder: Path) -> dict[str, Pretraining]:
    """Pretrainings whose jobs have ended; `arm, dataset` where each target has its own."""
    root = JobTable(folder).folder("pretrain")
    found = {}
    for path in sorted(root.rglob(STATE_FILE)):
        state = parse(JobState, read_json(path), path)
        if state.state == "done":
            told = path.parent / PRETRAINING_FILE
            run = parse(Pretraining, read_json(told), told) if told.is_file() else Pretraining(seconds=state.seconds)
            learned = _learned(folder / run.weights) if run.weights else {}
            found[", ".join(path.parent.relative_to(root).parts)] = replace(run, learned=learned)
    return found


def _learned(weights: Path) -> dict[str, float]:
    told = weights.with_suffix(".json")
    curves: dict[str, list[float]] = read_json(told).get("curves", {}) if told.is_file() else {}
    last = {name: values[-1] for name, values in curves.items() if values and not name.startswith(("lrs", "epoch"))}
    return {name: round(value, 4) for name, value in last.items() if isfinite(value)}


def _leakage(folder: Path) -> dict[str, tuple[str, ...]]:
    path = folder / LEAKAGE_FILE
    return parse(dict[str, tuple[str, ...]], read_json(path), path) if path.is_file() else {}


def _transfers(folder: Path, facts: Facts) -> dict[str, dict[str, dict[str, int]]]:
    """Tensors of each status, from the transfer report of one run of an arm on a dataset."""
    if not facts.settings.get("plans_name"):
        return {}
    plans_name, configuration = facts.settings["plans_name"], facts.settings["configuration"]
    tables: dict[str, dict[str, dict[str, int]]] = {}
    for dataset_name in facts.datasets:
        for arm in facts.arms:
            # nnU-Net's folder of a training; a run's plans are named after arm and seed
            folders = (folder / "nnUNet_results" / dataset_name).glob(f"*__{configuration}/fold_*/transfer.json")
            mine = [p for p in folders if re.search(rf"__{re.escape(f'{plans_name}_{arm}')}_s\d+__", p.parts[-3])]
            if mine:
                totals = read_json(min(mine))["totals"]
                tables.setdefault(dataset_name, {})[arm] = {
                    status: sum(part[status][0] for part in totals.values()) for status in STATUSES
                }
    return tables
