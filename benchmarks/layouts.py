"""Step time by memory format, compiled or not: what `hssl_nnunet.training.precision.memory_format` rests on.

    python benchmarks/layouts.py DATASET --corpus CORPUS [-p nnUNetPlans] [-device cuda] [--out .../layouts.json]

Each arm is a process of its own: nnU-Net's trainer, our fine-tuning of DATASET, and the network of each of CORPUS'
domains in pretraining (`--domains`), in either format, compiled or not (a CPU compiles nothing), on random images.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import about, as_in_training, corpus_parser, pretrainer, spread, synchronise

from hssl_nnunet.files import write_json
from hssl_nnunet.launch import set_environment
from hssl_nnunet.paths import dataset_name
from hssl_nnunet.training import precision

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
Arm = tuple[str, str, str, str]  # what, of which dataset or domain, format, compiled or eager


def main() -> None:
    args = arguments()
    if args.child:
        print(json.dumps(measured(args, tuple(args.child))))
        return
    told = {"command": f"python {shlex.join(sys.argv)}", **about(args.device, args.threads)}
    found = {" ".join(arm): in_process(arm) for arm in arms(args)}
    write_json(args.out, {**told, "step_ms": found})


def arms(args: argparse.Namespace) -> Iterator[Arm]:
    for how in ("eager", "compiled") if args.device.type == "cuda" else ("eager",):
        yield "stock", args.dataset, "contiguous", how
        for layout in FORMATS:
            yield "finetuning", args.dataset, layout, how
            for domain in args.domains if args.corpus else ():
                yield "pretraining", str(domain), layout, how


def in_process(arm: Arm) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", *sys.argv, "--child", *arm]
    environment = {**os.environ, "nnUNet_compile": "t" if arm[3] == "compiled" else "f"}
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    print(*arm, found, flush=True)
    return found


def measured(args: argparse.Namespace, arm: Arm) -> dict[str, float]:
    """Milliseconds of a step, after two that warm up."""
    set_environment()
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    torch.set_num_threads(args.threads)
    as_in_training()
    what, of, layout, _ = arm
    # before a trainer's modules are imported, which take the function by name
    precision.memory_format = lambda *_, **__: FORMATS[layout]
    step = pretraining_step(args, int(of)) if what == "pretraining" else training_step(args, what, of)
    seconds = []
    for _ in range(args.steps + 2):
        synchronise(args.device)
        begin = time.perf_counter()
        step()
        synchronise(args.device)
        seconds.append(1e3 * (time.perf_counter() - begin))
    return spread(seconds[2:], 1)


def pretraining_step(args: argparse.Namespace, domain: int) -> Callable[[], Any]:
    """Forward and backward of a domain's network alone, on one chunk."""
    from pretraining_step import ChunkPlan, pure_network, read

    trainer = pretrainer(args.corpus, args.plans, args.device)
    trainer.initialize()
    rows = [i for i, row in enumerate(trainer.rows) if row.domain == domain][: trainer.plan.images_per_chunk]
    return pure_network(trainer, trainer.preparer.chunk(read(trainer, ChunkPlan(domain, tuple(rows), 0))))


def training_step(args: argparse.Namespace, what: str, dataset: str) -> Callable[[], Any]:
    """A trainer's step on a random batch."""
    from step import SCRATCH_TRAINER, STOCK_TRAINER, planned, trainer

    name = dataset_name(dataset)
    if what == "stock":
        built: Any = trainer(STOCK_TRAINER, name, args.plans, args.device)
    else:
        with planned(name, args.plans, precision="auto") as ours:
            built = trainer(SCRATCH_TRAINER, name, ours, args.device)
    plan, classes = built.configuration_manager, built.label_manager.num_segmentation_heads
    batch, size = plan.batch_size, [int(n) for n in plan.patch_size]
    image = torch.randn(batch, 1, *size)
    scales = built._get_deep_supervision_scales()
    sizes = [[max(1, round(n * s)) for n, s in zip(size, scale, strict=True)] for scale in scales]
    target = [torch.randint(classes, (batch, 1, *s)).float() for s in sizes]
    return lambda: built.train_step({"data": image, "target": list(target)})


def arguments() -> argparse.Namespace:
    parser = corpus_parser(__doc__, "layouts.json", "dataset")
    parser.add_argument("--corpus")
    parser.add_argument("--domains", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
