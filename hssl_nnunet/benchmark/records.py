"""What one run of a benchmark leaves behind: the only data that statistics and report see.

A record is one JSON file, `runs/<dataset_name>/<budget>/<arm>/seed_<seed>/record.json` in the benchmark's folder,
written whole when its run has ended. A budget is spelled as the user typed it: `5%`, or `9` for nine cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from statistics import fmean

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.transfer.weights_file import file_sha256
from hssl_nnunet.typed_json import STRICT, parse, to_json

RECORD_FILE = "record.json"
FINETUNE = "finetune"  # what the names of the runs' jobs begin with


@dataclass(frozen=True, kw_only=True)
class Run:
    """A fine-tuning run of a benchmark.

    Attributes:
        dataset_name: nnU-Net's dataset name of the target.
        budget: label budget, as typed.
        arm: name of the arm.
        seed: seed of the run; the same seed gives every arm the same labelled cases.
    """

    dataset_name: str
    budget: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Its name in messages, and its folder below `runs`."""
        return f"{self.dataset_name}/{self.budget}/{self.arm}/seed_{self.seed}"

    @property
    def job(self) -> str:
        """Name of its job."""
        return f"{FINETUNE}/{self.name}"

    @classmethod
    def of_job(cls, name: str) -> Run:
        """The run of a job."""
        _, dataset_name, budget, arm, seed = name.split("/")
        return cls(dataset_name=dataset_name, budget=budget, arm=arm, seed=int(seed.removeprefix("seed_")))

    def record_file(self, folder: Path) -> Path:
        """Where its record lies in a benchmark's folder."""
        return folder / "runs" / self.name / RECORD_FILE

    def predictions(self, folder: Path) -> Path:
        """Where the masks that it predicted lie in a benchmark's folder."""
        return self.record_file(folder).parent / "predictions"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseScore:
    """One label of one test case.

    Attributes:
        case: the test case.
        patient: its patient; several cases may share one.
        label: name of the label or region.
        dice: Dice in [0, 1], as nnU-Net computes it; nan when the label is empty in truth and prediction, 0 when it is
            empty in one of them.
        nsd: normalised surface Dice in [0, 1] at the tolerance of the benchmark; same conventions.
        hd95_mm: 95th percentile of the Hausdorff distance in mm; nan when the label is empty in truth and prediction,
            inf when it is empty in one of them.
    """

    case: str
    patient: str
    label: str
    dice: float
    nsd: float
    hd95_mm: float

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochScore:
    """Mean Dice over the test cases (labels averaged within a case) after an epoch of fine-tuning.

    Attributes:
        epoch: epochs done, from 1.
        dice: mean Dice in [0, 1].
    """

    epoch: int
    dice: float

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakageCheck:
    """The comparison of a run's weights with its test cases, by name, content and patient; nothing overlapped.

    Attributes:
        images: images that the weights were learned from; null where they do not say, so that no more than the names
            of their datasets could be compared.
        test_cases: cases of the target that no weights may have seen.
    """

    images: int | None
    test_cases: int

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)  # no slots: what the statistics ask for again and again is kept with it
class RunRecord(Run):
    """One fine-tuning run and its scores on the fixed test set.

    Attributes:
        training_cases: the labelled cases.
        num_epochs: epochs of fine-tuning.
        num_iterations_per_epoch: optimiser steps in an epoch.
        train_s: wall time of training in seconds.
        peak_gib: peak memory of the training process in GiB; null = the system does not say.
        peak_gpu_gib: peak memory of its tensors on the GPU in GiB; null = none was used.
        weights_sha256: the weights it started from; null = none.
        epochs: test Dice along the training, ascending in epoch.
        scores: the final scores.
        leakage: what was compared before the run; null = it has no weights, or the record is older than this field.
        device: name of the GPU, or of the processor; empty = the record is older than this field.
    """

    training_cases: tuple[str, ...]
    num_epochs: int
    num_iterations_per_epoch: int
    train_s: float
    peak_gib: float | None
    weights_sha256: str | None
    epochs: tuple[EpochScore, ...]
    scores: tuple[CaseScore, ...]
    peak_gpu_gib: float | None = None
    leakage: LeakageCheck | None = None
    device: str = ""

    __pydantic_config__ = STRICT

    @cached_property
    def case_dice(self) -> dict[str, float]:
        """Mean Dice in [0, 1] of each case over the labels that truth or prediction shows.

        1 where neither shows any: a model that rightly finds nothing must not drop out beside one that finds something,
        which scores 0.
        """
        labels: dict[str, list[float]] = {}
        for score in self.scores:
            labels.setdefault(score.case, []).extend([] if isnan(score.dice) else [score.dice])
        return {case: fmean(values) if values else 1.0 for case, values in labels.items()}

    @cached_property
    def patient_dice(self) -> dict[str, float]:
        """Mean Dice in [0, 1] of each patient over their cases, see `case_dice`."""
        whose = {score.case: score.patient for score in self.scores}
        patients: dict[str, list[float]] = {}
        for case, value in self.case_dice.items():
            patients.setdefault(whose[case], []).append(value)
        return {patient: fmean(values) for patient, values in patients.items()}

    @cached_property
    def test_set(self) -> frozenset[str]:
        """What was scored, in words: each label of each test case."""
        return frozenset(f"{s.case} (patient {s.patient}, {s.label})" for s in self.scores)


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write a record, whole or not at all."""
    path = record.record_file(folder)
    write_json(path, to_json(record))
    return path


def read_records(folder: Path) -> list[RunRecord]:
    """Every record of a benchmark, sorted by path; empty when none has ended yet.

    Raises:
        HSSLError: a file that is no record.
    """
    return [_read(path) for path in _paths(folder)]


def check_same_weights(folder: Path, weights: Mapping[tuple[str, str], Path]) -> None:
    """Check that an arm's runs on a target all start from the same weights, so that its seeds may be averaged.

    Args:
        folder: the benchmark's folder.
        weights: arm and target -> the weights file that its next run starts from.

    Raises:
        HSSLError: an earlier run started from another content.
    """
    of_arms = [path for path in _paths(folder) if (path.parts[-3], path.parts[-5]) in weights]  # others are not read
    known = [r for r in map(_read, of_arms) if r.weights_sha256]
    now = {path: file_sha256(path) for path in {weights[r.arm, r.dataset_name] for r in known}}
    for record in known:
        path = weights[record.arm, record.dataset_name]
        if now[path] != record.weights_sha256:
            raise HSSLError(
                f"Arm {record.arm} on {record.dataset_name} is to start from {path}, whose SHA-256 is {now[path]}, but "
                f"{record.record_file(folder)} started from {record.weights_sha256}. Runs of one arm share their "
                "weights: give the new file another name, which makes it an arm of its own, put the old one back, or "
                "start a benchmark in another folder with `-o`."
            )


def _read(path: Path) -> RunRecord:
    return parse(RunRecord, read_json(path), path)


def _paths(folder: Path) -> Iterable[Path]:
    return sorted((folder / "runs").glob(f"*/*/*/seed_*/{RECORD_FILE}"))
