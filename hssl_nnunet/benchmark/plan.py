"""What a benchmark compares: `benchmark.json`, checked when it is asked for and when a later run adds to it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from hssl_nnunet.benchmark.arms import Arm, chosen_arms
from hssl_nnunet.benchmark.records import Run
from hssl_nnunet.benchmark.splits import budget_cases
from hssl_nnunet.corpus.patients import find_dataset, parse_patient_regexes
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.paths import dataset_name
from hssl_nnunet.plan_schema import check_length, finetuning_plan, preset_of_plans, pretraining_plan
from hssl_nnunet.plan_values import FinetuningPlan, PretrainingPlan
from hssl_nnunet.typed_json import STRICT, differences, merged, parse, to_json
from hssl_nnunet.versions import machine

PLAN_FILE, LEAKAGE_FILE, CASES_FILE = "benchmark.json", "leakage.json", "cases.json"
# what a later run in the same folder may not change, beside domains and patient regexes; it may add datasets, budgets,
# arms and seeds
FIXED = (
    "configuration",
    "plans_name",
    "test_fraction",
    "tune",
    "nsd_tolerance_mm",
    "min_cases",
    "pretraining",
    "finetuning",
    "plan_values",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """The file of `--values`.

    Attributes:
        pretraining: pretraining values that differ from the preset's, for every arm.
        finetuning: fine-tuning values that differ from the preset's, for every arm.
        arms: arms of the user's own, by name.
    """

    pretraining: dict[str, Any] = field(default_factory=dict)
    finetuning: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What one command asks for: these arms on each target, at each budget, with each seed."""

    datasets: tuple[str, ...]
    budgets: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkPlan:
    """What a benchmark compares; `benchmark.json` in its folder.

    Attributes:
        command: the first command.
        datasets: targets, by nnU-Net's dataset name.
        domains: datasets that arms are pretrained on; as typed none may be named: those of the earlier run, or the
            targets of the first.
        configuration: nnU-Net's configuration.
        plans_name: plans of the targets and domains.
        budgets: label budgets, as typed.
        min_cases: labelled cases that a budget given as a share never falls below.
        arms: the arms, by name.
        seeds: seeds of the fine-tuning runs: labelled cases and start.
        test_fraction: share of patients that test.
        tune: whether validation cases are scored, drawn from the rest, and the test cases left untouched.
        patient_regex: how a case's name tells the patient, as for `hssl corpus`.
        nsd_tolerance_mm: tolerance of the normalised surface Dice in mm.
        pretraining: pretraining values that differ from the preset's, for every arm.
        finetuning: fine-tuning values that differ from the preset's, for every arm.
        plan_values: every value of `pretraining` and `finetuning` that arms start from, defaults included: defaults may
            change between versions.
        device: device of every job; null = the GPU if there is one.
        about: versions and hardware.
        commands: every command that has worked on it, the first one first; an older file may have none.
        grids: what these asked for; none, as typed or in an older file: all that is named above, crossed.
    """

    command: str
    datasets: tuple[str, ...]
    domains: tuple[str, ...]
    configuration: str
    plans_name: str
    budgets: tuple[str, ...]
    min_cases: int = 1
    arms: dict[str, Arm]
    seeds: tuple[int, ...]
    test_fraction: float
    tune: bool = False
    patient_regex: tuple[str, ...]
    nsd_tolerance_mm: float
    pretraining: dict[str, object]
    finetuning: dict[str, object]
    plan_values: dict[str, dict[str, Any]] = field(default_factory=dict)
    device: str | None
    about: dict[str, object]
    commands: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()

    __pydantic_config__ = STRICT

    @property
    def asked(self) -> tuple[Grid, ...]:
        """What was asked for."""
        whole = Grid(datasets=self.datasets, budgets=self.budgets, arms=tuple(self.arms), seeds=self.seeds)
        return self.grids or (whole,)

    @property
    def runs(self) -> list[Run]:
        """Every run that was asked for, by command; of each first seeds and small budgets first."""
        asked = dict.fromkeys(run for g in self.asked for run in product(g.seeds, g.budgets, g.datasets, g.arms))
        return [Run(dataset_name=name, budget=budget, arm=arm, seed=seed) for seed, budget, name, arm in asked]

    def source(self, arm: str) -> str:
        """The arm whose weights an arm takes: another's, or its own."""
        return self.arms[arm].weights_of or arm

    def run_plans(self, arm: str, seed: int) -> str:
        """Name of the plans of an arm's runs; they hold the seed."""
        return f"{self.plans_name}_{arm}_s{seed}"


def plan_from_options(
    *,
    command: str,
    datasets: Sequence[str],
    domains: Sequence[str] | None,
    configuration: str,
    plans_name: str,
    budgets: list[str],
    min_cases: int,
    arms: Sequence[str],
    seeds: int,
    test_fraction: float,
    tune: bool,
    nsd_tolerance_mm: float,
    patient_regex: Sequence[str],
    values_file: Path | None,
    device: str | None,
) -> BenchmarkPlan:
    """The plan of a benchmark from what the user typed, every name and value checked.

    Raises:
        HSSLError: an unknown dataset, arm or value, or a wrong budget.
    """
    values = parse(Values, read_json(values_file), values_file) if values_file else Values()
    chosen, base = chosen_arms(arms, values.arms), {"pretraining": values.pretraining, "finetuning": values.finetuning}
    plan_values = resolved(plans_name, base, f"{values_file or 'the preset'}")
    for name, arm in chosen.items():
        _resolved_arm(plans_name, base, name, arm)
    return BenchmarkPlan(
        command=command,
        commands=(command,),
        datasets=tuple(dict.fromkeys(dataset_name(d) for d in datasets)),
        domains=tuple(dict.fromkeys(dataset_name(d) for d in domains or ())),
        configuration=configuration,
        plans_name=plans_name,
        budgets=_checked_budgets(budgets),
        min_cases=min_cases,
        arms=chosen,
        seeds=tuple(range(seeds)),
        test_fraction=test_fraction,
        tune=tune,
        patient_regex=tuple(patient_regex),
        nsd_tolerance_mm=nsd_tolerance_mm,
        plan_values=plan_values,
        pretraining=base["pretraining"],
        finetuning=base["finetuning"],
        device=device,
        about=machine(device),
    )


def _checked_budgets(budgets: list[str]) -> tuple[str, ...]:
    budgets = budgets[:-1] if len(budgets) > 1 and budgets[-1] == "cases" else budgets  # as in `--budgets 5 10 cases`
    for budget in budgets:
        budget_cases(budget, 1)
    return tuple(dict.fromkeys(budgets))


def resolved(plans_name: str, values: dict[str, dict[str, Any]], source: str) -> dict[str, dict[str, Any]]:
    """Whole plans of pretraining and fine-tuning: the preset's of these plans, with other values on top.

    Args:
        plans_name: name of the targets' plans.
        values: `pretraining` and `finetuning`, what differs.
        source: whose values they are.

    Raises:
        HSSLError: an unknown or wrong value, or a warm-up as long as the run.
    """
    preset, of = preset_of_plans({"plans_name": plans_name}), {key: f"`{key}` of {source}" for key in values}
    pretraining = pretraining_plan(preset, of["pretraining"], **values["pretraining"])
    finetuning = finetuning_plan(preset, of["finetuning"], **values["finetuning"])
    check_length(pretraining, of["pretraining"])
    check_length(finetuning, of["finetuning"])
    return {"pretraining": to_json(pretraining), "finetuning": to_json(finetuning)}


def _resolved_arm(plans_name: str, base: dict[str, dict[str, Any]], name: str, arm: Arm) -> dict[str, dict[str, Any]]:
    of_arm = {"pretraining": arm.pretraining, "finetuning": arm.finetuning}
    return resolved(plans_name, merged(base, of_arm), f"arm {name}")


def _whole_arm(plan: BenchmarkPlan, name: str) -> dict[str, Any]:
    """An arm with every value of its plans, a default said or left out; its description may change."""
    base: dict[str, dict[str, Any]] = {"pretraining": plan.pretraining, "finetuning": plan.finetuning}
    arm = plan.arms[name].resolved()  # older files have the path as it was typed
    values = {key: value for key, value in to_json(arm).items() if key != "description"}
    return {**values, **_resolved_arm(plan.plans_name, base, name, plan.arms[name])}


def check_same_values(before: BenchmarkPlan, plan: BenchmarkPlan, folder: Path) -> None:
    """Check that a later run adds to a benchmark and changes nothing that its records stand on.

    Domains and patient regexes that it leaves out are the earlier ones, and the order of domains says nothing.

    Args:
        before: the benchmark's plan.
        plan: the later run's.
        folder: the benchmark's folder.

    Raises:
        HSSLError: a value, a patient regex, or an arm of the same name differs, or a regex is wrong.
    """
    old, new = to_json(before), to_json(plan)
    old["plan_values"] = _completed(old["plan_values"], folder / PLAN_FILE)
    pairs = {key: (old[key], new[key]) for key in FIXED if key != "plan_values" or old[key]}  # older files lack it
    pairs["domains"] = sorted(before.domains), sorted(plan.domains or before.domains)
    names = _names(before, plan)
    was, now = (parse_patient_regexes(each.patient_regex, names) for each in (before, plan))
    for name in now.keys() & set(_names(before)):
        pairs[f"patient_regex of {name}"] = was[name].pattern if name in was else None, now[name].pattern
    for name in before.arms.keys() & plan.arms.keys():
        pairs[f"arm {name}"] = _whole_arm(before, name), _whole_arm(plan, name)
    if changed := [line for key, (was, now) in pairs.items() for line in differences(key, was, now)]:
        raise HSSLError(
            f"{folder} holds a benchmark with other values: {'; '.join(changed)}. Its records would not be "
            "comparable: repeat them as they were, or start another benchmark with `-o`."
        )


def extended(before: BenchmarkPlan, plan: BenchmarkPlan) -> BenchmarkPlan:
    """A later run's plan, with what earlier runs asked for beside it."""
    commands = dict.fromkeys((*(before.commands or (before.command,)), *plan.commands))
    return replace(
        plan,
        command=before.command,
        commands=tuple(commands),
        datasets=tuple(dict.fromkeys((*before.datasets, *plan.datasets))),
        domains=before.domains,
        patient_regex=(*before.patient_regex, *regexes_of(plan, set(_names(plan)) - set(_names(before)))),
        budgets=tuple(dict.fromkeys((*before.budgets, *plan.budgets))),
        seeds=tuple(sorted({*before.seeds, *plan.seeds})),
        arms={**before.arms, **plan.arms},
        grids=tuple(dict.fromkeys((*before.asked, *plan.asked))),
    )


def patterns_of(plan: BenchmarkPlan) -> dict[str, re.Pattern[str]]:
    """The benchmark's patient regexes, by dataset name.

    Raises:
        HSSLError: a wrong one.
    """
    return parse_patient_regexes(plan.patient_regex, _names(plan))


def regexes_of(plan: BenchmarkPlan, names: Collection[str]) -> list[str]:
    """The patient regexes of some of the benchmark's datasets, as typed."""
    return [text for text in plan.patient_regex if find_dataset(text.partition("=")[0], list(names))]


def _names(*plans: BenchmarkPlan) -> list[str]:
    return list(dict.fromkeys(name for plan in plans for name in (*plan.datasets, *plan.domains)))


def _completed(plan_values: dict[str, dict[str, Any]], source: Path) -> dict[str, dict[str, Any]]:
    """Whole plans as this version has them: a value that is younger than the benchmark has what it stood for then."""
    kinds = {"pretraining": PretrainingPlan, "finetuning": FinetuningPlan}
    return {key: to_json(parse(kinds[key], value, source)) for key, value in plan_values.items()}
