"""Wall time and peak memory of README's two commands, on a machine that does nothing else.

    python benchmarks/readme_commands.py demo|tests [--out benchmarks/results/readme_commands.json]

Memory is the largest sum over all processes of the command, sampled twice a second: proportional set size (PSS), in
which a page that several processes share counts once.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.versions import cpu_model, versions

BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "tests"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/readme_commands.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        commands = {"demo": ["hssl", "demo", "--out", f"{scratch}/demo"], "tests": ["pytest", "--durations=15"]}
        measured = measure([str(BIN / commands[args.what][0]), *commands[args.what][1:]], Path(scratch))
        if args.what == "demo":
            measured["stage_s"] = {k: round(s, 1) for k, s in read_json(f"{scratch}/demo/demo.json")["seconds"].items()}
    result = read_json(args.out) if args.out.is_file() else {}
    result[args.what] = {"command": f"python benchmarks/readme_commands.py {args.what}", **about(), **measured}
    write_json(args.out, result)


def measure(command: list[str], scratch: Path) -> dict[str, object]:
    """Run the command in a session of its own and follow its processes until it ends; its last lines are kept."""
    log, peak, begin = scratch / "log.txt", 0.0, time.monotonic()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        while process.poll() is None:
            peak = max(peak, sum(map(pss_gib, session(process.pid))))
            time.sleep(0.5)
    wall = round(time.monotonic() - begin, 1)
    print(log.read_text()[-4000:])
    last = re.sub(r"\x1b\[[0-9;]*m|=+", "", log.read_text().strip().splitlines()[-1]).strip()
    return {"wall_s": wall, "peak_gib": round(peak, 2), "exit_code": process.returncode, "last_line": last}


def session(leader: int) -> list[int]:
    """Processes whose session is the leader's, or that descend from one that is."""
    parents: dict[int, int] = {}
    members = {leader}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(entry.parent.name)] = int(fields[1])
        if int(fields[3]) == leader:
            members.add(int(entry.parent.name))
    for _ in range(4):  # generations that have a session of their own
        members |= {pid for pid, parent in parents.items() if parent in members}
    return sorted(members)


def pss_gib(pid: int) -> float:
    try:
        line = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(line[1]) / 2**20 if line else 0.0


def about() -> dict[str, object]:
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
