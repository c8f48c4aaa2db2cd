"""What a weights file says about its pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from hssl_nnunet.corpus.manifest import ImageRow
from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.plan_schema import CorpusBlock, DomainPlan
from hssl_nnunet.transfer.weights_file import SeenImage, WeightsMetadata
from hssl_nnunet.versions import versions

LICENCE = "Derived from the corpus' images: state their licences before passing the weights on."
CITATION = (
    "Zheng et al., Hierarchical Self-Supervised Learning for Medical Image Segmentation Based on Multi-Domain Data "
    "Aggregation, MICCAI 2021, arXiv:2107.04886; Isensee et al., nnU-Net, Nature Methods 2021"
)


def weights_metadata(
    corpus: CorpusBlock,
    shared: SharedWeights,
    rows: Sequence[ImageRow],
    curves: Mapping[str, list[float]],
    epochs_done: int,
    start: WeightsMetadata | None = None,
) -> WeightsMetadata:
    """Describe a pretraining, so that its weights can be used, compared and checked for leakage without it.

    Args:
        corpus: the corpus and its plan.
        shared: the weights.
        rows: the images seen.
        curves: what was logged in every epoch.
        epochs_done: epochs so far.
        start: of the weights that it went on from, whose images have been seen as well; None = drawn anew.
    """
    own = tuple(
        SeenImage(
            dataset_name=r.dataset_name,
            case=r.case,
            channel=r.channel,
            patient=r.patient,
            content_hash=r.content_hash,
        )
        for r in rows
    )
    return WeightsMetadata(
        family=shared.family,
        dim=len(corpus.domains[0].patch_size),
        domains=_with_unlisted(corpus.domains, start),
        pretraining=corpus.pretraining,
        images=_with_earlier(own, start),
        curves=dict(curves),
        versions=versions(),
        seed=corpus.pretraining.seed,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        licence=LICENCE,
        citation=CITATION,
        epochs_done=epochs_done,
        origin=_origin(corpus, start),
    )


def _with_earlier(own: tuple[SeenImage, ...], start: WeightsMetadata | None) -> tuple[SeenImage, ...] | None:
    """All images that the weights have seen, those before this pretraining too; None where these are not known."""
    if start is None:
        return own
    return None if start.images is None else tuple(dict.fromkeys((*start.images, *own)))


def _with_unlisted(own: tuple[DomainPlan, ...], start: WeightsMetadata | None) -> tuple[DomainPlan, ...]:
    """The corpus' domains, and those of earlier weights whose images are not known: they may be any of theirs."""
    if start is None or start.images is not None:
        return own
    names = {domain.dataset_name for domain in own}
    return (*own, *(domain for domain in start.domains if domain.dataset_name not in names))


def _origin(corpus: CorpusBlock, start: WeightsMetadata | None) -> str:
    if start is None or corpus.weights is None:
        return ""
    earlier = f", imported from {start.origin}" if start.images is None else ""
    return f"{Path(corpus.weights).name}, sha256 {corpus.weights_sha256}{earlier}"
