"""What the page is made of: the records of a benchmark's folder, and the files beside them where they are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ConfigDict

from hssl_nnunet.benchmark.records import RunRecord, read_records
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.plan_schema import parse

BENCHMARK_FILE, CASES_FILE = "benchmark.json", "cases.json"
LENIENT = ConfigDict(extra="ignore")  # the runner may write more than the page shows


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """One pretraining.

    Attributes:
        seconds: its wall time.
        weights: the weights file.
        sha256: its content.
    """

    seconds: float
    weights: str = ""
    sha256: str = ""

    __pydantic_config__ = LENIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What the leakage guard found for an arm on a dataset.

    Attributes:
        arm: the arm whose weights were looked at.
        dataset: the target.
        overlap: images or patients that pretraining and test set share; empty = clean.
    """

    arm: str
    dataset: str
    overlap: tuple[str, ...] = ()

    __pydantic_config__ = LENIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """`benchmark.json`: what was asked for, and what the records do not say. Every key may be missing.

    Attributes:
        command: the command that made the benchmark.
        commands: every command behind it, in order.
        about: the environment: `versions`, `cpu`, `device` and whatever else is told; values may be nested.
        datasets: dataset names asked for.
        budgets: label budgets asked for.
        arms: arms asked for.
        seeds: seeds asked for.
        pretraining: arm -> its pretraining.
        leakage: what the leakage guard found.
        transfer: dataset name -> arm -> `exact`, `adapted`, `fresh` -> number of tensors.
    """

    command: str = ""
    commands: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    pretraining: dict[str, Pretraining] = field(default_factory=dict)
    leakage: tuple[Audit, ...] = ()
    transfer: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    __pydantic_config__ = LENIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseFiles:
    """Where a test case lies; a relative path begins in the benchmark's folder.

    Attributes:
        image: its image, one channel.
        truth: its mask.
        label_names: names of the mask's values.
    """

    image: str
    truth: str
    label_names: dict[str, Any] = field(default_factory=dict)

    __pydantic_config__ = LENIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """Everything that the page shows.

    Attributes:
        folder: the benchmark's folder.
        records: one for each run that has ended; at least one.
        facts: `benchmark.json`, empty without one.
        cases: dataset name -> case -> its files; empty without `cases.json`.
    """

    folder: Path
    records: tuple[RunRecord, ...]
    facts: Facts
    cases: dict[str, dict[str, CaseFiles]]

    @property
    def datasets(self) -> list[str]:
        """Datasets with a record, in the order asked for."""
        return _in_order(self.facts.datasets, (r.dataset_name for r in self.records))

    @property
    def arms(self) -> list[str]:
        """Arms with a record, in the order asked for."""
        return _in_order(self.facts.arms, (r.arm for r in self.records))

    def budgets(self, dataset_name: str | None = None) -> list[str]:
        """Label budgets with a record, of one dataset or of all, the fewest labelled cases first."""
        cases: dict[str, list[int]] = {}
        for record in self.records:
            if dataset_name in (None, record.dataset_name):
                cases.setdefault(record.budget, []).append(len(record.training_cases))
        return sorted(cases, key=lambda budget: (median(cases[budget]), budget))

    def of(self, dataset_name: str, budget: str, arm: str) -> list[RunRecord]:
        """Records of an arm on a dataset at a budget, by seed."""
        found = [r for r in self.records if (r.dataset_name, r.budget, r.arm) == (dataset_name, budget, arm)]
        return sorted(found, key=lambda r: r.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class NotRun:
    """Runs that were asked for and have no record.

    Attributes:
        dataset_name: the target.
        budget: the label budget.
        arm: the arm.
        seeds: its seeds without a record.
    """

    dataset_name: str
    budget: str
    arm: str
    seeds: tuple[int, ...]

    @property
    def seed_count(self) -> int:
        """Number of runs."""
        return len(self.seeds)


def read_content(folder: Path) -> Content:
    """Read a benchmark's folder.

    Raises:
        HSSLError: no run has ended there, or a file has the wrong form.
    """
    records = read_records(folder)
    if not records:
        raise HSSLError(
            f"{folder} holds no finished run (expected runs/<dataset>/<budget>/<arm>/seed_<seed>/record.json). "
            f"Run `hssl benchmark run -o {folder}` first; `hssl benchmark status {folder}` tells how far it is."
        )
    facts, cases = folder / BENCHMARK_FILE, folder / CASES_FILE
    return Content(
        folder=folder,
        records=tuple(records),
        facts=parse(Facts, read_json(facts), facts) if facts.is_file() else Facts(),
        cases=parse(dict[str, dict[str, CaseFiles]], read_json(cases), cases) if cases.is_file() else {},
    )


def not_run(content: Content) -> list[NotRun]:
    """The grid that was asked for, less the records; what `benchmark.json` leaves open is taken from the records."""
    facts, records = content.facts, content.records
    done = {(r.dataset_name, r.budget, r.arm, r.seed) for r in records}
    seeds = facts.seeds or tuple(sorted({r.seed for r in records}))
    missing = []
    for dataset_name in facts.datasets or content.datasets:
        for budget in facts.budgets or content.budgets():
            for arm in facts.arms or content.arms:
                left = tuple(s for s in seeds if (dataset_name, budget, arm, s) not in done)
                if left:
                    missing.append(NotRun(dataset_name=dataset_name, budget=budget, arm=arm, seeds=left))
    return missing


def _in_order(wanted: Sequence[str], there: Iterable[str]) -> list[str]:
    found = set(there)
    return [*(name for name in wanted if name in found), *sorted(found.difference(wanted))]
