"""Processors of a process, shares of a step, and a rank that is waited for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hssl_nnunet import ranks
from hssl_nnunet.errors import HSSLError

# rank 0 is busy for longer than rank 1 waits
PROBING_TOO_LONG = """
import datetime, time, torch, torch.distributed as dist
from hssl_nnunet import ranks
ranks.LONGEST_WAIT = datetime.timedelta(seconds=3)
with ranks.joined(torch.device("cpu")) as rank:
    time.sleep(8 if rank == 0 else 0)
    dist.all_reduce(torch.zeros(1))
"""

# the lost connection is noticed first; `torchrun` ends this rank before its error is printed
TOLD_TO_END_MEANWHILE = """
import os, signal, torch
from hssl_nnunet import ranks
from hssl_nnunet.errors import HSSLError
try:
    with ranks.joined(torch.device("cpu")):
        raise RuntimeError("Connection closed by peer")
except HSSLError as error:
    os.kill(os.getpid(), signal.SIGTERM)
    print(error)
"""


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What `torchrun` tells a process, but its rank; set for a group of one, which is left at the end."""
    import torch.distributed as dist

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    variables = {ranks.VARIABLE: "run", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    for name, value in {**variables, "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    yield variables
    signal.signal(signal.SIGTERM, before)
    if dist.is_initialized():  # after an error
        dist.destroy_process_group()


def test_ranks_wait_for_the_probes_of_rank_0_longer_than_torch_would(group: dict[str, str]) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.constants import default_pg_timeout

    cpu = torch.device("cpu")
    with ranks.joined(cpu):
        backend = dist.distributed_c10d._get_default_group()._get_backend(cpu)
        assert backend.options._timeout == ranks.LONGEST_WAIT > default_pg_timeout


@pytest.mark.slow
def test_a_rank_that_waits_in_vain_says_so(group: dict[str, str]) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROBING_TOO_LONG],
            env={**os.environ, **group, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert (
        "HSSLError: Rank 1 of 2 has lost another process of this run, has waited for one in vain (0:00:03 h)" in said[1]
    )


def test_the_end_of_a_run_does_not_cut_off_the_message_of_a_rank(group: dict[str, str]) -> None:
    command = [sys.executable, "-c", TOLD_TO_END_MEANWHILE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "Rank 0 of 1 has lost another process" in done.stdout


def test_what_broke_the_connection_is_told_in_its_own_words(group: dict[str, str]) -> None:
    import torch
    import torch.distributed as dist

    with pytest.raises(HSSLError, match="has lost another process.* own words: NCCL error: Duplicate GPU detected"):
        with ranks.joined(torch.device("cpu")):
            raise dist.DistBackendError("NCCL error: Duplicate GPU detected")


def test_a_mistake_is_none_of_the_connection_whatever_a_folder_is_called(group: dict[str, str]) -> None:
    import torch

    with pytest.raises(HSSLError, match="^Cannot write Dataset001_Igloo$"), ranks.joined(torch.device("cpu")):
        raise HSSLError("Cannot write Dataset001_Igloo")


def test_more_processes_than_gpus_are_refused(group: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(HSSLError, match="4 processes .* 2 are visible. Start 2 .*--nproc_per_node 2.*--gres=gpu:4"):
        with ranks.joined(torch.device("cuda")):
            pass


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone binds a process to processors")
def test_processors_are_those_of_the_allocation() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from hssl_nnunet.ranks import available_cpus; print(available_cpus())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_processors_where_the_system_binds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert ranks.available_cpus() == 6


def test_a_step_is_shared_evenly_or_not_at_all() -> None:
    for processes in (1, 2, 3, 6):
        ranks.check_shares(6, processes, Path("plans.json"))
    with pytest.raises(HSSLError, match=r"6 chunks .* 4 processes. In plans.json, .* multiple of 4, such as 8"):
        ranks.check_shares(6, 4, Path("plans.json"))
