from __future__ import annotations

from pathlib import Path

import pytest
import tiny_corpus
import torch

from hssl_nnunet.data.crops import DomainGeometry, RawChunk, read_chunk
from hssl_nnunet.data.sampling import ChunkPlan
from hssl_nnunet.data.views import make_views
from hssl_nnunet.plan_schema import CorpusBlock
from hssl_nnunet.training.steps import ChunkPreparer, group_indices

CPU = torch.device("cpu")


def preparer(block: CorpusBlock) -> ChunkPreparer:
    geometries = [DomainGeometry.from_domain(d, block.pretraining.views) for d in block.domains]
    return ChunkPreparer(block.domains, geometries, block.pretraining, CPU)


@pytest.fixture
def raw(corpus: Path):
    """Reads a chunk of two images of a domain."""
    from hssl_nnunet.corpus.manifest import read_manifest

    rows, block = read_manifest(corpus / "manifest.csv"), tiny_corpus.corpus_block()

    def read(domain: int, first: int = 0, seed: int = 5) -> RawChunk:
        plan = ChunkPlan(domain, (domain * tiny_corpus.IMAGES + first, domain * tiny_corpus.IMAGES + first + 1), seed)
        geometry = DomainGeometry.from_domain(block.domains[domain], block.pretraining.views)
        return read_chunk(plan, rows, geometry, block.pretraining.views, corpus.parent)

    return read


@pytest.mark.parametrize("domain", [tiny_corpus.CUBE, tiny_corpus.SLAB, tiny_corpus.SCAN])
def test_blocks_are_hidden_in_the_first_view_only(raw, domain: int) -> None:
    block = tiny_corpus.corpus_block()
    made = preparer(block)
    one = raw(domain)
    chunk = made.chunk(one)
    views = make_views(one, made.geometries[domain], block.pretraining.views)
    hidden = chunk.hidden
    assert 0.3 < hidden.float().mean() < 0.8
    assert torch.equal(chunk.views[1], views.augmented[1])
    assert not chunk.views[0][hidden].any()
    assert torch.equal(chunk.views[0][~hidden], views.augmented[0][~hidden])
    assert torch.equal(chunk.target, views.clean[0]) and torch.equal(chunk.valid, views.valid)
    assert chunk.target[hidden].any()  # the decoder's aim is the whole image


def test_a_chunk_is_a_function_of_its_seed(raw) -> None:
    made = preparer(tiny_corpus.corpus_block())
    first, again, other = made.chunk(raw(0)), made.chunk(raw(0)), made.chunk(raw(0, seed=6))
    assert torch.equal(first.views, again.views) and torch.equal(first.hidden, again.hidden)
    assert not torch.equal(first.hidden, other.hidden) and not torch.equal(first.views[1], other.views[1])


def test_views_blocks_and_places_are_drawn_from_streams_of_their_own(raw, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class Watched(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            seeds.append(seed)
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Watched)
    preparer(tiny_corpus.corpus_block(loss={"voxel": 1.0})).chunk(raw(0))
    assert {5, 6, 7} <= set(seeds) and len(seeds) == len(set(seeds))


def test_reconstruction_alone_draws_one_view(raw) -> None:
    chunk = preparer(tiny_corpus.corpus_block(loss={"image": 0, "task": 0, "group": 0, "voxel": 0})).chunk(raw(0))
    assert chunk.views.shape[0] == chunk.valid.shape[0] == 1 and chunk.hidden.any()


@pytest.mark.parametrize("loss", [{"reconstruction": 0}, {"mask_ratio": 0}])
def test_nothing_is_hidden_without_reconstruction_or_masks(raw, loss) -> None:
    block = tiny_corpus.corpus_block(loss=loss)
    made, one = preparer(block), raw(0)
    chunk = made.chunk(one)
    assert not chunk.hidden.any()
    assert torch.equal(chunk.views, make_views(one, made.geometries[0], block.pretraining.views).augmented)


def test_labels_follow_the_order_of_chunks_and_images(raw) -> None:
    made = preparer(tiny_corpus.corpus_block())
    labels = made.labels([raw(2), raw(0, first=3), raw(2)])
    n = tiny_corpus.IMAGES
    assert labels.image.tolist() == [2 * n, 2 * n + 1, 3, 4, 2 * n, 2 * n + 1]  # drawn twice: one identity
    assert labels.task.tolist() == [2, 2, 0, 0, 2, 2]
    # finest level: brain 0, chest 1, heart 2; coarsest: CT 0, MR 1
    assert labels.groups.tolist() == [[1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0]]


def test_group_indices_count_the_groups_of_each_level() -> None:
    assert group_indices(tiny_corpus.corpus_block().domains).tolist() == [[0, 2, 1], [1, 1, 0]]
