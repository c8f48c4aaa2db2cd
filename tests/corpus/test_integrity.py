"""Each kind of damage is found, named with its file, and never raises."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from hssl_nnunet.corpus.cases import Case
from hssl_nnunet.corpus.integrity import (
    QUARANTINE_FILE,
    Expectation,
    Problem,
    check_case,
    label_values,
    read_quarantine,
    write_quarantine,
)
from hssl_nnunet.errors import HSSLError

EXPECTED = Expectation("Dataset007_Thing", SimpleITKIO, 2, frozenset({0, 1, 2}), needs_3d=True)


def save(path: Path, voxels: np.ndarray, **geometry: tuple[float, ...]) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(geometry.get("spacing", (1.0, 1.0, 3.0)[: voxels.ndim]))
    if "origin" in geometry:
        image.SetOrigin(geometry["origin"])
    if "direction" in geometry:
        image.SetDirection(geometry["direction"])
    sitk.WriteImage(image, str(path))


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(6, 8, 10)).astype(np.float32)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    images = (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    for seed, path in enumerate(images):
        save(path, voxels(seed))
    save(tmp_path / "a.nii.gz", np.random.default_rng(2).integers(0, 3, (6, 8, 10)).astype(np.float64))
    return Case("a", images, tmp_path / "a.nii.gz")


def with_voxel(value: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = voxels()
        data[3, 4, 5] = value
        save(path, data)

    return damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def lose_voxels(path: Path) -> None:
    """A whole gzip stream that ends too early inside."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-400]))


TURNED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("a_0001", truncate, "the file is truncated or damaged"),
    ("a_0001", lambda p: p.write_bytes(b"no gzip"), "the file is truncated or damaged"),
    ("a_0001", lose_voxels, "is truncated or damaged: it holds .* its header promises"),
    ("a_0001", lambda p: p.unlink(), "missing"),
    ("a_0001", with_voxel(np.nan), "NaN or infinite"),
    ("a_0000", with_voxel(-np.inf), "NaN or infinite"),
    ("a_0001", with_voxel(-3.4e38), r"has voxels of -3.4e\+38, too large for statistics"),
    ("a_0001", lambda p: save(p, np.full((6, 8, 10), 7.0)), "every voxel of the image has the value 7"),
    ("a_0001", lambda p: save(p, voxels()[1:]), r"shape \(5, 8, 10\).*first channel has \(6, 8, 10\)"),
    ("a_0001", lambda p: save(p, voxels(), spacing=(1.0, 1.0, 3.1)), "spacing .*3.1.*first channel"),
    ("a_0001", lambda p: save(p, voxels(), origin=(0.0, 2.0, 0.0)), "origin .*first channel"),
    ("a_0001", lambda p: save(p, voxels(), direction=TURNED), "direction .*first channel"),
    ("a", truncate, "the file is truncated or damaged"),
    ("a", lambda p: p.unlink(), "missing"),
    ("a", lambda p: save(p, np.zeros((6, 8, 11))), r"shape \(6, 8, 11\).*image has \(6, 8, 10\)"),
    ("a", lambda p: save(p, np.zeros((6, 8, 10)), spacing=(1.0, 1.0, 2.0)), "spacing .*the image"),
    ("a", lambda p: save(p, np.zeros((6, 8, 10)), origin=(0.0, 0.0, -3.0)), "origin .*the image"),
    ("a", lambda p: save(p, np.full((6, 8, 10), 3.0)), r"value\(s\) 3, but dataset.json knows \[0, 1, 2\]"),
    ("a", lambda p: save(p, np.full((6, 8, 10), 0.5)), r"value\(s\) 0.5"),
    ("a", lambda p: save(p, np.full((6, 8, 10), np.nan)), "NaN or infinite"),
]


def test_good_case_has_no_problem_even_with_a_float_mask(case: Case) -> None:
    assert check_case(case, EXPECTED) == []


@pytest.mark.parametrize(("stem", "damage", "message"), DAMAGE)
def test_damage_is_named(case: Case, stem: str, damage: Callable[[Path], None], message: str) -> None:
    file = case.images[0].with_name(f"{stem}.nii.gz")
    damage(file)
    problems = check_case(case, EXPECTED)
    assert [(p.case, p.file) for p in problems] == [("a", str(file))]
    assert re.search(message, problems[0].what), problems[0].what
    assert problems[0].remedy


def test_rounding_of_headers_is_no_mismatch(case: Case) -> None:
    save(case.images[1], voxels(1), spacing=(1.00001, 1.0, 3.0), origin=(0.01, 0.0, 0.0))
    assert check_case(case, EXPECTED) == []


def test_wrong_channel_count(case: Case) -> None:
    (problem,) = check_case(Case("a", case.images[:1], case.mask), EXPECTED)
    assert "1 channel(s), but dataset.json names 2" in problem.what and "missing channel" in problem.remedy
    (problem,) = check_case(Case("a", (*case.images, case.images[0]), case.mask), EXPECTED)
    assert "3 channel(s), but dataset.json names 2" in problem.what and "suffix `_0000`" in problem.remedy


def test_2d_image_only_matters_in_3d(tmp_path: Path) -> None:
    path = tmp_path / "a_0000.nii.gz"
    save(path, voxels()[0], spacing=(1.0, 1.0))
    (problem,) = check_case(Case("a", (path,), None), replace(EXPECTED, channels=1))
    assert "2D" in problem.what and "-c 2d" in problem.remedy
    assert check_case(Case("a", (path,), None), replace(EXPECTED, channels=1, needs_3d=False)) == []


def test_a_2d_image_with_a_mask_of_one_slice(tmp_path: Path) -> None:
    image, mask = tmp_path / "a_0000.nii.gz", tmp_path / "a.nii.gz"
    save(image, voxels()[0], spacing=(1.0, 1.0))
    save(mask, np.zeros((1, 8, 10)), spacing=(1.0, 1.0, 3.0))
    problems = check_case(Case("a", (image,), mask), replace(EXPECTED, channels=1, needs_3d=False))
    assert {p.file for p in problems} == {str(mask)}
    assert [p.what.partition(" ")[0] for p in problems] == ["spacing", "origin", "direction"]


def test_label_values_of_regions_and_ignore() -> None:
    assert label_values({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}) == {0, 1, 2, 3}


def test_quarantine_file(nnunet_folders: dict[str, Path]) -> None:
    problems = [Problem("Dataset007_Thing", "a", "a_0000.nii.gz", "is bad", "Repair it.")]
    write_quarantine("Dataset007_Thing", problems)
    assert read_quarantine("Dataset007_Thing") == problems
    write_quarantine("Dataset007_Thing", [])
    assert read_quarantine("Dataset007_Thing") == []
    assert list((nnunet_folders["nnUNet_preprocessed"] / "Dataset007_Thing").iterdir()) == []


@pytest.mark.parametrize(("content", "said"), [("{}", "all of it"), ("[3]", "0: "), ('[{"case": "a"}]', "0.dataset")])
def test_a_quarantine_file_of_another_form(nnunet_folders: dict[str, Path], content: str, said: str) -> None:
    path = nnunet_folders["nnUNet_preprocessed"] / "Dataset007_Thing" / QUARANTINE_FILE
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(HSSLError, match=rf"(?s){path}.*{said}.*Run `hssl plan_and_preprocess -d Dataset007_Thing`"):
        read_quarantine("Dataset007_Thing")
