"""Memory and time of a pretraining step by the plan value `checkpointing`, at growing global steps.

    python benchmarks/checkpointing.py CORPUS -p PLANS [--chunks 4 16] [--out benchmarks/results/checkpointing.json]

Each run is a process of its own: a few steps on the corpus' images, the trainer's own `train_step`, the forms in turn
(A B C A B C). `step_gib` is how much the peak of the process' memory grew with the steps on a CPU, of torch's allocated
memory on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import about, pretrainer, ratios, spread

from hssl_nnunet.files import write_json
from hssl_nnunet.launch import set_environment

FORMS = ("none", "chunk", "image")


def main() -> None:
    args = arguments()
    if args.child:
        form, chunks = args.child
        print(json.dumps(steps(args, form, int(chunks))))
        return
    told = {"command": f"python {shlex.join(sys.argv)}", **about(torch.device(args.device), args.threads)}
    runs = [measured(args, form, n) for n in args.chunks for _ in range(args.repeats) for form in FORMS]
    found = {str(n): by_form([run for run in runs if run["chunks_per_step"] == n]) for n in args.chunks}
    write_json(args.out, {**told, "by_chunks_per_step": found, "runs": runs})


def by_form(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Memory, and the time of a step against keeping everything, pair by pair."""
    steps = {form: [s for run in runs if run["checkpointing"] == form for s in run["step_s"]] for form in FORMS}
    return {
        form: {
            "step_gib": spread([run["step_gib"] for run in runs if run["checkpointing"] == form]),
            "time_over_none": ratios(steps[form], steps["none"]),
        }
        for form in FORMS
    }


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
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    trainer = pretrainer(args.corpus, args.plans, device)
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
        "step_gib": round(peak_gib(device) - before, 3),
        "step_s": seconds[1:],
    }


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("--chunks", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpointing.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
