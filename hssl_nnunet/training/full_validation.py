"""Dice of whole validation cases along a training: how many epochs does it take to get somewhere?

nnU-Net's own curve is a pseudo Dice of random patches; here the validation cases are predicted whole, as after the
training, but without mirroring and in the preprocessed voxels. Nothing is selected by it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from pydantic import ConfigDict

from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.training.distributed import of_all_ranks, rank_and_world
from hssl_nnunet.typed_json import parse, to_json

if TYPE_CHECKING:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

FULL_VALIDATION_FILE = "full_validation.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class FullValidation:
    """One look at the validation cases.

    Attributes:
        epoch: epochs done, from 1.
        dice: mean over cases, within a case over the labels it or its prediction has, in [0, 1].
        seconds: what the look took; it is not part of the training.
    """

    epoch: int
    dice: float
    seconds: float

    __pydantic_config__ = ConfigDict(extra="forbid")


def validate_fully(trainer: nnUNetTrainer) -> None:
    """Predict every validation case with the network as it is, and add the mean Dice to `full_validation.json`.

    Every process must call it: they share the cases, so that none waits long for another; rank 0 writes. A look of the
    same or a later epoch, from before the run was resumed, is replaced.
    """
    begin, epoch = time.monotonic(), trainer.current_epoch + 1
    scores = of_all_ranks(_scores(trainer))
    if trainer.local_rank != 0:
        return
    new = FullValidation(epoch=epoch, dice=float(np.mean(scores)), seconds=round(time.monotonic() - begin, 2))
    folder = Path(trainer.output_folder)
    write_json(
        folder / FULL_VALIDATION_FILE,
        [to_json(look) for look in [*(x for x in read_full_validations(folder) if x.epoch < epoch), new]],
    )
    trainer.print_to_log_file(f"Dice of whole validation cases {new.dice:.4f} ({new.seconds:.1f} s)")


def read_full_validations(folder: Path) -> list[FullValidation]:
    """The looks of a training, by epoch; empty if there was none."""
    path = folder / FULL_VALIDATION_FILE
    return parse(list[FullValidation], read_json(path), path) if path.is_file() else []


def _scores(trainer: nnUNetTrainer) -> list[float]:
    """Mean Dice of each validation case that is this process' to predict."""
    network = trainer.network
    was_training = network.training
    trainer.set_deep_supervision_enabled(False)
    network.eval()
    predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        trainer.__class__.__name__,
        None,
    )
    try:
        _, dataset = trainer.get_tr_and_val_datasets()
        rank, world = rank_and_world()
        return whole_case_dices(predictor, dataset, trainer.label_manager, dataset.identifiers[rank::world])
    finally:
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        network.train(was_training)


def whole_case_dices(
    predictor: nnUNetPredictor, dataset: nnUNetBaseDataset, labels: LabelManager, cases: Sequence[str]
) -> list[float]:
    """Mean Dice of each of these preprocessed cases of `dataset`, in [0, 1]."""
    scores = []
    for case in cases:
        data, truth, _, _ = dataset.load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.array(data[:])))
        predicted = labels.convert_logits_to_segmentation(logits.cpu().float())
        scores.append(mean_dice(np.asarray(truth[:])[0], np.asarray(predicted), labels))
    return scores


def mean_dice(truth: NDArray[np.generic], predicted: NDArray[np.generic], labels: LabelManager) -> float:
    """Mean Dice over the labels or regions that the truth or the prediction has; 1 when there is none: rightly so.

    Args:
        truth: `(X, Y, Z)` integer, -1 outside the nonzero region; voxels of the ignore label do not count.
        predicted: `(X, Y, Z)` integer.
        labels: nnU-Net's label manager.
    """
    counted = np.ones(truth.shape, dtype=bool) if not labels.has_ignore_label else truth != labels.ignore_label
    scores = []
    for value in labels.foreground_regions if labels.has_regions else labels.foreground_labels:
        a, b = (region_or_label_to_mask(mask, value) & counted for mask in (truth, predicted))
        if total := int(a.sum()) + int(b.sum()):
            scores.append(2 * int((a & b).sum()) / total)
    return float(np.mean(scores)) if scores else 1.0
