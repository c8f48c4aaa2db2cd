"""Memory and time of a pretraining step by the plan value `checkpointing`, at growing global steps.

    python benchmarks/checkpointing.py CORPUS -p PLANS [--chunks 4 16] [--out benchmarks/results/checkpointing.json]

Each run is a process of its own: a few steps on the corpus' images, the trainer's own `train_step`. Memory is the
process' peak above its size before the first step on a CPU, and torch's peak of allocated memory on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hssl_nnunet.files import write_json
from hssl_nnunet.launch import PRETRAIN_TRAINER, set_environment
from hssl_nnunet.paths import dataset_name
from hssl_nnunet.versions import cpu_model, versions

FORMS = ("none", "chunk", "image")


def main() -> None:
    args = arguments()
    if args.child:
        form, chunks = args.child
        print(json.dumps(steps(args, form, int(chunks))))
        return
    runs = [measured(args, form, chunks) for chunks in args.chunks for form in FORMS]
    told = {"command": f"python {shlex.join(sys.argv)}", "cpu": cpu_model(), "device": args.device}
    write_json(args.out, {**told, "threads": args.threads, "versions": versions(), "runs": runs})


def measured(args: argparse.Namespace, form: str, chunks: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", *sys.argv, "--child", form, str(chunks)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    run = {"checkpointing": form, "chunks_per_step": chunks, **json.loads(out.splitlines()[-1])}
    print(run, flush=True)
    return run


def steps(args: argparse.Namespace, form: str, chunks: int) -> dict[str, Any]:
    """A first step that warms up, then `--steps` more."""
    set_environment()
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    corpus = dataset_name(args.corpus)
    trainer = get_trainer_from_args(corpus, "3d_fullres", "all", PRETRAIN_TRAINER, args.plans, device=device)
    plan = replace(trainer.plan, checkpointing=form, chunks_per_step=chunks, num_workers=0)
    trainer.plan, trainer.corpus = plan, replace(trainer.corpus, pretraining=plan)
    trainer.initialize()
    loader = trainer._loader(list(range(len(trainer.rows))), plan.seed, 0)
    before, seconds = peak_gib(device), []
    for _ in range(args.steps + 1):
        batch = next(loader)
        begin = time.perf_counter()
        trainer.train_step(batch)
        seconds.append(round(time.perf_counter() - begin, 3))
    return {
        "images_per_step": trainer.batch_size,
        "peak_gib": round(peak_gib(device), 3),
        "before_gib": round(before, 3),
        "step_s": seconds[1:],
        "step_median_s": statistics.median(seconds[1:]),
    }


def peak_gib(device: Any) -> float:
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("--chunks", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpointing.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
