"""A tiny benchmark on disk and its page, both made once and only read; and what a benchmark is prepared on."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import SimpleITK as sitk
from tiny_benchmark import (
    ARMS,
    BUDGETS,
    DATASETS,
    EVIL_DATASET,
    GAPS,
    LEAKAGE,
    LEARNED,
    SEEDS,
    Page,
    chosen,
    plain_slice,
    run,
    volumes,
    written_plan,
)
from two_datasets import PATIENTS

from hssl_nnunet.benchmark import run as benchmark_run
from hssl_nnunet.benchmark.data import Measured
from hssl_nnunet.benchmark.jobs import JobState, JobTable
from hssl_nnunet.benchmark.masks import Mask
from hssl_nnunet.benchmark.records import Run, write_record
from hssl_nnunet.benchmark.report.cases import draw_slice
from hssl_nnunet.benchmark.report.page import write_report
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.files import write_json
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark with everything, some runs missing, and two test cases without a prediction."""
    path = tmp_path_factory.mktemp("benchmark")
    for key in product(DATASETS, BUDGETS, ARMS, SEEDS):
        if key not in GAPS:
            write_record(path, run(*key))
    plan, table = written_plan(path), JobTable(path)
    (path / "leakage.json").write_text(json.dumps(LEAKAGE))
    failed = Run(dataset_name=EVIL_DATASET, budget="20%", arm="scratch", seed=0)
    table.write(failed.job, JobState(state="failed", error="killed"))
    table.write("pretrain/hssl", JobState(state="done"))
    told = {"seconds": 7200, "weights": "hssl.safetensors", "sha256": "abc123", "more": 1}
    write_json(table.folder("pretrain/hssl") / "pretraining.json", told)
    write_json(path / "hssl.json", {"curves": {name: [0.5, value] for name, value in LEARNED.items()}})
    encoder, decoder = {"exact": [41], "adapted": [20], "fresh": [0]}, {"exact": [0], "adapted": [2], "fresh": [3]}
    totals = {"encoder": encoder, "decoder": decoder}
    write_json(Workspace(path).training(plan, DATASETS[0], "hssl", 0) / "fold_0" / "transfer.json", {"totals": totals})
    cases = sorted(run(DATASETS[0], "5%", "hssl", 0).case_dice)
    (path / "cases.json").write_text(
        json.dumps({DATASETS[0]: {c: {"image": "image.nii.gz", "truth": "truth.nii.gz"} for c in cases}})
    )
    image, truth, first, second = volumes()
    sitk.WriteImage(image, str(path / "image.nii.gz"))
    sitk.WriteImage(truth, str(path / "truth.nii.gz"))
    worst = chosen(path)[0].case
    for arm, mask in (("hssl", first), ("vanilla", second)):
        predictions = Run(dataset_name=DATASETS[0], budget="5%", arm=arm, seed=0).predictions(path)
        predictions.mkdir()
        for case in cases:
            if case != worst:
                sitk.WriteImage(mask, str(predictions / f"{case}.nii.gz"))
    (path / "embeddings.png").write_bytes(draw_slice(plain_slice(), prediction=1))
    return path


@pytest.fixture(scope="session")
def text(folder: Path) -> str:
    output = write_report(folder)
    assert output == folder / "report.html"
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture
def two_datasets(nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two datasets whose voxels nobody reads."""
    for name in PATIENTS:
        for variable in (ENV_RAW, ENV_PREPROCESSED):
            (nnunet_folders[variable] / name).mkdir()
        plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {}}}
        for file, content in (("dataset", {}), ("nnUNetPlans", plans)):
            (nnunet_folders[ENV_PREPROCESSED] / name / f"{file}.json").write_text(json.dumps(content))

    def masks(folder: Path, preprocessed: Path, data_identifier: str) -> dict[str, Mask]:
        mask = Mask(labels=("a",), sha256="", stamp=(0, 0))
        return {f"p{i:02}": mask for i in range(PATIENTS[preprocessed.name])}

    dataset = SimpleNamespace(dataset_json={})
    source = SimpleNamespace(plans={}, configuration={"data_identifier": "x"}, dataset=dataset)
    monkeypatch.setattr(benchmark_run, "masks_of", masks)
    monkeypatch.setattr(benchmark_run, "measured", lambda plan, names: {name: Measured(source, ()) for name in names})
    monkeypatch.setattr(benchmark_run, "_case_files", lambda *_: {})
