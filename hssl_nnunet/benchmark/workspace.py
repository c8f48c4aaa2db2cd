"""A benchmark's own view of nnU-Net's folders: the user's preprocessed data by link, with splits and plans of its own.

`<folder>/nnUNet_preprocessed/<Dataset>` links to everything in the user's folder but its splits and seeded plans, so
that no voxel is copied and nothing of the user's is changed; only what `hssl corpus` too keeps there of measured images
grows. Results go to `<folder>/nnUNet_results`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hssl_nnunet.benchmark.plan import PLAN_FILE, BenchmarkPlan, check_same_values, extended
from hssl_nnunet.benchmark.splits import DatasetSplit
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import cannot, read_json, write_json
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RESULTS, model_folder
from hssl_nnunet.plan_schema import SEEDED_SUFFIX, TargetBlock
from hssl_nnunet.plan_values import FinetuningPlan
from hssl_nnunet.transfer.weights_file import file_sha256
from hssl_nnunet.typed_json import parse, to_json

SPLITS_FILE, FOLDS_FILE = "splits_final.json", "folds.json"


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

    def check_plan(self, plan: BenchmarkPlan) -> BenchmarkPlan:
        """Check that a later run adds to a benchmark and changes nothing that its records stand on.

        Returns:
            The plan of the benchmark with this run: what was left out filled in, what earlier runs asked for beside it.

        Raises:
            HSSLError: a value, or an arm of the same name, differs from the earlier run's.
        """
        if not (self.folder / PLAN_FILE).is_file():
            return replace(plan, domains=plan.domains or plan.datasets, grids=plan.asked)
        before = self.plan()
        check_same_values(before, plan, self.folder)
        return extended(before, plan)

    def write_plan(self, plan: BenchmarkPlan) -> None:
        """Keep the plan of the benchmark."""
        write_json(self.folder / PLAN_FILE, to_json(plan))

    def link(self, source: Path) -> Path:
        """Link a dataset's preprocessed folder, entry by entry; what is there stays, but for links to what has moved.

        Args:
            source: `nnUNet_preprocessed/<Dataset>` of the user.

        Raises:
            HSSLError: the folder is missing, or a link cannot be made.
        """
        if not source.is_dir():
            raise HSSLError(f"{source} does not exist. Run `hssl plan_and_preprocess -d {source.name}` first.")
        target = self.preprocessed / source.name
        try:
            target.mkdir(parents=True, exist_ok=True)
            for entry in source.iterdir():
                own = entry.name == SPLITS_FILE or entry.name.endswith(f"{SEEDED_SUFFIX}.json")
                if not own:
                    _link(target / entry.name, entry.resolve())
            self.results.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot("write", target, error) from error
        return target

    def folds(self, plan: BenchmarkPlan) -> list[tuple[int, str]]:
        """Seed and budget of each of nnU-Net's folds; a later run with more of them adds folds at the end."""
        path = self.folder / FOLDS_FILE
        known = parse(list[tuple[int, str]], read_json(path), path) if path.is_file() else []
        return known + [pair for pair in asked_folds(plan) if pair not in known]

    def fold_of(self, plan: BenchmarkPlan, dataset_name: str, split: DatasetSplit, seed: int, budget: str) -> int:
        """nnU-Net's fold of a seed and budget, once its splits hold the labelled cases there, and the test cases alone.

        Where a fold is missing nnU-Net would split all cases at random, test cases too.

        Raises:
            HSSLError: the splits are missing, or hold something else.
        """
        path, remedy = self.preprocessed / dataset_name / SPLITS_FILE, "Run the same `hssl benchmark run` again."
        fold, found = self.folds(plan).index((seed, budget)), read_json(path, remedy)
        (expected,) = nnunet_splits(plan, split, [(seed, budget)])
        there = found[fold] if isinstance(found, list) and fold < len(found) else None
        if there != expected:
            raise HSSLError(
                f"{path}: expected fold {fold} to hold the {len(expected['train'])} labelled and "
                f"{len(expected['val'])} test cases of budget {budget} and seed {seed}, got "
                f"{'other cases' if there else 'no such fold'}. {remedy}"
            )
        return fold

    def write_folds(self, folds: Sequence[tuple[int, str]], of_datasets: Mapping[str, object]) -> None:
        """Keep the folds, and nnU-Net's splits of datasets (see `nnunet_splits`)."""
        for name, content in of_datasets.items():
            write_json(self.preprocessed / name / SPLITS_FILE, content)
        write_json(self.folder / FOLDS_FILE, folds)

    def training(self, plan: BenchmarkPlan, dataset_name: str, arm: str, seed: int) -> Path:
        """nnU-Net's folder of an arm's trainings on a dataset with a seed; each budget is a fold."""
        plans_name = plan.run_plans(arm, seed)
        return model_folder(self.results, dataset_name, plan.arms[arm].trainer, plans_name, plan.configuration)

    def write_arm_plans(
        self, dataset_name: str, plans_name: str, name: str, finetuning: FinetuningPlan, weights: Path | None
    ) -> str | None:
        """Plans of an arm: the target's own with a `hssl` block.

        Args:
            dataset_name: the target.
            plans_name: its plans.
            name: name of the new plans file.
            finetuning: the fine-tuning.
            weights: the weights file; None = without.

        Returns:
            SHA-256 of the weights file; None without one.
        """
        folder = self.preprocessed / dataset_name
        plans = read_json(folder / f"{plans_name}.json", f"Run `hssl plan_and_preprocess -d {dataset_name}`.")
        where, sha256 = (str(weights.resolve()), file_sha256(weights)) if weights else (None, None)
        block = TargetBlock(weights=where, weights_sha256=sha256, finetuning=finetuning)
        write_json(folder / f"{name}.json", {**plans, "plans_name": name, "hssl": to_json(block)})
        return sha256


def asked_folds(plan: BenchmarkPlan) -> list[tuple[int, str]]:
    """Seed and budget of every fold that a plan asks for."""
    return [(seed, budget) for seed in plan.seeds for budget in plan.budgets]


def nnunet_splits(plan: BenchmarkPlan, split: DatasetSplit, folds: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """nnU-Net's splits of a dataset: the labelled cases of each fold, the test cases as validation of all.

    Args:
        plan: the benchmark.
        split: the dataset's, with an order for the seed of every fold.
        folds: seed and budget of each; of another dataset alone they may ask too much of this one, and are empty then.

    Raises:
        HSSLError: the plan asks for a fold that the dataset cannot give.
    """
    asked = asked_folds(plan)

    def labelled(fold: tuple[int, str]) -> list[str]:
        try:
            return split.labelled(*fold, plan.min_cases)
        except HSSLError:
            if fold in asked:
                raise
            return []

    return [{"train": labelled(fold), "val": list(split.test)} for fold in folds]


def _link(path: Path, target: Path) -> None:
    """Make a link, unless something is there that exists; several runners may do so at the same time."""
    if path.is_symlink() and not path.exists():
        path.unlink(missing_ok=True)  # what it led to has moved
    if not path.exists():
        with suppress(FileExistsError):
            path.symlink_to(target)
