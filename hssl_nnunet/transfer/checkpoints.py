"""Checkpoints of nnU-Net and its relatives, read without running what a pickle may hold."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hssl_nnunet.errors import HSSLError

# The types that nnU-Net's and our checkpoints hold beside tensors: numpy numbers in the log, arrays in random states.
_DTYPES = ("float64", "float32", "int64", "int32", "uint32", "uint64", "bool")
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_ARRAY = np.zeros(0).__reduce__()[0]
CHECKPOINT_TYPES: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in _DTYPES),
    # numpy 2 renamed the module; a checkpoint may have been written under either
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_NUMPY_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read an nnU-Net checkpoint on the CPU without unpickling arbitrary objects.

    Raises:
        HSSLError: the file is missing or damaged, or holds a type that no nnU-Net checkpoint needs.
    """
    if not Path(path).is_file():
        found = "is a folder" if Path(path).is_dir() else "does not exist"
        raise HSSLError(f"The checkpoint {path} {found}. Name a file, such as the `checkpoint_final.pth` of a fold.")
    try:
        with torch.serialization.safe_globals(CHECKPOINT_TYPES):
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise HSSLError(
            f"{path} is damaged or no nnU-Net checkpoint: {_reason(error)}. Restore it, or train again."
        ) from None
    return content


def _reason(error: Exception) -> str:
    """What torch says, without its advice to load the file all the same."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds {found[1]}, which no such checkpoint needs and which may run code"
    if isinstance(error, pickle.UnpicklingError) or not str(error):
        return "torch has not written it, or not to its end"
    return str(error).partition("\n")[0].rstrip(".")
