"""Processes on one machine or many: their processors; started by `torchrun`, their group, devices, and loss of one."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hssl_nnunet.errors import HSSLError

if TYPE_CHECKING:
    import torch

VARIABLE = "TORCHELASTIC_RUN_ID"  # set by torchrun alone; RANK and WORLD_SIZE are set by many
# of a rank for another: while rank 0 probes alone, on up to 64 images of each domain, the others wait; torch itself
# would give up after 10 (NCCL) or 30 minutes (gloo)
LONGEST_WAIT = timedelta(hours=2)
SECONDS_AFTER_CTRL_C = 5


def available_cpus() -> int:
    """Processors that this process may use: those of its SLURM allocation or container where the system knows them."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_shares(chunks_per_step: int, processes: int, plans: Path) -> None:
    """Refuse a number of processes that cannot share the chunks of a step evenly.

    Args:
        chunks_per_step: of the corpus' plans.
        processes: over all machines.
        plans: the plans' file, for the error.

    Raises:
        HSSLError: the number does not divide `chunks_per_step`.
    """
    if chunks_per_step % processes:
        multiple = -(-chunks_per_step // processes) * processes
        raise HSSLError(
            f"{chunks_per_step} chunks cannot be shared out evenly among {processes} processes. In {plans}, set "
            f"`chunks_per_step` under `hssl`, `pretraining` to a multiple of {processes}, such as {multiple}, or "
            "change the number of processes."
        )


def under_torchrun() -> bool:
    """Whether `torchrun` has started this process."""
    return VARIABLE in os.environ


@contextmanager
def joined(device: torch.device) -> Iterator[int]:
    """Join the process group of `torchrun`, and leave it at the end; without `torchrun` there is none.

    A rank that is lost breaks the others' communication, or `torchrun` ends them: for each that is left both become one
    message.

    Args:
        device: where this process trains; on `cuda` it takes the GPU of its local rank.

    Yields:
        The global rank; 0 without `torchrun`.

    Raises:
        HSSLError: a process of the group was lost, or has no GPU of its own.
    """
    if not under_torchrun():
        yield 0
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        _check_own_gpu()
        torch.cuda.set_device(own_device(device))
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        before = signal.signal(signal.SIGTERM, _terminated)
        yield dist.get_rank()
        dist.barrier()
    except (RuntimeError, SystemExit) as error:
        if isinstance(error, SystemExit) or _connection_was_lost(error):
            # `torchrun` tells each rank that is left to end: that must not cut off the message of one that already does
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise _lost(error) from error
        raise
    # the group is broken after an error, and would only wait for the lost process
    signal.signal(signal.SIGTERM, before)
    dist.destroy_process_group()


def run_under_torchrun(processes: int, words: Sequence[str]) -> None:
    """Run a command of `hssl` as several processes of this machine, and wait for it.

    Args:
        processes: how many; on `cuda` each takes a GPU.
        words: the command, without `hssl`.

    Raises:
        HSSLError: it has failed; each process has said why.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "hssl_nnunet"]
    with subprocess.Popen([sys.executable, *launcher, *words]) as torchrun:
        code = _ended_with_its_processes(torchrun)
    if code:
        raise HSSLError(f"`hssl {shlex.join(words)}` on {processes} processes ended with exit code {code}, see above.")


def _ended_with_its_processes(torchrun: subprocess.Popen[bytes]) -> int:
    """Wait for `torchrun`, which ends its processes when it is told to end itself; killed, it would leave them behind.

    Returns:
        Its exit code.
    """
    before = signal.signal(signal.SIGTERM, lambda number, frame: torchrun.terminate())
    try:
        return torchrun.wait()
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):  # of a terminal, Ctrl-C has reached `torchrun` as well
            torchrun.wait(SECONDS_AFTER_CTRL_C)
        torchrun.terminate()
        torchrun.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def own_device(device: torch.device) -> torch.device:
    """The device of this process: on `cuda` under `torchrun` the GPU of its rank on this machine."""
    import torch

    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if under_torchrun() and device.type == "cuda" else device


def _check_own_gpu() -> None:
    import torch

    here, visible = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > visible:
        raise HSSLError(
            f"{here} processes were started on this machine, each needs a GPU of its own, and {visible} are visible. "
            f"Start {visible} (`torchrun --nproc_per_node {visible}`, `hssl slurm pretrain --processes {visible}`), or "
            f"ask for {here} GPUs (`--gres=gpu:{here}`)."
        )


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _connection_was_lost(error: BaseException) -> bool:
    """Whether an error is one of gloo's or NCCL's about a peer, lost or late, and not one of the training."""
    import torch.distributed as dist

    said = str(error).lower()
    hints = ("connection closed by peer", "connection reset", "broken pipe", "gloo")
    return isinstance(error, dist.DistError) or (
        not isinstance(error, HSSLError) and any(hint in said for hint in hints)  # a user's folder may be called so
    )


def _lost(error: BaseException) -> HSSLError:
    # where no process was lost, as when NCCL cannot be set up, these words alone say what is wrong
    words = "" if isinstance(error, SystemExit) else f" Torch's own words: {str(error).strip()}"
    return HSSLError(
        f"Rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has lost another process of this run, has waited for "
        f"one in vain ({LONGEST_WAIT} h), or was told to end; its output or log says why. To go on from the last "
        "checkpoint, start the same `torchrun` command with --c. The number of processes may change, as long as it "
        f"divides `chunks_per_step`.{words}"
    )
