"""What is drawn on the CPU, brought to the device of the images."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """`values`, from the CPU, on a device; neither waits for the other.

    A copy from ordinary memory would wait until a GPU has done all that it was given before: Python could then not
    prepare a step while the GPU works on another. Hence it leaves from page-locked memory.
    """
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
