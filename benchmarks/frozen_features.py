"""What a network's features know of a target before any step of fine-tuning: a linear classifier of few labelled cases.

    python benchmarks/frozen_features.py FOLDER [NAME=]WEIGHTS... -p PLANS [--cases 16] [--labelled 3] [--draws 50]

FOLDER is what `hssl benchmark run -o` wrote, WEIGHTS are files of `hssl pretrain`, called NAME or as their corpus;
networks that are drawn afresh stand beside them. No test case is read. Voxels of the first cases of a target's training
patients are described by the features of every level of decoder and bottleneck, over whole cases, tile by tile. Again
and again a few of the cases are drawn as labelled, Fisher's discriminants are fitted to their voxels, and give the Dice
of the voxels of the other cases. Every network is asked with the same voxels and the same draws, hence the differences
are paired.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about, corpus_parser, named_files
from torch import Tensor, nn

from hssl_nnunet.benchmark.splits import DatasetSplit, read_splits
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.launch import set_environment
from hssl_nnunet.networks.cpu_operators import use_cpu_operators
from hssl_nnunet.paths import preprocessed_dir
from hssl_nnunet.training import precision
from hssl_nnunet.training.head_start import ClassMoments, class_members, discriminants
from hssl_nnunet.transfer.seeding import load_into, target_network
from hssl_nnunet.transfer.weights_file import file_sha256, load_weights

CONFIGURATION = "3d_fullres"
UNIFORM, FOREGROUND = 12_000, 2_000  # voxels of a case: everywhere, to score; and of labels, to fit as well
FRESH = 3  # networks without weights, of other seeds


@dataclass(frozen=True)
class Voxels:
    """Sampled voxels of a case: where they lie, what they are; the first `UNIFORM` of them lie anywhere."""

    image: Tensor  # (C, X, Y, Z)
    points: Tensor  # (N, 3)
    labels: Tensor  # (N,)


def main() -> None:
    args = arguments()
    set_environment()
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    torch.set_num_threads(args.threads)
    told = {"command": f"python {shlex.join(sys.argv)}", **about(args.device, args.threads)}
    args.weights = named_files(args.weights)
    told |= {"weights": {label: file_sha256(path) for label, path in args.weights.items()}}
    targets: dict[str, Any] = {}
    for name, split in sorted(read_splits(Path(args.folder)).items()):
        targets[name] = of_target(name, split, args)
        write_json(args.out, {**told, "labelled": args.labelled, "draws": args.draws, "targets": targets})


def of_target(name: str, split: DatasetSplit, args: argparse.Namespace) -> dict[str, Any]:
    """Mean Dice of each network, and its difference from the mean fresh one, draw by draw."""
    folder = preprocessed_dir() / name
    plans, dataset = read_json(folder / f"{args.plans}.json"), read_json(folder / "dataset.json")
    cases = first_cases(split, args.cases)
    voxels = [sampled(folder, plans, case) for case in cases]
    draws = list(itertools.combinations(range(len(cases)), args.labelled))
    np.random.default_rng(0).shuffle(draws)
    dices: dict[str, list[float]] = {}
    fresh_seeds = {f"fresh {seed}": seed for seed in range(FRESH)}
    for label in [*fresh_seeds, *args.weights]:
        torch.manual_seed(fresh_seeds.get(label, 0))
        network, topology = target_network(plans, dataset, CONFIGURATION)
        if label in args.weights:
            load_into(network, load_weights(args.weights[label])[0], topology)
        network = ready(network, args.device)
        with torch.no_grad(), precision.autocast("auto", args.device):
            described = [features(network, case, patch_size(plans), args.device) for case in voxels]
        dices[label] = [dice_of_draw(described, voxels, draw) for draw in draws[: args.draws]]
        print(name, label, round(100 * statistics.mean(dices[label]), 2), flush=True)
    fresh = np.mean([dices[label] for label in fresh_seeds], axis=0)
    return {
        "cases": cases,
        "dice": {label: round(100 * statistics.mean(d), 2) for label, d in dices.items()},
        "over_fresh": {label: over(dices[label], fresh) for label in args.weights},
    }


def over(dices: Sequence[float], fresh: Any) -> dict[str, float]:
    """Mean difference in points, and the share of draws that are better."""
    difference = 100 * (np.array(dices) - fresh)
    return {"mean": round(float(difference.mean()), 2), "better": round(float((difference > 0).mean()), 2)}


def first_cases(split: DatasetSplit, count: int) -> list[str]:
    """A case of each of the first patients who do not test, in the first seed's order."""
    chosen = {split.patients[case]: case for case in reversed(split.order[0])}
    ordered = dict.fromkeys(split.patients[case] for case in split.order[0])
    return [chosen[patient] for patient in ordered][:count]


def patch_size(plans: dict[str, Any]) -> tuple[int, ...]:
    return tuple(plans["configurations"][CONFIGURATION]["patch_size"])


def sampled(folder: Path, plans: dict[str, Any], case: str) -> Voxels:
    """Draw voxels anywhere, then of every label."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    where = folder / plans["configurations"][CONFIGURATION]["data_identifier"]
    data, truth, _, _ = nnUNetDatasetBlosc2(str(where)).load_case(case)
    labels = np.maximum(np.asarray(truth[:])[0], 0)
    rng = np.random.default_rng(0)
    foreground = np.flatnonzero(labels)
    index = [rng.integers(labels.size, size=UNIFORM), rng.choice(foreground, min(FOREGROUND, len(foreground)), False)]
    flat = np.concatenate(index)
    points = np.stack(np.unravel_index(flat, labels.shape), axis=1)
    return Voxels(
        *(torch.from_numpy(np.array(a)) for a in (data[:], points, labels.reshape(-1)[flat].astype(np.int64)))
    )


def ready(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as a training runs it, without deep supervision."""
    network.get_submodule("decoder").deep_supervision = False
    if device.type == "cpu":
        use_cpu_operators(network)
    return network.eval().to(device, memory_format=precision.memory_format(device, 3))


def features(network: nn.Module, case: Voxels, patch: Sequence[int], device: torch.device) -> Tensor:
    """Features of every level at a case's voxels: `(N, F)` float32."""
    size = [max(n, p) for n, p in zip(case.image.shape[1:], patch, strict=True)]
    pad = [x for n, s in zip(reversed(case.image.shape[1:]), reversed(size), strict=True) for x in (0, s - n)]
    image = nn.functional.pad(case.image, pad)
    seen: list[Tensor] = []
    encoder, decoder = network.get_submodule("encoder"), network.get_submodule("decoder")
    levels = [encoder.get_submodule("stages")[-1], *decoder.get_submodule("stages")]
    handles = [level.register_forward_hook(lambda _, __, out: seen.append(out[0])) for level in levels]
    result = None
    for corner in itertools.product(*([*range(0, n - p, p), n - p] for n, p in zip(size, patch, strict=True))):
        low = torch.tensor(corner)
        inside = ((case.points >= low) & (case.points < low + torch.tensor(patch))).all(1)
        if inside.any():
            seen.clear()
            tile = (slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))
            network(image[tile][None].to(device))
            found = torch.cat([at(level, case.points[inside] - low, patch) for level in seen], dim=1)
            result = found.new_zeros(len(case.points), found.shape[1]) if result is None else result
            result[inside] = found  # where tiles overlap, the last one's
    for handle in handles:
        handle.remove()
    assert result is not None
    return result


def at(level: Tensor, points: Tensor, patch: Sequence[int]) -> Tensor:
    """Values of a level's nearest voxels, `(N, C)`."""
    coarse = points * torch.tensor(level.shape[1:]) // torch.tensor(patch)
    return level[:, coarse[:, 0], coarse[:, 1], coarse[:, 2]].T.float().cpu()


def dice_of_draw(described: list[Tensor], voxels: list[Voxels], draw: tuple[int, ...]) -> float:
    """Fit to the drawn cases; mean Dice over labels and other cases, of the voxels that lie anywhere."""
    known = torch.cat([described[i] for i in draw])
    centre, scale = known.mean(0), known.std(0) + 1e-6
    classes = 1 + max(int(case.labels.max()) for case in voxels)
    moments = ClassMoments(classes, known.shape[1])
    moments.add((known - centre) / scale, class_members(torch.cat([voxels[i].labels for i in draw]), classes))
    weights, biases = discriminants(moments)
    anywhere = torch.cat([voxels[i].labels[:UNIFORM] for i in draw])
    prior = torch.bincount(anywhere, minlength=classes).double().clamp(min=1).log()
    scores = []
    for i in set(range(len(voxels))) - set(draw):
        logits = ((described[i][:UNIFORM] - centre) / scale).double() @ weights.T + biases + prior
        predicted, truth = logits.argmax(1), voxels[i].labels[:UNIFORM]
        for label in range(1, classes):
            a, b = predicted == label, truth == label
            if total := int(a.sum()) + int(b.sum()):
                scores.append(2 * int((a & b).sum()) / total)
    return statistics.mean(scores)


def arguments() -> argparse.Namespace:
    parser = corpus_parser(__doc__, "frozen_features.json", "folder")
    parser.add_argument("weights", metavar="[NAME=]WEIGHTS", nargs="+")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--labelled", type=int, default=3)
    parser.add_argument("--draws", type=int, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()
