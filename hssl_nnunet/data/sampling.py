"""Which images a step sees: domains drawn with probability ~ n_images^alpha, images drawn within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hssl_nnunet.errors import HSSLError

T = TypeVar("T")
LARGEST_SEED = 2**62


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """What a chunk holds, before any voxel is read.

    Attributes:
        domain: index into the corpus' domains; all images of a chunk are of this domain.
        rows: indices into the list of `ImageRow` whose domains the sampler was given.
        seed: seed of the crops and of the augmentation of this chunk.
    """

    domain: int
    rows: tuple[int, ...]
    seed: int


class DomainSampler:
    """Draws the chunks of a step: a pure function of the seed and the step's index.

    A chunk's domain d is drawn independently with p_d = n_d^alpha / sum_e n_e^alpha, where n_d is the number of images
    of d (temperature sampling; alpha 1 = every image alike, alpha 0 = every domain alike; domains without an image are
    never drawn). No image comes twice in a step as long as its domain has enough images; otherwise they repeat evenly:
    an image comes at most once more often than any other of its domain. Nothing is remembered between steps: a run that
    resumes needs the index of its step and nothing else. The cost of a step does not grow with the number of images.

    Args:
        domain_of_row: the domain of each image.
        alpha: exponent of the number of images, in [0, 1].
        chunks_per_step: chunks in a step, over all ranks.
        images_per_chunk: images in a chunk.
        seed: seed of the whole run.

    Raises:
        HSSLError: there is no image.
    """

    def __init__(
        self, domain_of_row: Sequence[int], *, alpha: float, chunks_per_step: int, images_per_chunk: int, seed: int
    ) -> None:
        if not len(domain_of_row):
            raise HSSLError("There is no image to draw from. Run `hssl corpus -d ... -o ...` and look at its manifest.")
        domains = np.asarray(domain_of_row)
        self.domains = np.unique(domains)
        self.rows = {int(d): np.flatnonzero(domains == d) for d in self.domains}
        weights = np.array([len(self.rows[int(d)]) for d in self.domains], dtype=float) ** alpha
        self.probabilities = weights / weights.sum()
        self.chunks_per_step, self.images_per_chunk, self.seed = chunks_per_step, images_per_chunk, seed

    def step(self, index: int) -> list[ChunkPlan]:
        """Chunks of step `index` (from 0), over all ranks, in the order in which the ranks take them."""
        rng = np.random.default_rng([self.seed, index])
        drawn = rng.choice(self.domains, size=self.chunks_per_step, p=self.probabilities).tolist()
        images = {domain: iter(self._images(domain, drawn.count(domain), rng)) for domain in sorted(set(drawn))}
        seeds = rng.integers(LARGEST_SEED, size=len(drawn)).tolist()
        return [ChunkPlan(d, tuple(next(images[d]).tolist()), s) for d, s in zip(drawn, seeds, strict=True)]

    def _images(self, domain: int, chunks: int, rng: np.random.Generator) -> np.ndarray:
        """Rows of all chunks of one domain in a step: (chunks, images_per_chunk) int."""
        rows, need = self.rows[domain], chunks * self.images_per_chunk
        # Generator.choice without replacement is O(need), not O(len(rows)), where the population is large
        rounds = [
            rng.choice(len(rows), size=min(len(rows), need - i), replace=False) for i in range(0, need, len(rows))
        ]
        return np.asarray(rows[np.concatenate(rounds)].reshape(chunks, self.images_per_chunk))


def rank_part(chunks: Sequence[T], rank: int, world_size: int) -> list[T]:
    """The chunks of one rank: every `world_size`-th, beginning with the `rank`-th.

    Raises:
        HSSLError: the chunks cannot be shared out evenly.
    """
    if len(chunks) % world_size:
        raise HSSLError(
            f"{len(chunks)} chunks cannot be shared out evenly among {world_size} processes. Set `chunks_per_step` "
            f"in the `hssl` block of the plans to a multiple of {world_size}, or change -num_gpus."
        )
    return list(chunks[rank::world_size])
