"""Where a pretraining step's time goes, domain by domain, and how near its network is to what the hardware can do.

    python benchmarks/pretraining_step.py CORPUS -p PLANS [--steps 5] [--images-per-chunk 4] [--out .../step.json]

CORPUS is what `hssl corpus` wrote. For each domain, in turn and in one process: views and masks of one chunk; the
trainer's step on it, without the data; the same network alone, with parameters of its own (the pure forwards and
backwards); the projection of those shared weights that the domain's plan has in another form; the embedding of images
and places, heads and their loss; and the reconstruction's loss. The overhead is the step against the
pure network, pair by pair. Floating point operations are counted by torch, bytes as the size of what every operation
reads and writes; the ceilings are a convolution, a matrix product and a copy, measured here at the same precision.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import about, corpus_parser, pretrainer, ratios
from hardware import ceilings, reached, timed
from torch import Tensor

from hssl_nnunet.data.crops import read_chunk
from hssl_nnunet.data.sampling import ChunkPlan
from hssl_nnunet.files import write_json
from hssl_nnunet.launch import set_environment
from hssl_nnunet.losses.hierarchical import hierarchical_loss
from hssl_nnunet.losses.reconstruction import Reconstruction, reconstruction_error
from hssl_nnunet.networks.projection import project
from hssl_nnunet.training import precision


def main() -> None:
    args = arguments()
    set_environment()
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    torch.set_num_threads(args.threads)
    trainer = pretrainer(args.corpus, args.plans, args.device)
    trainer.plan = replace(trainer.plan, images_per_chunk=args.images_per_chunk or trainer.plan.images_per_chunk)
    trainer.initialize()
    told = about(args.device, args.threads)
    found = ceilings(args.device, precision.compute_dtype(trainer.plan.precision, args.device), args.steps + 2)
    chosen = used(trainer) if args.domains is None else args.domains
    domains = {trainer.corpus.domains[d].dataset_name: of_domain(trainer, d, args.steps, found) for d in chosen}
    compiled = trainer._do_i_compile()
    described = precision.describe(trainer.device, trainer.plan.precision, compiled=compiled)
    measured = {
        "compiled": compiled,
        "precision": described,
        "seed": trainer.plan.seed,
        "ceilings": found,
        "domains": domains,
        "all_domains": of_all(trainer, chosen, args.steps),
    }
    write_json(args.out, {"command": f"python {shlex.join(sys.argv)}", **told, **measured})


def used(trainer: Any) -> list[int]:
    return sorted({row.domain for row in trainer.rows})


def of_domain(trainer: Any, domain: int, steps: int, found: dict[str, float]) -> dict[str, Any]:
    """Seconds of every part on one chunk of a domain, and what is derived from them."""
    raw = first_images(trainer, domain)
    chunk = trainer.preparer.chunk(raw)
    parts = {
        "views": lambda: trainer.preparer.chunk(raw),
        "step": lambda: step(trainer, [raw], [chunk]),
        "pure_network": pure_network(trainer, chunk),
        "projection": projection(trainer, domain),
        "heads": heads(trainer, [raw], [chunk]),
        "reconstruction": reconstruction(trainer, chunk),
        "optimizer": optimiser(trainer),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(steps + 1):
        for name, part in parts.items():
            took = timed(trainer.device, part)
            if turn:  # the first one warms up
                seconds[name].append(took)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "images": len(raw.rows),
        "crop_size": list(trainer.geometries[domain].crop_size),
        **{f"{name}_s": [round(s, 4) for s in values] for name, values in seconds.items()},
        "step_over_pure": ratios(seconds["step"], seconds["pure_network"]),
        "projection_share": round(middle["projection"] / middle["step"], 4),
        "heads_share": round(middle["heads"] / middle["step"], 4),
        "reconstruction_share": round(middle["reconstruction"] / middle["step"], 4),
        "views_share": round(middle["views"] / middle["step"], 4),
        **reached(parts["pure_network"], middle["pure_network"], found),
    }
    print(trainer.corpus.domains[domain].dataset_name, {k: v for k, v in result.items() if not k.endswith("_s")})
    return result


def of_all(trainer: Any, domains: list[int], steps: int) -> dict[str, Any]:
    """One step over a chunk of every domain against the sum of their networks' passes, and its heads, in turn."""
    raws = [first_images(trainer, domain) for domain in domains]
    chunks = [trainer.preparer.chunk(raw) for raw in raws]
    networks = [pure_network(trainer, chunk) for chunk in chunks]
    on_top = heads(trainer, raws, chunks)
    seconds: tuple[list[float], list[float], list[float]] = [], [], []
    for turn in range(steps + 1):
        took = (
            timed(trainer.device, lambda: step(trainer, raws, chunks)),
            sum(timed(trainer.device, run) for run in networks),
            timed(trainer.device, on_top),
        )
        for values, value in zip(seconds, took, strict=True):
            values.extend([round(value, 4)] if turn else [])  # the first one warms up
    result = {
        **dict(zip(("step_s", "pure_networks_s", "heads_s"), seconds, strict=True)),
        "step_over_pure": ratios(*seconds[:2]),
        "heads_over_step": ratios(seconds[2], seconds[0], 4),
    }
    print("all", result["step_over_pure"], result["heads_over_step"])
    return result


def first_images(trainer: Any, domain: int) -> Any:
    rows = [i for i, row in enumerate(trainer.rows) if row.domain == domain][: trainer.plan.images_per_chunk]
    return read(trainer, ChunkPlan(domain, tuple(rows), 0))


def read(trainer: Any, plan: ChunkPlan) -> Any:
    geometry, views = trainer.geometries[plan.domain], trainer.plan.views
    return read_chunk(plan, trainer.rows, geometry, views, trainer.root.parent).to(trainer.device)


def step(trainer: Any, raws: list[Any], chunks: list[Any]) -> None:
    """The trainer's own step on prepared chunks."""
    prepared = iter(chunks)
    prepare, trainer.preparer.chunk = trainer.preparer.chunk, lambda _: next(prepared)
    trainer.train_step(raws)
    trainer.preparer.chunk = prepare


def pure_network(trainer: Any, chunk: Any) -> Callable[[], None]:
    """Forward and backward of the domain's network with parameters of its own."""
    network = trainer.model.domains[chunk.domain]
    projected = project(trainer.model.shared.tensors(), network.entries)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in projected.items()}

    def run() -> None:
        with precision.autocast(trainer.plan.precision, trainer.device):
            skips, levels, prediction = network.call(leaves, chunk.views.flatten(0, 1), chunk.views.shape[1])
        places = levels if trainer.plan.loss.voxel > 0 else []
        outputs = [*skips[1:], *places, *([] if prediction is None else [prediction])]
        torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
        for leaf in leaves.values():
            leaf.grad = None

    return run


def projection(trainer: Any, domain: int) -> Callable[[], None]:
    """The shared weights that a domain has in another form, brought to it, and their gradient back."""
    entries = [entry for entry in trainer.model.domains[domain].entries if entry.status == "adapted"]
    shared = trainer.model.shared.tensors()
    sources = [shared[entry.role] for entry in entries]
    gradients = [torch.ones_like(tensor) for tensor in project(shared, entries).values()]

    def run() -> None:
        if entries:
            torch.autograd.grad(list(project(shared, entries).values()), sources, gradients)

    return run


def heads(trainer: Any, raws: list[Any], chunks: list[Any]) -> Callable[[], None]:
    """Embedding of every chunk and of its places, heads and their loss once, on features that are there, and back."""
    model, labels = trainer.model, trainer.preparer.labels(raws)
    given = [features(trainer, chunk)[:2] for chunk in chunks]
    loss = replace(trainer.plan.loss, reconstruction=0.0)

    def run() -> None:
        described = []
        with precision.autocast(trainer.plan.precision, trainer.device):
            for (skips, levels), chunk in zip(given, chunks, strict=True):
                described.append(model._described(chunk, skips, levels, None))
            outputs = model._heads(chunks, described)
        hierarchical_loss(outputs, labels, loss)["total"].backward()
        cleared(trainer, [feature for of_chunk in given for part in of_chunk for feature in part])

    return run


def reconstruction(trainer: Any, chunk: Any) -> Callable[[], None]:
    """The loss of a reconstruction that is there, forward and backward."""
    decoded = features(trainer, chunk)[2]

    def run() -> None:
        if decoded is not None:
            done = Reconstruction(decoded, chunk.target, chunk.hidden, chunk.valid[0])
            reconstruction_error([done], trainer.plan.loss.reconstruction_target).backward()
            cleared(trainer, [decoded])

    return run


def features(trainer: Any, chunk: Any) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """The encoder's features, the decoder's, and the reconstruction, as leaves."""
    network = trainer.model.domains[chunk.domain]
    with torch.no_grad(), precision.autocast(trainer.plan.precision, trainer.device):
        projected = project(trainer.model.shared.tensors(), network.entries)
        skips, levels, prediction = network.call(projected, chunk.views.flatten(0, 1), chunk.views.shape[1])
    decoded = None if prediction is None else prediction.detach().requires_grad_()
    return as_leaves(skips), as_leaves(levels), decoded


def as_leaves(tensors: list[Tensor]) -> list[Tensor]:
    """The same values, where gradients end."""
    return [tensor.detach().requires_grad_() for tensor in tensors]


def cleared(trainer: Any, leaves: list[Tensor]) -> None:
    """No gradient is left, for the next one would be added to it, which a step does not do."""
    trainer.optimizer.zero_grad(set_to_none=True)
    for leaf in leaves:
        leaf.grad = None


def optimiser(trainer: Any) -> Callable[[], None]:
    """Clipping and the optimiser's step, on gradients of the size of the parameters."""
    gradients = [torch.zeros_like(p) for p in trainer.model.parameters()]

    def run() -> None:
        for parameter, gradient in zip(trainer.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        trainer.optimizer.step()  # clips first
        trainer.optimizer.zero_grad(set_to_none=True)

    return run


def arguments() -> argparse.Namespace:
    parser = corpus_parser(__doc__, "pretraining_step.json")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--domains", nargs="+", type=int, help="indices; default: all")
    parser.add_argument("--images-per-chunk", type=int, help="default: the plan's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
