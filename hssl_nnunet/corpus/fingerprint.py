"""Fingerprint of images, domains and corpus: the heterogeneity that nnU-Net's own fingerprint averages away.

Needs no masks. Every file is read once, by one worker, and its measures are kept in the domain's preprocessed folder
(`hssl_image_fingerprints.json`), so that a second run only reads files that are new or have changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from hssl_nnunet.corpus.parallel import map_cases
from hssl_nnunet.corpus.whole_file import cause_of, too_large, voxels_are_finite
from hssl_nnunet.files import write_json

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
CACHE_FILE = "hssl_image_fingerprints.json"
CACHE_VERSION = 1
CHUNK_VOXEL = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFingerprint:
    """Measures of one channel of one raw image.

    Attributes:
        spacing_mm: mm per voxel in array order (z, y, x); a 2D image is one slice as thick as its coarsest pixel.
        shape: voxels in array order (z, y, x).
        orientation: where the file's axes x, y, z point to, as nibabel's `aff2axcodes` spells it (`RAS`).
        percentiles: intensities at `PERCENTILES` of the voxels that are not zero.
        content_hash: see `content_hash`.
    """

    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    orientation: str
    percentiles: tuple[float, ...]
    content_hash: str

    @property
    def field_of_view_mm(self) -> tuple[float, ...]:
        """Edges of the imaged box in mm, array order."""
        return tuple(s * n for s, n in zip(self.spacing_mm, self.shape, strict=True))

    @property
    def anisotropy(self) -> float:
        """Coarsest over finest spacing, at least 1."""
        return max(self.spacing_mm) / min(self.spacing_mm)


class BadImage(NamedTuple):
    """An image that cannot be used, and why."""

    file: str
    reason: str


def fingerprint_file(file: str | Path) -> tuple[ImageFingerprint, ...]:
    """Measure every channel of an image file (a 4D image or one with several components has more than one).

    Memory beyond the image itself: its non-zero voxels and a mask of one byte a voxel, that is less than four times
    the volume in all.

    Raises:
        RuntimeError: SimpleITK cannot read the file.
        ValueError: the file is truncated; the image has another dimension than 2, 3 or 4, is constant, or has voxels
            that are not finite.
    """
    voxels_are_finite(file)  # raises where it is cut; whether they are is told by `content_hash`
    image = sitk.ReadImage(str(file))
    if image.GetDimension() not in (2, 3, 4):
        raise ValueError(f"has {image.GetDimension()} dimensions, expected 2, 3 or 4")
    spacing, orientation = _spacing_mm(image), _orientation(image)
    return tuple(_measured_channel(volume, spacing, orientation) for volume in _channels(image))


def _measured_channel(volume: NDArray[Any], spacing_mm: tuple[float, ...], orientation: str) -> ImageFingerprint:
    digest = content_hash(volume)
    nonzero = volume[volume != 0]
    # `nearest` returns stored values: no interpolation between integers, which could overflow their type
    percentiles = np.percentile(nonzero, PERCENTILES, overwrite_input=True, method="nearest")
    return ImageFingerprint(
        spacing_mm=spacing_mm,
        shape=tuple(volume.shape),
        orientation=orientation,
        percentiles=tuple(float(p) for p in percentiles),
        content_hash=digest,
    )


def content_hash(volume: NDArray[Any]) -> str:
    """Hash of what an image shows: its shape and its voxels as float32, in array order.

    File name, compression, data type and header do not enter, so a renamed or re-saved copy is the same image, and
    so is a channel that was split off a 4D image. A resampled, cropped or reoriented copy is another image.

    Args:
        volume: (Z, Y, X), any numeric type.

    Returns:
        32 hexadecimal digits (BLAKE2b, 128 bit).

    Raises:
        ValueError: the voxels are all equal, or some are not finite or too large for statistics.
    """
    digest = hashlib.blake2b(repr(tuple(volume.shape)).encode(), digest_size=16)
    voxels = np.ascontiguousarray(volume).reshape(-1)
    lowest, highest = np.inf, -np.inf
    for start in range(0, voxels.size, CHUNK_VOXEL):
        chunk = voxels[start : start + CHUNK_VOXEL].astype(np.float32)
        chunk += 0.0  # -0.0 and 0.0 are the same value but not the same bytes
        if not np.isfinite(chunk).all():
            raise ValueError("has voxels that are NaN or infinite")
        lowest, highest = min(lowest, chunk.min()), max(highest, chunk.max())
        digest.update(chunk.data)
    if lowest == highest:
        raise ValueError(f"is constant: every voxel is {lowest:g}")
    if largest := too_large(lowest, highest):
        raise ValueError(largest)
    return digest.hexdigest()


def _channels(image: sitk.Image) -> Iterator[NDArray[Any]]:
    """Volumes (Z, Y, X) of a file, as views of `image`'s memory."""
    array = sitk.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif image.GetDimension() < 4:
        array = array[None]
    yield from (array[:, None] if image.GetDimension() == 2 else array)  # (C, Z, Y, X)


def _spacing_mm(image: sitk.Image) -> tuple[float, ...]:
    spacing = [abs(s) for s in image.GetSpacing()[:3]]
    if image.GetDimension() == 2:
        spacing.append(max(spacing))
    if not all(0 < s < np.inf for s in spacing):
        raise ValueError(f"has the spacing {spacing}, expected positive numbers")
    return tuple(reversed(spacing))


def _orientation(image: sitk.Image) -> str:
    n = image.GetDimension()
    matrix = np.eye(3)
    matrix[: min(n, 3), : min(n, 3)] = np.reshape(image.GetDirection(), (n, n))[:3, :3]
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(matrix.ravel().tolist()))


Result = tuple[ImageFingerprint, ...] | BadImage


def fingerprint_files(files: Sequence[str], *, cache_file: Path, num_processes: int = 1) -> dict[str, Result]:
    """Measure files; those whose size and time of change are those in `cache_file` are not read again.

    Args:
        files: raw image files.
        cache_file: JSON that is read (ignored when damaged) and brought up to date, also when the run is interrupted.
        num_processes: workers, each of which holds one file at a time; none is started when all are measured already.

    Returns:
        For each file its channels, or why it cannot be used; one bad image never stops the others.

    Raises:
        HSSLError: a worker process was killed, most likely for want of memory; what was measured is kept.
    """
    cached = read_cache(cache_file)
    stamps = {file: _stamp(file) for file in files}
    found: dict[str, Result] = {
        file: cached[file].channels for file in files if file in cached and cached[file].stamp == stamps[file]
    }
    todo = [file for file in files if file not in found]
    try:
        with closing(map_cases(_measure, todo, num_processes, f"Measuring {cache_file.parent.name}")) as measured:
            for file, result in zip(todo, measured, strict=True):
                found[file] = result
    finally:
        if todo:
            _write_cache(cache_file, found, stamps)
    return {file: found[file] for file in files}


def _measure(file: str) -> Result:
    try:
        return fingerprint_file(file)
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        return BadImage(file, cause_of(error))


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Measures of a file, and its size and time of change when it was measured."""

    stamp: tuple[int, int]
    channels: tuple[ImageFingerprint, ...]


@dataclass(frozen=True, slots=True)
class _Cache:
    version: int
    files: dict[str, CacheEntry]


def _stamp(file: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns; zeros for a file that is missing."""
    try:
        status = Path(file).stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def read_cache(cache_file: Path) -> Mapping[str, CacheEntry]:
    """What `fingerprint_files` has measured, by file; nothing where the cache is missing, damaged or of old."""
    try:
        cache = TypeAdapter(_Cache).validate_json(cache_file.read_bytes())
    except (OSError, ValidationError):
        return {}
    return cache.files if cache.version == CACHE_VERSION else {}


def _write_cache(cache_file: Path, found: Mapping[str, Any], stamps: Mapping[str, tuple[int, int]]) -> None:
    entries = {f: CacheEntry(stamps[f], c) for f, c in found.items() if not isinstance(c, BadImage)}
    write_json(cache_file, TypeAdapter(_Cache).dump_python(_Cache(CACHE_VERSION, entries), mode="json"))
