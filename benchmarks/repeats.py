"""How much of a benchmark's noise is the chance of fine-tuning: the same cases and weights, other seeds of training.

    python benchmarks/repeats.py FOLDER --arms hssl scratch [-d 53 54] [--seed 0] [--budget 5%] [--repeats 3]

FOLDER is what `hssl benchmark run -o` wrote. In a benchmark a seed chooses the labelled cases as well as the random
numbers of training. Here the cases are those of one seed, an arm's weights are one file, and the random numbers alone
differ: fresh layers, patches, augmentation. Every training is scored on the test cases by nnU-Net's own validation.
Stopped, the same command goes on. The benchmark's own runs and records are not touched.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import about

from hssl_nnunet.benchmark.job import Run, arm_finetuning, weights_of
from hssl_nnunet.benchmark.plan import BenchmarkPlan
from hssl_nnunet.benchmark.splits import read_splits
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import Training, set_environment, train
from hssl_nnunet.paths import dataset_name

FIRST_SEED = 1000  # of training; no run of a benchmark has it


def main() -> None:
    args = arguments()
    workspace = Workspace(args.folder.resolve())
    os.environ.update(workspace.environment)
    set_environment()
    plan, rows = workspace.plan(), []
    for repeat in range(args.repeats):
        for dataset in [dataset_name(d) for d in args.datasets]:
            for arm in args.arms:
                run = Run(dataset_name=dataset, budget=args.budget, arm=arm, seed=args.seed)
                dices = dices_of(workspace, plan, run, repeat)
                row = {"dataset_name": dataset, "arm": arm, "repeat": repeat, "dice": dices, "mean": mean(dices)}
                print(row, flush=True)
                rows.append(row)
                told = {"command": f"python {shlex.join(sys.argv)}", **about(plan_device(plan), args.threads)}
                values = {"budget": args.budget, "labelled_cases_of_seed": args.seed, "spread": spread_of(rows)}
                write_json(args.out, {**told, **values, "runs": rows})


def dices_of(workspace: Workspace, plan: BenchmarkPlan, run: Run, repeat: int) -> list[float]:
    """Train once more, or go on; Dice points of each test case, mean over its labels."""
    seed, arm = FIRST_SEED + repeat, plan.arms[run.arm]
    finetuning = replace(arm_finetuning(workspace, plan, arm, run), seed=seed, full_validation_every=0)
    name = f"{plan.plans_name}_{run.arm}_s{run.seed}_again{repeat}"
    weights = weights_of(workspace, plan, run.arm, run.dataset_name)
    workspace.write_arm_plans(run.dataset_name, plan.plans_name, name, finetuning, weights)
    split = read_splits(workspace.folder)[run.dataset_name]
    fold = workspace.fold_of(plan, run.dataset_name, split, run.seed, run.budget)
    training = Training(
        dataset=run.dataset_name,
        configuration=plan.configuration,
        fold=str(fold),
        trainer=arm.trainer,
        plans_name=name,
    )
    summary = training.folder / "validation" / "summary.json"
    if not summary.is_file():
        begun = any(training.folder.glob("checkpoint_*.pth"))
        train(training, device_name=plan.device, continue_training=begun)
    return [points(case["metrics"]) for case in read_json(summary)["metric_per_case"]]


def points(metrics: dict[str, dict[str, float]]) -> float:
    """Mean Dice of a case over the labels that it or its prediction has; 100 without any, as in a record."""
    found = [100 * label["Dice"] for label in metrics.values() if label["Dice"] == label["Dice"]]
    return mean(found) if found else 100.0


def mean(values: list[float]) -> float:
    return round(statistics.mean(values), 2)


def spread_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of each target's and arm's repeats, once there are two."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["dataset_name"], row["arm"]), []).append(row["mean"])
    return [
        {"dataset_name": dataset, "arm": arm, "repeats": len(v), "mean": mean(v), "std": round(statistics.stdev(v), 2)}
        for (dataset, arm), v in groups.items()
        if len(v) > 1
    ]


def plan_device(plan: BenchmarkPlan) -> Any:
    import torch

    return torch.device(plan.device or "cpu")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-d", dest="datasets", nargs="+", required=True)
    parser.add_argument("--arms", nargs="+", default=["scratch", "hssl"])
    parser.add_argument("--budget", default="5%")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/repeats.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
