"""The pretraining network: shared weights and heads behind one forward, each domain in its own topology."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hssl_nnunet.losses.hierarchical import Outputs
from hssl_nnunet.losses.queue import NegativeQueue
from hssl_nnunet.losses.reconstruction import Reconstruction
from hssl_nnunet.losses.voxel import Points, VoxelEmbeddings
from hssl_nnunet.networks.domain_network import DomainNetwork
from hssl_nnunet.networks.heads import Embedding, Projector, VoxelEmbedding, at_places
from hssl_nnunet.networks.projection import project
from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.plan_schema import CorpusBlock

GRAPHS_PER_DOMAIN = 4  # with and without gradient, and room for another batch size


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images of one domain, ready for the network.

    Attributes:
        domain: index of the domain.
        views: `(V, B, 1, X, Y[, Z])` float32, what the encoder sees; hidden voxels of view 0 are 0.
        target: `(B, 1, X, Y[, Z])` float32, view 0 whole and without intensity changes.
        valid: `(V, B, 1, X, Y[, Z])` bool, False = padding.
        hidden: `(B, 1, X, Y[, Z])` bool, True = hidden from the encoder in view 0.
        points: places that both views show, or None.
    """

    domain: int
    views: Tensor
    target: Tensor
    valid: Tensor
    hidden: Tensor
    points: Points | None = None

    def images(self) -> list[Chunk]:
        """Each image as a chunk of its own."""
        tensors = zip((self.views, self.target, self.valid, self.hidden), (1, 0, 1, 0), strict=True)
        parts = [torch.tensor_split(t, t.shape[axis], dim=axis) for t, axis in tensors]
        chunks = [Chunk(self.domain, *tensors) for tensors in zip(*parts, strict=True)]
        if self.points is None:
            return chunks
        return [replace(chunk, points=points) for chunk, points in zip(chunks, self.points.images(), strict=True)]


@dataclass(frozen=True, slots=True)
class ChunkOutput:
    """What the network says of a chunk; nothing where no term of the loss asks for it.

    Attributes:
        pooled: of each level `(V, B, statistics)`, each view in numbers.
        places: of each level `(2, B, K, C)`, the decoder's features at the places.
        prediction: `(B, 1, X, Y[, Z])`, view 0's reconstruction, or None.
    """

    pooled: list[Tensor]
    places: list[Tensor]
    prediction: Tensor | None

    @classmethod
    def joined(cls, parts: Sequence[ChunkOutput]) -> ChunkOutput:
        """The outputs of a chunk's images, one by one, as that of the chunk."""
        pooled = [torch.cat(level, dim=1) for level in zip(*(p.pooled for p in parts), strict=True)]
        places = [torch.cat(level, dim=1) for level in zip(*(p.places for p in parts), strict=True)]
        predictions = [part.prediction for part in parts if part.prediction is not None]
        return cls(pooled, places, torch.cat(predictions) if predictions else None)


class HSSLNetwork(nn.Module):
    """Shared weights, embedding and heads; one forward for a whole step, so that DDP and compile see all of it."""

    def __init__(self, corpus: CorpusBlock, *, compiled: bool = False):
        """Build the network for a corpus.

        Args:
            corpus: the `hssl` block of the corpus' plans.
            compiled: whether each domain's network is compiled.

        Raises:
            HSSLError: the domains' plans cannot share weights.
        """
        super().__init__()
        plan, loss = corpus.pretraining, corpus.pretraining.loss
        topologies = [Topology.from_architecture(d.architecture, d.dataset_name) for d in corpus.domains]
        self.shared = SharedWeights(topologies)
        self.checkpointing = plan.checkpointing
        shapes, decoded_views = self.shared.shapes(), loss.decoded_views
        if compiled:
            _allow_graphs(GRAPHS_PER_DOMAIN * len(topologies))
        reconstructs = loss.reconstruction > 0
        self.domains = [
            DomainNetwork(t, shapes, decoded_views=decoded_views, reconstructs=reconstructs, compiled=compiled)
            for t in topologies
        ]
        features = max((t.features for t in topologies), key=len)
        width = plan.embedding_width
        self.embedding = Embedding(features, width, loss.pooling) if loss.embeds else None
        self._pooled = None if self.embedding is None else self.embedding.pooled
        if compiled and self._pooled is not None:
            self._pooled = torch.compile(self._pooled, dynamic=False)
        self.projector = Projector(width, plan.projection_width) if loss.contrasts else None
        queued = loss.queue_per_domain if loss.image > 0 else 0
        self.queue = NegativeQueue(len(topologies), queued, plan.projection_width) if queued else None
        self.voxel_embedding = VoxelEmbedding(features, width, plan.projection_width) if loss.voxel > 0 else None
        self.task_head = nn.Linear(width, len(topologies)) if _classifies(loss.task, loss.task_loss) else None
        levels = (
            zip(*(d.groups for d in corpus.domains), strict=True) if _classifies(loss.group, loss.group_loss) else ()
        )
        self.group_heads = nn.ModuleList(nn.Linear(width, len(set(level))) for level in levels)

    def forward(self, chunks: Sequence[Chunk]) -> Outputs:
        """Run every chunk in its domain's topology.

        Args:
            chunks: this process' chunks of the step.

        Returns:
            What the loss needs; images in the order of the chunks.
        """
        tensors = self.shared.tensors()
        projected = {d: project(tensors, self.domains[d].entries) for d in sorted({c.domain for c in chunks})}
        return self._heads(chunks, [self._run(chunk, projected[chunk.domain]) for chunk in chunks])

    def _run(self, chunk: Chunk, parameters: dict[str, Tensor]) -> ChunkOutput:
        """Run a chunk.

        Activations that are dropped are computed again in the backward pass, chunk by chunk or image by image: the same
        gradient in a fraction of the memory.
        """
        if self.checkpointing == "none":
            return self._images(parameters, chunk)
        parts = chunk.images() if self.checkpointing == "image" else [chunk]
        # nothing random in the network: no state of the generator to keep
        run = [checkpoint(self._images, parameters, p, use_reentrant=False, preserve_rng_state=False) for p in parts]
        return ChunkOutput.joined(run)

    def _images(self, parameters: dict[str, Tensor], chunk: Chunk) -> ChunkOutput:
        count = chunk.views.shape[1]
        skips, levels, output = self.domains[chunk.domain].call(parameters, chunk.views.flatten(0, 1), count)
        return self._described(chunk, skips, levels, output)

    def _described(
        self, chunk: Chunk, skips: Sequence[Tensor], levels: Sequence[Tensor], prediction: Tensor | None
    ) -> ChunkOutput:
        pooled = [] if self._pooled is None else self._pooled(skips, chunk.valid.flatten(0, 1))
        points = None if self.voxel_embedding is None else chunk.points
        places = [] if points is None else at_places(levels, points.voxels)
        return ChunkOutput([level.view(*chunk.views.shape[:2], -1) for level in pooled], places, prediction)

    def _heads(self, chunks: Sequence[Chunk], outputs: Sequence[ChunkOutput]) -> Outputs:
        reconstructions = [
            Reconstruction(output.prediction, chunk.target, chunk.hidden, chunk.valid[0])
            for chunk, output in zip(chunks, outputs, strict=True)
            if output.prediction is not None
        ]
        voxels, kept = None, [chunk.points.kept for chunk in chunks if chunk.points is not None]
        if self.voxel_embedding is not None and kept:
            z = self.voxel_embedding([output.places for output in outputs if output.places])
            voxels = VoxelEmbeddings(z, torch.cat(kept))
        if self.embedding is None:
            return Outputs(None, None, (), tuple(reconstructions), voxels)
        h = self.embedding([output.pooled for output in outputs])
        with torch.autocast(h.device.type, enabled=False):  # products too small to be worth their casts
            z = None if self.projector is None else self.projector(h.flatten(0, 1)).unflatten(0, h.shape[:2])
            task = None if self.task_head is None else self.task_head(h)
            groups = tuple(head(h) for head in self.group_heads)
        return Outputs(z, task, groups, tuple(reconstructions), voxels)

    def trained(self) -> dict[str, Tensor]:
        """Role -> shared tensor of what the loss trains: no decoder where none of its terms decodes."""
        run = {e.role for domain in self.domains for e in domain.entries if e.status != "fresh"}
        return {role: tensor for role, tensor in self.shared.tensors().items() if role in run}

    @torch.no_grad()
    def embed(self, domain: int, images: Tensor, valid: Tensor) -> Tensor:
        """`h` of whole, unmasked crops of one domain, for probes; needs a loss with a term on the embedding.

        Args:
            domain: index of the domain.
            images: `(B, 1, X, Y[, Z])`.
            valid: the same shape, bool.

        Returns:
            `(B, embedding_width)`.
        """
        parameters = project(self.shared.tensors(), self.domains[domain].entries)
        skips = self.domains[domain].encode(parameters, images)
        pooled = [statistics[None] for statistics in self.embedding.pooled(skips, valid)]  # type: ignore[union-attr]
        return self.embedding([pooled])[0]  # type: ignore[misc, no-any-return]


def _allow_graphs(count: int) -> None:
    """Let dynamo keep `count` graphs of one function.

    It counts those of all domains together, and runs what exceeds its limits, of 8 and of 256, uncompiled.
    """
    config = torch._dynamo.config
    kind = "recompile" if hasattr(config, "recompile_limit") else "cache_size"  # the latter in torch 2.6
    for limit in (f"{kind}_limit", f"accumulated_{kind}_limit"):
        setattr(config, limit, max(getattr(config, limit), count))


def _classifies(weight: float, form: str) -> bool:
    return weight > 0 and form == "classification"
