"""One job of a benchmark, in a process of its own: `python -m hssl_nnunet.benchmark.job FOLDER NAME`.

`pretrain/<arm>` and `pretrain/<arm>/<dataset>` make weights; `finetune/<dataset>/<budget>/<arm>/seed_<seed>` trains,
lets nnU-Net predict the test cases, scores them and writes the record.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.jobs import JobTable
from hssl_nnunet.benchmark.plan import BenchmarkPlan
from hssl_nnunet.benchmark.records import CaseScore, EpochScore, Run, RunRecord, check_same_weights, write_record
from hssl_nnunet.benchmark.splits import DatasetSplit, read_splits
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import set_environment
from hssl_nnunet.paths import FINAL_CHECKPOINT
from hssl_nnunet.plan_schema import finetuning_plan, preset_of_plans
from hssl_nnunet.plan_values import FinetuningPlan
from hssl_nnunet.transfer.weights_file import file_sha256
from hssl_nnunet.typed_json import merged, parse
from hssl_nnunet.versions import machine

PRETRAIN = "pretrain"
PRETRAINING_FILE = "pretraining.json"


def pretraining_job(plan: BenchmarkPlan, arm_name: str, dataset_name: str) -> str | None:
    """Name of the job that makes the weights of an arm for a target; None for an arm without a pretraining of ours."""
    source = plan.source(arm_name)
    jobs = {"none": None, "all": f"{PRETRAIN}/{source}", "target": f"{PRETRAIN}/{source}/{dataset_name}"}
    return jobs[plan.arms[source].pretrained_on]


def continued_job(plan: BenchmarkPlan, arm_name: str, dataset_name: str) -> str | None:
    """Name of the job whose weights the pretraining of an arm goes on from; None where it begins from nothing of ours.

    Args:
        plan: the benchmark's plan.
        arm_name: the arm, or one that takes its weights.
        dataset_name: the target.
    """
    before = plan.arms[plan.source(arm_name)].continues
    return None if before is None else pretraining_job(plan, before, dataset_name)


def work_on(folder: Path, name: str) -> None:
    """Do the work of a job; nnU-Net's variables must name the workspace's folders."""
    workspace = Workspace(folder)
    plan, splits = workspace.plan(), read_splits(workspace.folder)
    if name.startswith(f"{PRETRAIN}/"):
        _pretrain(workspace, plan, splits, name)
    else:
        run = Run.of_job(name)
        finetune_run(workspace, plan, splits[run.dataset_name], run)


def _pretrain(workspace: Workspace, plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit], name: str) -> None:
    from hssl_nnunet.benchmark.pretraining import pretrain_arm

    _, arm, *names = name.split("/")
    target = names[0] if names else None
    before = plan.arms[arm].continues
    start = None if before is None else weights_of(workspace, plan, before, target or plan.datasets[0])
    weights = pretrain_arm(workspace, plan, splits, arm, target, start)
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
    weights = weights_there(workspace, plan, arm_name, dataset_name)
    if weights is None and (job := pretraining_job(plan, arm_name, dataset_name)):
        raise HSSLError(
            f"Arm {arm_name} needs the weights of job {job}, which has not ended, or they are gone. Run the same "
            "`hssl benchmark run` again: it pretrains anew."
        )
    return weights


def weights_there(workspace: Workspace, plan: BenchmarkPlan, arm_name: str, dataset_name: str) -> Path | None:
    """The weights file that an arm starts from, its own or another's; None without one, or while it is not there."""
    if file := plan.arms[plan.source(arm_name)].weights_file:
        return Path(file)
    job = pretraining_job(plan, arm_name, dataset_name)
    return pretrained(workspace, job) if job else None


def pretrained(workspace: Workspace, job: str) -> Path | None:
    """The weights file of a pretraining that has ended; None where it has not, or the file is gone."""
    path = JobTable(workspace.folder).folder(job) / PRETRAINING_FILE
    told = parse(dict[str, Any], read_json(path), path) if path.is_file() else {}
    weights = workspace.folder / str(told.get("weights", ""))
    return weights if weights.is_file() else None


def finetune_run(workspace: Workspace, plan: BenchmarkPlan, split: DatasetSplit, run: Run) -> None:
    """Train, predict the test cases with nnU-Net's own validation, score them, write the record.

    Raises:
        HSSLError: nnU-Net's splits hold other cases than the run's, its weights are not there, have seen a test case,
            or are others than those of the arm's earlier runs.
    """
    from hssl_nnunet.benchmark.leakage import checked
    from hssl_nnunet.launch import Training, train

    fold = workspace.fold_of(plan, run.dataset_name, split, run.seed, run.budget)
    arm = plan.arms[run.arm]
    weights = weights_of(workspace, plan, run.arm, run.dataset_name)
    leakage = None
    if weights:
        check_same_weights(workspace.folder, {(run.arm, run.dataset_name): weights})
        leakage = checked(plan, weights, run.dataset_name, split)
    finetuning = arm_finetuning(workspace, plan, arm, run)
    name = plan.run_plans(run.arm, run.seed)
    sha256 = workspace.write_arm_plans(run.dataset_name, plan.plans_name, name, finetuning, weights)
    output = workspace.training(plan, run.dataset_name, run.arm, run.seed) / f"fold_{fold}"
    begun = any(output.glob("checkpoint_*.pth"))
    train(
        Training(
            dataset=run.dataset_name,
            configuration=plan.configuration,
            fold=str(fold),
            trainer=arm.trainer,
            plans_name=name,
        ),
        device_name=plan.device,
        continue_training=begun,
    )
    record = _record(workspace, plan, split, run, output)
    _keep_predictions(workspace, run, output / "validation")
    write_record(workspace.folder, replace(record, weights_sha256=sha256, leakage=leakage))


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

    log = load_checkpoint(output / FINAL_CHECKPOINT)["logging"]
    pairs = zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    return round(float(sum(end - start for start, end in pairs)), 1)


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
    target = run.predictions(workspace.folder)
    target.mkdir(parents=True, exist_ok=True)
    for path in predictions.iterdir():
        if path.suffix != ".json":
            shutil.copyfile(path, target / path.name)


def main() -> None:
    """Run one job under its lock; its state tells the runner how it ended."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    os.environ.update(Workspace(folder).environment)
    set_environment()
    JobTable(folder).run(name, lambda: work_on(folder, name))


if __name__ == "__main__":
    main()
