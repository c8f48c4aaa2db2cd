"""Images per second of pretraining end to end, against the same steps fed with ready tensors: the data path's share.

    python benchmarks/pipeline.py CORPUS -p PLANS [--workers 0 1 2] [--cache-gib 0 4] [--images-per-chunk 4]

CORPUS is what `hssl corpus` wrote. Both arms train the same network on the same step: one reads, crops, augments and
masks as `hssl pretrain` does, the other gets the prepared chunks of the same steps from memory. They alternate in
blocks of a few steps (A B A B), each block with a loader of its own; the share is taken pair by pair.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from common import about, corpus_parser, pretrainer, ratios, synchronise

from hssl_nnunet.data.volumes import VolumeCache
from hssl_nnunet.files import write_json
from hssl_nnunet.launch import set_environment
from hssl_nnunet.training.precision import describe


def main() -> None:
    args = arguments()
    set_environment()
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    torch.set_num_threads(args.threads)
    trainer = pretrainer(args.corpus, args.plans, args.device)
    trainer.plan = replace(trainer.plan, images_per_chunk=args.images_per_chunk or trainer.plan.images_per_chunk)
    trainer.initialize()
    told = about(args.device, args.threads)
    source = loader(trainer, 0)
    for step in range((args.blocks + 1) * args.steps + 1):  # every setting finds the files in the system's cache
        source.read(step)
    source.close()
    runs = [compared(trainer, w, c, args) for w in args.workers for c in args.cache_gib]
    compiled = trainer._do_i_compile()
    precision = describe(trainer.device, trainer.plan.precision, compiled=compiled)
    measured = {"compiled": compiled, "precision": precision, "images_per_step": trainer.batch_size, "runs": runs}
    write_json(args.out, {"command": f"python {shlex.join(sys.argv)}", **told, **measured})


def compared(trainer: Any, workers: int, cache_gib: float, args: argparse.Namespace) -> dict[str, Any]:
    """Blocks of both arms in turn; with a cache, it is filled by a first pass over the same steps."""
    trainer.plan = replace(trainer.plan, num_workers=workers)
    trainer.cache = VolumeCache(cache_gib)
    pairs = []
    for block in range(args.blocks + 1):
        first = block * args.steps if not cache_gib else 0  # what is kept in RAM has been read before
        pair = end_to_end(trainer, first, args.steps), ready(trainer, first, args.steps)
        if block:  # the first one warms up
            pairs.append(pair)
    rate = trainer.batch_size * args.steps
    run = {
        "num_workers": workers,
        "cache_gib": cache_gib,
        "images_per_s": round(rate / statistics.median(whole for whole, _ in pairs), 2),
        "ready_images_per_s": round(rate / statistics.median(fed for _, fed in pairs), 2),
        "share_of_ready_rate": ratios([fed for _, fed in pairs], [whole for whole, _ in pairs]),
        "blocks": args.blocks,
        "steps_per_block": args.steps,
    }
    print(run, flush=True)
    return run


def loader(trainer: Any, first: int) -> Any:
    return trainer._loader(list(range(len(trainer.rows))), trainer.plan.seed, first)


def end_to_end(trainer: Any, first: int, steps: int) -> float:
    """Seconds of some steps with their reading; a step before them fills what is read ahead, as in a long run."""
    source = loader(trainer, first)
    trainer.train_step(next(source))
    synchronise(trainer.device)
    begin = time.perf_counter()
    for _ in range(steps):
        trainer.train_step(next(source))
    synchronise(trainer.device)
    seconds = time.perf_counter() - begin
    source.close()
    return seconds


def ready(trainer: Any, first: int, steps: int) -> float:
    """Seconds of the same steps with prepared chunks."""
    source = loader(trainer, first)
    batches = [source.read(first + 1 + step) for step in range(steps)]
    source.close()
    chunks = {raw.seed: trainer.preparer.chunk(raw) for batch in batches for raw in batch}
    prepare, trainer.preparer.chunk = trainer.preparer.chunk, lambda raw: chunks[raw.seed]
    synchronise(trainer.device)
    begin = time.perf_counter()
    for batch in batches:
        trainer.train_step(batch)
    synchronise(trainer.device)
    seconds = time.perf_counter() - begin
    trainer.preparer.chunk = prepare
    return seconds


def arguments() -> argparse.Namespace:
    parser = corpus_parser(__doc__, "pipeline.json")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache-gib", nargs="+", type=float, default=[0.0, 4.0])
    parser.add_argument("--images-per-chunk", type=int, help="default: the plan's")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
