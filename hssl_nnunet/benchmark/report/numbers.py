"""The numbers behind the page as JSON, for whoever computes with them: runs, comparisons, what was not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from math import isfinite
from statistics import fmean
from typing import Any

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.label_gap import label_gaps
from hssl_nnunet.benchmark.plan import BenchmarkPlan
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.report.audit import audits
from hssl_nnunet.benchmark.report.commands import preparation, settings
from hssl_nnunet.benchmark.report.content import Content, not_run
from hssl_nnunet.benchmark.report.lengths import pretrained, unequal
from hssl_nnunet.benchmark.report.rivals import compared
from hssl_nnunet.benchmark.report.training import against

DIGITS = 6  # significant


def numbers(content: Content) -> dict[str, Any]:
    """What the page shows, without its pictures; a value that is not a finite number is null.

    Args:
        content: what was read from a benchmark's folder.

    Returns:
        `asked` (what was asked for, definitions of the arms, commands, versions, hardware), `runs` (one for each
        record, Dice in points by patient), `comparisons`, `overall` and `mean_ranks` as `statistics.py` has them,
        `against_method` (other pretrained arms minus the method), `against_most_labels` (arms with few labels minus a
        baseline with the most), `training` (curves against each baseline on shared seeds, Dice in [0, 1]),
        `pretraining`, `pretrained` (its length), `unequal` (arms of another length), `leakage` and `not_run`.
    """
    comparisons: Sequence[st.Comparison] = st.compare_all(content.records)
    found = {
        "asked": _asked(content.plan),
        "runs": [_run(record) for record in content.records],
        "comparisons": [{**asdict(c), "finding": c.finding} for c in comparisons],
        "overall": st.overall(content.records),
        "mean_ranks": st.mean_ranks(content.records),
        "against_method": dict(zip(("comparisons", "overall"), compared(content.records), strict=True)),
        "against_most_labels": label_gaps(content.records),
        "training": _training(content),
        "pretraining": content.pretraining,
        "pretrained": pretrained(content),
        "unequal": unequal(content),
        "leakage": audits(content),
        "not_run": not_run(content),
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _asked(plan: BenchmarkPlan) -> dict[str, Any]:
    names = ("command", "commands", "about", "plan_values", "datasets", "budgets", "arms", "seeds", "grids")
    asked = {name: getattr(plan, name) for name in names}
    return {"preparation": preparation(plan), "settings": settings(plan), **asked}


def _training(content: Content) -> list[dict[str, Any]]:
    return [
        {"dataset_name": name, "budget": budget, "baseline": baseline, **asdict(one)}
        for name, budget in content.places
        for baseline in st.BASELINES
        if (one := against(content, name, budget, baseline))
    ]


def _run(record: RunRecord) -> dict[str, Any]:
    dice = {patient: 100 * value for patient, value in sorted(record.patient_dice.items())}
    names = ("dataset_name", "budget", "arm", "seed", "num_epochs", "num_iterations_per_epoch")
    costs = ("train_s", "peak_gib", "peak_gpu_gib")
    return {
        **{name: getattr(record, name) for name in (*names, *costs, "device", "leakage")},
        "weights_sha256": record.weights_sha256,
        "training_cases": len(record.training_cases),
        "dice": fmean(dice.values()),
        "dice_by_patient": {patient: round(value, 2) for patient, value in dice.items()},
        "epochs": record.epochs,
    }


def _plain(value: Any) -> Any:
    """Of what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
    return value
