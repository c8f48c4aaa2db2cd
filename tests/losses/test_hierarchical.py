from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from hssl_nnunet.losses import hierarchical
from hssl_nnunet.losses.classification import classification
from hssl_nnunet.losses.contrastive import nt_xent, supervised_contrast
from hssl_nnunet.losses.hierarchical import Labels, Outputs, hierarchical_loss
from hssl_nnunet.losses.reconstruction import Reconstruction, reconstruction_error
from hssl_nnunet.losses.voxel import VoxelEmbeddings, voxel_contrast

TERMS = ("image", "task", "group", "reconstruction", "voxel")
OFF = dict.fromkeys(TERMS, 0.0)
LABELS = Labels(torch.arange(4), torch.tensor([0, 1, 2, 1]), torch.tensor([[0, 1, 2, 1], [0, 0, 1, 0]]))


@pytest.fixture
def outputs():
    shape = (2, 1, 3, 4, 2)
    images = Reconstruction(torch.randn(shape), torch.randn(shape), torch.rand(shape) < 0.5, torch.rand(shape) < 0.9)
    z = normalize(torch.randn(2, 4, 6), dim=-1)
    places = VoxelEmbeddings(normalize(torch.randn(2, 4, 5, 6), dim=-1), torch.rand(4, 5) < 0.8)
    groups = (torch.randn(2, 4, 3), torch.randn(2, 4, 2))
    return Outputs(z, torch.randn(2, 4, 3), groups, (images, images), places)


def test_terms_and_their_weighted_sum(outputs, loss_plan):
    terms = hierarchical_loss(outputs, LABELS, loss_plan)
    levels = [classification(x, y) for x, y in zip(outputs.group_logits, LABELS.groups, strict=True)]
    expected = {
        "image": nt_xent(outputs.z, LABELS.image, LABELS.task, 0.3, "all"),
        "task": classification(outputs.task_logits, LABELS.task),
        "group": (levels[0] + levels[1]) / 2,
        "reconstruction": reconstruction_error(outputs.reconstructions, "masked"),
        "voxel": voxel_contrast(outputs.voxels, 0.2),
    }
    weights = {"image": 0.5, "task": 0.4, "group": 0.3, "reconstruction": 1.2, "voxel": 0.7}
    expected["total"] = sum(weight * expected[name] for name, weight in weights.items())
    torch.testing.assert_close(terms, expected)


def test_plan_values_reach_their_terms(outputs, loss_plan):
    plan = replace(
        loss_plan,
        tau=0.7,
        negatives="other_task",
        task_loss="contrast",
        group_loss="contrast",
        reconstruction_target="full",
        voxel_tau=0.5,
    )
    terms = hierarchical_loss(replace(outputs, task_logits=None, group_logits=()), LABELS, plan)
    levels = [supervised_contrast(outputs.z, level, 0.7) for level in LABELS.groups]
    torch.testing.assert_close(terms["image"], nt_xent(outputs.z, LABELS.image, LABELS.task, 0.7, "other_task"))
    torch.testing.assert_close(terms["task"], supervised_contrast(outputs.z, LABELS.task, 0.7))
    torch.testing.assert_close(terms["group"], (levels[0] + levels[1]) / 2)
    torch.testing.assert_close(terms["reconstruction"], reconstruction_error(outputs.reconstructions, "full"))
    torch.testing.assert_close(terms["voxel"], voxel_contrast(outputs.voxels, 0.5))


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("form", ["classification", "contrast"])
def test_weight_0_is_not_computed(outputs, loss_plan, monkeypatch, term, form):
    called = []
    for name in ("nt_xent", "supervised_contrast", "classification", "reconstruction_error", "voxel_contrast"):
        original = getattr(hierarchical, name)
        monkeypatch.setattr(hierarchical, name, lambda *a, n=name, f=original: called.append(n) or f(*a))
    plan = replace(loss_plan, task_loss=form, group_loss=form, **{**OFF, term: 2.0})
    terms = hierarchical_loss(outputs, LABELS, plan)
    label_term = "classification" if form == "classification" else "supervised_contrast"
    expected = {
        "image": ["nt_xent"],
        "task": [label_term],
        "group": [label_term] * 2,
        "reconstruction": ["reconstruction_error"],
        "voxel": ["voxel_contrast"],
    }
    assert called == expected[term]
    assert terms.keys() == {term, "total"}
    torch.testing.assert_close(terms["total"], 2 * terms[term])


@pytest.mark.parametrize("term", TERMS)
def test_only_the_parts_of_the_terms_in_use_get_a_gradient(outputs, loss_plan, term):
    parts = {
        "image": outputs.z,
        "task": outputs.task_logits,
        "group": outputs.group_logits[1],
        "reconstruction": outputs.reconstructions[0].prediction,
        "voxel": outputs.voxels.z,
    }
    for part in parts.values():
        part.requires_grad_()
    hierarchical_loss(outputs, LABELS, replace(loss_plan, **{**OFF, term: 1.0}))["total"].backward()
    assert {name for name, part in parts.items() if part.grad is not None and part.grad.any()} == {term}


def test_missing_parts_are_named(loss_plan):
    nothing = Outputs(None, None, (), ())
    with pytest.raises(ValueError, match="projections"):
        hierarchical_loss(nothing, LABELS, replace(loss_plan, **{**OFF, "image": 1.0}))
    with pytest.raises(ValueError, match="voxels"):
        hierarchical_loss(nothing, LABELS, replace(loss_plan, **{**OFF, "voxel": 1.0}))
    for term in ("task", "group"):
        with pytest.raises(ValueError, match="logits"):
            hierarchical_loss(nothing, LABELS, replace(loss_plan, **{**OFF, term: 1.0}))


def test_under_bfloat16_autocast(outputs, loss_plan):
    expected = hierarchical_loss(outputs, LABELS, loss_plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(hierarchical_loss(outputs, LABELS, loss_plan), expected, rtol=0, atol=0)
