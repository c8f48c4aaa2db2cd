"""Step time of fine-tuning against stock nnU-Net, and whether bf16 follows the loss curve of fp32.

    python benchmarks/step.py DATASET -p PLANS [--steps 5] [--curve-steps 40] [--out benchmarks/results/step.json]

DATASET is preprocessed and seeded (`hssl seed`), PLANS its stock plans. Both trainers step on the same real batches, in
turn (A B A B), in one process; the ratio is taken pair by pair. The curves train the seeded plan's network from the
same start on the same batches in fp32 and in bf16, and once more in fp32 from another start, which shows the noise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import SCRATCH_TRAINER, set_environment
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.versions import versions

set_environment()
os.environ["nnUNet_results"] = tempfile.mkdtemp()

from nnunetv2.run.run_training import get_trainer_from_args  # noqa: E402  reads the environment when imported

STOCK_TRAINER = "nnUNetTrainer"
CPU = torch.device("cpu")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    name = dataset_name(args.dataset)
    result = {
        "command": f"python benchmarks/step.py {args.dataset} -p {args.plans}",
        "versions": versions(),
        "threads": args.threads,
        "cpu": next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "step": step_times(name, args.plans, args.steps),
        "curves": curves(name, args.plans, args.curve_steps),
    }
    write_json(args.out, result)
    print(result["step"])


def trainer(kind: str, dataset: str, plans: str) -> object:
    built = get_trainer_from_args(dataset, "3d_fullres", 0, kind, plans, device=CPU)
    built.initialize()
    return built


def step_times(dataset: str, plans: str, steps: int) -> dict[str, object]:
    arms = {"stock": trainer(STOCK_TRAINER, dataset, plans), "hssl": trainer(SCRATCH_TRAINER, dataset, f"{plans}_HSSL")}
    loader, _ = arms["stock"].get_dataloaders()
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in range(steps + 1):
        batch = next(loader)
        for arm, built in arms.items():
            begin = time.perf_counter()
            built.train_step(dict(batch))
            if step:  # the first one warms up
                seconds[arm].append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(seconds["stock"], seconds["hssl"], strict=True)]
    configuration = arms["stock"].configuration_manager
    return {
        "batch_size": configuration.batch_size,
        "patch_size": list(map(int, configuration.patch_size)),
        **{f"{arm}_s": [round(s, 3) for s in values] for arm, values in seconds.items()},
        "ratio_stock_over_hssl": {
            "median": round(statistics.median(ratios), 2),
            "min": round(min(ratios), 2),
            "max": round(max(ratios), 2),
        },
    }


def curves(dataset: str, plans: str, steps: int) -> dict[str, list[float]]:
    """Loss of each step for fp32 and bf16 from one start, and for fp32 from another."""
    path = preprocessed_dir() / dataset / f"{plans}_HSSL.json"
    original = read_json(path)
    loader, _ = trainer(SCRATCH_TRAINER, dataset, f"{plans}_HSSL").get_dataloaders()
    batches = [next(loader) for _ in range(steps)]
    result = {}
    try:
        for name, precision, seed in (("fp32", "fp32", 0), ("bf16", "bf16", 0), ("fp32_other_start", "fp32", 1)):
            changed = read_json(path)
            changed["hssl"]["finetuning"].update(precision=precision, seed=seed)
            write_json(path, changed)
            built = trainer(SCRATCH_TRAINER, dataset, f"{plans}_HSSL")
            built.start_segmentation_layers()
            losses = [float(built.train_step(dict(batch))["loss"]) for batch in batches]
            result[name] = np.round(losses, 4).tolist()
    finally:
        write_json(path, original)
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--curve-steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
