"""Reads the chunks of the next steps while the current one trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from hssl_nnunet.corpus.manifest import ImageRow
from hssl_nnunet.data.crops import DomainGeometry, RawChunk, read_chunk
from hssl_nnunet.data.sampling import ChunkPlan, DomainSampler, rank_part
from hssl_nnunet.data.volumes import VolumeCache, open_volume
from hssl_nnunet.plan_values import ViewPlan

STEPS_AHEAD = 2


class ChunkLoader:
    """The raw chunks of one rank, step by step, read ahead by threads.

    What is read depends on the sampler and the step alone, not on the number of threads. Reading runs beside torch's
    own work, which holds no lock of the interpreter; blosc2 (4.14) holds it while it decompresses, so that more
    threads than two bring little.

    Args:
        sampler: draws the chunks of a step.
        rows: the corpus' images.
        chosen: indices of the rows whose domains `sampler` was given, in the same order.
        geometries: of each domain.
        view_plan: how views are drawn later.
        root: the folder `nnUNet_preprocessed`.
        rank: this process.
        world_size: number of processes.
        num_workers: threads; 0 reads in `next`.
        cache: keeps volumes in RAM; None reads them where they lie.
        pin_memory: whether chunks are handed over in page-locked memory, for a GPU.
        first_step: step to begin with.

    Attributes:
        step: the step that `next` returns; a run that resumes begins with it.
    """

    def __init__(
        self,
        sampler: DomainSampler,
        rows: Sequence[ImageRow],
        chosen: Sequence[int],
        geometries: Sequence[DomainGeometry],
        view_plan: ViewPlan,
        root: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 2,
        cache: VolumeCache | None = None,
        pin_memory: bool = False,
        first_step: int = 0,
    ) -> None:
        self.sampler, self.rows, self.chosen = sampler, rows, chosen
        self.geometries, self.view_plan, self.root = geometries, view_plan, root
        self.rank, self.world_size = rank, world_size
        self.step = first_step
        self._open, self._pin = cache.open if cache else open_volume, pin_memory
        self._pool = ThreadPoolExecutor(num_workers, "hssl-read") if num_workers else None
        self._ahead: deque[list[Future[RawChunk]]] = deque()

    def __next__(self) -> list[RawChunk]:
        """Chunks of this rank for step `step`; then `step` is the next one.

        Raises:
            HSSLError: an image could not be read, or the chunks cannot be shared out among the ranks.
        """
        if self._pool is None:
            chunks = self.read(self.step)
        else:
            while len(self._ahead) <= STEPS_AHEAD:
                plans = self._plans(self.step + len(self._ahead))
                self._ahead.append([self._pool.submit(self._read, plan) for plan in plans])
            chunks = [future.result() for future in self._ahead[0]]
            self._ahead.popleft()
        self.step += 1
        return chunks

    def read(self, step: int) -> list[RawChunk]:
        """Chunks of this rank for any step, read now; the loader stays where it is.

        Raises:
            HSSLError: as `next`.
        """
        return [self._read(plan) for plan in self._plans(step)]

    def close(self) -> None:
        """Stop the threads; the loader cannot be used afterwards."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _plans(self, step: int) -> list[ChunkPlan]:
        plans = rank_part(self.sampler.step(step), self.rank, self.world_size)
        return [replace(plan, rows=tuple(self.chosen[row] for row in plan.rows)) for plan in plans]

    def _read(self, plan: ChunkPlan) -> RawChunk:
        geometry = self.geometries[plan.domain]
        chunk = read_chunk(plan, self.rows, geometry, self.view_plan, self.root, self._open)
        return chunk.pinned() if self._pin else chunk
