"""Whether a training can go on from a checkpoint with the plans as they are now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hssl_nnunet.corpus.manifest import ImageRow
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.plan_schema import CorpusBlock, TargetBlock
from hssl_nnunet.plan_values import FinetuningPlan, PretrainingPlan
from hssl_nnunet.typed_json import differences, parse, to_json

IMAGES_KEY = "images_sha256"  # among nnU-Net's `init_args`


def images_sha256(rows: Sequence[ImageRow]) -> str:
    """What stands for the images of a corpus, in their order: steps draw them by it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.dataset_name}\t{row.case}\t{row.channel}\t{row.content_hash}\n".encode())
    return digest.hexdigest()


def check_images(checkpoint: Mapping[str, Any], path: str, rows: Sequence[ImageRow]) -> None:
    """Check that the corpus is the one that a checkpoint was trained on: a weights file names the images it has seen.

    Args:
        checkpoint: nnU-Net's, of a pretraining; one from before this was kept passes.
        path: its file.
        rows: the corpus' images now.

    Raises:
        HSSLError: images have come, gone or changed.
    """
    if checkpoint["init_args"].get(IMAGES_KEY) not in (None, images_sha256(rows)):
        raise HSSLError(
            f"{path} was trained on other images than the corpus' manifest.csv names now: {len(rows)}. Restore the "
            "corpus (`hssl corpus` with the options it was made with), or move the folder away to begin anew."
        )


def plan_of(
    checkpoint: Mapping[str, Any], path: str, plan: PretrainingPlan | FinetuningPlan
) -> PretrainingPlan | FinetuningPlan:
    """The plan that a checkpoint was trained by.

    Args:
        checkpoint: nnU-Net's, of a pretraining or a fine-tuning.
        path: its file.
        plan: the plan now, of the same kind.
    """
    return parse(type(plan), checkpoint["init_args"]["plans"]["hssl"][_key(plan)], path)


def _key(plan: PretrainingPlan | FinetuningPlan) -> str:
    return "pretraining" if isinstance(plan, PretrainingPlan) else "finetuning"


def changed_values(
    checkpoint: Mapping[str, Any],
    path: str,
    plan: PretrainingPlan | FinetuningPlan,
    state: Mapping[str, Tensor],
    *,
    trains: bool,
) -> list[str]:
    """Plan values that differ from those of a checkpoint and leave network and optimiser what they were.

    Args:
        checkpoint: nnU-Net's, of a pretraining or a fine-tuning.
        path: its file.
        plan: the plan now.
        state: the network's parameters and buffers now.
        trains: whether steps are left, which need the optimiser.

    Raises:
        HSSLError: the values stand for another network or optimiser than the checkpoint's.
    """
    before = plan_of(checkpoint, path, plan)
    changed = differences(f"hssl.{_key(plan)}", to_json(before), to_json(plan))
    then, now = ({name: t.shape for name, t in s.items()} for s in (checkpoint["network_weights"], state))
    if then != now or (trains and before.optimizer != plan.optimizer):
        raise HSSLError(
            f"{path} holds another network or optimiser than the plans describe now: "
            f"{'; '.join(changed) or 'domains or architecture have changed'}. Put that back, or move the folder away "
            "to begin anew."
        )
    return changed


def check_weights(
    checkpoint: Mapping[str, Any], path: str, block: CorpusBlock | TargetBlock, seeding: Callable[[Path], str]
) -> None:
    """Check that a run was begun with the weights that the plans name.

    Args:
        checkpoint: nnU-Net's, of a fine-tuning or a pretraining; one from before a pretraining could begin with weights
            began without.
        path: its file.
        block: that of the plans now.
        seeding: the command that seeds with a weights file.

    Raises:
        HSSLError: it was begun with others.
    """
    before = checkpoint["init_args"]["plans"]["hssl"]
    old, sha256 = before.get("weights"), before.get("weights_sha256")
    if sha256 == block.weights_sha256:
        return
    if old is None:
        back = "set `weights` and `weights_sha256` in the plans to null"
    else:
        back = f"seed with the old weights again, `{seeding(Path(old))}`"
        if old == block.weights:
            back = f"put the file back that {old} was then, which has been replaced, and {back}"
    raise HSSLError(
        f"{path} was begun with {_named(old, sha256)}, the plans name {_named(block.weights, block.weights_sha256)} "
        f"now. To continue, {back}; or move the folder away to begin anew."
    )


def _named(weights: str | None, sha256: str | None) -> str:
    return "no weights" if weights is None else f"weights of sha256 {str(sha256)[:12]}... ({weights})"
