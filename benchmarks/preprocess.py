"""`hssl plan_and_preprocess` against stock nnU-Net, and what `hssl corpus` adds: wall time and peak memory.

    python benchmarks/preprocess.py DATASET [DATASET ...] [--repeats 3] [--out benchmarks/results/preprocess.json]

Both commands work on the same labelled cases with default plans, in turn (A B A B), each into an empty folder, after
a round that warms up; images without masks, which stock nnU-Net leaves alone, are left out. Stock runs with and without
its integrity check, since ours always looks at every file. Then a corpus of all datasets is built from what ours wrote.
Memory as in `readme_commands.py`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import about, ratios
from readme_commands import BIN, measure

from hssl_nnunet.files import write_json
from hssl_nnunet.paths import dataset_name, raw_dir

STOCK = "nnUNetv2_plan_and_preprocess"


def main() -> None:
    args = arguments()
    np, datasets = str(args.processes), [dataset_name(d) for d in args.datasets]
    ids = [name[7:10] for name in datasets]
    stock = [STOCK, "-d", *ids, "-c", "3d_fullres", "-npfp", np, "-np", np]
    commands = {
        "stock": stock,
        "stock_with_integrity_check": [*stock, "--verify_dataset_integrity"],
        "hssl": ["hssl", "plan_and_preprocess", "-d", *ids, "-np", np],
    }
    told = {"command": f"python {shlex.join(sys.argv)}", "datasets": datasets, **about(torch.device("cpu"), 0)}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*commands, "corpus")}
    with tempfile.TemporaryDirectory() as raw:
        link_labelled(datasets, Path(raw))
        for turn in range(args.repeats + 1):
            for name, command in commands.items():
                with tempfile.TemporaryDirectory() as scratch:
                    os.environ["nnUNet_preprocessed"] = f"{scratch}/preprocessed"
                    found = {name: run(command, Path(scratch))}
                    if name == "hssl":
                        found["corpus"] = run(["hssl", "corpus", "-d", *ids, "-o", "900"], Path(scratch))
                    for what, measured in found.items() if turn else ():
                        runs[what].append(measured)
    over = {name: ratios(wall(runs["hssl"]), wall(runs[name])) for name in list(commands)[:2]}
    write_json(args.out, {**told, "hssl_over": over, "runs": runs})
    print(over)


def link_labelled(datasets: list[str], raw: Path) -> None:
    """The raw datasets without their images without masks."""
    for name in datasets:
        (raw / name).mkdir()
        for entry in (raw_dir() / name).iterdir():
            if entry.name != "imagesTs":
                (raw / name / entry.name).symlink_to(entry.resolve())
    os.environ["nnUNet_raw"] = str(raw)


def wall(runs: list[dict[str, Any]]) -> list[float]:
    return [run["wall_s"] for run in runs]


def run(command: list[str], scratch: Path) -> dict[str, Any]:
    found = measure([str(BIN / command[0]), *command[1:]], scratch)
    if found["exit_code"]:
        sys.exit(f"{' '.join(command)} failed: {found['last_line']}")
    return {key: found[key] for key in ("wall_s", "peak_gib")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/preprocess.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
