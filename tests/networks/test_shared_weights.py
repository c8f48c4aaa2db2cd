"""The superset of parameters: what it holds, what it refuses, and where gradients meet."""

from __future__ import annotations

import pytest
import torch
from fixture_topologies import NARROW, architecture, corpus, smallest_image, topology
from torch import Tensor
from torch.func import functional_call

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.projection import plan_projection, project
from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology

PLAIN, RESIDUAL = "ExperimentPlanner", "nnUNetPlannerResEncL"
REAL = ("Task04_Hippocampus", "Task51_SarcomaCT", "Task52_SarcomaMR", "Task53_SarcomaPET", "Task54_CineLV")


def loss_in(of: Topology, shared: SharedWeights, seed: int) -> Tensor:
    """A loss on every output voxel of one domain's network, called with projected weights."""
    skeleton = of.build(device="meta")
    entries = plan_projection(shared.shapes(), skeleton, of, segmentation=True)
    output = functional_call(skeleton, project(shared.tensors(), entries), (smallest_image(of, seed=seed),))
    return (output - 1).square().mean()


def gradients(loss: Tensor, shared: SharedWeights) -> dict[str, Tensor]:
    tensors = shared.tensors()
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {role: g for role, g in zip(tensors, found, strict=True) if g is not None}


@pytest.mark.parametrize("planner", [PLAIN, RESIDUAL])
def test_gradients_of_a_shallow_and_a_deep_domain_meet_and_sum(planner: str) -> None:
    shallow, deep = (topology(task, planner, narrow=NARROW) for task in ("Task53_SarcomaPET", "Task54_CineLV"))
    assert (shallow.n_stages, deep.n_stages) == (4, 7)
    torch.manual_seed(0)
    shared = SharedWeights([shallow, deep]).double()
    one, other = gradients(loss_in(shallow, shared, 1), shared), gradients(loss_in(deep, shared, 2), shared)
    both = gradients(loss_in(shallow, shared, 1) + loss_in(deep, shared, 2), shared)
    assert set(one) < set(other) == set(both) == set(shared.tensors())
    for role, gradient in both.items():
        torch.testing.assert_close(gradient, other[role] + one.get(role, 0), rtol=1e-9, atol=1e-12)
    for role in ("decoder.0.transpconv.weight", "decoder.2.convs.0.conv.weight", "decoder.0.segmentation.weight"):
        assert one[role].abs().max() > 0 and other[role].abs().max() > 0


def test_thin_domain_trains_all_taps_alike() -> None:
    thin = topology("Task54_CineLV", narrow=NARROW)
    shared = SharedWeights([thin, topology("Task04_Hippocampus", narrow=NARROW)]).double()
    gradient = gradients(loss_in(thin, shared, 1), shared)["encoder.0.0.convs.1.conv.weight"]
    assert gradient.shape[2:] == (3, 3, 3) and thin.kernel_sizes[0] == (1, 3, 3)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, gradient[:, :, :1].expand_as(gradient))


def test_holds_the_largest_form_of_every_role() -> None:
    shapes = corpus(PLAIN, narrow=1).shapes()
    assert shapes["encoder.0.0.convs.0.conv.weight"] == (32, 1, 3, 3, 3)
    assert shapes["encoder.6.0.convs.1.conv.weight"] == (320, 320, 3, 3, 3)
    assert shapes["decoder.0.transpconv.weight"] == (64, 32, 2, 2, 2)
    assert shapes["decoder.0.segmentation.weight"] == (1, 32, 1, 1, 1)
    assert not any("segmentation" in role and not role.startswith("decoder.0.") for role in shapes)
    assert all(len(shape) in (1, 5) for shape in shapes.values())


def test_five_real_domains_share_the_parameters_of_the_deepest() -> None:
    with torch.device("meta"):
        all_five = SharedWeights([topology(task) for task in REAL])
        deepest = SharedWeights([topology("Task54_CineLV")])
    assert all_five.shapes().keys() == deepest.shapes().keys()
    assert round(sum(p.numel() for p in all_five.parameters()) / 1e6, 1) == 45.4


def test_state_dict_round_trip() -> None:
    shared, other = (SharedWeights([topology("Task04_Hippocampus", narrow=NARROW)]) for _ in range(2))
    other.load_state_dict(shared.state_dict())
    assert all(torch.equal(t, other.tensors()[role]) for role, t in shared.tensors().items())


def bottlenecks() -> Topology:
    """The residual topology with blocks of three convolutions."""
    entry = architecture("Task04_Hippocampus", RESIDUAL, "3d_fullres")
    block = "dynamic_network_architectures.building_blocks.residual.BottleneckD"
    entry["arch_kwargs"] |= {"block": block, "bottleneck_channels": 16}
    return Topology.from_architecture({**entry, "_kw_requires_import": [*entry["_kw_requires_import"], "block"]})


@pytest.mark.parametrize("planner", [PLAIN, RESIDUAL, None])
def test_starts_as_nnunet_starts_a_network(planner: str | None) -> None:
    of = bottlenecks() if planner is None else topology("Task04_Hippocampus", planner, narrow=2)
    torch.manual_seed(0)
    shared, network = SharedWeights([of]), of.build()
    start = dict(network.named_parameters())
    for entry in plan_projection(shared.shapes(), network, of, segmentation=True):
        if entry.status == "fresh":
            continue
        ours, theirs = shared.tensors()[entry.role], start[entry.name]
        if ours.ndim == 1:
            assert torch.equal(ours, theirs), entry.role
        elif ours.numel() > 4000:
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05), entry.role


def test_collapsed_kernel_starts_with_the_variance_of_a_thin_one() -> None:
    thin = topology("Task54_CineLV")
    torch.manual_seed(0)
    upper = architecture("Task54_CineLV", PLAIN, "3d_fullres")
    full = Topology.from_architecture(_first_levels(upper, 3, kernel=[3, 3, 3]))
    thin = Topology.from_architecture(_first_levels(upper, 3, kernel=None))
    shared, network = SharedWeights([full]), thin.build()
    start, entries = dict(network.named_parameters()), plan_projection(shared.shapes(), network, thin)
    projected = project(shared.tensors(), entries)
    name = "encoder.stages.1.0.convs.1.conv.weight"
    assert projected[name].shape[2:] == (1, 3, 3)
    assert projected[name].std().item() == pytest.approx(start[name].std().item(), rel=0.03)


def _first_levels(entry: dict, n_stages: int, kernel: list[int] | None) -> dict:
    kwargs = entry["arch_kwargs"]
    cut = {key: value[:n_stages] for key, value in kwargs.items() if isinstance(value, list)}
    cut["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][: n_stages - 1]
    if kernel is not None:
        cut["kernel_sizes"] = [kernel] * n_stages
    return {**entry, "arch_kwargs": {**kwargs, **cut, "n_stages": n_stages}}


def test_mixing_families_is_refused() -> None:
    with pytest.raises(HSSLError, match="PlainConvUNet and ResidualEncoderUNet"):
        SharedWeights([topology("Task04_Hippocampus", PLAIN), topology("Task53_SarcomaPET", RESIDUAL)])


def test_two_widths_at_one_level_are_refused() -> None:
    entry = architecture("Task04_Hippocampus", PLAIN, "3d_fullres")
    entry["arch_kwargs"]["features_per_stage"][1] = 48
    with pytest.raises(HSSLError, match=r"widths at encoder\.1.*48"):
        SharedWeights([topology("Task53_SarcomaPET"), Topology.from_architecture(entry)])


def test_deep_2d_and_3d_plans_have_other_widths_and_are_refused() -> None:
    with torch.device("meta"), pytest.raises(HSSLError, match="512"):
        SharedWeights([topology("Task09_Spleen"), topology("Task09_Spleen", configuration="2d")])
