"""Does a class die by the seed of its segmentation layers? Short fine-tuning over ten seeds for each `head_init`.

    python benchmarks/head_seeds.py DATASET FOLD -p PLANS_HSSL [--out benchmarks/results/head_seeds.json]

PLANS_HSSL is what `hssl seed` wrote. Runs `nnUNetTrainerHSSLFinetune` itself on a copy of these plans with half the
patch and few steps, and reads nnU-Net's pseudo Dice of every label on the fold's validation cases after every epoch. A label
is dead when its Dice stays below 0.01.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import FINETUNE_TRAINER, set_environment
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.versions import versions

set_environment()
os.environ["nnUNet_results"] = tempfile.mkdtemp()

from nnunetv2.run.run_training import get_trainer_from_args  # noqa: E402  reads the environment when imported

TRIAL = "nnUNetHeadSeedsPlans_HSSL"
DEAD = 0.01


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    folder = preprocessed_dir() / dataset_name(args.dataset)
    plans = read_json(folder / f"{args.plans}.json")
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [max(8, round(n / 16) * 8) for n in configuration["patch_size"]]
    configuration["batch_size"] = args.batch_size
    result = {
        "command": f"python benchmarks/head_seeds.py {args.dataset} {args.fold} -p {args.plans}",
        "versions": versions(),
        "patch_size": configuration["patch_size"],
        "batch_size": args.batch_size,
        "steps_per_epoch": args.steps,
    }
    try:
        for head_init in args.inits:
            runs = [run(folder, plans, head_init, seed, args) for seed in range(args.seeds)]
            last = np.array(runs)[:, -1]  # (seeds, labels)
            result[head_init] = {
                "dice_by_seed_epoch_and_label": runs,
                "dead_labels": int((last < DEAD).sum()),
                "last_min": round(float(last.min()), 4),
                "last_mean": round(float(last.mean()), 4),
            }
            print(head_init, {k: v for k, v in result[head_init].items() if "by" not in k}, flush=True)
            write_json(args.out, result)
    finally:
        (folder / f"{TRIAL}.json").unlink(missing_ok=True)


def run(folder: Path, plans: dict, head_init: str, seed: int, args: argparse.Namespace) -> list[list[float]]:
    """Pseudo Dice by epoch and label of one run."""
    plans = {**plans, "plans_name": TRIAL}
    plans["hssl"]["finetuning"].update(
        head_init=head_init,
        seed=seed,
        num_epochs=args.epochs,
        num_iterations_per_epoch=args.steps,
        num_val_iterations_per_epoch=8,
        warmup_epochs=1,
    )
    write_json(folder / f"{TRIAL}.json", plans)
    trainer = get_trainer_from_args(folder.name, "3d_fullres", args.fold, FINETUNE_TRAINER, TRIAL, device=args.device)
    trainer.disable_checkpointing = True
    trainer.run_training()
    dice = trainer.logger.get_value("dice_per_class_or_region", None)
    return np.nan_to_num(np.array(dice, dtype=float)).round(4).tolist()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("fold", type=int)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans_HSSL")
    parser.add_argument("--inits", nargs="+", default=["zero", "stock"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("-device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/head_seeds.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
