"""`hssl benchmark run`: fix the splits, check for leakage, make the table of jobs, run it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hssl_nnunet.benchmark.data import Measured, checked_data, data_state, measured, write_data
from hssl_nnunet.benchmark.job import continued_job, pretrained, pretraining_job, weights_there
from hssl_nnunet.benchmark.jobs import Job, JobState, JobTable, Runner, shard, with_needs
from hssl_nnunet.benchmark.leakage import audit, read_findings, refused_arms, with_earlier
from hssl_nnunet.benchmark.masks import Mask, masks_of
from hssl_nnunet.benchmark.plan import CASES_FILE, LEAKAGE_FILE, BenchmarkPlan, patterns_of, plan_from_options
from hssl_nnunet.benchmark.records import FINETUNE, Run, check_same_weights
from hssl_nnunet.benchmark.splits import CaseInfo, DatasetSplit, fixed_splits, with_copies_joined, write_splits
from hssl_nnunet.benchmark.workspace import Workspace, nnunet_splits
from hssl_nnunet.corpus.cases import read_raw_dataset
from hssl_nnunet.corpus.patients import patient_of
from hssl_nnunet.device import choose_device
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.locks import claimed, in_use
from hssl_nnunet.paths import preprocessed_dir
from hssl_nnunet.plan_schema import load_preset
from hssl_nnunet.ranks import available_cpus
from hssl_nnunet.typed_json import parse


def plan_as_typed(
    *,
    datasets: Sequence[str],
    domains: Sequence[str] | None,
    weights: Sequence[Path] | None,
    arms: Sequence[str],
    plans_name: str,
    preset: str | None,
    patient_regex: Sequence[str] | None,
    values: Path | None,
    **others: Any,
) -> BenchmarkPlan:
    """The plan of what follows `hssl benchmark run`: each weights file is an arm, and a preset stands for its plans.

    Raises:
        HSSLError: an unknown dataset, arm, preset or value, or a wrong budget.
    """
    return plan_from_options(
        command=shlex.join(["hssl", *sys.argv[1:]]),
        datasets=datasets,
        domains=domains,
        plans_name=load_preset(preset).plans_name if preset else plans_name,
        arms=[*arms, *(f"external:{path}" for path in weights or ())],
        patient_regex=patient_regex or (),
        values_file=values,
        **others,
    )


def run_benchmark(folder: Path, plan: BenchmarkPlan, workers: int, part: str | None) -> int:
    """Run what is not done of a benchmark.

    Args:
        folder: the benchmark's folder.
        plan: what to compare; the plan of an earlier run may differ, its records stay.
        workers: jobs at a time.
        part: `i/n`, the share of this runner; None = all.

    Returns:
        Exit code: 0, or 1 when a job failed.

    Raises:
        HSSLError: the device, the part or the plan is refused; nothing is written then.
    """
    choose_device(plan.device)
    if part:
        shard((), part)
    workspace = Workspace(folder)
    jobs, refused = prepare(workspace, plan)
    for (arm, name), images in refused.items():
        told = f"it was pretrained on test cases or patients: {', '.join(images)}"
        print(f"Arm {arm} is refused on {name}: {told}", file=sys.stderr)
    # every shard counts the whole grid: others may have started before an arm was refused
    chosen, table = allowed(shard(jobs, part) if part else jobs, refused), JobTable(folder)
    forget_lost(table, workspace, chosen)
    states = Runner(table, workers, {**workspace.environment, **shared_threads(workers)}).run(chosen)
    counts = Counter(state.state for state in states.values())
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return 0 if counts["done"] == len(states) else 1


def forget_lost(table: JobTable, workspace: Workspace, jobs: Sequence[Job]) -> None:
    """Set back what has ended and was removed since: runs without their record, and the weights that these need."""
    # the state first: whoever ends a job writes the record before it
    done = {job.name for job in jobs if table.state(job.name).state == "done"}
    lost = {job.name for job, run in _runs(jobs).items() if not run.record_file(workspace.folder).is_file()}
    for job in reversed(jobs):  # needs come before what needs them
        if job.name in lost:
            lost |= {need for need in job.needs if pretrained(workspace, need) is None}
    for name in done & lost:
        table.write(name, JobState())


def _runs(jobs: Collection[Job]) -> dict[Job, Run]:
    """The jobs that fine-tune, and their runs."""
    return {job: Run.of_job(job.name) for job in jobs if job.name.startswith(f"{FINETUNE}/")}


def shared_threads(workers: int) -> dict[str, str]:
    """The variable that lets `workers` jobs share the cores evenly, unless the user has set it."""
    name = "OMP_NUM_THREADS"
    return {} if name in os.environ else {name: str(max(1, available_cpus() // workers))}


def prepare(workspace: Workspace, plan: BenchmarkPlan) -> tuple[list[Job], dict[tuple[str, str], list[str]]]:
    """Everything before the first job: links, splits, folds, leakage audit, plan; written once all is checked.

    One command at a time: what two of them add to the folds must not interleave.

    Returns:
        The jobs of the whole grid, needs first, and what is refused of it: arm and target -> the test cases that
        overlap.

    Raises:
        HSSLError: the plan or the data are refused, or the folder cannot be written.
    """
    if in_use(workspace.folder):
        print(f"Another command prepares {workspace.folder}. Waiting for it.", file=sys.stderr)
    with claimed(workspace.folder, wait=True):
        return _prepared(workspace, plan)


def _prepared(workspace: Workspace, plan: BenchmarkPlan) -> tuple[list[Job], dict[tuple[str, str], list[str]]]:
    whole = workspace.check_plan(plan)
    data, masks = _data(workspace, plan, whole)
    states = checked_data(workspace.folder, {name: data_state(one, masks.get(name, {})) for name, one in data.items()})
    patterns, contents = patterns_of(whole), {name: data[name].contents for name in plan.datasets}
    cases = {name: with_copies_joined(_cases(name, masks[name], patterns), contents[name]) for name in plan.datasets}
    folds = workspace.folds(plan)
    seeds = sorted({*plan.seeds, *(seed for seed, _ in folds)})  # a dataset that is new needs those of earlier runs
    splits = fixed_splits(workspace.folder, cases, plan.test_fraction, seeds, plan.tune)
    of_datasets = {name: nnunet_splits(plan, splits[name], folds) for name in plan.datasets}
    weights = _own_weights(workspace, plan)
    audited = audit(weights, splits, contents, patterns)
    check_same_weights(workspace.folder, weights)
    write_data(workspace.folder, states)
    workspace.write_plan(whole)
    write_splits(workspace.folder, splits)
    workspace.write_folds(folds, of_datasets)
    findings = with_earlier(audited, read_findings(workspace.folder), set(product(plan.arms, plan.datasets)))
    write_json(workspace.folder / LEAKAGE_FILE, findings)
    _write_case_files(workspace.folder, plan, splits)
    return jobs_of(workspace.folder, plan), refused_arms(plan, findings)


def _data(
    workspace: Workspace, plan: BenchmarkPlan, whole: BenchmarkPlan
) -> tuple[dict[str, Measured], dict[str, dict[str, Mask]]]:
    """Targets and domains, measured and linked, and the masks of the targets."""
    data = measured(whole, dict.fromkeys((*plan.datasets, *whole.domains)))
    for name in data:  # once measured: the links are to lead to what was measured
        workspace.link(preprocessed_dir() / name)
    identifiers = {name: data[name].source.configuration["data_identifier"] for name in plan.datasets}
    masks = {name: masks_of(workspace.folder, workspace.preprocessed / name, of) for name, of in identifiers.items()}
    return data, masks


def _own_weights(workspace: Workspace, plan: BenchmarkPlan) -> dict[tuple[str, str], Path]:
    """Arm and target -> its weights file, where it is there; arms on another's weights have seen what that one has."""
    own = [pair for pair in product(plan.arms, plan.datasets) if plan.source(pair[0]) == pair[0]]
    return {pair: path for pair in own if (path := weights_there(workspace, plan, *pair)) is not None}


def _write_case_files(folder: Path, plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit]) -> None:
    """Keep where the test cases lie, beside those of earlier runs."""
    path = folder / CASES_FILE
    earlier = parse(dict[str, Any], read_json(path), path) if path.is_file() else {}
    write_json(path, {**earlier, **_case_files(plan, splits)})


def _cases(dataset_name: str, masks: Mapping[str, Mask], patterns: Mapping[str, re.Pattern[str]]) -> list[CaseInfo]:
    return [
        CaseInfo(case=case, patient=patient_of(case, dataset_name, patterns), labels=frozenset(mask.labels))
        for case, mask in masks.items()
    ]


def jobs_of(folder: Path, plan: BenchmarkPlan) -> list[Job]:
    """Jobs of a benchmark: pretrainings first, then every run asked for, small budgets and first seeds first."""
    needs = {run: pretraining_job(plan, run.arm, run.dataset_name) for run in plan.runs}
    made = {job: continued_job(plan, run.arm, run.dataset_name) for run, job in needs.items() if job is not None}
    first = [job for job in dict.fromkeys(made.values()) if job is not None]
    before = {job: None for job in first} | made | {run.job: need for run, need in needs.items()}
    module = (sys.executable, "-m", "hssl_nnunet.benchmark.job", str(folder.resolve()))
    return [Job(name=n, needs=(need,) if need else (), command=(*module, n)) for n, need in before.items()]


def allowed(jobs: Sequence[Job], refused: Collection[tuple[str, str]]) -> list[Job]:
    """Jobs without the runs of arms that are refused on a target, and without pretrainings that no other run needs."""
    kept = [job for job, run in _runs(jobs).items() if (run.arm, run.dataset_name) not in refused]
    return with_needs(kept, jobs)


def _case_files(plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit]) -> dict[str, object]:
    """Image and truth of each test case, for the report's pictures."""
    files: dict[str, object] = {}
    for name in plan.datasets:
        dataset = read_raw_dataset(name)
        files[name] = {
            case.name: {"image": str(case.images[0]), "truth": str(case.mask)}
            for case in dataset.labelled
            if case.name in splits[name].test
        }
    return files


def status_table(folder: Path) -> Table:
    """One line a job: state, attempts, minutes; below, what ended each failed one and where its log is.

    Raises:
        HSSLError: the folder holds no benchmark.
    """
    plan = Workspace(folder).plan()
    table, states = JobTable(folder), Counter[str]()
    shown = Table("job", "state", "started", "attempts", "minutes", caption_justify="left")
    failed = []
    for job in allowed(jobs_of(folder, plan), refused_arms(plan, read_findings(folder))):
        state = table.state(job.name)
        states[state.state] += 1
        shown.add_row(job.name, state.state, state.started, str(state.attempts), f"{state.seconds / 60:.1f}")
        if state.state == "failed":
            failed.append(f"{job.name}: {state.error}; see {table.log(job.name)}")
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    shown.caption = escape("\n".join([counts, *failed]))
    return shown
