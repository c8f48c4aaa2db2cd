"""Arms of two benchmarks side by side, on the test patients and seeds that they share: from their `report.json` alone.

    python benchmarks/compare_reports.py NEW.json:hssl:10% OLD.json:scratch:100% [--out FILE]
    python benchmarks/compare_reports.py OLD.json,NEW.json:hssl:5% OLD.json:scratch:5%  # runs of both files

A report compares what lies in its own folder. Runs made elsewhere, on another machine or by another version, are set
beside it here, by the same statistics: difference in Dice points, the first minus the second, with its 95 % interval
over seeds and patients. Where only one seed is shared it is over patients alone. What differs beside arm and budget,
the machine for one, is in the difference as well; the file names it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hssl_nnunet.benchmark.pairing import DiceTable
from hssl_nnunet.benchmark.statistics import mean_difference
from hssl_nnunet.files import read_json, write_json


class Side(NamedTuple):
    """One of the two: a report, and an arm and a budget of it."""

    reports: tuple[Path, ...]
    arm: str
    budget: str

    @classmethod
    def from_text(cls, text: str) -> Side:
        """`FILE,FILE:ARM:BUDGET`."""
        files, arm, budget = text.rsplit(":", 2)
        return cls(tuple(map(Path, files.split(","))), arm, budget)

    def __str__(self) -> str:
        return f"{','.join(map(str, self.reports))}:{self.arm}:{self.budget}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs=2, type=Side.from_text, metavar="FILE[,FILE]:ARM:BUDGET")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compare_reports.json"))
    args = parser.parse_args()
    result = {"command": f"python {shlex.join(sys.argv)}", **compared(*args.sides)}
    for name, found in result["targets"].items():
        print(name, *(f"{key} {value}" for key, value in found.items() if key not in ("dice", "devices")))
    write_json(args.out, result)


def compared(first: Side, second: Side) -> dict[str, Any]:
    """Each target that both have with the same test patients, and the mean over targets, under `targets`.

    Raises:
        SystemExit: no target is shared, or its test patients are others.
    """
    ours, theirs = runs_of(first), runs_of(second)
    tables, targets = [], {}
    for name in sorted(ours.keys() & theirs.keys()):
        if not (seeds := sorted(ours[name].keys() & theirs[name].keys())):
            continue
        pairs = [[runs[name][seed] for seed in seeds] for runs in (ours, theirs)]
        tables.append(table(name, seeds, pairs))
        devices = [sorted({run["device"] for run in runs}) for runs in pairs]
        dice = [[run["dice"] for run in runs] for runs in pairs]
        targets[name] = {"seeds": seeds, **_difference([tables[-1]]), "dice": dice, "devices": devices}
    if not tables:
        raise SystemExit(f"{first} and {second} share no target and seed.")
    if len(tables) > 1:
        targets["mean"] = _difference(tables)
    return {"targets": targets}


def runs_of(side: Side) -> dict[str, dict[int, dict[str, Any]]]:
    """Target -> seed -> run.

    Raises:
        SystemExit: two files have the same run.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in (run for report in side.reports for run in read_json(report)["runs"]):
        if (run["arm"], run["budget"]) == (side.arm, side.budget):
            of_seed = found.setdefault(run["dataset_name"], {})
            if run["seed"] in of_seed:
                raise SystemExit(f"{side}: {run['dataset_name']}, seed {run['seed']}, is in more than one file.")
            of_seed[run["seed"]] = run
    return found


def table(name: str, seeds: list[int], pairs: list[list[dict[str, Any]]]) -> DiceTable:
    """Dice of both by seed and patient."""
    patients = {tuple(sorted(run["dice_by_patient"])) for runs in pairs for run in runs}
    if len(patients) > 1:
        raise SystemExit(f"{name}: the runs were tested on different patients.")
    (shared,) = patients
    points = np.array([[[run["dice_by_patient"][p] for p in shared] for run in runs] for runs in pairs])
    return DiceTable(tuple(seeds), shared, points)


def _difference(tables: list[DiceTable]) -> dict[str, float]:
    names = ("difference", "low", "high")
    return {name: round(value, 4) for name, value in zip(names, mean_difference(tables), strict=True)}


if __name__ == "__main__":
    main()
