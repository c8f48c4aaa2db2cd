"""A case counts as seen by its name in its dataset, or by its content under any name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny_target as tiny

from hssl_nnunet.corpus.fingerprint import CACHE_FILE, fingerprint_files, read_cache
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.transfer.leakage import content_hashes, leakage_notes, seen_cases, validation_cases

CASES = ["case_0", "case_1", "case_2", "case_3"]


def test_by_name_only_in_the_same_dataset() -> None:
    metadata = tiny.metadata(images=(tiny.seen("case_1", tiny.DATASET), tiny.seen("case_2", "Dataset005_Other")))
    assert seen_cases(metadata, tiny.DATASET, CASES, {}) == ["case_1"]


def test_by_content_under_another_name_in_another_dataset() -> None:
    metadata = tiny.metadata(images=(tiny.seen("x", "Dataset005_Other", content_hash="abc"),))
    hashes = {"case_3": ["def", "abc"], "case_0": ["fed"]}  # one channel is enough
    assert seen_cases(metadata, tiny.DATASET, CASES, hashes) == ["case_3"]


def test_only_cases_that_are_asked_for() -> None:
    metadata = tiny.metadata(images=tuple(tiny.seen(case, tiny.DATASET) for case in CASES))
    assert seen_cases(metadata, tiny.DATASET, ["case_2"], {}) == ["case_2"]


def test_validation_cases_are_those_of_all_folds(tmp_path: Path) -> None:
    folder = tiny.write_target(tmp_path)
    assert validation_cases(folder) == CASES  # nnU-Net has not split yet
    splits = [{"train": ["case_0"], "val": ["case_3"]}, {"train": ["case_0"], "val": ["case_1", "case_3"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    assert validation_cases(folder) == ["case_1", "case_3"]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A preprocessed folder whose four cases of two channels went through a corpus' fingerprint."""
    folder = tiny.write_target(tmp_path / "preprocessed")
    files = []
    for case in CASES:
        for channel in range(2):
            volume = np.random.default_rng([int(case[-1]), channel]).normal(size=(4, 5, 6)).astype(np.float32)
            files.append(str(tmp_path / f"{case}_{channel:04d}.nii.gz"))
            sitk.WriteImage(sitk.GetImageFromArray(volume), files[-1])
    fingerprint_files(files, cache_file=folder / CACHE_FILE)
    return folder


def test_hashes_are_found_by_case(measured: Path) -> None:
    hashes = content_hashes(measured)
    assert sorted(hashes) == CASES
    assert len({digest for channels in hashes.values() for digest in channels}) == 8


def test_a_renamed_copy_is_noted(measured: Path) -> None:
    copied = content_hashes(measured)["case_2"][1]
    metadata = tiny.metadata(images=(tiny.seen("copy", "Dataset005_Other", content_hash=copied),))
    (note,) = leakage_notes(metadata, tiny.DATASET, measured)
    assert "1 of 4 validation cases" in note and "case_2" in note and "never the masks" in note


def test_a_copy_is_noted_where_the_files_are_listed_under_other_names(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = content_hashes(measured)["case_2"][0]
    (raw,) = {Path(file).parent for file in read_cache(measured / CACHE_FILE)}
    monkeypatch.setenv("nnUNet_raw", str(measured.parent))
    listed = {
        f"patient_{i}": {"images": [os.path.relpath(raw / f"{c}_0000.nii.gz", measured)]} for i, c in enumerate(CASES)
    }
    (measured / "dataset.json").write_text(json.dumps(tiny.dataset_json(1) | {"dataset": listed}))
    for case in (measured / "gt_segmentations").iterdir():
        case.rename(case.with_name(case.name.replace("case", "patient")))
    metadata = tiny.metadata(images=(tiny.seen("copy", "Dataset005_Other", content_hash=copied),))
    (note,) = leakage_notes(metadata, tiny.DATASET, measured)
    assert "1 of 4 validation cases" in note and "patient_2" in note


def test_silent_only_when_every_content_is_known(measured: Path) -> None:
    assert leakage_notes(tiny.metadata(), tiny.DATASET, measured) == []
    (measured / CACHE_FILE).unlink()
    (note,) = leakage_notes(tiny.metadata(), tiny.DATASET, measured)
    assert "by name" in note and CACHE_FILE in note


def test_a_case_that_is_known_by_name_does_not_hide_that_copies_were_not_looked_for(measured: Path) -> None:
    (measured / CACHE_FILE).unlink()
    metadata = tiny.metadata(images=(tiny.seen("case_1", tiny.DATASET),))
    first, second = leakage_notes(metadata, tiny.DATASET, measured)
    assert "1 of 4 validation cases" in first and "case_1" in first
    assert "no other validation case" in second and "copies under other names were not looked for" in second


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 1, "files": {"a": 3}}'])
def test_a_damaged_cache_counts_as_none(measured: Path, content: str) -> None:
    (measured / CACHE_FILE).write_text(content)
    assert content_hashes(measured) == {}
    (note,) = leakage_notes(tiny.metadata(), tiny.DATASET, measured)
    assert "by name" in note and CACHE_FILE in note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "all of it"),
        ('[{"train": []}]', "0.val: Field required"),
        ('[{"val": "case_0"}]', "0.val"),
        ("nonsense", "JSON"),
    ],
)
def test_damaged_splits_are_named_with_the_remedy(tmp_path: Path, content: str, said: str) -> None:
    splits = tiny.write_target(tmp_path) / "splits_final.json"
    splits.write_text(content)
    with pytest.raises(HSSLError, match=rf"(?s){splits}.*{said}.*remove it: nnU-Net then splits anew"):
        validation_cases(splits.parent)


def test_a_dataset_json_without_file_ending(tmp_path: Path) -> None:
    folder = tiny.write_target(tmp_path)
    (folder / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(HSSLError, match=rf"(?s)file_ending: Field required.*plan_and_preprocess -d {folder.name}`"):
        validation_cases(folder)
