"""What the scripts here share: spread of pairs, the trainer of a corpus, where something was measured."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hssl_nnunet.launch import PRETRAIN_TRAINER, set_environment
from hssl_nnunet.nnunet_training import trainers_found_at_once
from hssl_nnunet.paths import dataset_name
from hssl_nnunet.versions import cpu_model, versions


def corpus_parser(description: str | None, out: str, data: str = "corpus") -> argparse.ArgumentParser:
    """Options of a script that measures on a corpus or dataset; `out` is its file below `benchmarks/results`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(data)
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("-device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results") / out)
    return parser


def named_files(arguments: Sequence[str]) -> dict[str, Path]:
    """Label -> file, of arguments `NAME=PATH` or `PATH`, which is labelled by its corpus' folder, else by its stem.

    Raises:
        SystemExit: two files have one label.
    """
    files: dict[str, Path] = {}
    for text in arguments:
        name, equals, path = text.partition("=")
        plain = not equals or Path(text).exists()  # a folder may be called `lr=0.1`
        label, file = (_label(Path(text)), Path(text)) if plain else (name, Path(path))
        if label in files:
            raise SystemExit(f"{files[label]} and {file} are both called {label}. Name one as `NAME=PATH`.")
        files[label] = file
    return files


def _label(path: Path) -> str:
    return next((folder.name for folder in path.resolve().parents if folder.name.startswith("Dataset")), path.stem)


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, smallest and largest."""
    of = {"median": statistics.median, "min": min, "max": max}
    return {name: round(function(values), digits) for name, function in of.items()}


def ratios(over: Sequence[float], under: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Spread of the ratios of measurements that were made in turn, pair by pair."""
    return spread([a / b for a, b in zip(over, under, strict=True)], digits)


def about(device: torch.device, threads: int) -> dict[str, Any]:
    """Where something was measured, and how busy the machine was before."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }


def pretrainer(corpus: str, plans: str, device: torch.device) -> Any:
    """The trainer of `hssl pretrain`, not yet initialised; `set_environment` and `nnUNet_results` come first."""
    from nnunetv2.run.run_training import get_trainer_from_args

    as_in_training()
    with trainers_found_at_once():
        return get_trainer_from_args(dataset_name(corpus), "3d_fullres", "all", PRETRAIN_TRAINER, plans, device=device)


def trainer_and_checkpoints(description: str | None, out: str) -> tuple[argparse.Namespace, Any, dict[str, Path]]:
    """Of a script that looks at checkpoints of pretrainings: its options, the corpus' trainer, and the named files."""
    parser = corpus_parser(description, out)
    parser.add_argument("checkpoints", metavar="[NAME=]CHECKPOINT", nargs="+")
    args = parser.parse_args()
    checkpoints = named_files(args.checkpoints)
    set_environment()
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    torch.set_num_threads(args.threads)
    trainer = pretrainer(args.corpus, args.plans, args.device)
    trainer.initialize()
    return args, trainer, checkpoints


def as_in_training() -> None:
    """Let cuDNN choose its fastest algorithms, as nnU-Net does before a training."""
    torch.backends.cudnn.benchmark = True


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU has been given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
