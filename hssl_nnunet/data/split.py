"""Which images of a corpus are held out: by patient, over all domains at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from hssl_nnunet.corpus.manifest import ImageRow


def held_out_rows(rows: Sequence[ImageRow], fraction: float, seed: int) -> set[int]:
    """Indices of the images of the held-out patients.

    A patient who is held out is so in every domain. Each domain with at least two patients gives at least one, as
    long as `fraction` is not 0, so that validation sees every domain; but no domain gives its last one, here or in
    another domain that the patient is in too.

    Args:
        rows: the manifest.
        fraction: share of each domain's patients.
        seed: seed of the draw.
    """
    if fraction == 0:
        return set()
    rng, held_out = np.random.default_rng(seed), set[str]()
    patients, domains_of = _patients(rows)
    left = {domain: len(there) for domain, there in patients.items()}  # counted, so that the cost stays linear
    for domain, there in sorted(patients.items()):
        wanted = max(1, round(fraction * len(there))) if len(there) > 1 else 0
        candidates = sorted(there - held_out)
        for patient in (candidates[index] for index in rng.permutation(len(candidates))):
            if len(there) - left[domain] >= wanted:
                break
            domains = domains_of.get(patient, [domain])
            if all(left[other] > 1 for other in domains):
                held_out.add(patient)
                for other in domains:
                    left[other] -= 1
    return {index for index, row in enumerate(rows) if row.patient in held_out}


def _patients(rows: Sequence[ImageRow]) -> tuple[dict[int, set[str]], dict[str, list[int]]]:
    """Patients of each domain, and domains of each patient who is in several."""
    patients = defaultdict[int, set[str]](set)
    for row in rows:
        patients[row.domain].add(row.patient)
    shared = {patient for one, other in combinations(patients.values(), 2) for patient in one & other}
    return patients, {p: [domain for domain, there in patients.items() if p in there] for p in shared}
