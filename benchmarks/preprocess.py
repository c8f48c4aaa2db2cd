"""`hssl plan_and_preprocess` against stock nnU-Net, and what `hssl corpus` adds: wall time and peak memory.

    python benchmarks/preprocess.py DATASET [DATASET ...] [--repeats 3] [--out benchmarks/results/preprocess.json]

Both commands work on the same raw data with default plans, in turn (A B A B), each time into an empty folder; stock
nnU-Net with and without its integrity check, since ours always looks at every file. Then a corpus of all datasets is
built from what ours wrote. Memory as in `readme_commands.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from readme_commands import BIN, about, measure

from hssl_nnunet.files import write_json
from hssl_nnunet.paths import dataset_name

STOCK = "nnUNetv2_plan_and_preprocess"


def main() -> None:
    args = arguments()
    np, datasets = str(args.processes), args.datasets
    stock = [STOCK, "-d", *datasets, "-c", "3d_fullres", "-npfp", np, "-np", np]
    commands = {
        "stock": stock,
        "stock_with_integrity_check": [*stock, "--verify_dataset_integrity"],
        "hssl": ["hssl", "plan_and_preprocess", "-d", *datasets, "-np", np],
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*commands, "corpus")}
    for _ in range(args.repeats):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as scratch:
                os.environ["nnUNet_preprocessed"] = f"{scratch}/preprocessed"
                runs[name].append(run(command, Path(scratch)))
                if name == "hssl":
                    runs["corpus"].append(run(["hssl", "corpus", "-d", *datasets, "-o", "900"], Path(scratch)))
    ratios = {name: ratio(runs["hssl"], runs[name]) for name in list(commands)[:2]}
    measured = {"hssl_over": ratios, "runs": runs}
    told = {
        "command": f"python benchmarks/preprocess.py {' '.join(sys.argv[1:])}",
        "datasets": list(map(dataset_name, datasets)),
    }
    write_json(args.out, {**told, **about(), **measured})
    print(ratios)


def run(command: list[str], scratch: Path) -> dict[str, Any]:
    found = measure([str(BIN / command[0]), *command[1:]], scratch)
    if found["exit_code"]:
        sys.exit(f"{' '.join(command)} failed: {found['last_line']}")
    return {key: found[key] for key in ("wall_s", "peak_gib")}


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """Of wall times, pair by pair."""
    values = [a["wall_s"] / b["wall_s"] for a, b in zip(ours, theirs, strict=True)]
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/preprocess.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
