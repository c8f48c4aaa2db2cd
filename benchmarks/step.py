"""Step time of fine-tuning against stock nnU-Net, and whether bf16 follows the loss curve of fp32.

    python benchmarks/step.py DATASET -p PLANS [-device cuda] [--steps 5] [--block 1] [--curve-steps 40] [--out FILE]

DATASET is preprocessed, PLANS its stock plans; a copy of them with our values lies beside them while this runs.
The trainers step on the same real batches, in turn (A B A B), in one process, each `--block` steps in a row without
waiting for the device between them; the ratio is taken pair by pair. A step's parts, measured afterwards, are the gaps
between hooks: batch to device, forward, loss, backward with clipping (ours: its norm), optimiser. Its floating point
operations are counted by torch, its bytes as the size of what every operation reads and writes; the ceilings are a
convolution, a matrix product and a copy, measured beside it in the arm's precision. The curves train
the plan's network from the same start on the same batches in fp32 and in bf16, and once more in fp32 from another
start, which shows the noise. nnU-Net compiles the networks on a GPU unless `nnUNet_compile` is `f`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from common import about, as_in_training, corpus_parser, ratios, synchronise
from hardware import ceilings, reached

from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import SCRATCH_TRAINER, set_environment
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.plan_schema import TargetBlock, finetuning_plan, preset_of_plans
from hssl_nnunet.training.precision import compute_dtype, describe
from hssl_nnunet.typed_json import to_json

set_environment()
os.environ["nnUNet_results"] = tempfile.mkdtemp()

from nnunetv2.run.run_training import get_trainer_from_args  # noqa: E402  reads the environment when imported

from hssl_nnunet.training.finetuner import HSSLFinetuner  # noqa: E402

STOCK_TRAINER = "nnUNetTrainer"
SEED = 0  # of every network's first weights; nnU-Net's loader draws from the system


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    as_in_training()
    name = dataset_name(args.dataset)
    result = {
        "command": f"python {shlex.join(sys.argv)}",
        **about(args.device, args.threads),
        "compiled": args.device.type == "cuda" and os.environ.get("nnUNet_compile", "t").lower() in ("true", "1", "t"),
        "seed": SEED,
        "step": step_times(name, args.plans, args.device, args.steps, args.block),
    }
    write_json(args.out, result)
    print(result["step"], flush=True)
    if args.curve_steps:
        write_json(args.out, {**result, "curves": curves(name, args.plans, args.curve_steps, args.device)})


def trainer(kind: str, dataset: str, plans: str, device: torch.device) -> object:
    torch.manual_seed(SEED)
    built = get_trainer_from_args(dataset, "3d_fullres", 0, kind, plans, device=device)
    built.initialize()
    return built


@contextmanager
def planned(dataset: str, plans: str, **values: object) -> Iterator[str]:
    """Plans with our values beside the stock ones."""
    folder = preprocessed_dir() / dataset
    stock = read_json(folder / f"{plans}.json")
    block = TargetBlock(weights=None, weights_sha256=None, finetuning=finetuning_plan(preset_of_plans(stock), **values))
    name = f"{plans}_step"
    write_json(folder / f"{name}.json", {**stock, "plans_name": name, "hssl": to_json(block)})
    try:
        yield name
    finally:
        (folder / f"{name}.json").unlink()


def step_times(dataset: str, plans: str, device: torch.device, steps: int, block: int) -> dict[str, object]:
    arms = {"stock": trainer(STOCK_TRAINER, dataset, plans, device)}
    for precision in ("fp32", "auto") if device.type == "cpu" else ("auto",):
        with planned(dataset, plans, precision=precision) as ours:
            arms[f"hssl_{precision}"] = trainer(SCRATCH_TRAINER, dataset, ours, device)
    loader, _ = arms["stock"].get_dataloaders()
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    waited = []
    for turn in range(steps + 1):
        begin = time.perf_counter()
        batches = [next(loader) for _ in range(block)]
        waited.append((time.perf_counter() - begin) / block)
        for arm, built in arms.items():
            took = time_of_a_step(built, batches, device)
            if turn:  # the first one warms up
                seconds[arm].append(took)
    configuration = arms["stock"].configuration_manager
    return {
        "batch_size": configuration.batch_size,
        "patch_size": list(map(int, configuration.patch_size)),
        "steps_in_a_row": block,
        "auto_is": describe(device, compiled=arms["hssl_auto"].compiled),
        **{f"{arm}_s": [round(s, 4) for s in values] for arm, values in seconds.items()},
        **{f"stock_over_{arm}": ratios(seconds["stock"], seconds[arm], 2) for arm in list(arms)[1:]},
        "parts_s": {arm: Parts(built, device).medians(batches * (steps + 1)) for arm, built in arms.items()},
        "work": {arm: work(built, batches[0], seconds[arm], device) for arm, built in arms.items()},
        "wait_for_a_batch_s": round(statistics.median(waited[1:]), 4),
    }


def time_of_a_step(built: object, batches: list[dict[str, object]], device: torch.device) -> float:
    """Mean seconds of a few steps in a row; only then the device is waited for."""
    synchronise(device)
    begin = time.perf_counter()
    for batch in batches:
        built.train_step(dict(batch))
    synchronise(device)
    return (time.perf_counter() - begin) / len(batches)


def work(built: object, batch: dict[str, object], seconds: list[float], device: torch.device) -> dict[str, object]:
    """What a trainer's step reaches, against the ceilings in its precision."""
    found = ceilings(device, dtype_of(built, device), repeats=5)
    return {**reached(lambda: built.train_step(dict(batch)), statistics.median(seconds), found), "ceilings": found}


def dtype_of(built: object, device: torch.device) -> torch.dtype:
    """Type in which a trainer's convolutions run; stock casts on a GPU alone."""
    if isinstance(built, HSSLFinetuner):
        return compute_dtype(built.plan.precision, device)
    return torch.float16 if device.type == "cuda" else torch.float32


class Parts:
    """Splits a trainer's step by hooks on its network, loss and optimiser."""

    NAMES = ("to_device", "forward", "loss", "backward", "optimizer")

    def __init__(self, built: object, device: torch.device):
        self.built, self.device = built, device
        self.times: list[float] = []
        self.steps: list[list[float]] = []
        built.network.register_forward_pre_hook(self.mark)
        built.network.register_forward_hook(self.mark)
        built.loss.register_forward_hook(self.mark)
        built.optimizer.register_step_pre_hook(self.mark)

    def mark(self, *args: object) -> None:
        synchronise(self.device)
        self.times.append(time.perf_counter())

    def medians(self, batches: list[dict[str, object]]) -> dict[str, float]:
        """Of the steps on these batches but the first, which warms up."""
        for batch in batches:
            self.times = []
            self.mark()
            self.built.train_step(dict(batch))
            self.mark()
            self.steps.append([b - a for a, b in zip(self.times, self.times[1:], strict=False)])
        columns = zip(*self.steps[1:], strict=True)
        return {name: round(statistics.median(column), 4) for name, column in zip(self.NAMES, columns, strict=True)}


def curves(dataset: str, plans: str, steps: int, device: torch.device) -> dict[str, object]:
    """Loss of each step for fp32 and bf16 from one start, and for fp32 from another."""
    result: dict[str, object] = {}
    batches: list[dict[str, object]] = []
    for name, precision, seed in (("fp32", "fp32", 0), ("bf16", "bf16", 0), ("fp32_other_start", "fp32", 1)):
        with planned(dataset, plans, precision=precision, seed=seed) as ours:
            built = trainer(SCRATCH_TRAINER, dataset, ours, device)
        built.dataloader_train, built.dataloader_val = built.get_dataloaders()
        built.fit_segmentation_layers()
        batches = batches or [next(built.dataloader_train) for _ in range(steps)]
        losses = [float(built.train_step(dict(batch))["loss"]) for batch in batches]
        result[name] = np.round(losses, 4).tolist()
    tail = {name: np.array(losses[steps // 2 :]) for name, losses in result.items()}
    result["mean_of_second_half"] = {name: round(float(values.mean()), 4) for name, values in tail.items()}
    return result


def arguments() -> argparse.Namespace:
    parser = corpus_parser(__doc__, "step.json", "dataset")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--block", type=int, default=1, help="steps in a row")
    parser.add_argument("--curve-steps", type=int, default=40, help="0: no curves")
    return parser.parse_args()


if __name__ == "__main__":
    main()
