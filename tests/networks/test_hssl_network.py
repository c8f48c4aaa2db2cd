"""The pretraining network as a whole: what it builds for a plan, what comes out, and what it trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixture_topologies import NARROW, fixture, topology
from reference_unet import reference_features

from hssl_nnunet.losses.hierarchical import Labels, hierarchical_loss
from hssl_nnunet.losses.voxel import Points
from hssl_nnunet.networks.hssl_network import Chunk, HSSLNetwork
from hssl_nnunet.plan_schema import CorpusBlock, DomainPlan, load_preset, pretraining_plan
from hssl_nnunet.plan_values import LossPlan

TASKS = ("Task04_Hippocampus", "Task54_CineLV", "Task53_SarcomaPET")
GROUPS = (("brain", "MR"), ("heart", "MR"), ("body", "PET"))


def corpus_block(checkpointing: str = "none", **loss: object) -> CorpusBlock:
    """Three real topologies of 4, 7 and 4 stages, narrow; two levels of groups."""
    domains = []
    for task, groups in zip(TASKS, GROUPS, strict=True):
        configuration = fixture(task)["planners"]["ExperimentPlanner"]["configurations"]["3d_fullres"]
        entry = configuration["architecture"]
        features = list(topology(task, narrow=NARROW).features)
        domains.append(
            DomainPlan(
                dataset_name=task,
                plans_name="nnUNetPlans",
                data_identifier="nnUNetPlans_3d_fullres",
                modality=groups[-1],
                groups=groups,
                num_images=4,
                spacing=tuple(configuration["spacing"]),
                patch_size=tuple(configuration["patch_size"]),
                architecture={**entry, "arch_kwargs": {**entry["arch_kwargs"], "features_per_stage": features}},
            )
        )
    values = {"embedding_width": 16, "projection_width": 8, "checkpointing": checkpointing, "loss": loss}
    plan = pretraining_plan(load_preset("default"), **values)
    return CorpusBlock(domains=tuple(domains), pretraining=plan)


def chunk(domain: int, images: int = 2) -> Chunk:
    shape = [2 * stride for stride in topology(TASKS[domain]).total_stride]
    generator = torch.Generator().manual_seed(domain)
    views = torch.randn((2, images, 1, *shape), generator=generator)
    hidden = torch.rand((images, 1, *shape), generator=generator) > 0.5
    voxels = (torch.rand((2, images, 6, len(shape)), generator=generator) * torch.tensor(shape)).long()
    points = Points(voxels, torch.ones(images, 6, dtype=torch.bool))
    return Chunk(domain, views, views[0], torch.ones_like(views, dtype=torch.bool), hidden, points)


def network(**loss: object) -> HSSLNetwork:
    torch.manual_seed(0)
    return HSSLNetwork(corpus_block(**loss))


def test_a_step_over_all_domains_trains_every_parameter() -> None:
    model = network(voxel=1)
    chunks = [chunk(0), chunk(1), chunk(2)]
    outputs = model(chunks)
    assert outputs.z is not None and outputs.z.shape == (2, 6, 8)
    assert outputs.task_logits is not None and outputs.task_logits.shape == (2, 6, 3)
    assert [tuple(logits.shape) for logits in outputs.group_logits] == [(2, 6, 3), (2, 6, 2)]
    assert [r.prediction.shape for r in outputs.reconstructions] == [c.target.shape for c in chunks]
    task = torch.tensor([0, 0, 1, 1, 2, 2])
    labels = Labels(torch.arange(6), task, torch.stack([task, torch.tensor([0, 0, 0, 0, 1, 1])]))
    hierarchical_loss(outputs, labels, model_loss({"voxel": 1}))["total"].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not [name for name, p in model.named_parameters() if p.ndim > 1 and not p.grad.any()]


@pytest.mark.parametrize("checkpointing", ["chunk", "image"])
@pytest.mark.parametrize("loss", [{}, {"image": 0, "task": 0, "group": 0}, {"reconstruction": 0}, {"voxel": 1}])
def test_dropped_activations_change_no_gradient(checkpointing: str, loss: dict[str, float]) -> None:
    task = torch.tensor([0, 0, 0, 2, 2])
    labels = Labels(torch.arange(5), task, torch.stack([task, torch.tensor([0, 0, 0, 1, 1])]))

    def trained(form: str) -> tuple[float, dict[str, torch.Tensor], int]:
        torch.manual_seed(0)
        model, kept = HSSLNetwork(corpus_block(form, **loss)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            total = hierarchical_loss(model([chunk(0, 3), chunk(2)]), labels, model_loss(loss))["total"]
        total.backward()
        return total.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sum(kept)

    (value, gradients, memory), (other_value, others, less) = trained("none"), trained(checkpointing)
    assert other_value == pytest.approx(value, rel=1e-6) and others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=5e-6, msg=name)
    assert less < memory / 3


def model_loss(loss: dict[str, float]) -> LossPlan:
    return corpus_block(**loss).pretraining.loss


def test_an_image_answers_alike_in_whatever_company() -> None:
    model = network(voxel=1)
    first, second = chunk(0), chunk(1)
    together, alone = model([second, first]), model([first])
    torch.testing.assert_close(together.z[:, 2:], alone.z)
    torch.testing.assert_close(together.reconstructions[1].prediction, alone.reconstructions[0].prediction)
    torch.testing.assert_close(together.voxels.z[:, 2:], alone.voxels.z)


def test_view_0_is_reconstructed_by_the_reference_network() -> None:
    model, part = network(), chunk(2)
    of = topology(TASKS[2], narrow=NARROW)
    tensors = model.shared.tensors()
    top = reference_features(tensors, of, part.views[0])["decoder.0"]
    weight, bias = tensors["decoder.0.segmentation.weight"], tensors["decoder.0.segmentation.bias"]
    expected = torch.nn.functional.conv3d(top, weight, bias)
    torch.testing.assert_close(model([part]).reconstructions[0].prediction, expected, atol=1e-5, rtol=0)


def test_places_are_described_by_the_reference_decoder_of_each_view() -> None:
    model, part = network(voxel=1, reconstruction=0), chunk(1)
    of, points = topology(TASKS[1], narrow=NARROW), part.points
    assert points is not None
    outputs = model([part])
    assert outputs.reconstructions == () and outputs.voxels.z.shape == (2, 2, 6, 8)
    for view in range(2):
        features = reference_features(model.shared.tensors(), of, part.views[view])
        levels = [features[f"decoder.{level}"] for level in range(of.n_stages - 1)]
        for image, place in ((0, 0), (1, 3)):
            described = []
            for linear, level in zip(model.voxel_embedding.levels, levels, strict=True):
                share = torch.tensor(level.shape[2:]) / torch.tensor(levels[0].shape[2:])
                x, y, z = (points.voxels[view, image, place] * share).long()
                described.append(linear(level[image, :, x, y, z]))
            h = model.voxel_embedding.norm(torch.stack(described).mean(0))
            expected = model.voxel_embedding.projector(h[None])[0]
            torch.testing.assert_close(outputs.voxels.z[view, image, place], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("loss", [{}, {"voxel": 1}, {"reconstruction": 0}])
def test_a_domains_network_is_one_graph_for_the_compiler(loss: dict[str, float]) -> None:
    model, part = network(**loss), chunk(2)
    domain = model.domains[2]
    expected = model([part])
    domain.call = torch.compile(domain.run, dynamic=False, fullgraph=True, backend="eager")
    found = model([part])
    torch.testing.assert_close(found.z, expected.z)
    for one, other in zip(found.reconstructions, expected.reconstructions, strict=True):
        torch.testing.assert_close(one.prediction, other.prediction)
    if "voxel" in loss:
        torch.testing.assert_close(found.voxels.z, expected.voxels.z)


def test_padding_and_places_that_do_not_count_have_no_say() -> None:
    model, whole = network(voxel=1, reconstruction=0), chunk(0)
    valid, kept = whole.valid.clone(), whole.points.kept.clone()
    valid[1, 0, :, valid.shape[3] // 2 :], kept[0, 3:] = False, False
    part = replace(whole, valid=valid, points=Points(whole.points.voxels, kept))
    labels = Labels(torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))
    pooled = []

    def changed(skips: list[torch.Tensor], valid: torch.Tensor) -> list[torch.Tensor]:
        for level in skips[1:]:
            level[2, :, level.shape[2] // 2 :] = 9.0  # the first image in the second view
        pooled.append(valid)
        return model.embedding.pooled(skips, valid)

    def terms(of: Chunk) -> dict[str, torch.Tensor]:
        return hierarchical_loss(model([of]), labels, model_loss({"voxel": 1, "reconstruction": 0}))

    with torch.no_grad():
        expected, z = terms(part), model([part]).z
        elsewhere = whole.points.voxels.clone()
        elsewhere[:, 0, 3:] = 0
        torch.testing.assert_close(terms(replace(part, points=Points(elsewhere, kept)))["voxel"], expected["voxel"])
        assert not torch.isclose(terms(whole)["voxel"], expected["voxel"])
        model._pooled = changed
        torch.testing.assert_close(model([part]).z, z)
        assert not torch.allclose(model([whole]).z[1, 0], z[1, 0]) and torch.equal(pooled[0], valid.flatten(0, 1))


def test_without_reconstruction_its_layer_is_neither_run_nor_saved() -> None:
    layer = "decoder.0.segmentation.weight"
    assert layer in network(voxel=1).trained()
    model, part = network(voxel=1, reconstruction=0), chunk(1)
    assert layer not in model.trained() and "decoder.0.convs.0.conv.weight" in model.trained()
    labels = Labels(torch.arange(2), torch.ones(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))
    hierarchical_loss(model([part]), labels, model_loss({"voxel": 1, "reconstruction": 0}))["total"].backward()
    assert model.shared.tensors()[layer].grad is None  # both views are decoded, no output was asked for


def test_terms_of_weight_0_build_no_head() -> None:
    only_reconstruction = network(image=0, task=0, group=0, voxel=0)
    assert {name.split(".")[0] for name, _ in only_reconstruction.named_parameters()} == {"shared"}
    outputs = only_reconstruction([chunk(0)])
    assert outputs.z is None and outputs.task_logits is None and outputs.group_logits == ()
    only_image = network(task=0, group=0, reconstruction=0, voxel=0)
    names = {name.split(".")[0] for name, _ in only_image.named_parameters()}
    assert names == {"shared", "embedding", "projector"}
    assert only_image([chunk(0)]).reconstructions == ()


@pytest.mark.parametrize("form", ["task_loss", "group_loss"])
def test_contrast_needs_a_projection_instead_of_a_classifier(form: str) -> None:
    model = network(image=0, reconstruction=0, **{form: "contrast"})
    assert model.projector is not None
    assert (model.task_head is None) == (form == "task_loss")
    assert (len(model.group_heads) == 0) == (form == "group_loss")


def test_checkpoint_holds_real_tensors_only() -> None:
    model = network()
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_embed_is_the_embedding_of_the_forward() -> None:
    model, part = network(), chunk(0)
    h = model.embed(0, part.views[0], part.valid[0])
    assert h.shape == (2, 16) and not h.requires_grad
    torch.testing.assert_close(model.projector(h), model([part]).z[0])


def test_corpus_of_other_widths_is_refused_before_training() -> None:
    block = corpus_block()
    wide = dict(block.domains[0].architecture)
    wide["arch_kwargs"] = {**wide["arch_kwargs"], "features_per_stage": [8, 16, 32, 64]}
    mixed = replace(block, domains=(replace(block.domains[0], architecture=wide), *block.domains[1:]))
    with pytest.raises(RuntimeError, match="widths"):
        HSSLNetwork(mixed)
