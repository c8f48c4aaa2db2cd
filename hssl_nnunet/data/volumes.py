"""Preprocessed volumes: opened where they lie, or kept decompressed in RAM up to a budget."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

import blosc2
import numpy as np

GIB = 2**30
# as nnU-Net's own reader: memory mapping does not work with blosc2 on Windows
OPEN_ARGUMENTS: dict[str, Any] = {
    "mode": "r",
    "dparams": {"nthreads": 1},
    **({} if os.name == "nt" else {"mmap_mode": "r"}),
}


def open_volume(path: Path) -> Any:
    """A `.b2nd` file as an array (C, X, Y, Z) that is decompressed where it is sliced.

    Raises:
        OSError, RuntimeError: it cannot be opened.
    """
    return blosc2.open(str(path), **OPEN_ARGUMENTS)


class VolumeCache:
    """Opens volumes as `open_volume`, and keeps the first ones whole in RAM until a budget is spent.

    Nothing is evicted: images are drawn at random, so that which of them are kept does not matter, and a kept one need
    never be read again. The voxels are the same either way.

    Args:
        budget_gib: RAM for decompressed voxels of this process, in GiB; 0 keeps nothing.

    Attributes:
        used: bytes that are spent.
    """

    def __init__(self, budget_gib: float) -> None:
        self.used = 0
        self._budget = int(budget_gib * GIB)
        self._kept: dict[Path, np.ndarray] = {}
        self._lock = Lock()

    def open(self, path: Path) -> Any:
        """The volume, from RAM if it is kept; safe from several threads.

        Raises:
            OSError, RuntimeError: it cannot be opened or decompressed.
        """
        if path in self._kept:
            return self._kept[path]
        volume = open_volume(path)
        size = int(np.prod(volume.shape)) * volume.dtype.itemsize
        with self._lock:
            if path in self._kept or self.used + size > self._budget:
                return self._kept.get(path, volume)
            self.used += size
        try:
            whole = np.asarray(volume[:])
        except BaseException:
            with self._lock:
                self.used -= size
            raise
        # two threads may read one volume at the same time: the second result replaces the first, and is paid for once
        with self._lock:
            if path in self._kept:
                self.used -= size
            self._kept[path] = whole
        return whole
