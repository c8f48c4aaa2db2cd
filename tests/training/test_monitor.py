from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_corpus
import torch

from hssl_nnunet.training import monitor
from hssl_nnunet.training.monitor import IMAGES_PER_DOMAIN, PROBES, no_probe
from hssl_nnunet.training.pretrainer import HSSLPretrainer


@pytest.fixture
def trainer(corpus: Path) -> HSSLPretrainer:
    trainer = tiny_corpus.pretrainer(corpus)
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is drawn, by file name, instead of the picture."""
    pictures: dict[str, Any] = {}
    for name in ("plot_embeddings", "plot_reconstructions"):
        monkeypatch.setattr(monitor.pictures, name, lambda path, *args: pictures.update({path.name: args}))
    return pictures


def test_a_probe_scores_held_out_images_beside_its_floor(trainer: HSSLPretrainer, drawn: dict[str, Any]) -> None:
    rows = trainer.rows
    training, held_out = [r for r in rows if r.case != "case_0"], [r for r in rows if r.case == "case_0"]
    values = trainer.monitor.probe(trainer.model, training, held_out)
    assert tuple(values) == PROBES and values["probed_images"] == 3
    assert [key for key, value in values.items() if math.isnan(value)] == ["effective_rank"]  # of three: 2 at most
    assert values["domain_floor"] > 0.5  # spacing and field of view alone tell most of these domains apart
    assert values["image_floor"] == pytest.approx(1 / (tiny_corpus.IMAGES - 1)) and 0 <= values["image_accuracy"] <= 1
    assert 0 <= values["domain_accuracy"] <= 1
    points, names, groups, shown = drawn["embeddings.png"]
    assert points.shape == (3, 2) and names == list(tiny_corpus.NAMES) and groups == ["brain", "heart", "chest"]
    assert shown == "3 held-out images"


def test_the_probe_on_noise_tells_what_the_plan_alone_gives_away(
    trainer: HSSLPretrainer, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(domain: int, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3, 4))[:, None].expand(-1, 4)

    def stamped(domain: int, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return blind(domain, images, valid) + domain

    training, held_out = (
        [r for r in trainer.rows if r.case != "case_0"],
        [r for r in trainer.rows if r.case == "case_0"],
    )
    monkeypatch.setattr(trainer.model, "embed", stamped)
    assert trainer.monitor.probe(trainer.model, training, held_out)["domain_noise"] == 1
    monkeypatch.setattr(trainer.model, "embed", blind)
    assert trainer.monitor.probe(trainer.model, training, held_out)["domain_noise"] < 0.7


def test_no_two_images_are_shown_the_same_noise(
    trainer: HSSLPretrainer, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a probe that is fitted on one part would know the noise of the other, where both are as large."""
    shown: list[torch.Tensor] = []

    def embed(domain: int, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        shown.append(images)
        return torch.ones(len(images), 4)

    monkeypatch.setattr(trainer.model, "embed", embed)
    half = [r for r in trainer.rows if r.case < "case_3"], [r for r in trainer.rows if r.case >= "case_3"]
    trainer.monitor.probe(trainer.model, *half)
    noise = [images for images in shown[1 : 2 * len(trainer.rows) : 2] if images.shape == shown[0].shape]
    assert len(noise) > 2 and len({images.sum().item() for images in noise}) == len(noise)


def test_groups_are_those_of_the_plans_which_may_be_edited_after_the_manifest(
    trainer: HSSLPretrainer, drawn: dict[str, Any]
) -> None:
    domains = [replace(domain, groups=("x", "MR")) for domain in trainer.corpus.domains]
    trainer.monitor.corpus = replace(trainer.corpus, domains=tuple(domains))
    values = trainer.monitor.probe(trainer.model, trainer.rows, trainer.rows)
    assert drawn["embeddings.png"][2] == ["x"] * len(trainer.rows)
    assert math.isnan(values["group_accuracy"]) or values["group_accuracy"] == 1  # one group alone


def test_a_probe_is_repeatable_and_leaves_the_weights(trainer: HSSLPretrainer, drawn: dict[str, Any]) -> None:
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    torch.manual_seed(1)
    first = trainer.monitor.probe(trainer.model, trainer.rows, [])
    torch.manual_seed(2)
    assert trainer.monitor.probe(trainer.model, trainer.rows, []) == first
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_the_image_probe_is_full_where_views_are_alike_and_chance_where_images_are(
    trainer: HSSLPretrainer, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def telling(domain: int, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The same for each view of an image, another for each image."""
        codes.append(codes[-1] + 1)
        return torch.tensor([[math.cos(codes[-1]), math.sin(codes[-1])]]).expand(2, 2)

    codes = [0]
    monkeypatch.setattr(trainer.model, "embed", telling)
    assert trainer.monitor.found_again(trainer.model, trainer.rows)["image_accuracy"] == 1
    monkeypatch.setattr(trainer.model, "embed", lambda *_: torch.ones(2, 2))
    assert trainer.monitor.found_again(trainer.model, trainer.rows)["image_accuracy"] == 0
    assert all(map(math.isnan, trainer.monitor.found_again(trainer.model, trainer.rows[:1]).values()))


def test_without_held_out_images_the_training_images_are_scored(trainer, drawn) -> None:
    values = trainer.monitor.probe(trainer.model, trainer.rows, [])
    assert len(drawn["embeddings.png"][0]) == len(trainer.rows) == values["probed_images"]
    assert drawn["embeddings.png"][3] == f"{len(trainer.rows)} training images" and values["effective_rank"] > 1


def test_large_domains_are_thinned_evenly(trainer: HSSLPretrainer) -> None:
    row = trainer.rows[0]
    rows = [replace(row, domain=0, case=str(i)) for i in range(100)] + [replace(row, domain=1, case="x")]
    chosen = monitor.few_of_each_domain(rows)
    cases = [int(r.case) for r in chosen if r.domain == 0]
    assert len(cases) == IMAGES_PER_DOMAIN == len(set(cases)) and cases[0] == 0 and cases[-1] == 99
    assert max(np.diff(cases)) - min(np.diff(cases)) <= 1 and chosen[-1].case == "x"


def test_the_sheet_shows_target_hidden_blocks_and_prediction(trainer: HSSLPretrainer, drawn: dict[str, Any]) -> None:
    batch = next(trainer.dataloader_val)
    trainer.monitor.draw_reconstructions(trainer.model, trainer.preparer, batch)
    (sheet,) = drawn["reconstructions.png"]
    chunks = [trainer.preparer.chunk(raw) for raw in batch]
    with torch.no_grad():
        predictions = [r.prediction for r in trainer.model(chunks).reconstructions]
    for (name, target, seen, prediction), chunk, expected in zip(sheet, chunks, predictions, strict=True):
        assert name == tiny_corpus.NAMES[chunk.domain]
        hidden, valid = chunk.hidden[0, 0].numpy(), chunk.valid[0, 0, 0].numpy()
        assert np.array_equal(np.isnan(seen), hidden) and np.array_equal(seen[~hidden], target[~hidden])
        assert target[valid].mean() == pytest.approx(0, abs=1e-5) and target[valid].std() == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(prediction, expected[0, 0].numpy(), atol=1e-6)


def test_an_epoch_without_a_probe_has_no_value() -> None:
    assert tuple(no_probe()) == PROBES and all(math.isnan(v) for v in no_probe().values())
