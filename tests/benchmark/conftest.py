"""A tiny benchmark on disk and its page; both are made once and only read."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import SimpleITK as sitk
from tiny_benchmark import (
    ARMS,
    BUDGETS,
    DATASETS,
    EVIL_DATASET,
    FACTS,
    GAPS,
    LEAKAGE,
    SEEDS,
    Page,
    chosen,
    plain_slice,
    run,
    volumes,
)

from hssl_nnunet.benchmark.job import Run
from hssl_nnunet.benchmark.jobs import JobState, JobTable
from hssl_nnunet.benchmark.records import record_path, write_record
from hssl_nnunet.benchmark.report.cases import draw_slice
from hssl_nnunet.benchmark.report.page import write_report


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark with everything, some runs missing, and two test cases without a prediction."""
    path = tmp_path_factory.mktemp("benchmark")
    for key in product(DATASETS, BUDGETS, ARMS, SEEDS):
        if key not in GAPS:
            write_record(path, run(*key))
    (path / "benchmark.json").write_text(json.dumps(FACTS))
    (path / "leakage.json").write_text(json.dumps(LEAKAGE))
    failed = Run(dataset_name=EVIL_DATASET, budget="20%", arm="scratch", seed=0)
    JobTable(path).write(failed.name, JobState(state="failed", error="killed"))
    cases = sorted(run(DATASETS[0], "5%", "hssl", 0).case_dice)
    (path / "cases.json").write_text(
        json.dumps({DATASETS[0]: {c: {"image": "image.nii.gz", "truth": "truth.nii.gz"} for c in cases}})
    )
    image, truth, first, second = volumes()
    sitk.WriteImage(image, str(path / "image.nii.gz"))
    sitk.WriteImage(truth, str(path / "truth.nii.gz"))
    worst = chosen(path)[0].case
    for arm, mask in (("hssl", first), ("vanilla", second)):
        predictions = record_path(path, DATASETS[0], "5%", arm, 0).parent / "predictions"
        predictions.mkdir()
        for case in cases:
            if case != worst:
                sitk.WriteImage(mask, str(predictions / f"{case}.nii.gz"))
    (path / "embeddings").mkdir()
    (path / "embeddings" / "hssl.png").write_bytes(draw_slice(plain_slice(), prediction=1))
    (path / "embeddings" / "broken.png").write_text("no picture")
    return path


@pytest.fixture(scope="session")
def text(folder: Path) -> str:
    output = write_report(folder)
    assert output == folder / "report.html"
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page(text: str) -> Page:
    return Page(text)
