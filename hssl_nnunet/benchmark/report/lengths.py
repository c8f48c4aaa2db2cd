"""How long arms were trained: a gain at unequal length may come from the length, and the page must say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.wording import METHOD
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.transfer.weights_file import read_metadata
from hssl_nnunet.typed_json import merged, to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """Length of a pretraining, with that of the one it goes on from.

    Attributes:
        steps: optimiser steps.
        images: images drawn, each as often as it was drawn.
    """

    steps: int
    images: int


def steps(records: Iterable[RunRecord]) -> list[int]:
    """Optimiser steps of fine-tuning, each number once, ascending."""
    return sorted({r.num_epochs * r.num_iterations_per_epoch for r in records})


def pretrained(content: Content) -> dict[str, Pretrained | None]:
    """Arm that starts from weights -> length of their pretraining; None = not known."""
    plan, found = content.plan, dict[str, Pretrained | None]()
    for arm in plan.arms:
        source = plan.arms[plan.source(arm)]
        parts = [source, *([] if source.continues is None else [plan.arms[source.continues]])]
        if source.seeded:
            found[arm] = _sum([_length(content, part) for part in parts])
    return found


def _length(content: Content, arm: Arm) -> Pretrained | None:
    """Of an arm's own pretraining, or of its weights file."""
    if arm.weights_file is None:
        return _of_values(merged(content.plan.plan_values.get("pretraining", {}), arm.pretraining))
    values = file_values(content.folder / arm.weights_file)
    return None if values is None else _of_values(values)


def _sum(parts: Sequence[Pretrained | None]) -> Pretrained | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Pretrained(steps=sum(part.steps for part in known), images=sum(part.images for part in known))


def _of_values(values: Mapping[str, Any]) -> Pretrained | None:
    """Of pretraining values; None where one is missing, as in older files."""
    names = ("num_epochs", "num_iterations_per_epoch", "chunks_per_step", "images_per_chunk")
    if any(name not in values for name in names):
        return None
    epochs, iterations, chunks, images = (int(values[name]) for name in names)
    return Pretrained(steps=epochs * iterations, images=epochs * iterations * chunks * images)


def file_values(path: Path) -> dict[str, Any] | None:
    """Pretraining values of a weights file, with the epochs that were done; None where they are not known.

    The file may not lie any more, or be imported.
    """
    try:
        metadata = read_metadata(path)
    except HSSLError:
        return None
    if metadata.pretraining is None:
        return None
    return {**to_json(metadata.pretraining), "num_epochs": metadata.epochs_done}


def unequal(content: Content) -> dict[str, str]:
    """Arm -> what differs from the method's length, of arms where something does or may."""
    lengths = pretrained(content)
    told = {arm: [*_pretraining(lengths, arm), *_finetuning(content, arm)] for arm in content.arms if arm != METHOD}
    return {arm: "; ".join(differences) for arm, differences in told.items() if differences}


def _pretraining(lengths: Mapping[str, Pretrained | None], arm: str) -> list[str]:
    if arm not in lengths or METHOD not in lengths:
        return []
    own, of_method = lengths[arm], lengths[METHOD]
    if own == of_method:
        return []
    if own is None or of_method is None:
        return ["its pretraining may be of another length, which is not known"]
    return [f"pretrained for {_told(own)}, {METHOD} for {_told(of_method)}"]


def _told(length: Pretrained) -> str:
    return f"{length.steps:,} steps of {length.images:,} images".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _finetuning(content: Content, arm: str) -> list[str]:
    found = []
    for dataset_name, budget in content.places:
        own, of_method = (steps(content.of(dataset_name, budget, name)) for name in (arm, METHOD))
        if own and of_method and own != of_method:
            numbers = [" or ".join(map(str, each)) for each in (own, of_method)]
            found.append(f"fine-tuned for {numbers[0]} steps on {dataset_name}, {METHOD} for {numbers[1]}")
    return list(dict.fromkeys(found))
