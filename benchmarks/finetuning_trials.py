"""Short fine-tuning runs over many seeds, to choose plan values: does a class die, and which recipe learns fastest?

    python benchmarks/finetuning_trials.py DATASET FOLD -p PLANS_HSSL --variant fitted --variant stock head_init=stock

PLANS_HSSL is what `hssl seed` wrote. Each variant names values of the `finetuning` block that differ; `trainer=scratch`
trains without weights. Runs our trainers themselves on a copy of the plans with half the patch and few steps, and reads
nnU-Net's pseudo Dice of every label on the fold's validation cases after every epoch. A label is dead when its last
Dice is below 0.01. Choose a fold whose validation cases test nothing else. Results add to the JSON.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import FINETUNE_TRAINER, SCRATCH_TRAINER, set_environment
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.versions import versions

set_environment()
os.environ["nnUNet_results"] = tempfile.mkdtemp()

from nnunetv2.run.run_training import get_trainer_from_args  # noqa: E402  reads the environment when imported

DEAD = 0.01


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    folder = preprocessed_dir() / dataset_name(args.dataset)
    result = read_json(args.out) if args.out.is_file() else {}
    for name, *values in args.variant:
        changed = dict(value.split("=") for value in values)
        runs = [run(folder, changed, seed, args) for seed in range(args.seeds)]
        last = np.array(runs)[:, -1]  # (seeds, labels)
        result[name] = {
            "values": changed,
            "command": f"python {shlex.join(sys.argv)}",
            "versions": versions(),
            "batch_size": args.batch_size,
            "steps_per_epoch": args.steps,
            "dice_by_seed_epoch_and_label": runs,
            "dead_labels": int((last < DEAD).sum()),
            "labels": last.size,
            "last_min": round(float(last.min()), 4),
            "last_mean": round(float(last.mean()), 4),
        }
        print(name, {k: v for k, v in result[name].items() if k.startswith(("dead", "last"))}, flush=True)
        write_json(args.out, result)


def run(folder: Path, changed: dict[str, str], seed: int, args: argparse.Namespace) -> list[list[float]]:
    """Pseudo Dice by epoch and label of one run."""
    plans = read_json(folder / f"{args.plans}.json")
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [max(8, round(n / 16) * 8) for n in configuration["patch_size"]]
    configuration["batch_size"] = args.batch_size
    values = {k: float(v) if k.endswith("_lr") else v for k, v in changed.items() if k != "trainer"}
    steps = {"num_epochs": args.epochs, "num_iterations_per_epoch": args.steps, "num_val_iterations_per_epoch": 8}
    plans["hssl"]["finetuning"].update({**steps, "warmup_epochs": 1, "decoder_epochs": 1, **values, "seed": seed})
    name = f"nnUNetTrial{os.getpid()}Plans_HSSL"  # other trials may run beside this one
    path = folder / f"{name}.json"
    write_json(path, {**plans, "plans_name": name})
    try:
        kind = SCRATCH_TRAINER if changed.get("trainer") == "scratch" else FINETUNE_TRAINER
        trainer = get_trainer_from_args(folder.name, "3d_fullres", args.fold, kind, name, device=args.device)
        trainer.disable_checkpointing = True
        trainer.run_training()
    finally:
        path.unlink()
    dice = trainer.logger.get_value("dice_per_class_or_region", None)
    return np.nan_to_num(np.array(dice, dtype=float)).round(4).tolist()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("fold", type=int)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans_HSSL")
    parser.add_argument("--variant", nargs="+", action="append", required=True, metavar="NAME [KEY=VALUE ...]")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("-device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/finetuning_trials.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
