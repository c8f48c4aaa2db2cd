"""What pretraining logs of an epoch, in nnU-Net's logger, and what is read from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hssl_nnunet.training.distributed import mean_over_ranks
from hssl_nnunet.training.monitor import PROBES
from hssl_nnunet.training.probes import FEWEST_FOR_RANK


def log_values(logger: Any, values: Mapping[str, float], epoch: int) -> None:
    """Log values of an epoch; nan stands for epochs without them, as of a term that was switched on or off between."""
    for key, value in values.items():
        known = _values(logger).setdefault(key, [])  # nnU-Net knows its own keys only, and puts a value at the end
        known.extend([math.nan] * (epoch - len(known)))
        logger.log(key, value, epoch)


def mean_terms(part: str, outputs: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, float]:
    """Means of the loss' terms over an epoch's steps and the ranks, by the names they are logged under.

    Args:
        part: `train` or `val`.
        outputs: of each step its terms; `total` is called as nnU-Net calls its loss.
        device: where ranks exchange them.
    """
    means = {name: float(torch.stack([o[name] for o in outputs]).mean()) for name in outputs[0]}
    named = {f"{part}_losses" if name == "total" else f"{part}_{name}": value for name, value in means.items()}
    return mean_over_ranks(named, device)


def report(logger: Any) -> list[str]:
    """A line for each term and probe of the last epoch, and its seconds."""
    log = _values(logger)
    ours = sorted(key for key in log if key.startswith(("train_", "val_")) or key in PROBES)
    # no probe was due where a probe is nan; a loss that is nan must be seen
    lines = [f"{key} {log[key][-1]:.4f}" for key in ours if log[key] and not (key in PROBES and np.isnan(log[key][-1]))]
    if log.get("probed_images") and log["probed_images"][-1] < FEWEST_FOR_RANK:  # nan, no probe, is not
        lines.append(f"effective_rank is not told of fewer than {FEWEST_FOR_RANK} images")
    seconds = log["epoch_end_timestamps"][-1] - log["epoch_start_timestamps"][-1]
    return [*lines, f"Epoch time: {seconds:.2f} s"]


def curves(logger: Any) -> dict[str, list[float]]:
    """What was logged for every epoch: losses, learning rate, probes (nan in an epoch without them)."""
    return {k: [float(x) for x in v] for k, v in _values(logger).items() if v and not k.startswith("epoch_")}


def _values(logger: Any) -> dict[str, list[Any]]:
    return logger.local_logger.my_fantastic_logging  # type: ignore[no-any-return]
