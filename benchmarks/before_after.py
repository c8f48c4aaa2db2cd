"""One step of pretraining as it was at another revision and as it is, measured in turn.

    python benchmarks/before_after.py CORPUS -p PLANS --before REVISION [--rounds 3] [--steps 3] [--out FILE]

Checks REVISION out into a temporary folder and runs its own `pretraining_step.py` and this checkout's on the same
corpus, before, after, before, after. Ratios are of the medians of a round, before over after: above 1 it has become
faster.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from common import about, corpus_parser, ratios

from hssl_nnunet.files import read_json, write_json

ROOT = Path(__file__).parents[1]
SCRIPT = "pretraining_step.py"
PARTS = ("views", "step", "pure_network", "heads", "optimizer")
ALL = "all domains"  # a step with a chunk of each


def main() -> None:
    args = arguments()
    told = about(args.device, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git("worktree", "add", "--detach", str(before), args.before)
        try:
            rounds = [[measured(root, args, Path(folder)) for root in (before, ROOT)] for _ in range(args.rounds)]
        finally:
            git("worktree", "remove", "--force", str(before))
    revisions = {"before": git("rev-parse", args.before), "after": git("describe", "--always", "--dirty")}
    domains = {name: compared(rounds, name) for name in rounds[0][1]}
    command = f"python {shlex.join(sys.argv)}"
    write_json(
        args.out, {"command": command, **told, "revisions": revisions, "rounds": args.rounds, "domains": domains}
    )
    for name, result in domains.items():
        print(name, {part: of["before_over_after"] for part, of in result.items()})


def arguments() -> Namespace:
    parser = corpus_parser(__doc__, "before_after.json")
    parser.add_argument("--before", required=True, metavar="REVISION")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    return parser.parse_args()


def git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def measured(root: Path, args: Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of every domain, and of a step over all, of a checkout, by its own script."""
    out = folder / "round.json"
    options = (args.corpus, "-p", args.plans, "--threads", str(args.threads), "--steps", str(args.steps))
    command = (sys.executable, f"benchmarks/{SCRIPT}", *options, "-device", str(args.device), "--out", str(out))
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True)
    found = read_json(out)
    return {**found["domains"], **({ALL: found["all_domains"]} if "all_domains" in found else {})}


def compared(rounds: list[list[dict[str, Any]]], domain: str) -> dict[str, Any]:
    """Median seconds of each part that both have measured in every round, and the spread of their ratios."""
    found = {}
    for part in (p for p in PARTS if all(f"{p}_s" in one.get(domain, {}) for turn in rounds for one in turn)):
        before, after = ([statistics.median(turn[k][domain][f"{part}_s"]) for turn in rounds] for k in (0, 1))
        found[part] = {"before_s": before, "after_s": after, "before_over_after": ratios(before, after)}
    return found


if __name__ == "__main__":
    main()
