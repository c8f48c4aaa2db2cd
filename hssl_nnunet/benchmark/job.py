"""One job of a benchmark, in a process of its own: `python -m hssl_nnunet.benchmark.job FOLDER NAME`.

`pretrain/<arm>` and `pretrain/<arm>/<dataset>` make weights; `finetune/<dataset>/<budget>/<arm>/seed_<seed>` trains,
lets nnU-Net predict the test cases, scores them and writes the record.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.plan import BenchmarkPlan
from hssl_nnunet.benchmark.records import (
    CaseScore,
    EpochScore,
    RunRecord,
    check_same_weights,
    record_path,
    write_record,
)
from hssl_nnunet.benchmark.splits import DatasetSplit, read_splits
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import set_environment
from hssl_nnunet.plan_schema import finetuning_plan, preset_of_plans
from hssl_nnunet.plan_values import FinetuningPlan
from hssl_nnunet.typed_json import merged
from hssl_nnunet.versions import machine

PRETRAIN, FINETUNE = "pretrain", "finetune"
PRETRAINING_FILE = "pretraining.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A fine-tuning run of a benchmark."""

    dataset_name: str
    budget: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its job."""
        return f"{FINETUNE}/{self.dataset_name}/{self.budget}/{self.arm}/seed_{self.seed}"

    def record(self, folder: Path) -> Path:
        """Where its record lies in a benchmark's folder."""
        return record_path(folder, self.dataset_name, self.budget, self.arm, self.seed)

    @classmethod
    def from_name(cls, name: str) -> Run:
        """The run of a job."""
        _, dataset_name, budget, arm, seed = name.split("/")
        return cls(dataset_name=dataset_name, budget=budget, arm=arm, seed=int(seed.removeprefix("seed_")))


def pretraining_job(plan: BenchmarkPlan, arm_name: str, dataset_name: str) -> str | None:
    """Name of the job that makes the weights of an arm for a target; None for an arm without a pretraining of ours."""
    arm = plan.arms[arm_name]
    if arm.weights_of is not None:
        return pretraining_job(plan, arm.weights_of, dataset_name)
    if arm.pretrained_on == "none" or arm.weights_file is not None:
        return None
    return f"{PRETRAIN}/{arm_name}" + (f"/{dataset_name}" if arm.pretrained_on == "target" else "")


def work_on(folder: Path, name: str) -> None:
    """Do the work of a job; nnU-Net's variables must name the workspace's folders."""
    workspace = Workspace(folder)
    plan, splits = workspace.plan(), read_splits(workspace.folder)
    if name.startswith(f"{PRETRAIN}/"):
        _pretrain(workspace, plan, splits, name)
    else:
        finetune_run(workspace, plan, splits[Run.from_name(name).dataset_name], Run.from_name(name))


def _pretrain(workspace: Workspace, plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit], name: str) -> None:
    from hssl_nnunet.benchmark.jobs import JobTable
    from hssl_nnunet.benchmark.pretraining import pretrain_arm
    from hssl_nnunet.transfer.weights_file import file_sha256

    _, arm, *target = name.split("/")
    weights = pretrain_arm(workspace, plan, splits, arm, target[0] if target else None)
    told = {
        "seconds": _training_seconds(weights.parent),
        "weights": str(weights.relative_to(workspace.folder)),
        "sha256": file_sha256(weights),
    }
    write_json(JobTable(workspace.folder).folder(name) / PRETRAINING_FILE, told)


def weights_of(workspace: Workspace, plan: BenchmarkPlan, arm_name: str, dataset_name: str) -> Path | None:
    """The weights file that an arm starts from; None for an arm without one.

    Raises:
        HSSLError: its pretraining has not ended.
    """
    weights, job = weights_there(workspace, plan, arm_name, dataset_name), pretraining_job(plan, arm_name, dataset_name)
    if weights is None and job is not None:
        raise HSSLError(
            f"Arm {arm_name} needs the weights of job {job}, which has not ended, or they are gone. Run the same "
            "`hssl benchmark run` again: it pretrains anew."
        )
    return weights


def weights_there(workspace: Workspace, plan: BenchmarkPlan, arm_name: str, dataset_name: str) -> Path | None:
    """The weights file that an arm starts from, its own or another's; None without one, or while it is not there."""
    arm, job = plan.arms[arm_name], pretraining_job(plan, arm_name, dataset_name)
    if arm.weights_of is not None:
        return weights_there(workspace, plan, arm.weights_of, dataset_name)
    if arm.weights_file is not None:
        return Path(arm.weights_file)
    return None if job is None else pretrained(workspace, job)


def pretrained(workspace: Workspace, job: str) -> Path | None:
    """The weights file of a pretraining that has ended; None where it has not, or the file is gone."""
    from hssl_nnunet.benchmark.jobs import JobTable

    told = JobTable(workspace.folder).folder(job) / PRETRAINING_FILE
    weights = workspace.folder / str(read_json(told)["weights"]) if told.is_file() else None
    return weights if weights is not None and weights.is_file() else None


def finetune_run(workspace: Workspace, plan: BenchmarkPlan, split: DatasetSplit, run: Run) -> None:
    """Train, predict the test cases with nnU-Net's own validation, score them, write the record.

    Raises:
        HSSLError: nnU-Net's splits hold other cases than the run's, its weights are not there, have seen a test case,
            or are others than those of the arm's earlier runs.
    """
    from hssl_nnunet.benchmark.leakage import checked
    from hssl_nnunet.launch import train

    fold = workspace.fold_of(plan, run.dataset_name, split, run.seed, run.budget)
    arm = plan.arms[run.arm]
    weights = weights_of(workspace, plan, run.arm, run.dataset_name)
    leakage = None
    if weights is not None:
        check_same_weights(workspace.folder, {(run.arm, run.dataset_name): weights})
        leakage = checked(plan, weights, run.dataset_name, split)
    finetuning = arm_finetuning(workspace, plan, arm, run)
    # one plans file for each run: it holds the run's seed
    name = f"{plan.plans_name}_{run.arm}_s{run.seed}"
    workspace.write_arm_plans(run.dataset_name, plan.plans_name, name, finetuning, weights)
    output = workspace.results / run.dataset_name / f"{arm.trainer}__{name}__{plan.configuration}" / f"fold_{fold}"
    begun = any(output.glob("checkpoint_*.pth"))
    train(run.dataset_name, plan.configuration, str(fold), arm.trainer, name, plan.device, begun, 1)
    record = replace(_record(workspace, plan, split, run, output), weights_sha256=_sha256(workspace, run, name))
    _keep_predictions(workspace, run, output / "validation")
    write_record(workspace.folder, replace(record, leakage=leakage))


def _record(workspace: Workspace, plan: BenchmarkPlan, split: DatasetSplit, run: Run, output: Path) -> RunRecord:
    """The record of a training, without what it started from."""
    import torch

    from hssl_nnunet.training.full_validation import read_full_validations

    looks, where = read_full_validations(output), machine(plan.device)
    finetuning = arm_finetuning(workspace, plan, plan.arms[run.arm], run)
    gpu_bytes = torch.cuda.max_memory_allocated()
    return RunRecord(
        dataset_name=run.dataset_name,
        budget=run.budget,
        arm=run.arm,
        seed=run.seed,
        training_cases=tuple(split.labelled(run.seed, run.budget, plan.min_cases)),
        num_epochs=finetuning.num_epochs,
        num_iterations_per_epoch=finetuning.num_iterations_per_epoch,
        train_s=round(_training_seconds(output) - sum(look.seconds for look in looks), 1),
        peak_gib=_peak_gib(),
        peak_gpu_gib=round(gpu_bytes / 2**30, 2) if gpu_bytes else None,
        weights_sha256=None,
        epochs=tuple(EpochScore(epoch=look.epoch, dice=look.dice) for look in looks),
        scores=tuple(_scores(workspace, plan, split, run, output / "validation")),
        device=str(where.get("gpu", where["cpu"])),
    )


def _peak_gib() -> float | None:
    """Peak memory of this process; None on Windows, which does not say."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


def arm_finetuning(workspace: Workspace, plan: BenchmarkPlan, arm: Arm, run: Run) -> FinetuningPlan:
    """Fine-tuning of a run: the preset's, the benchmark's own values, the arm's, and the run's seed."""
    plans = read_json(workspace.preprocessed / run.dataset_name / f"{plan.plans_name}.json")
    values = merged(merged(dict(plan.finetuning), arm.finetuning), {"seed": run.seed})
    return finetuning_plan(preset_of_plans(plans), **values)


def _training_seconds(output: Path) -> float:
    """Wall time of the epochs, from the log in the last checkpoint."""
    from hssl_nnunet.transfer.checkpoints import load_checkpoint

    log = load_checkpoint(output / "checkpoint_final.pth")["logging"]
    pairs = zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    return round(float(sum(end - start for start, end in pairs)), 1)


def _sha256(workspace: Workspace, run: Run, plans_name: str) -> str | None:
    block = read_json(workspace.preprocessed / run.dataset_name / f"{plans_name}.json")["hssl"]
    return block["weights_sha256"]  # type: ignore[no-any-return]


def _scores(
    workspace: Workspace, plan: BenchmarkPlan, split: DatasetSplit, run: Run, predictions: Path
) -> list[CaseScore]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from hssl_nnunet.benchmark.metrics import case_scores

    folder = workspace.preprocessed / run.dataset_name
    dataset_json = read_json(folder / "dataset.json")
    reader = PlansManager(read_json(folder / f"{plan.plans_name}.json")).image_reader_writer_class()
    ending, scores = dataset_json["file_ending"], []
    for case in split.test:
        truth, prediction = folder / "gt_segmentations" / f"{case}{ending}", predictions / f"{case}{ending}"
        patient = split.patients[case]
        scores += case_scores(truth, prediction, reader, dataset_json, patient, plan.nsd_tolerance_mm)
    return scores


def _keep_predictions(workspace: Workspace, run: Run, predictions: Path) -> None:
    """Copy the predicted masks beside the record; the training's folder can be removed then."""
    target = run.record(workspace.folder).parent / "predictions"
    target.mkdir(parents=True, exist_ok=True)
    for path in predictions.iterdir():
        if path.suffix != ".json":
            shutil.copyfile(path, target / path.name)


def main() -> None:
    """Run one job under its lock; its state tells the runner how it ended."""
    from hssl_nnunet.benchmark.jobs import JobTable

    folder, name = Path(sys.argv[1]), sys.argv[2]
    os.environ.update(Workspace(folder).environment)
    set_environment()
    JobTable(folder).run(name, lambda: work_on(folder, name))


if __name__ == "__main__":
    main()
