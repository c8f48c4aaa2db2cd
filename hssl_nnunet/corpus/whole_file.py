"""One reading of a raw file from its first byte to its last: whether it is whole, and whether all voxels are finite."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

CHUNK_BYTES = 1 << 20
LARGEST = 1e15  # voxel: the squares of 10^8 such, which a z-score sums in float32, are finite
GZIP_START = b"\x1f\x8b"


class DamagedFileError(ValueError):
    """Bytes of a file are missing or wrong; the message goes on a sentence that begins with the file."""


def cause_of(error: Exception) -> str:
    """The last line of an error: SimpleITK puts the cause there."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def too_large(low: float, high: float) -> str | None:
    """What is wrong with finite voxels, as of a fill value, that make the normalised image NaN or nothing but zeros.

    Args:
        low: the least of an image's voxels.
        high: the largest.
    """
    largest = low if -low > high else high
    return (
        f"has voxels of {largest:g}, too large for statistics in float32" if LARGEST < abs(largest) < math.inf else None
    )


def voxels_are_finite(file: str | Path) -> bool:
    """Read a file's bytes once, in chunks, and tell whether all its voxels are finite, as far as its form shows it.

    A gzip stream must be whole, a NIfTI file as long as its header says. SimpleITK reads cut files without an error,
    and turns NaN of a NIfTI file into 0, so that neither can be seen in the voxels that it gives.

    Raises:
        DamagedFileError: the compressed data end early, their checksum is wrong, voxels are missing, or what is called
            NIfTI is none.
        OSError: the file cannot be opened.
    """
    try:
        return _scan(Path(file))
    except (EOFError, gzip.BadGzipFile, zlib.error, ImageFileError, HeaderDataError) as error:
        raise DamagedFileError(f"is truncated or damaged: {error}") from None


def _scan(file: Path) -> bool:
    nifti = file.name.endswith((".nii", ".nii.gz"))
    header = nibabel.load(file).header if nifti else None
    dtype = header.get_data_dtype() if header is not None else np.dtype(np.uint8)
    offset = int(header.get_data_offset()) if header is not None else 0
    needed = math.prod(header.get_data_shape()) * dtype.itemsize if header is not None else 0
    size, finite = 0, True
    with file.open("rb") as stream:
        compressed = stream.read(len(GZIP_START)) == GZIP_START
    with gzip.open(file) if compressed else file.open("rb") as stream:
        stream.read(offset)
        while chunk := stream.read(CHUNK_BYTES):
            voxels = chunk[: max(0, needed - size)]
            size += len(chunk)
            if dtype.kind == "f":
                whole = len(voxels) // dtype.itemsize
                finite &= bool(np.isfinite(np.frombuffer(voxels, dtype, whole)).all())
    if size < needed:
        raise EOFError(f"it holds {size} bytes of voxels, but its header promises {needed}")
    return finite
