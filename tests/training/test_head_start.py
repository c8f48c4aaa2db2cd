"""The fitted start of the segmentation layers: scikit-learn as oracle, classes of very unequal size, regions, ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_corpus
import torch
import torch.multiprocessing as mp
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.training import head_start
from hssl_nnunet.training.head_start import (
    SHRINKAGE,
    ClassMoments,
    HeadFit,
    class_members,
    discriminants,
    region_discriminants,
    region_members,
)

FEATURES, COUNTS = 5, (4000, 300, 12)  # a large background, a small and a tiny class


def vectors(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors of three overlapping classes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    mixing = torch.randn(FEATURES, FEATURES, generator=generator)
    noise = torch.randn(len(labels), FEATURES, generator=generator) @ mixing
    return noise + 0.5 * labels[:, None] * torch.randn(FEATURES, generator=generator) + 3, labels


def moments_of(features: Tensor, members: Tensor) -> ClassMoments:
    moments = ClassMoments(members.shape[1], features.shape[1])
    for part in range(3):  # as batches
        moments.add(features[part::3], members[part::3])
    return moments


def oracle(features: Tensor, labels: Tensor, classes: int) -> LinearDiscriminantAnalysis:
    equal = np.full(classes, 1 / classes)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=equal)
    return model.fit(features.double().numpy(), labels.numpy())


def test_the_logits_are_those_of_scikit_learn_up_to_a_shared_term() -> None:
    features, labels = vectors()
    weights, biases = discriminants(moments_of(features, class_members(labels, 3)))
    logits = features.double() @ weights.T + biases
    expected = torch.from_numpy(oracle(features, labels, 3).decision_function(features.double().numpy()))
    torch.testing.assert_close(logits - logits[:, :1], expected - expected[:, :1], rtol=1e-8, atol=1e-8)


def test_every_class_wins_at_its_own_mean_however_small() -> None:
    for seed in range(20):
        features, labels = vectors(seed)
        moments = moments_of(features, class_members(labels, 3))
        weights, biases = discriminants(moments)
        assert (moments.means() @ weights.T + biases).argmax(1).tolist() == [0, 1, 2]


def test_a_class_without_a_voxel_wins_nowhere_and_leaves_the_others_alone() -> None:
    features, labels = vectors()
    moments = moments_of(features, class_members(labels, 4))
    weights, biases = discriminants(moments)
    at_the_mean = moments.means()[:3].mean(0) @ weights[:3].T + biases[:3]
    torch.testing.assert_close(biases[3], at_the_mean.min())
    anywhere = 20 * torch.randn(10_000, FEATURES, dtype=torch.float64) + moments.means()[:3].mean(0)
    assert not weights[3].any() and not (anywhere @ weights.T + biases).argmax(1).eq(3).any()
    three = discriminants(moments_of(features, class_members(labels, 3)))
    torch.testing.assert_close(weights[:3], three[0])
    torch.testing.assert_close(biases[:3], three[1])


def test_constant_features_give_finite_layers() -> None:
    weights, biases = discriminants(moments_of(torch.ones(90, 4), class_members(torch.arange(90) % 3, 3)))
    assert torch.isfinite(weights).all() and torch.isfinite(biases).all()


def test_a_region_is_the_discriminant_of_inside_and_outside() -> None:
    features, labels = vectors()
    inside = labels > 0
    weights, biases = region_discriminants(moments_of(features, region_members(inside[:, None].float(), 1)))
    logits = (features.double() @ weights.T + biases)[:, 0]
    expected = oracle(features, inside.long(), 2).decision_function(features.double().numpy())
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=1e-8, atol=1e-8)


def test_a_region_without_a_voxel_gets_the_logit_zero() -> None:
    features, labels = vectors()
    target = torch.stack([labels > 0, torch.zeros_like(labels, dtype=torch.bool)], dim=1)
    weights, biases = region_discriminants(moments_of(features, region_members(target, 2)))
    assert weights[0].any() and not weights[1].any() and biases[1] == 0


def test_ignored_voxels_belong_to_no_class() -> None:
    labels = torch.tensor([0, 1, 2, 3])  # 3 is the ignore label of three classes
    assert class_members(labels, 3).sum(1).tolist() == [1, 1, 1, 0]
    regions = torch.tensor([[1.0, 0, 0], [1, 1, 1]])  # two regions and the channel of ignored voxels
    assert region_members(regions, 2).tolist() == [[True, False, False, True], [False] * 4]


def test_thinning_spares_the_small_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_start, "VECTORS_PER_CLASS", 100)
    features, labels = vectors()
    moments = ClassMoments(3, FEATURES)
    moments.add(features, class_members(labels, 3))
    assert moments.count.tolist() == [100, 100, 12]


def network_and_batch(classes: int) -> tuple[torch.nn.Module, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    topology = Topology.from_architecture(tiny_corpus.ARCHITECTURES[tiny_corpus.CUBE])
    network = topology.build(1, classes, deep_supervision=True)
    images = torch.randn(2, 1, 16, 16, 16)
    images[:, :, 4:10, 4:10, 4:10] += 4
    images[:, :, 11:13, 11:13, 11:13] -= 6
    target = torch.zeros(2, 1, 16, 16, 16)
    target[:, :, 4:10, 4:10, 4:10], target[:, :, 11:13, 11:13, 11:13] = 1, 2
    return network, images, [target, target[:, :, ::2, ::2, ::2]]


def test_every_level_of_a_network_is_fitted_to_its_own_features_and_targets() -> None:
    network, images, targets = network_and_batch(3)
    seen: list[Tensor] = []
    layers = network.get_submodule("decoder").seg_layers
    assert len(layers) == len(targets) == 2
    fit = HeadFit(network, regions=False)
    fit.add(images, targets)
    assert fit.missing() == []
    fit.apply()
    handles = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in layers]
    with torch.no_grad():
        outputs = network(images)  # finest first
    assert len(handles) == len(seen) == 2
    for logits, features, target in zip(outputs, seen[::-1], targets, strict=True):
        flat = features.movedim(1, -1).flatten(0, -2)
        model = oracle(flat, target.flatten().long(), 3)
        expected = torch.from_numpy(model.decision_function(flat.double().numpy())).float()
        got = logits.movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(got - got[:, :1], expected - expected[:, :1], rtol=1e-3, atol=1e-3)
        found = got.argmax(1)
        assert all((found[target.flatten() == label] == label).any() for label in range(3))


def test_without_deep_supervision_the_last_layer_alone_is_fitted() -> None:
    network, images, targets = network_and_batch(3)
    decoder = network.get_submodule("decoder")
    decoder.deep_supervision = False
    before = [layer.weight.detach().clone() for layer in decoder.seg_layers]
    fit = HeadFit(network, regions=False)
    fit.add(images, targets[:1])
    fit.apply()
    changed = [not torch.equal(layer.weight, old) for layer, old in zip(decoder.seg_layers, before, strict=True)]
    assert changed == [False, True]


def test_a_class_that_no_batch_shows_is_reported() -> None:
    network, images, targets = network_and_batch(4)
    fit = HeadFit(network, regions=False)
    fit.add(images, targets)
    assert fit.missing() == [3]


def fit_on_a_rank(rank: int, address: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    network, images, targets = network_and_batch(3)
    fit = HeadFit(network, regions=False)
    fit.add(images[rank : rank + 1], [t[rank : rank + 1] for t in targets])
    fit.apply()
    torch.save([layer.weight for layer in network.get_submodule("decoder").seg_layers], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_fit_the_layers_of_one(tmp_path: Path) -> None:
    mp.spawn(fit_on_a_rank, (f"file://{tmp_path}/store", str(tmp_path)), nprocs=2)
    network, images, targets = network_and_batch(3)
    fit = HeadFit(network, regions=False)
    fit.add(images, targets)
    fit.apply()
    for rank in range(2):
        weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for got, layer in zip(weights, network.get_submodule("decoder").seg_layers, strict=True):
            torch.testing.assert_close(got, layer.weight, rtol=1e-4, atol=1e-4)
