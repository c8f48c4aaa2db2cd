from __future__ import annotations

import pytest
import torch

from hssl_nnunet.data.masking import block_edges, block_mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("spacing", "edges"),
    [
        ((1.0, 1.0, 1.0), (8, 8, 8)),
        ((3.27, 0.98, 0.98), (2, 8, 8)),
        ((5.47, 3.27, 5.47), (5, 8, 5)),
        ((8.0, 0.5, 0.5), (1, 8, 8)),
        ((2.0, 0.5), (2, 8)),
    ],
)
def test_blocks_are_near_cubes_in_mm(spacing, edges):
    assert block_edges(spacing, 8) == edges


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 0.9])
def test_every_image_hides_exactly_its_share_of_whole_blocks(ratio):
    spacing, size = (3.0, 1.0, 1.0), (9, 24, 16)  # blocks of 3 x 8 x 8, a grid of 3 x 3 x 2
    mask = block_mask((5, 1, *size), spacing, ratio, 8, generator(), "cpu")
    blocks = mask.view(5, 3, 3, 3, 8, 2, 8).permute(0, 1, 3, 5, 2, 4, 6).reshape(5, 18, -1)
    assert mask.shape == (5, 1, *size) and mask.dtype == torch.bool
    assert (blocks.all(-1) | ~blocks.any(-1)).all()
    assert blocks.all(-1).sum(1).tolist() == [round(ratio * 18)] * 5


def test_blocks_at_the_far_end_are_cut():
    mask = block_mask((1, 1, 10, 12), (1.0, 1.0), 0.5, 8, generator(), "cpu")  # a grid of 2 x 2
    tiles = [mask[..., a, b] for a in (slice(0, 8), slice(8, 10)) for b in (slice(0, 8), slice(8, 12))]
    assert all(tile.all() or not tile.any() for tile in tiles)
    assert sum(bool(tile.all()) for tile in tiles) == 2


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (20, 20)])
def test_at_least_one_block_is_shown(size):
    assert not block_mask((20, 1, *size), (1.0, 1.0), 1.0, 8, generator(), "cpu").flatten(1).all(1).any()


def test_images_differ_and_seeds_decide():
    first, again, other = (block_mask((2, 1, 32, 32), (1.0, 1.0), 0.5, 8, generator(s), "cpu") for s in (0, 0, 1))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_block_is_hidden_as_often():
    mask = block_mask((4000, 1, 4, 4), (1.0, 1.0), 0.5, 2, generator(), "cpu")
    share = mask[:, 0, ::2, ::2].float().mean(0)
    assert torch.allclose(share, torch.full((2, 2), 0.5), atol=0.04)  # five standard errors
