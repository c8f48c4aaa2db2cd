from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from hssl_nnunet.data.crops import DomainGeometry
from hssl_nnunet.data.loader import ChunkLoader
from hssl_nnunet.data.sampling import DomainSampler
from hssl_nnunet.data.volumes import VolumeCache, open_volume
from hssl_nnunet.errors import HSSLError

GEOMETRIES = [DomainGeometry((8, 8, 8), (1.0, 1.0, 1.0)), DomainGeometry((4, 16, 16), (5.0, 1.0, 1.0))]


@pytest.fixture
def rows(write_image):
    rng = np.random.default_rng(0)
    shapes = [(20, 24, 16), (6, 30, 40)]
    return [write_image(f"d{d}c{i}", rng.normal(size=(1, *shapes[d])), 0, d) for d in (0, 1) for i in range(5)]


@pytest.fixture
def loader(rows, lively, tmp_path):
    loaders = []

    def make(**kwargs) -> ChunkLoader:
        sampler = DomainSampler([r.domain for r in rows], alpha=0.5, chunks_per_step=4, images_per_chunk=2, seed=0)
        loaders.append(ChunkLoader(sampler, rows, range(len(rows)), GEOMETRIES, lively, tmp_path, **kwargs))
        return loaders[-1]

    yield make
    for one in loaders:
        one.close()


def same(first, second) -> bool:
    return [(c.domain, c.rows, c.seed) for c in first] == [(c.domain, c.rows, c.seed) for c in second] and all(
        torch.equal(a.source, b.source) and torch.equal(a.bounds, b.bounds) for a, b in zip(first, second, strict=True)
    )


def test_what_is_read_does_not_depend_on_the_number_of_threads(loader):
    loaders = [loader(num_workers=n) for n in (0, 1, 2)]
    for step in range(6):
        assert [one.step for one in loaders] == [step] * 3
        chunks = [next(one) for one in loaders]
        assert len(chunks[0]) == 4 and same(chunks[0], chunks[1]) and same(chunks[0], chunks[2])


@pytest.mark.parametrize("volumes", [0, 3.5, 100])
def test_volumes_kept_in_ram_change_nothing_but_the_reading(loader, rows, tmp_path, monkeypatch, volumes):
    paths = [tmp_path / row.preprocessed for row in rows]
    sizes = {path: 4 * math.prod(open_volume(path).shape) for path in paths}
    budget = volumes * min(sizes.values())
    cache, opened = VolumeCache(budget / 2**30), Counter[Path]()
    monkeypatch.setattr("hssl_nnunet.data.volumes.open_volume", lambda path: opened.update([path]) or open_volume(path))
    plain, kept = loader(num_workers=0), loader(num_workers=2, cache=cache)
    assert all(same(next(plain), next(kept)) for _ in range(12))
    seen = sum(sizes[path] for path in opened)
    assert cache.used <= budget and (cache.used == seen) == (volumes == 100) and (cache.used == 0) == (volumes == 0)
    before = opened.copy()
    assert same(loader(num_workers=0).read(3), kept.read(3))
    assert (opened == before) == (volumes == 100)  # nothing is opened twice where everything fits


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_goes_on_where_the_first_stopped(loader, num_workers):
    first = loader(num_workers=num_workers)
    steps = [next(first) for _ in range(5)]
    resumed = loader(num_workers=num_workers, first_step=3)
    assert same(next(resumed), steps[3]) and same(next(resumed), steps[4])
    assert same(first.read(1), steps[1]) and first.step == 5


def test_ranks_together_read_what_one_process_reads(loader):
    whole = next(loader(num_workers=0))
    parts = [next(loader(num_workers=1, rank=rank, world_size=2)) for rank in range(2)]
    assert same([parts[0][0], parts[1][0], parts[0][1], parts[1][1]], whole)


def test_too_many_ranks_are_refused(loader):
    with pytest.raises(HSSLError, match="chunks_per_step"):
        next(loader(world_size=3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_surfaces_in_next(loader, rows, tmp_path, num_workers):
    one = loader(num_workers=num_workers)
    for row in rows:
        (tmp_path / row.preprocessed).write_bytes(b"")
    with pytest.raises(HSSLError, match="Cannot read case"):
        next(one)
    assert one.step == 0


def test_only_a_few_steps_are_read_ahead(loader, monkeypatch):
    planned = []
    one = loader(num_workers=1)
    monkeypatch.setattr(one, "_plans", lambda step, plans=one._plans: planned.append(step) or plans(step))
    next(one)
    assert planned == [0, 1, 2]
    next(one)
    assert planned == [0, 1, 2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_chunks_for_a_gpu_lie_in_pinned_memory(loader):
    chunk = next(loader(num_workers=1, pin_memory=True))[0]
    assert chunk.source.is_pinned()


def test_a_volume_that_cannot_be_read_is_not_paid_for(rows, tmp_path, monkeypatch):
    path = tmp_path / rows[0].preprocessed
    broken, cache = MagicMock(shape=(1, 4, 4, 4), dtype=np.dtype(np.float32)), VolumeCache(1.0)
    broken.__getitem__.side_effect = RuntimeError("blosc2: broken")
    with monkeypatch.context() as patched:
        patched.setattr("hssl_nnunet.data.volumes.open_volume", lambda path: broken)
        with pytest.raises(RuntimeError, match="broken"):
            cache.open(path)
    assert cache.used == 0
    assert cache.open(path).shape == (1, 20, 24, 16) and cache.used == 4 * 20 * 24 * 16
