"""Which images of a corpus are held out: by patient, over all domains at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hssl_nnunet.corpus.manifest import ImageRow


def held_out_rows(rows: Sequence[ImageRow], fraction: float, seed: int) -> set[int]:
    """Indices of the images of the held-out patients.

    A patient who is held out is so in every domain. Each domain with at least two patients gives at least one, as
    long as `fraction` is not 0, so that validation sees every domain.

    Args:
        rows: the manifest.
        fraction: share of each domain's patients.
        seed: seed of the draw.
    """
    if fraction == 0:
        return set()
    rng, patients = np.random.default_rng(seed), set[str]()
    for domain in sorted({row.domain for row in rows}):
        there = sorted({row.patient for row in rows if row.domain == domain})
        wanted = max(1, round(fraction * len(there))) if len(there) > 1 else 0
        missing = wanted - len(patients.intersection(there))
        rest = [patient for patient in there if patient not in patients]
        if missing > 0:
            patients.update(rest[i] for i in rng.choice(len(rest), min(missing, len(rest) - 1), replace=False))
    return {index for index, row in enumerate(rows) if row.patient in patients}
