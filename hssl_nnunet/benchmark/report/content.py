"""What the page is made of: the plan and records of a benchmark's folder, and what else its jobs have left there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ConfigDict

from hssl_nnunet.benchmark.job import PRETRAIN, PRETRAINING_FILE
from hssl_nnunet.benchmark.jobs import STATE_FILE, JobState, JobTable
from hssl_nnunet.benchmark.leakage import read_findings, refused_arms
from hssl_nnunet.benchmark.pairing import budget_size
from hssl_nnunet.benchmark.plan import CASES_FILE, BenchmarkPlan
from hssl_nnunet.benchmark.records import Run, RunRecord, read_records
from hssl_nnunet.benchmark.statistics import BASELINES
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.typed_json import STRICT, parse

STATUSES = ("exact", "adapted", "fresh")  # of a tensor in a transfer, as in transfer.report


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseFiles:
    """Where a test case lies; a relative path begins in the benchmark's folder.

    Attributes:
        image: its image, one channel.
        truth: its mask.
    """

    image: str
    truth: str

    __pydantic_config__ = STRICT


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

    __pydantic_config__ = ConfigDict(extra="ignore")  # a job may write more than the page shows


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """Everything that the page shows.

    Attributes:
        folder: the benchmark's folder.
        plan: what was asked for.
        records: one for each run that has ended; at least one.
        cases: dataset name -> case -> its files; an older folder has none.
        pretraining: arm, or arm and target -> its pretraining.
        leakage: arm with a weights file -> `dataset:case` that it has seen; empty = looked for and not found. An arm
            that is not named was not looked at.
        transfer: dataset name -> arm -> `exact`, `adapted`, `fresh` -> number of tensors.
    """

    folder: Path
    plan: BenchmarkPlan
    records: tuple[RunRecord, ...]
    cases: dict[str, dict[str, CaseFiles]]
    pretraining: dict[str, Pretraining]
    leakage: dict[str, list[str]]
    transfer: dict[str, dict[str, dict[str, int]]]

    @property
    def datasets(self) -> list[str]:
        """Datasets with a record, in the order asked for."""
        return _in_order(self.plan.datasets, (r.dataset_name for r in self.records))

    @property
    def arms(self) -> list[str]:
        """Arms with a record, in the order asked for."""
        return _in_order(self.plan.arms, (r.arm for r in self.records))

    @property
    def baselines(self) -> list[str]:
        """Baselines that there is a record of; all of them where there is none."""
        return [baseline for baseline in BASELINES if baseline in self.arms] or list(BASELINES)

    def budgets(self, dataset_name: str | None = None) -> list[str]:
        """Label budgets with a record, of one dataset or of all, the fewest labelled cases first."""
        cases: dict[str, list[int]] = {}
        for record in self.records:
            if dataset_name in (None, record.dataset_name):
                cases.setdefault(record.budget, []).append(len(record.training_cases))
        return sorted(cases, key=lambda budget: (median(cases[budget]), budget_size(budget)))

    @property
    def places(self) -> list[tuple[str, str]]:
        """Each dataset with each of its budgets."""
        return [(name, budget) for name in self.datasets for budget in self.budgets(name)]

    def at(self, dataset_name: str, budget: str) -> list[RunRecord]:
        """Records of a dataset at a budget."""
        return [r for r in self.records if (r.dataset_name, r.budget) == (dataset_name, budget)]

    def of(self, dataset_name: str, budget: str, arm: str) -> list[RunRecord]:
        """Records of an arm on a dataset at a budget, by seed."""
        return sorted((r for r in self.at(dataset_name, budget) if r.arm == arm), key=lambda r: r.seed)

    def leaked(self, arm: str) -> dict[str, list[str]]:
        """Targets on which an arm was refused, and the test cases that its weights have seen."""
        refused = refused_arms(self.plan, self.leakage)
        return {target: [c.partition(":")[2] for c in seen] for (name, target), seen in refused.items() if name == arm}


@dataclass(frozen=True, kw_only=True, slots=True)
class NotRun:
    """Runs that were asked for and have no record.

    Attributes:
        dataset_name: the target.
        budget: the label budget.
        arm: the arm.
        seeds: its seeds without a record.
        why: what became of them, such as `failed: out of memory`.
    """

    dataset_name: str
    budget: str
    arm: str
    seeds: tuple[int, ...]
    why: str


def read_content(folder: Path) -> Content:
    """Read a benchmark's folder.

    Raises:
        HSSLError: no run has ended there, or a file is missing or has the wrong form.
    """
    records = read_records(folder)
    if not records:
        raise HSSLError(
            f"{folder} holds no finished run (expected runs/<dataset>/<budget>/<arm>/seed_<seed>/record.json). "
            f"Run `hssl benchmark run -o {folder}` first; `hssl benchmark status {folder}` tells how far it is."
        )
    workspace, cases = Workspace(folder), folder / CASES_FILE
    plan = workspace.plan()
    return Content(
        folder=folder,
        plan=plan,
        records=tuple(records),
        cases=parse(dict[str, dict[str, CaseFiles]], read_json(cases), cases) if cases.is_file() else {},
        pretraining=_pretrainings(folder),
        leakage=read_findings(folder),
        transfer=_transfers(workspace, plan),
    )


def _pretrainings(folder: Path) -> dict[str, Pretraining]:
    """Pretrainings whose jobs have ended; `arm, dataset` where each target has its own."""
    root = JobTable(folder).folder(PRETRAIN)
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
    content = parse(dict[str, Any], read_json(told), told) if told.is_file() else {}
    curves = parse(dict[str, list[float]], content.get("curves", {}), told)
    last = {name: values[-1] for name, values in curves.items() if values and not name.startswith(("lrs", "epoch"))}
    return {name: round(value, 4) for name, value in last.items() if isfinite(value)}


def _transfers(workspace: Workspace, plan: BenchmarkPlan) -> dict[str, dict[str, dict[str, int]]]:
    """Tensors of each status, from the transfer report of the first run of an arm on a dataset."""
    tables: dict[str, dict[str, dict[str, int]]] = {}
    for dataset_name, arm in product(plan.datasets, plan.arms):
        folders = [workspace.training(plan, dataset_name, arm, seed) for seed in plan.seeds]
        if reports := [path for folder in folders for path in sorted(folder.glob("fold_*/transfer.json"))]:
            told = parse(dict[str, Any], read_json(reports[0]), reports[0])
            totals = parse(dict[str, dict[str, list[int]]], told.get("totals"), reports[0]).values()
            counts = {s: sum(n for part in totals for n in part.get(s, [])[:1]) for s in STATUSES}
            tables.setdefault(dataset_name, {})[arm] = counts
    return tables


def not_run(content: Content) -> list[NotRun]:
    """What was asked for, less the records."""
    plan, done = content.plan, {r.name for r in content.records}
    left: dict[tuple[str, str, str, str], list[int]] = {}
    for run in sorted(plan.runs, key=lambda run: plan.datasets.index(run.dataset_name)):
        if run.name not in done:
            left.setdefault((run.dataset_name, run.budget, run.arm, _why(content, run)), []).append(run.seed)
    return [
        NotRun(dataset_name=dataset_name, budget=budget, arm=arm, seeds=tuple(seeds), why=why)
        for (dataset_name, budget, arm, why), seeds in left.items()
    ]


def _why(content: Content, run: Run) -> str:
    """Why a run has no record: its arm was refused there, or the state of its job."""
    if run.dataset_name in content.leaked(run.arm):
        return "refused: its pretraining has seen test cases"
    state = JobTable(content.folder).state(run.job)
    return f"{state.state}: {state.error}" if state.error else state.state


def _in_order(wanted: Collection[str], there: Iterable[str]) -> list[str]:
    found = set(there)
    return [*(name for name in wanted if name in found), *sorted(found.difference(wanted))]
