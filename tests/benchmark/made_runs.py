"""Runs made of numbers: whoever plants a difference knows what has to be found."""

from __future__ import annotations

import numpy as np

from hssl_nnunet.benchmark.intervals import Floats
from hssl_nnunet.benchmark.records import CaseScore, EpochScore, RunRecord


def record(
    arm: str,
    seed: int,
    dice: Floats | list[float],
    dataset_name: str = "Dataset001_A",
    budget: str = "5%",
    epochs: tuple[tuple[int, float], ...] = (),
) -> RunRecord:
    """A run with one case and one label a patient; dice in [0, 1]."""
    return RunRecord(
        dataset_name=dataset_name,
        budget=budget,
        arm=arm,
        seed=seed,
        training_cases=(f"train_{seed}",),
        num_epochs=50,
        num_iterations_per_epoch=10,
        train_s=1.0,
        peak_gib=1.0,
        weights_sha256=None,
        epochs=tuple(EpochScore(epoch=e, dice=d) for e, d in epochs),
        scores=tuple(score(f"p{p:02}", f"p{p:02}_0", "a", float(d)) for p, d in enumerate(dice)),
    )


def score(patient: str, case: str, label: str, dice: float) -> CaseScore:
    return CaseScore(case=case, patient=patient, label=label, dice=dice, nsd=dice, hd95_mm=1.0)


def arm(name: str, points: Floats, **where: str) -> list[RunRecord]:
    """Runs of an arm with `points` (seeds, patients) in Dice points."""
    return [record(name, seed, row / 100, **where) for seed, row in enumerate(points)]


def noise(rng: np.random.Generator, seeds: int, patients: int, of_seeds: float, rest: float = 4.0) -> Floats:
    """Crossed two-level noise of mean 0: sd of seeds as given, of patients and of the rest `rest`."""
    return (
        of_seeds * rng.normal(size=(seeds, 1))
        + rest * rng.normal(size=patients)
        + rest * rng.normal(size=(seeds, patients))
    )
