"""Step time of fine-tuning against stock nnU-Net, and whether bf16 follows the loss curve of fp32.

    python benchmarks/step.py DATASET -p PLANS [-device cuda] [--steps 5] [--block 1] [--curve-steps 40] [--out FILE]

DATASET is preprocessed, PLANS its stock plans; a copy of them with our values lies beside them while this runs.
The trainers step on real batches, in turn (A B A B), each in a process of its own and `--block` steps in a row without
waiting for the device between them; the ratio is taken pair by pair. The batches are drawn before, so that no loader
works beside a step. On a CPU stock nnU-Net steps once more in a
process that keeps its memory as ours does, which tells that gain from the others. A step's parts, measured afterwards,
are the gaps between hooks: batch to device, forward, loss, backward with clipping (ours: its norm), optimiser. Its
floating point operations are counted by torch, its bytes as the size of what every operation reads and writes; the
ceilings are a convolution, a matrix product and a copy, measured beside it in the arm's precision. The curves train the
plan's network from the same start on the same batches in fp32 and in bf16, and once more in fp32 from another start,
which shows the noise. nnU-Net compiles the networks on a GPU unless `nnUNet_compile` is `f`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import combinations
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from common import about, as_in_training, corpus_parser, ratios, synchronise
from hardware import ceilings, reached, timed

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
from hssl_nnunet.training.memory import keep_freed_memory  # noqa: E402

STOCK_TRAINER = "nnUNetTrainer"
BATCHES = 8  # drawn for each arm, which steps through them again and again
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
        "step": step_times(args, name),
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
def planned(dataset: str, plans: str, suffix: str, **values: object) -> Iterator[str]:
    """Plans with our values beside the stock ones."""
    folder = preprocessed_dir() / dataset
    stock = read_json(folder / f"{plans}.json")
    block = TargetBlock(weights=None, weights_sha256=None, finetuning=finetuning_plan(preset_of_plans(stock), **values))
    name = f"{plans}_step_{suffix}"
    write_json(folder / f"{name}.json", {**stock, "plans_name": name, "hssl": to_json(block)})
    try:
        yield name
    finally:
        (folder / f"{name}.json").unlink()


def step_times(args: argparse.Namespace, name: str) -> dict[str, object]:
    """Seconds of every arm's steps, in turn, and what is derived from them."""
    precisions = ("fp32", "auto") if args.device.type == "cpu" else ("auto",)
    with ExitStack() as stack:
        plans = {p: stack.enter_context(planned(name, args.plans, p, precision=p)) for p in precisions}
        arms = {"stock": stack.enter_context(arm(STOCK_TRAINER, name, args.plans, args))}
        if args.device.type == "cpu":
            kept = arm(STOCK_TRAINER, name, args.plans, args, keep_memory=True)
            arms["stock_memory_kept"] = stack.enter_context(kept)
        for precision, ours in plans.items():
            arms[f"hssl_{precision}"] = stack.enter_context(arm(SCRATCH_TRAINER, name, ours, args))
        turns = [{of: ask(pipe, "step", args.block) for of, pipe in arms.items()} for _ in range(args.steps + 1)][1:]
        seconds = {of: [turn[of] for turn in turns] for of in arms}  # the first turn warms up
        return {
            **ask(arms["hssl_auto"], "facts"),
            "steps_in_a_row": args.block,
            **{f"{of}_s": [round(s, 4) for s in values] for of, values in seconds.items()},
            **{
                f"{base}_over_{of}": ratios(seconds[base], seconds[of], 2)
                for base, of in combinations(arms, 2)
                if base.startswith("stock")
            },
            "parts_s": {of: ask(pipe, "parts", args.steps) for of, pipe in arms.items()},
            "peak_gib": {of: ask(pipe, "peak_gib") for of, pipe in arms.items()},
            "work": {of: ask(pipe, "work", statistics.median(seconds[of])) for of, pipe in arms.items()},
        }


@contextmanager
def arm(
    kind: str, dataset: str, plans: str, args: argparse.Namespace, *, keep_memory: bool = False
) -> Iterator[Connection]:
    """A trainer in a process of its own, where what another does to its process does not help it."""
    here, there = get_context("spawn").Pipe()
    values = (there, kind, dataset, plans, args.device, args.threads, keep_memory)
    process = get_context("spawn").Process(target=serve, args=values)
    process.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join()


def ask(pipe: Connection, what: str, *values: object) -> Any:
    pipe.send((what, values))
    return pipe.recv()


def serve(
    pipe: Connection, kind: str, dataset: str, plans: str, device: torch.device, threads: int, keep_memory: bool
) -> None:
    if keep_memory:
        keep_freed_memory()
    torch.set_num_threads(threads)
    as_in_training()
    measured = Arm(trainer(kind, dataset, plans, device), device)
    while True:
        try:
            what, values = pipe.recv()
        except EOFError:  # the other end is closed: nobody asks any more
            return
        pipe.send(getattr(measured, what)(*values))


class Arm:
    """A trainer on batches that it has drawn before; its loader has ended when it steps."""

    def __init__(self, built: Any, device: torch.device):
        self.built, self.device = built, device
        loaders = built.get_dataloaders()
        self.batches = itertools.cycle([next(loaders[0]) for _ in range(BATCHES)])
        for loader in loaders:
            loader._finish()  # as nnU-Net's on_train_end

    def batch(self) -> dict[str, Any]:
        return dict(next(self.batches))

    def step(self, block: int) -> float:
        """Mean seconds of a few steps in a row, whose end alone is waited for."""
        batches = [self.batch() for _ in range(block)]
        return timed(self.device, lambda: [self.built.train_step(batch) for batch in batches]) / block

    def facts(self) -> dict[str, object]:
        configuration = self.built.configuration_manager
        return {
            "batch_size": configuration.batch_size,
            "patch_size": list(map(int, configuration.patch_size)),
            "auto_is": describe(self.device, compiled=self.built.compiled),
        }

    def parts(self, steps: int) -> dict[str, float]:
        return Parts(self.built, self.device).medians([self.batch() for _ in range(steps + 1)])

    def peak_gib(self) -> float:
        """Largest memory of the process, without the loader's, or on a GPU of the device."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)

    def work(self, seconds: float) -> dict[str, object]:
        """What the step reaches, against the ceilings in its precision."""
        found, batch = ceilings(self.device, dtype_of(self.built, self.device), repeats=5), self.batch()
        return {**reached(lambda: self.built.train_step(dict(batch)), seconds, found), "ceilings": found}


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
        with planned(dataset, plans, name, precision=precision, seed=seed) as ours:
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
