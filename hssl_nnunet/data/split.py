"""Which images of a corpus are held out: by patient, over all domains at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hssl_nnunet.corpus.manifest import ImageRow


def held_out_rows(rows: Sequence[ImageRow], fraction: float, seed: int) -> set[int]:
    """Indices of the images of the held-out patients.

    A patient who is held out is so in every domain. Each domain with at least two patients gives at least one, as
    long as `fraction` is not 0, so that validation sees every domain; and none gives its last one.

    Args:
        rows: the manifest.
        fraction: share of each domain's patients.
        seed: seed of the draw.
    """
    if fraction == 0:
        return set()
    rng, held_out = np.random.default_rng(seed), set[str]()
    patients = {d: {row.patient for row in rows if row.domain == d} for d in sorted({row.domain for row in rows})}
    for there in patients.values():
        wanted = max(1, round(fraction * len(there))) if len(there) > 1 else 0
        for patient in map(str, rng.permutation(sorted(there - held_out))):
            if len(held_out & there) >= wanted:
                break
            if all(others - held_out - {patient} for others in patients.values() if patient in others):
                held_out.add(patient)
    return {index for index, row in enumerate(rows) if row.patient in held_out}
