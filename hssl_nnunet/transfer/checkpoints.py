"""Checkpoints of nnU-Net and its relatives: read without running what a pickle may hold, and written whole."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import cannot, written_whole

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
        HSSLError: the file is missing, may not be read or is damaged, or holds a type that no nnU-Net checkpoint needs.
    """
    if not Path(path).is_file():
        found = "is a folder" if Path(path).is_dir() else "does not exist"
        raise HSSLError(f"The checkpoint {path} {found}. Name a file, such as the `checkpoint_final.pth` of a fold.")
    try:
        with torch.serialization.safe_globals(CHECKPOINT_TYPES):
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise cannot("read", path, error) from error
    except Exception as error:  # torch raises many types for a damaged file
        raise HSSLError(
            f"{path} is damaged or no nnU-Net checkpoint: {_reason(error)}. Restore it, or train again."
        ) from None
    return content


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        HSSLError: the disk is full or the folder cannot be written.
    """
    # through a file object, so that a full disk is an OSError and not an internal error of torch
    with written_whole(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)


def _reason(error: Exception) -> str:
    """What torch says, without its advice: to load the file all the same, or how to better the message."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds {found[1]}, which no such checkpoint needs and which may run code"
    if isinstance(error, (pickle.UnpicklingError, LookupError)) or not str(error):
        return "torch has not written it, or not to its end"
    return re.sub(r"\s+(\(Could this|This is an internal).*", "", str(error).partition("\n")[0]).rstrip(".")
