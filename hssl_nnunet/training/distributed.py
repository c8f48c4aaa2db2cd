"""One process, or one of many: what the training loop needs to know."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist


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
