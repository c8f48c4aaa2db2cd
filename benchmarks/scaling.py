"""Pretraining by several processes: what was measured here, and what a step costs in bytes at any number of GPUs.

    python benchmarks/scaling.py CORPUS -p PLANS [--ranks 1 2] [--out benchmarks/results/scaling.json]

Measured: `torchrun hssl pretrain` with the same global step shared by 1, 2, ... ranks of one thread each, in turn (A B
A B), from the epoch times in their logs; the first epoch warms up. Counted, for the plan as it is: parameters, bytes of
the gradient that DDP sums, of the embeddings that are gathered, and of the voxels that are read; and the time that the
gradient alone takes over a link, were nothing of it hidden behind the backward pass. Modelled, with `--step-s`: step
time and rates from the step of one GPU, as `pipeline.py` measured it (images per step over images per second), with the
gradient's time hidden wholly, and added wholly.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about, ratios

from hssl_nnunet.data.crops import DomainGeometry
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import set_environment
from hssl_nnunet.networks.hssl_network import HSSLNetwork
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.plan_schema import CorpusBlock, corpus_block

BIN = Path(sys.executable).parent
FLOAT = 4  # bytes
LINKS_GB_PER_S = (200, 25, 3)  # of the order of GPUs in one box, a fast network, a plain one


def main() -> None:
    args = arguments()
    folder = preprocessed_dir() / dataset_name(args.corpus)
    block = corpus_block(read_json(folder / f"{args.plans}.json"), folder)
    result = {
        "command": f"python {shlex.join(sys.argv)}",
        **about(torch.device("cpu"), 1),
        "counted": counted(block, args),
        "measured": measured(folder, args) if args.ranks else None,
    }
    write_json(args.out, result)
    print(result["counted"], result["measured"])


def counted(block: CorpusBlock, args: argparse.Namespace) -> dict[str, Any]:
    """Bytes of a step, with `chunks_per_step` of the plan for each rank; what follows from the step of one."""
    plan = block.pretraining
    parameters = sum(p.numel() for p in HSSLNetwork(block).parameters())
    geometries = [DomainGeometry.from_domain(d, plan.views) for d in block.domains]
    boxes = [
        FLOAT * math.prod(n + 2 * m for n, m in zip(g.crop_size, g.margin(plan.views), strict=True)) for g in geometries
    ]
    drawn = [d.num_images**plan.alpha for d in block.domains]  # how often a domain is
    images = plan.chunks_per_step * (args.images_per_chunk or plan.images_per_chunk)
    read = images * float(np.average(boxes, weights=drawn)) / 2**20
    by_ranks = {n: of_ranks(n, FLOAT * parameters, images, plan.projection_width) for n in args.counted_ranks}
    if args.step_s:
        for n, found in by_ranks.items():
            found["modelled"] = modelled(n, args.step_s, found["gradient_ms_at_gb_per_s"], images, read)
    return {
        "parameters": parameters,
        "images_per_rank": images,
        "read_mib_per_rank": round(read, 2),
        "by_ranks": {str(n): found for n, found in by_ranks.items()},
    }


def of_ranks(n: int, gradient: int, images: int, width: int) -> dict[str, Any]:
    """What n ranks send and hold in a step; a ring sends and receives 2 (n - 1) / n of the gradient."""
    sent = 2 * (n - 1) / n * gradient
    return {
        "gradient_mib_sent_per_rank": round(sent / 2**20, 2),
        "gradient_ms_at_gb_per_s": {str(b): round(1e3 * sent / (b * 1e9), 2) for b in LINKS_GB_PER_S},
        "embeddings_mib_received_per_rank": round((n - 1) * images * 2 * width * FLOAT / 2**20, 3),
        "similarity_matrix_mib": round((2 * n * images) ** 2 * FLOAT / 2**20, 3),
    }


def modelled(n: int, step_s: float, gradient_ms: dict[str, float], images: int, read_mib: float) -> dict[str, Any]:
    """Step time of n ranks by link, images per second of all of them, and what a rank reads; arithmetic alone."""
    seconds = {"hidden": step_s, **{link: step_s + ms / 1e3 for link, ms in gradient_ms.items()}}
    return {
        "step_ms": {link: round(1e3 * s, 1) for link, s in seconds.items()},
        "images_per_s": {link: round(n * images / s) for link, s in seconds.items()},
        "read_mib_per_s_per_rank": round(read_mib / step_s),
    }


def measured(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Epoch times by number of ranks, and the speed-up over the first number, pair by pair."""
    seconds: dict[int, list[float]] = {n: [] for n in args.ranks}
    steps = {
        "num_epochs": 3,
        "warmup_epochs": 0,
        "num_iterations_per_epoch": args.steps,
        "num_val_iterations_per_epoch": 1,
    }
    with changed_plans(folder, args.plans, {**steps, "probe_every": 1000, "num_workers": 0}) as name:
        for _ in range(args.repeats):
            for n in args.ranks:
                seconds[n].append(epoch_seconds(folder.name, name, n))
                print(n, seconds[n][-1], flush=True)
    first = seconds[args.ranks[0]]
    return {
        "steps_per_epoch": args.steps,
        "epoch_s": {str(n): values for n, values in seconds.items()},
        "speed_up": {str(n): ratios(first, values, 2) for n, values in seconds.items()},
    }


@contextmanager
def changed_plans(folder: Path, plans: str, values: dict[str, Any]) -> Iterator[str]:
    """Plans with other pretraining values beside the corpus' own."""
    content = read_json(folder / f"{plans}.json")
    content["hssl"]["pretraining"].update(values)
    name = f"{plans}_scaling"
    path = folder / f"{name}.json"
    write_json(path, {**content, "plans_name": name})
    try:
        yield name
    finally:
        path.unlink()


def epoch_seconds(corpus: str, plans: str, ranks: int) -> float:
    """Time of the second epoch; the last one probes."""
    with tempfile.TemporaryDirectory() as results:
        environment = {**os.environ, "nnUNet_results": results, "OMP_NUM_THREADS": "1"}
        command = [str(BIN / "hssl"), "pretrain", corpus, "-p", plans, "-device", "cpu"]
        if ranks > 1:
            command = [str(BIN / "torchrun"), "--standalone", f"--nproc_per_node={ranks}", *command]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (log,) = Path(results).rglob("training_log*.txt")
        return [float(s) for s in re.findall(r"Epoch time: ([\d.]+) s", log.read_text())][1]


def arguments() -> argparse.Namespace:
    set_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--counted-ranks", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--step-s", type=float, help="seconds that a step takes on one GPU")
    parser.add_argument("--images-per-chunk", type=int, help="default: the plan's")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
