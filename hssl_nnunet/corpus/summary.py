"""Fingerprint of a domain, and of all domains together: medians and ranges over their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hssl_nnunet.corpus.fingerprint import ImageFingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median, least and largest value over images, per entry of a measure."""

    median: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainFingerprint:
    """Measures over the images of one domain, or of all; every channel of a case is an image.

    Attributes:
        num_images: images measured.
        modality: modality of all images, or those that occur, joined by `+`.
        modalities: images per modality.
        orientations: images per orientation.
        spacing_mm: three values, array order (z, y, x).
        shape: three values, array order.
        field_of_view_mm: three values, array order.
        anisotropy: one value.
        percentiles: one value for each of `PERCENTILES`.
    """

    num_images: int
    modality: str
    modalities: dict[str, int]
    orientations: dict[str, int]
    spacing_mm: Spread
    shape: Spread
    field_of_view_mm: Spread
    anisotropy: Spread
    percentiles: Spread


def summarise(images: Sequence[ImageFingerprint], modalities: Sequence[str]) -> DomainFingerprint:
    """Medians and ranges over at least one image; `modalities` holds one entry an image."""
    occurring = dict(sorted(Counter(modalities).items()))
    return DomainFingerprint(
        num_images=len(images),
        modality="+".join(occurring),
        modalities=occurring,
        orientations=dict(sorted(Counter(i.orientation for i in images).items())),
        spacing_mm=_spread(i.spacing_mm for i in images),
        shape=_spread(i.shape for i in images),
        field_of_view_mm=_spread(i.field_of_view_mm for i in images),
        anisotropy=_spread((i.anisotropy,) for i in images),
        percentiles=_spread(i.percentiles for i in images),
    )


def _spread(values: Iterable[Sequence[float]]) -> Spread:
    table = np.array(list(values), dtype=np.float64)  # (images, entries)
    median, minimum, maximum = (tuple(f(table, axis=0).tolist()) for f in (np.median, np.min, np.max))
    return Spread(median=median, minimum=minimum, maximum=maximum)
