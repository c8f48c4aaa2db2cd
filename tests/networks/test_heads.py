"""Pooling, embedding and projection against slow loops and invariances."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hssl_nnunet.networks.heads import Embedding, LevelMean, Projector, largest, pooled_statistics


def features_and_valid(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((2, 3, *shape), generator=generator, dtype=torch.float64)
    return features, torch.rand((2, 1, *shape), generator=generator) > 0.4


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])
def test_statistics_of_the_valid_voxels(shape: tuple[int, ...]) -> None:
    features, valid = features_and_valid(*shape)
    pooled = pooled_statistics(features, valid, "mean_max_std")
    assert pooled.shape == (2, 9)
    for image in range(2):
        for channel in range(3):
            values = features[image, channel][valid[image, 0]]
            expected = torch.stack([values.mean(), values.max(), (values.var(correction=0) + 1e-5).sqrt()])
            torch.testing.assert_close(pooled[image, channel::3], expected)
    torch.testing.assert_close(pooled_statistics(features, valid, "mean"), pooled[:, :3])


def test_padding_has_no_say_and_gets_no_gradient() -> None:
    features, valid = features_and_valid(3, 4, 5)
    spoiled = features.masked_fill(~valid, 1e3).requires_grad_()
    pooled = pooled_statistics(spoiled, valid, "mean_max_std")
    torch.testing.assert_close(pooled, pooled_statistics(features, valid, "mean_max_std"))
    (gradient,) = torch.autograd.grad(pooled.sum(), spoiled)
    assert not gradient[(~valid).expand_as(gradient)].any()


def test_image_without_a_valid_voxel_is_described_by_all() -> None:
    features, valid = features_and_valid(3, 4, 5)
    nothing, everything = torch.zeros_like(valid), torch.ones_like(valid)
    torch.testing.assert_close(
        pooled_statistics(features, nothing, "mean_max_std"), pooled_statistics(features, everything, "mean_max_std")
    )


@pytest.mark.parametrize("pooling", ["mean_max_std", "mean"])
def test_gradient_of_pooled_statistics(pooling: Literal["mean_max_std", "mean"]) -> None:
    features, valid = features_and_valid(4, 3, 2)
    valid[1] = False  # described by all its voxels
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pooled_statistics(x, valid, pooling), features)
    pooled_statistics(features, valid, pooling).sum().backward()
    assert features.grad is not None and features.grad[1].all()


def test_constant_map_has_a_finite_gradient() -> None:
    features = torch.full((1, 2, 3, 3, 3), 4.0, requires_grad=True)
    pooled = pooled_statistics(features, torch.ones(1, 1, 3, 3, 3, dtype=torch.bool), "mean_max_std")
    torch.testing.assert_close(pooled[0], torch.tensor([4.0, 4.0, 4.0, 4.0, 1e-5**0.5, 1e-5**0.5]))
    pooled.sum().backward()
    # of a channel's 27 voxels: the mean's share in all, the maximum in one, nothing of the deviation
    assert features.grad is not None
    assert features.grad.flatten(2).sum(2)[0].tolist() == pytest.approx([2.0, 2.0], rel=1e-3)
    assert (features.grad > 0.5).sum() == 2


@pytest.mark.parametrize("shape", [(4, 3, 6), (6, 5), (3, 1)])
def test_the_maximum_by_rows_is_the_first_of_all(shape: tuple[int, ...]) -> None:
    features = torch.randint(5, (2, 7, *shape)).float()  # many are as large as the largest
    features[0, 0] = -torch.inf
    layout = torch.channels_last_3d if len(shape) == 3 else torch.channels_last
    for laid in (features, features.contiguous(memory_format=layout)):
        maximum, where = largest(laid.flatten(2), row=shape[-1])
        flat = features.flatten(2).numpy()
        assert (maximum.numpy() == flat.max(2)).all() and (where.numpy() == flat.argmax(2)).all()


def skips(n_stages: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4 * 2**i, 16 // 2**i, 16 // 2**i, 16 // 2**i, generator=generator) for i in range(n_stages)]


def embed(embedding: Embedding, features: list[Tensor], valid: Tensor) -> Tensor:
    """`h` of a batch as one view of one chunk."""
    return embedding([[level[None] for level in embedding.pooled(features, valid)]])[0]


def test_embedding_serves_every_depth_and_leaves_out_level_0() -> None:
    torch.manual_seed(0)
    embedding = Embedding((4, 8, 16, 32), 12, "mean_max_std")
    valid = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
    deep = skips(4)
    h = embed(embedding, deep, valid)
    assert h.shape == embed(embedding, deep[:3], valid).shape == (2, 12)
    for level in range(4):
        other = [torch.zeros_like(f) if i == level else f for i, f in enumerate(deep)]
        assert torch.equal(h, embed(embedding, other, valid)) == (level == 0)
    assert not torch.allclose(h, embed(embedding, deep[:3], valid))


def test_embedding_ignores_padding_at_every_level() -> None:
    torch.manual_seed(0)
    embedding = Embedding((4, 8, 16), 12, "mean_max_std")
    valid = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
    valid[:, :, 8:] = False
    clean, spoiled = skips(3), skips(3)
    for level in spoiled:
        level[:, :, level.shape[2] // 2 :] = 50.0
    h = embed(embedding, clean, valid)
    torch.testing.assert_close(h, embed(embedding, spoiled, valid))
    spoiled[2][0, :, 0] = 50.0
    assert not torch.allclose(h[0], embed(embedding, spoiled, valid)[0])


def test_a_coarse_voxel_is_padding_when_most_of_it_is() -> None:
    torch.manual_seed(0)
    embedding = Embedding((4, 8), 12, "mean_max_std")
    features = [torch.zeros(1, 4, 4, 4, 4), torch.randn(1, 8, 1, 4, 4)]  # a coarse voxel covers four along one axis
    valid = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)

    def changes(voxels: int) -> bool:
        """Whether the first coarse voxel has a say when so many of those it covers are valid."""
        part, spoiled = valid.clone(), features[1].clone()
        part[..., voxels:, 0, 0], spoiled[..., 0, 0, 0] = False, 50.0
        return not torch.allclose(embed(embedding, features, part), embed(embedding, [features[0], spoiled], part))

    assert [changes(voxels) for voxels in (1, 2, 3)] == [False, True, True]


def test_embedding_computes_in_float32_under_any_autocast() -> None:
    torch.manual_seed(0)
    embedding = Embedding((4, 8, 16), 12, "mean_max_std")
    valid = torch.rand(2, 1, 16, 16, 16) > 0.2
    half = [level.bfloat16() for level in skips(3)]
    with torch.autocast("cpu", torch.bfloat16):
        h = embed(embedding, half, valid)
    assert h.dtype == torch.float32
    assert torch.equal(h, embed(embedding, [level.float() for level in half], valid))


@pytest.mark.parametrize("between", [(), (5,)])
def test_levels_are_joined_by_chunk_as_one_by_one(between: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mean, widths = LevelMean((3, 4, 6), 7).double(), (3, 4, 6)
    shapes = ((1, 2), (3, 3), (2, 1))  # images and levels of each chunk
    chunks = [[torch.randn(2, b, *between, w, dtype=torch.float64) for w in widths[:n]] for b, n in shapes]

    def slowly() -> Tensor:
        found = []
        for chunk in chunks:
            mapped = [level @ layer.weight.T + layer.bias for level, layer in zip(chunk, mean.levels, strict=False)]
            found.append(functional.layer_norm(sum(mapped) / len(mapped), (7,)))
        return torch.cat(found, dim=1)

    joined = mean(chunks)
    assert joined.shape == (2, 6, *between, 7)
    torch.testing.assert_close(joined.double(), slowly())


def test_projection_lies_on_the_unit_sphere() -> None:
    torch.manual_seed(0)
    z = Projector(12, 5)(torch.randn(7, 12))
    assert z.shape == (7, 5)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(7))
