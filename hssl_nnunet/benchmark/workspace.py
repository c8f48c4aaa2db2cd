"""A benchmark's own view of nnU-Net's folders: the user's preprocessed data by link, with splits and plans of its own.

`<folder>/nnUNet_preprocessed/<Dataset>` links to everything in the user's folder but its splits and seeded plans, so
that no voxel is copied and nothing of the user's is changed; only what `hssl corpus` too keeps there of measured images
grows. Results go to `<folder>/nnUNet_results`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from hssl_nnunet.benchmark.arms import Arm, chosen_arms
from hssl_nnunet.benchmark.splits import DatasetSplit, budget_cases
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RESULTS, dataset_name
from hssl_nnunet.plan_schema import (
    SEEDED_SUFFIX,
    FinetuningPlan,
    PretrainingPlan,
    TargetBlock,
    finetuning_plan,
    preset_of_plans,
    pretraining_plan,
)
from hssl_nnunet.transfer.weights_file import file_sha256
from hssl_nnunet.typed_json import merged, parse, to_json
from hssl_nnunet.versions import machine

PLAN_FILE = "benchmark.json"
# what a later run in the same folder may not change; it may add datasets, budgets, arms and seeds
FIXED = (
    "domains",
    "configuration",
    "plans_name",
    "test_fraction",
    "tune",
    "patient_regex",
    "nsd_tolerance_mm",
    "min_cases",
    "pretraining",
    "finetuning",
    "plan_values",
)
SPLITS_FILE, FOLDS_FILE = "splits_final.json", "folds.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkPlan:
    """What a benchmark compares; `benchmark.json` in its folder.

    Attributes:
        command: the first command.
        datasets: targets, by nnU-Net's dataset name.
        domains: datasets that arms are pretrained on.
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
        commands: every command that has worked on it, the first one first, once there are several.
    """

    command: str
    datasets: tuple[str, ...]
    domains: tuple[str, ...]
    configuration: str
    plans_name: str
    budgets: tuple[str, ...]
    min_cases: int
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

    __pydantic_config__ = ConfigDict(extra="forbid")


def plan_from_options(
    *,
    command: str,
    datasets: Sequence[str],
    domains: Sequence[str],
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
    budgets = budgets[:-1] if budgets[-1:] == ["cases"] else budgets  # as in `--budgets 5 10 cases`
    for budget in budgets:
        budget_cases(budget, 1)
    values = read_json(values_file) if values_file else {}
    if unknown := sorted(values.keys() - {"pretraining", "finetuning", "arms"}):
        raise HSSLError(f"{values_file}: unknown keys {', '.join(unknown)}; known: pretraining, finetuning, arms.")
    own = parse(dict[str, Arm], values.get("arms", {}), f"`arms` of {values_file}")
    chosen, base = chosen_arms(arms, own), {key: values.get(key, {}) for key in ("pretraining", "finetuning")}
    plan_values = resolved(plans_name, base, f"{values_file or 'the preset'}")
    for name, arm in chosen.items():
        _resolved_arm(plans_name, base, name, arm)
    return BenchmarkPlan(
        command=command,
        datasets=tuple(dataset_name(d) for d in datasets),
        domains=tuple(dataset_name(d) for d in domains),
        configuration=configuration,
        plans_name=plans_name,
        budgets=tuple(dict.fromkeys(budgets)),
        min_cases=min_cases,
        arms=chosen,
        seeds=tuple(range(seeds)),
        test_fraction=test_fraction,
        tune=tune,
        patient_regex=tuple(patient_regex),
        nsd_tolerance_mm=nsd_tolerance_mm,
        plan_values=plan_values,
        **base,
        device=device,
        about=machine(device),
    )


def resolved(plans_name: str, values: dict[str, dict[str, Any]], source: str) -> dict[str, dict[str, Any]]:
    """Whole plans of pretraining and fine-tuning: the preset's of these plans, with other values on top.

    Args:
        plans_name: name of the targets' plans.
        values: `pretraining` and `finetuning`, what differs.
        source: whose values they are.

    Raises:
        HSSLError: an unknown or wrong value.
    """
    preset = preset_of_plans({"plans_name": plans_name})
    plans = {
        "pretraining": pretraining_plan(preset, f"`pretraining` of {source}", **values["pretraining"]),
        "finetuning": finetuning_plan(preset, f"`finetuning` of {source}", **values["finetuning"]),
    }
    return {key: to_json(plan) for key, plan in plans.items()}


def _resolved_arm(plans_name: str, base: dict[str, dict[str, Any]], name: str, arm: Arm) -> dict[str, dict[str, Any]]:
    of_arm = {"pretraining": arm.pretraining, "finetuning": arm.finetuning}
    return resolved(plans_name, merged(base, of_arm), f"arm {name}")


def _whole_arm(plan: BenchmarkPlan, name: str) -> dict[str, Any]:
    """An arm with every value of its plans: it may say a default, or leave it out."""
    base: dict[str, dict[str, Any]] = {"pretraining": plan.pretraining, "finetuning": plan.finetuning}
    return {**to_json(plan.arms[name]), **_resolved_arm(plan.plans_name, base, name, plan.arms[name])}


class Workspace:
    """The folder of a benchmark."""

    def __init__(self, folder: Path):
        """Name the folder; nothing is written yet.

        Args:
            folder: the benchmark's folder.
        """
        self.folder = folder.resolve()
        self.preprocessed = self.folder / ENV_PREPROCESSED
        self.results = self.folder / ENV_RESULTS

    @property
    def environment(self) -> dict[str, str]:
        """nnU-Net's variables for the jobs; the raw folder stays the user's."""
        return {ENV_PREPROCESSED: str(self.preprocessed), ENV_RESULTS: str(self.results)}

    def plan(self) -> BenchmarkPlan:
        """The benchmark's plan.

        Raises:
            HSSLError: there is none, or it is wrong.
        """
        path = self.folder / PLAN_FILE
        return parse(BenchmarkPlan, read_json(path, "Run `hssl benchmark run -d ... -o ...` first."), path)

    def check_plan(self, plan: BenchmarkPlan) -> None:
        """Check that a later run adds to a benchmark and changes nothing that its records stand on.

        Raises:
            HSSLError: a value, or an arm of the same name, differs from the earlier run's.
        """
        if not (self.folder / PLAN_FILE).is_file():
            return
        before = self.plan()
        old, new = to_json(before), to_json(plan)
        old["plan_values"] = _completed(old["plan_values"], self.folder / PLAN_FILE)
        pairs = {key: (old[key], new[key]) for key in FIXED if key != "plan_values" or old[key]}  # older files lack it
        for name in before.arms.keys() & plan.arms.keys():
            pairs[f"arm {name}"] = _whole_arm(before, name), _whole_arm(plan, name)
        if changed := [line for key, (was, now) in pairs.items() for line in _differences(key, was, now)]:
            raise HSSLError(
                f"{self.folder} holds a benchmark with other values: {'; '.join(changed)}. Its records would not be "
                "comparable: repeat them as they were, or start another benchmark with `-o`."
            )

    def write_plan(self, plan: BenchmarkPlan) -> None:
        """Keep the plan, with what earlier runs asked for beside it."""
        if (self.folder / PLAN_FILE).is_file():
            old = self.plan()
            commands = dict.fromkeys((*(old.commands or (old.command,)), plan.command))
            plan = replace(
                plan,
                command=old.command,
                commands=tuple(commands),
                datasets=tuple(dict.fromkeys((*old.datasets, *plan.datasets))),
                budgets=tuple(dict.fromkeys((*old.budgets, *plan.budgets))),
                seeds=tuple(sorted({*old.seeds, *plan.seeds})),
                arms={**old.arms, **plan.arms},
            )
        write_json(self.folder / PLAN_FILE, to_json(plan))

    def link(self, source: Path) -> Path:
        """Link a dataset's preprocessed folder, entry by entry; entries that are there already stay.

        Args:
            source: `nnUNet_preprocessed/<Dataset>` of the user.

        Raises:
            HSSLError: the folder is missing.
        """
        if not source.is_dir():
            raise HSSLError(f"{source} does not exist. Run `hssl plan_and_preprocess -d {source.name}` first.")
        target = self.preprocessed / source.name
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            own = entry.name == SPLITS_FILE or entry.name.endswith(f"{SEEDED_SUFFIX}.json")
            if not own and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry.resolve())
        self.results.mkdir(exist_ok=True)
        return target

    def folds(self, plan: BenchmarkPlan) -> list[tuple[int, str]]:
        """Seed and budget of each of nnU-Net's folds; a later run with more of them adds folds at the end."""
        path = self.folder / FOLDS_FILE
        known = [(int(seed), str(budget)) for seed, budget in (read_json(path) if path.is_file() else [])]
        wanted = [(seed, budget) for seed in plan.seeds for budget in plan.budgets]
        folds = known + [pair for pair in wanted if pair not in known]
        if folds != known:
            write_json(path, folds)
        return folds

    def write_folds(
        self, dataset_name: str, split: DatasetSplit, folds: Sequence[tuple[int, str]], min_cases: int
    ) -> None:
        """nnU-Net's splits of a dataset: a fold for each seed and budget, the test cases as validation of all."""
        labelled = [split.labelled(seed, budget, min_cases) for seed, budget in folds]
        content = [{"train": cases, "val": list(split.test)} for cases in labelled]
        write_json(self.preprocessed / dataset_name / SPLITS_FILE, content)

    def write_arm_plans(
        self, dataset_name: str, plans_name: str, name: str, finetuning: FinetuningPlan, weights: Path | None
    ) -> str:
        """Plans of an arm: the target's own with a `hssl` block.

        Args:
            dataset_name: the target.
            plans_name: its plans.
            name: name of the new plans file.
            finetuning: the fine-tuning.
            weights: the weights file; None = without.

        Returns:
            `name`.
        """
        folder = self.preprocessed / dataset_name
        plans = read_json(folder / f"{plans_name}.json", f"Run `hssl plan_and_preprocess -d {dataset_name}`.")
        block = TargetBlock(
            weights=str(weights.resolve()) if weights else None,
            weights_sha256=file_sha256(weights) if weights else None,
            finetuning=finetuning,
        )
        write_json(folder / f"{name}.json", {**plans, "plans_name": name, "hssl": to_json(block)})
        return name


def _completed(plan_values: dict[str, dict[str, Any]], source: Path) -> dict[str, dict[str, Any]]:
    """Whole plans as this version has them: a value that is younger than the benchmark has what it stood for then."""
    kinds = {"pretraining": PretrainingPlan, "finetuning": FinetuningPlan}
    return {key: to_json(parse(kinds[key], value, source)) for key, value in plan_values.items()}


def _differences(key: str, was: Any, now: Any) -> list[str]:
    """What differs of a value that may be nested, each value under its path."""
    if isinstance(was, dict) and isinstance(now, dict):
        shared = dict.fromkeys((*was, *now))
        return [line for k in shared for line in _differences(f"{key}.{k}", was.get(k), now.get(k))]
    return [f"{key} was {was}, is {now}"] if was != now else []
