"""What a pretraining run shows of itself: curves, collapse, probes beside their floor, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hssl_nnunet.corpus.manifest import ImageRow
from hssl_nnunet.data.crops import DomainGeometry, RawChunk, read_chunk
from hssl_nnunet.data.sampling import ChunkPlan
from hssl_nnunet.data.views import make_views
from hssl_nnunet.losses.reconstruction import standardised
from hssl_nnunet.networks.hssl_network import HSSLNetwork
from hssl_nnunet.plan_schema import CorpusBlock
from hssl_nnunet.plan_values import ViewPlan
from hssl_nnunet.training import pictures, probes
from hssl_nnunet.training.precision import autocast, formatted
from hssl_nnunet.training.steps import ChunkPreparer

IMAGES_PER_DOMAIN = 32  # of each of the two parts, training and held-out: bounds the time and memory of a probe
PROBES = (
    "probed_images",
    "effective_rank",
    "domain_accuracy",
    "domain_floor",
    "domain_noise",
    "group_accuracy",
    "group_floor",
    "image_accuracy",
    "image_floor",
)


@dataclass(frozen=True, slots=True)
class Probed:
    """Features of one part (training or held-out images).

    Attributes:
        rows: the images.
        embeddings: `(N, D)` pooled features `h` of one whole crop each.
        floor: `(N, F)` intensity histogram and field of view, which need no learning.
        noise: `(N, D)` the same of white noise in each image's place: what a domain's plan stamps on whatever it is
            shown.
    """

    rows: list[ImageRow]
    embeddings: NDArray[np.float32]
    floor: NDArray[np.float32]
    noise: NDArray[np.float32]


class Monitor:
    """Probes and pictures of one run."""

    def __init__(self, corpus: CorpusBlock, geometries: Sequence[DomainGeometry], root: Path, output_folder: Path):
        """Remember where images and pictures lie.

        Args:
            corpus: the corpus.
            geometries: crops of its domains.
            root: nnU-Net's preprocessed folder.
            output_folder: where pictures go.
        """
        self.corpus, self.geometries, self.root, self.output_folder = corpus, geometries, root, output_folder

    @torch.no_grad()
    def probe(self, model: HSSLNetwork, training: list[ImageRow], held_out: list[ImageRow]) -> dict[str, float]:
        """Fit linear probes on training images, score them on held-out ones, and draw the embeddings.

        Returns:
            The values of `PROBES`: number of the images that are scored, effective rank of their embeddings, balanced
            accuracy of domain and finest group, and the accuracy that the floor's features reach, for the domain also
            embeddings of noise; how many training images are found again by another view among those of their domain,
            and by chance; nan where there are too few images.
        """
        model.eval()
        noise = torch.Generator().manual_seed(0)  # of both parts: no image of one has the noise of one of the other
        fit, score = (self._features(model, rows, noise) for rows in (training, held_out or training))
        if not (np.isfinite(fit.embeddings).all() and np.isfinite(score.embeddings).all()):
            return no_probe()  # a broken network must not end the run in its last epoch
        self._draw_embeddings(score, "held-out" if held_out else "training")
        count = len(score.rows)
        rank = probes.effective_rank(score.embeddings) if count >= probes.FEWEST_FOR_RANK else math.nan
        values = {"probed_images": float(count), "effective_rank": rank}
        for name, label in (("domain", _domain), ("group", self._group)):
            labels = [label(r) for r in fit.rows], [label(r) for r in score.rows]
            values[f"{name}_accuracy"] = probes.linear_probe_accuracy(
                fit.embeddings, labels[0], score.embeddings, labels[1]
            )
            values[f"{name}_floor"] = probes.linear_probe_accuracy(fit.floor, labels[0], score.floor, labels[1])
            if name == "domain":
                values["domain_noise"] = probes.linear_probe_accuracy(fit.noise, labels[0], score.noise, labels[1])
        return values | self.found_again(model, fit.rows)

    def _group(self, row: ImageRow) -> str:
        """The finest group of an image's domain, as the plans have it: they may be edited after the manifest."""
        return self.corpus.domains[row.domain].groups[0]

    def found_again(self, model: HSSLNetwork, rows: list[ImageRow]) -> dict[str, float]:
        """How many images another view of theirs finds again among those of their domain.

        Args:
            model: the network.
            rows: images, of any domains.

        Returns:
            `image_accuracy` and what chance would reach, `image_floor`: means over the domains of two images and more,
            nan if there is none. Views are drawn as in training, nothing is hidden.
        """
        found, chance = [], []
        for domain in sorted({row.domain for row in rows}):
            there = [row for row in rows if row.domain == domain]
            if len(there) > 1:
                pairs = np.stack([self._two_views(model, there, index) for index in range(len(there))], axis=1)
                found.append(probes.retrieval_accuracy(*pairs))
                chance.append(1 / len(there))
        if not found:
            return {"image_accuracy": math.nan, "image_floor": math.nan}
        return {"image_accuracy": float(np.mean(found)), "image_floor": float(np.mean(chance))}

    def _two_views(self, model: HSSLNetwork, rows: list[ImageRow], index: int) -> NDArray[np.float32]:
        """Embeddings `(2, D)` of two views of one image."""
        plan, domain, device = self.corpus.pretraining, rows[index].domain, next(model.parameters()).device
        raw = self._one(rows[index], rows, index, plan.views)
        views = make_views(raw, self.geometries[domain], plan.views)
        images, valid = (t.flatten(0, 1) for t in (views.augmented, views.valid))
        with autocast(plan.precision, device):
            embedded = model.embed(domain, formatted(images, device), valid.to(device))
        return np.asarray(embedded.float().cpu())

    def _features(self, model: HSSLNetwork, rows: list[ImageRow], generator: torch.Generator) -> Probed:
        chosen = few_of_each_domain(rows)
        plan, device = self.corpus.pretraining, next(model.parameters()).device
        still = replace(plan.views, rotation_degree=0.0, scale=0.0, mirror=False, intensity=0.0)
        embeddings, floors, noises = list[Any](), list[Any](), list[Any]()
        for index, row in enumerate(chosen):
            raw = self._one(row, chosen, index, still)
            views = make_views(raw, self.geometries[row.domain], still, num_views=1)
            image, valid = formatted(views.clean[0], device), views.valid[0].to(device)
            noise = formatted(torch.randn(image.shape, generator=generator), device)
            with autocast(plan.precision, device):
                for shown, found in ((image, embeddings), (noise, noises)):
                    found.append(model.embed(row.domain, shown, valid)[0].float().cpu().numpy())
            floors.append(probes.floor_features(views.clean[0, 0], row.spacing_mm, _field_of_view_mm(row)))
        return Probed(chosen, np.stack(embeddings), np.stack(floors), np.stack(noises))

    def _one(self, row: ImageRow, rows: Sequence[ImageRow], index: int, views: ViewPlan) -> RawChunk:
        return read_chunk(ChunkPlan(row.domain, (index,), index), rows, self.geometries[row.domain], views, self.root)

    def _draw_embeddings(self, score: Probed, part: str) -> None:
        names = [row.dataset_name for row in score.rows]
        groups = [self._group(row) for row in score.rows]
        shown = f"{len(names)} {part} images"
        path, points = self.output_folder / "embeddings.png", probes.pca_2d(score.embeddings)
        pictures.plot_embeddings(path, points, names, groups, shown)

    @torch.no_grad()
    def draw_reconstructions(self, model: HSSLNetwork, preparer: ChunkPreparer, batch: Sequence[RawChunk]) -> None:
        """Draw target, what the encoder saw and the reconstruction of the first image of each chunk."""
        chunks = [preparer.chunk(raw) for raw in batch]
        plan = self.corpus.pretraining
        with autocast(plan.precision, preparer.device):
            outputs = model(chunks)
        sheet = []
        for chunk, result in zip(chunks, outputs.reconstructions, strict=False):
            target = standardised(chunk.target, chunk.valid[0])
            seen = target.masked_fill(chunk.hidden, math.nan)
            images = (part[0, 0].float().cpu().numpy() for part in (target, seen, result.prediction))
            name = self.corpus.domains[chunk.domain].dataset_name
            sheet.append((name, next(images), next(images), next(images)))
        if sheet:
            pictures.plot_reconstructions(self.output_folder / "reconstructions.png", sheet)


def no_probe() -> dict[str, float]:
    """The values of an epoch without a probe."""
    return dict.fromkeys(PROBES, math.nan)


def _domain(row: ImageRow) -> str:
    return row.dataset_name


def _field_of_view_mm(row: ImageRow) -> list[float]:
    return [size * spacing for size, spacing in zip(row.shape, row.spacing_mm, strict=True)]


def few_of_each_domain(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """At most `IMAGES_PER_DOMAIN` of each domain, evenly spaced over its rows."""
    chosen = []
    for domain in sorted({row.domain for row in rows}):
        there = [row for row in rows if row.domain == domain]
        picks = np.linspace(0, len(there) - 1, min(len(there), IMAGES_PER_DOMAIN)).round().astype(int)
        chosen += [there[i] for i in picks]
    return chosen
