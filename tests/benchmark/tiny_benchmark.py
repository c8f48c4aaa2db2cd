"""A tiny benchmark, written directly: its names, plan, records and images, and a reader of its page."""

from __future__ import annotations

from html.parser import HTMLParser
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.plan import BenchmarkPlan, plan_from_options
from hssl_nnunet.benchmark.records import CaseScore, EpochScore, RunRecord, read_records
from hssl_nnunet.benchmark.report.cases import Slice, choose
from hssl_nnunet.benchmark.workspace import Workspace

EVIL_DATASET = "Dataset009_<img src=x onerror=boom>"
EVIL_ARM = "<script>\"$x'&amp;"
DATASETS = ("Dataset004_Hippocampus", EVIL_DATASET)
BUDGETS = {"5%": 3, "20%": 9}  # budget -> labelled cases
ARMS = ("vanilla", "scratch", "hssl", EVIL_ARM)
SEEDS = (0, 1, 2)
PATIENTS = 12
GAPS = {(EVIL_DATASET, "20%", "hssl", 2), (EVIL_DATASET, "20%", "scratch", 0), (EVIL_DATASET, "20%", "scratch", 1)}
SECTIONS = (
    "answer budget patients surfaces curves cost cases embedding transfer "
    "leakage statistics environment commands not-run".split()
)
LEARNED = {
    "val_image": 1.5307,
    "val_task": 0.0002,
    "domain_accuracy": 1.0,
    "domain_floor": 0.9167,
    "effective_rank": 7.2,
}
LEAKAGE = {"hssl": [f"{EVIL_DATASET}:<i>seen"]}


def typed_plan(**changes: Any) -> BenchmarkPlan:
    """The plan of a benchmark, as `hssl benchmark run` makes it of what is typed."""
    values = {
        "command": "hssl benchmark run",
        "configuration": "3d_fullres",
        "plans_name": "nnUNetPlans",
        "min_cases": 1,
        "arms": ["scratch", "hssl"],
        "seeds": 1,
        "test_fraction": 0.3,
        "tune": False,
        "nsd_tolerance_mm": 1.0,
        "patient_regex": [],
        "values_file": None,
        "device": "cpu",
    }
    return plan_from_options(**{**values, **changes})


def written_plan(folder: Path, **changes: Any) -> BenchmarkPlan:
    """The plan of the tiny benchmark, in its folder; whether its datasets exist is not looked at."""
    values: dict[str, Any] = {
        "command": "hssl benchmark run -d 4 9 <all>",
        "commands": ("hssl benchmark run -d 4 <one>", "hssl benchmark run -d 4 9 <all>"),
        "datasets": DATASETS,
        "domains": DATASETS[:1],
        "configuration": "3d_fullres",
        "plans_name": "nnUNetPlans",
        "budgets": tuple(BUDGETS),
        "arms": {name: Arm(description="an arm") for name in ARMS},
        "seeds": SEEDS,
        "test_fraction": 0.3,
        "patient_regex": (),
        "nsd_tolerance_mm": 1.0,
        "pretraining": {},
        "finetuning": {},
        "device": None,
        "about": {"versions": {"torch": "2.<b>6"}, "cpu": "two cores", "flags": ["bf16", "channels_last"]},
    }
    plan = BenchmarkPlan(**{**values, **changes})
    Workspace(folder).write_plan(plan)
    return plan


class Page(HTMLParser):
    """What a page holds: its tags, its text by section, and its tables by their `aria-label`."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._section, self._table, self._in_cell = "", "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag == "section":
            self._section = found["id"]
        elif tag == "table":
            self._table = found["aria-label"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._in_cell:
            self.tables[self._table][-1][-1] += data

    def grouped(self, label: str) -> dict[tuple[str, str], list[str]]:
        """(heading of the group, first cell) -> the other cells."""
        rows, heading = {}, ""
        for row in self.tables[label]:
            if len(row) == 1:
                heading = row[0].strip()
            else:
                rows[heading, row[0]] = row[1:]
        return rows


def run(dataset_name: str, budget: str, arm: str, seed: int, **changes: Any) -> RunRecord:
    """A record; hssl is better on the first dataset and worse on the second, scores differ by patient and seed."""
    rng = np.random.default_rng([seed, DATASETS.index(dataset_name), len(budget), ARMS.index(arm)])
    gain = {"hssl": 0.08 if dataset_name == DATASETS[0] else -0.05, EVIL_ARM: 0.01}.get(arm, 0.0)
    patients = np.random.default_rng(7).normal(0.6, 0.08, PATIENTS)
    scores = tuple(
        CaseScore(
            case=f"case_{index:02}_{phase}",
            patient=f"patient_{index:02}",
            label=label,
            dice=nan if (index, label) == (3, "tail") else float(value + gain + rng.normal(0, 0.02)),
            nsd=0.5,
            hd95_mm=2.0,
        )
        for index, value in enumerate(patients)
        for phase in range(1 + index % 2)
        for label in ("head", "tail")
    )
    values: dict[str, Any] = {
        "training_cases": tuple(f"training_{seed}_{i}" for i in range(BUDGETS[budget])),
        "num_epochs": 40,
        "num_iterations_per_epoch": 10,
        "train_s": 100.0 + 10 * seed,
        "peak_gib": 1.5 + seed,
        "weights_sha256": None,
        "epochs": tuple(EpochScore(epoch=e, dice=0.6 + gain - 0.5 / e) for e in (1, 10, 20, 40)),
        "scores": scores,
    }
    return RunRecord(dataset_name=dataset_name, budget=budget, arm=arm, seed=seed, **{**values, **changes})


def volumes() -> tuple[sitk.Image, sitk.Image, sitk.Image, sitk.Image]:
    """Image, truth and two predictions, (z, y, x) = (6, 24, 20), 3 mm apart along y: the slices shown are coronal."""
    masks = np.zeros((3, 6, 24, 20), np.uint8)
    masks[0, 1:5, 8:12, 5:9] = 1
    masks[0, 1:5, 10, 5:15] = 2  # y = 10 shows most
    masks[1] = np.roll(masks[0], 1, axis=2)
    masks[2] = np.roll(masks[0], 3, axis=2)
    arrays = [np.random.default_rng(0).normal(size=masks[0].shape).astype(np.float32), *masks]
    images = [sitk.GetImageFromArray(a) for a in arrays]
    for image in images:
        image.SetSpacing((1.0, 3.0, 1.0))
    return images[0], images[1], images[2], images[3]


def plain_slice() -> Slice:
    """Truth, first and second prediction are three squares side by side on a dark image."""
    masks = np.zeros((3, 40, 60), np.uint8)
    for mask, left in zip(masks, (5, 25, 45), strict=True):
        mask[15:25, left : left + 10] = 1
    image = np.zeros((40, 60))
    image[0, 0] = 1
    return Slice(image=image, masks=(masks[0], masks[1], masks[2]), aspect=1.0, where="axial slice 1 of 1")


def chosen(folder: Path) -> list[Any]:
    records = {r.arm: r for r in read_records(folder) if (r.dataset_name, r.budget, r.seed) == (DATASETS[0], "5%", 0)}
    return choose(records["hssl"].case_dice, records["vanilla"].case_dice)


def heading(dataset_name: str, budget: str) -> str:
    return f"{dataset_name}, {budget} {BUDGETS[budget]} labelled cases, {PATIENTS} test patients"
