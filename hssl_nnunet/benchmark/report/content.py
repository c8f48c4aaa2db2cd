"""What the page is made of: the records of a benchmark's folder, and the files beside them where they are there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from hssl_nnunet.benchmark.jobs import JobTable
from hssl_nnunet.benchmark.plan import CASES_FILE
from hssl_nnunet.benchmark.records import RunRecord, read_records
from hssl_nnunet.benchmark.report.facts import LENIENT, Facts, read_facts
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.typed_json import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseFiles:
    """Where a test case lies; a relative path begins in the benchmark's folder.

    Attributes:
        image: its image, one channel.
        truth: its mask.
    """

    image: str
    truth: str

    __pydantic_config__ = LENIENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """Everything that the page shows.

    Attributes:
        folder: the benchmark's folder.
        records: one for each run that has ended; at least one.
        facts: what else is known.
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
        HSSLError: no run has ended there, or a file has the wrong form.
    """
    records = read_records(folder)
    if not records:
        raise HSSLError(
            f"{folder} holds no finished run (expected runs/<dataset>/<budget>/<arm>/seed_<seed>/record.json). "
            f"Run `hssl benchmark run -o {folder}` first; `hssl benchmark status {folder}` tells how far it is."
        )
    cases = folder / CASES_FILE
    return Content(
        folder=folder,
        records=tuple(records),
        facts=read_facts(folder),
        cases=parse(dict[str, dict[str, CaseFiles]], read_json(cases), cases) if cases.is_file() else {},
    )


def not_run(content: Content) -> list[NotRun]:
    """The grid that was asked for, less the records; what `benchmark.json` leaves open is taken from the records."""
    facts, records = content.facts, content.records
    grid = facts.datasets or content.datasets, facts.budgets or content.budgets(), facts.arms or content.arms
    seeds = facts.seeds or tuple(sorted({r.seed for r in records}))
    done = {(r.dataset_name, r.budget, r.arm, r.seed) for r in records}
    reasons: dict[tuple[str, str, str, str], list[int]] = {}
    for *where, seed in product(*grid, seeds):
        dataset_name, budget, arm = map(str, where)
        if (dataset_name, budget, arm, seed) not in done:
            why = _why(content, dataset_name, budget, arm, seed)
            reasons.setdefault((dataset_name, budget, arm, why), []).append(seed)
    return [
        NotRun(dataset_name=dataset_name, budget=budget, arm=arm, seeds=tuple(left), why=why)
        for (dataset_name, budget, arm, why), left in reasons.items()
    ]


def _why(content: Content, dataset_name: str, budget: str, arm: str, seed: int) -> str:
    """Why a run has no record: its arm was refused there, or the state of its job."""
    if dataset_name in content.facts.leaked(arm):
        return "refused: its pretraining has seen test cases"
    state = JobTable(content.folder).state(f"finetune/{dataset_name}/{budget}/{arm}/seed_{seed}")
    return f"{state.state}: {state.error}" if state.error else state.state


def _in_order(wanted: Collection[str], there: Iterable[str]) -> list[str]:
    found = set(there)
    return [*(name for name in wanted if name in found), *sorted(found.difference(wanted))]
