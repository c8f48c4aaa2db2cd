"""One process, or one of many: what the training loop needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from hssl_nnunet.errors import HSSLError


def rank_and_world() -> tuple[int, int]:
    """This process' rank and the number of processes; (0, 1) outside a process group."""
    active = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if active else (0, 1)


def mean_over_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Mean of each value over all processes; every process must call it with the same keys."""
    rank, world = rank_and_world()
    if world == 1:
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(values, (total / world).tolist(), strict=True))


def of_all_ranks(values: list[float]) -> list[float]:
    """The values of every process, one process after another; every process must call it, with any number of them."""
    _, world = rank_and_world()
    if world == 1:
        return values
    gathered: list[list[float]] = [[] for _ in range(world)]
    dist.all_gather_object(gathered, values)
    return [value for part in gathered for value in part]


def check_same_epoch(epoch: int, folder: Path, device: torch.device) -> None:
    """Refuse processes that begin at different epochs: they would average gradients of different weights, unnoticed.

    Every process must call it.

    Args:
        epoch: the one that this process begins at.
        folder: where it looked for a checkpoint.
        device: where ranks exchange it.

    Raises:
        HSSLError: the epochs differ.
    """
    if rank_and_world()[1] == 1:
        return
    mine = torch.tensor([epoch], device=device)
    epochs = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(epochs, mine)
    first = int(epochs[0])
    others = [(other, int(found)) for other, found in enumerate(epochs) if int(found) != first]
    if others:
        raise HSSLError(
            f"Rank 0 begins at epoch {first}, rank {others[0][0]} at epoch {others[0][1]}: they do not find the same "
            f"checkpoints in {folder}. Let nnUNet_results name one folder that all machines share, as it is on the "
            "machine of rank 0, and start the same command again."
        )
