"""A real SLURM on this machine, of one node or of several hosts as network namespaces, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
CONFIGURATION = """
ClusterName=hssl
SlurmctldHost={host}({address})
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
SlurmctldPort={port}
SlurmdPort={next_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
ReturnToService=2
KillWait=5
"""
PARTITION = "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
NETWORK, BRIDGE = "10.79.0", "10.79.0.254"
LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its name and address, and the words before a command that run it there."""

    name: str
    address: str
    inside: tuple[str, ...] = ()


def why_not() -> str:
    """What is missing for a cluster; empty when nothing is."""
    missing = [program for program in PROGRAMS if find(program) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def cluster(folder: Path, nodes: Sequence[Node] = (), address: str = LOCAL) -> Iterator[dict[str, str]]:
    """Start the daemons; yields the variables that SLURM's commands need.

    Args:
        folder: of the cluster's files.
        nodes: those that compute; none = this machine alone.
        address: under which the nodes reach this machine.
    """
    (folder / "state").mkdir(parents=True)
    folder.chmod(0o755)  # munge trusts a key in no folder that others may write to
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    host, port = socket.gethostname().partition(".")[0], free_port()
    nodes = nodes or [Node(host, LOCAL)]
    text = CONFIGURATION.format(host=host, address=address, folder=folder, port=port, next_port=port + 1)
    for node in nodes:
        (folder / f"spool_{node.name}").mkdir()
    lines = [f"NodeName={n.name} NodeAddr={n.address} CPUs={os.cpu_count()} State=UNKNOWN" for n in nodes]
    (folder / "slurm.conf").write_text("\n".join([text, *lines, PARTITION]))
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    environment = {**os.environ, **variables}
    own = [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    commands = [
        [find("munged"), "--foreground", "--force", f"--socket={folder}/munge.sock", f"--key-file={key}", *own],
        [find("slurmctld"), "-D", "-c"],
        *([*node.inside, find("slurmd"), "-D", "-N", node.name] for node in nodes),
    ]
    daemons = []
    try:
        for i, command in enumerate(commands):
            with (folder / f"daemon_{i}.out").open("w") as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT))
            time.sleep(1)
        _wait_for_the_nodes(environment, folder)
        yield variables
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


@contextmanager
def hosts(folder: Path, count: int) -> Iterator[list[Node]]:
    """Hosts as network namespaces, each with a name and an address of its own; this machine is `BRIDGE`.

    Skips the test where the kernel makes no such network.
    """
    bridge = f"hssl{os.getpid()}"
    nodes = [Node(f"node{i}", f"{NETWORK}.{i}") for i in range(1, count + 1)]
    table = folder / "hosts"
    known = [(LOCAL, "localhost"), (BRIDGE, socket.gethostname()), *((n.address, n.name) for n in nodes)]
    table.write_text("".join(f"{address} {name}\n" for address, name in known))
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{BRIDGE}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for i, node in enumerate(nodes):
            _connect(bridge, f"{bridge}n{i}", f"{bridge}v{i}", node)
        yield [Node(n.name, n.address, _entering(f"{bridge}n{i}", n, table)) for i, n in enumerate(nodes)]
    finally:
        for i in range(count):
            subprocess.run(["ip", "netns", "del", f"{bridge}n{i}"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def _connect(bridge: str, space: str, end: str, node: Node) -> None:
    _ip("netns", "add", space)
    _ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
    _ip("link", "set", end, "master", bridge, "up")
    _ip("-n", space, "addr", "add", f"{node.address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _ip("-n", space, "link", "set", device, "up")


def _entering(space: str, node: Node, table: Path) -> tuple[str, ...]:
    """The words that run a command in a namespace (not `ip netns exec`, which hides the mounts under /sys)."""
    script = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
    enter = ("nsenter", f"--net=/run/netns/{space}", "unshare", "--uts", "--mount")
    return (*enter, "sh", "-c", script, node.name, str(table))


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network of hosts can be made here: ip {' '.join(words)}: {done.stderr.strip()}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait_for_the_nodes(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False)
        if set(done.stdout.split()) == {"idle"}:
            return
        time.sleep(0.5)
    logs = "\n".join(p.read_text()[-1500:] for p in [*folder.glob("*.log"), *folder.glob("*.out")])
    raise RuntimeError(f"SLURM's nodes do not come up: {done.stdout}{done.stderr}\n{logs}")
