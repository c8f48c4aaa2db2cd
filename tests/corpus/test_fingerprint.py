import gzip
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from hssl_nnunet.corpus import fingerprint
from hssl_nnunet.corpus.fingerprint import (
    PERCENTILES,
    BadImage,
    content_hash,
    fingerprint_file,
    fingerprint_files,
)
from hssl_nnunet.corpus.modality import modality_of
from hssl_nnunet.corpus.parallel import map_cases
from hssl_nnunet.corpus.summary import summarise

VOXELS = np.random.default_rng(0).integers(-5, 100, (6, 7, 8)).astype(np.int16)


def write(path: Path, voxels=VOXELS, spacing=(0.5, 1.0, 3.0), direction=None, **header) -> str:
    image = sitk.GetImageFromArray(voxels, **header)
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), True)
    return str(path)


def hash_of(path) -> str:
    (measured,) = fingerprint_file(path)
    return measured.content_hash


def test_geometry_in_array_order(tmp_path):
    (measured,) = fingerprint_file(write(tmp_path / "a.nii.gz"))
    assert measured.shape == (6, 7, 8)
    assert measured.spacing_mm == pytest.approx((3.0, 1.0, 0.5))
    assert measured.field_of_view_mm == pytest.approx((18.0, 7.0, 4.0))
    assert measured.anisotropy == pytest.approx(6.0)


@pytest.mark.parametrize("seed", range(6))
def test_orientation_is_nibabels(tmp_path, seed):
    draw = np.random.default_rng(seed)
    axes = np.eye(3)[draw.permutation(3)] * draw.choice([-1, 1], 3)
    direction = axes[:, 0], axes[:, 1], np.cross(axes[:, 0], axes[:, 1])  # right-handed, as ITK wants it
    path = write(tmp_path / "a.nii.gz", direction=np.stack(direction, 1).ravel().tolist())
    (measured,) = fingerprint_file(path)
    assert measured.orientation == "".join(nibabel.aff2axcodes(nibabel.load(path).affine))


def test_percentiles_are_those_of_the_voxels_that_are_not_zero(tmp_path):
    voxels = np.zeros((20, 20, 20), np.float32)
    voxels.flat[:2001] = np.random.default_rng(0).permutation(np.arange(2001)) + 1000
    (measured,) = fingerprint_file(write(tmp_path / "a.nii.gz", voxels))
    assert measured.percentiles == tuple(1000 + 20 * p for p in PERCENTILES)  # 2001 values: each percentile is one


@pytest.mark.parametrize(
    ("name", "dtype"), [("b.nii", np.int16), ("b.nrrd", np.int32), ("b.mha", np.float32), ("b.nii.gz", np.float64)]
)
def test_a_renamed_or_resaved_copy_is_the_same_image(tmp_path, name, dtype):
    original = write(tmp_path / "a.nii.gz")
    copy = write(tmp_path / name, VOXELS.astype(dtype), spacing=(0.5001, 1.0, 3.0))
    assert hash_of(original) == hash_of(copy)


def test_negative_zero_is_zero():
    voxels = VOXELS.astype(np.float32)
    assert (voxels == 0).any()
    assert content_hash(np.where(voxels == 0, np.float32(-0.0), voxels)) == content_hash(voxels)


def test_other_voxels_order_or_shape_are_other_images():
    one_voxel = VOXELS.copy()
    one_voxel[3, 3, 3] += 1
    others = [VOXELS, one_voxel, VOXELS[::-1], VOXELS.reshape(7, 6, 8), VOXELS.transpose(2, 1, 0)]
    assert len({content_hash(v) for v in others}) == len(others)


def test_the_hash_does_not_depend_on_how_voxels_are_read_in_chunks(monkeypatch):
    whole = content_hash(VOXELS)
    monkeypatch.setattr(fingerprint, "CHUNK_VOXEL", 17)
    assert content_hash(VOXELS) == whole


def test_channels_of_a_4d_image_are_the_images_split_from_it(tmp_path):
    channels = np.stack([VOXELS, VOXELS + 1, VOXELS * 2])
    image = sitk.JoinSeries([sitk.GetImageFromArray(c) for c in channels])
    image.SetSpacing((0.5, 1.0, 3.0, 1.0))
    sitk.WriteImage(image, str(tmp_path / "4d.nii.gz"))
    split = [fingerprint_file(write(tmp_path / f"{i}.nii.gz", c))[0] for i, c in enumerate(channels)]
    assert fingerprint_file(tmp_path / "4d.nii.gz") == tuple(split)


def test_a_2d_image_is_one_slice_and_colours_are_channels(tmp_path):
    colours = np.random.default_rng(0).integers(1, 255, (5, 9, 3)).astype(np.uint8)
    path = write(tmp_path / "a.mha", colours, spacing=(0.5, 2.0), isVector=True)
    red, green, blue = fingerprint_file(path)
    assert red.shape == (1, 5, 9)
    assert red.spacing_mm == (2.0, 2.0, 0.5)
    assert red.content_hash == content_hash(colours[None, :, :, 0])
    assert len({red.content_hash, green.content_hash, blue.content_hash}) == 3


def damaged_files(folder: Path) -> dict[str, str]:
    """File and the word that its reason must hold."""
    floats = VOXELS.astype(np.float32)
    floats[0, 0, 0] = np.nan
    filled = VOXELS.astype(np.float32)
    filled[0, 0, 0] = np.finfo(np.float32).min
    truncated = folder / "truncated.nii.gz"
    draw = np.random.default_rng(0)
    write(truncated, draw.integers(0, 1000, (30, 30, 30)).astype(np.int16))
    truncated.write_bytes(truncated.read_bytes()[:-9])  # ITK reads it, and does not see it
    half = Path(write(folder / "half.nii.gz"))
    half.write_bytes(half.read_bytes()[:200])
    (folder / "text.nii.gz").write_text("not an image")
    return {
        write(folder / "nan.mha", floats): "NaN",  # ITK's NIfTI reader would replace it by 0, for nnU-Net too
        write(folder / "filled.mha", filled): "voxels of -3.4",
        write(folder / "constant.nii.gz", np.full((4, 4, 4), 7, np.int16)): "constant: every voxel is 7",
        str(truncated): "truncated",
        str(half): "truncated",
        str(folder / "text.nii.gz"): "",
        str(folder / "missing.nii.gz"): "",
    }


@pytest.mark.parametrize("num_processes", [1, 2])
def test_bad_images_are_reported_and_the_others_measured(tmp_path, num_processes):
    bad = damaged_files(tmp_path)
    good = [write(tmp_path / f"good{i}.nii.gz", VOXELS + i) for i in range(3)]
    files = [good[0], *bad, *good[1:]]
    results = fingerprint_files(files, cache_file=tmp_path / "cache.json", num_processes=num_processes)
    assert list(results) == files
    assert [results[g] for g in good] == [fingerprint_file(g) for g in good]
    for file, word in bad.items():
        result = results[file]
        assert isinstance(result, BadImage), file
        assert result.file == file
        assert result.reason and word in result.reason


def test_only_new_and_changed_files_are_read_again(tmp_path, monkeypatch):
    files = [write(tmp_path / f"{i}.nii.gz", VOXELS + i) for i in range(3)]
    cache_file = tmp_path / "cache.json"
    first = fingerprint_files(files, cache_file=cache_file)
    read = []
    monkeypatch.setattr(fingerprint, "fingerprint_file", lambda f: read.append(f) or fingerprint_file(f))
    assert fingerprint_files(files, cache_file=cache_file) == first
    assert read == []
    write(Path(files[1]), VOXELS * 3)
    files.append(write(tmp_path / "new.nii.gz"))
    second = fingerprint_files(files, cache_file=cache_file)
    assert read == [files[1], files[3]]
    assert second[files[0]] == first[files[0]] and second[files[1]] != first[files[1]]


def test_a_repaired_image_is_picked_up_and_a_damaged_cache_ignored(tmp_path):
    path, cache_file = tmp_path / "a.nii.gz", tmp_path / "cache.json"
    path.write_text("broken")
    assert isinstance(fingerprint_files([str(path)], cache_file=cache_file)[str(path)], BadImage)
    write(path)
    expected = {str(path): fingerprint_file(path)}
    assert fingerprint_files([str(path)], cache_file=cache_file) == expected
    cache_file.write_text('{"version": 1, "files": {"a": 3}}')
    assert fingerprint_files([str(path)], cache_file=cache_file) == expected


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    files = [write(tmp_path / f"{i}.nii.gz", VOXELS + i) for i in range(3)]
    read = []

    def interrupted_at_the_third(file):
        read.append(file)
        if len(read) == 3:
            raise KeyboardInterrupt
        return fingerprint_file(file)

    monkeypatch.setattr(fingerprint, "fingerprint_file", interrupted_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        fingerprint_files(files, cache_file=tmp_path / "cache.json")
    fingerprint_files(files, cache_file=tmp_path / "cache.json")
    assert read == [*files, files[2]]


def test_an_interruption_does_not_wait_for_the_files_to_come(tmp_path):
    commands = [f"sleep 0.05; touch {tmp_path / str(i)}" for i in range(100)]
    with pytest.raises(KeyboardInterrupt), closing(map_cases(os.system, commands, 2, "commands")) as done:
        next(done)
        raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) < 60


PEAK = """
import re, sys
from pathlib import Path
from hssl_nnunet.corpus.fingerprint import fingerprint_file

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

fingerprint_file(sys.argv[1])
before = peak()
fingerprint_file(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_memory_is_at_most_four_times_the_volume(tmp_path, dtype):
    # the subprocess asks for VmHWM: ru_maxrss would start at the peak of this test process
    draw = np.random.default_rng(0)
    volume = draw.integers(1, 100, (192, 192, 192), dtype=np.uint8).astype(dtype)  # no zero: the worst case
    small, big = write(tmp_path / "s.nii.gz"), str(tmp_path / "big.nii")
    sitk.WriteImage(sitk.GetImageFromArray(volume), big)
    script = [sys.executable, "-c", PEAK, small, big]
    grown = int(subprocess.run(script, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout)
    assert volume.nbytes < grown <= 4 * volume.nbytes


def test_summary_over_images_of_two_channels(tmp_path):
    images = [
        fingerprint_file(write(tmp_path / f"{z}.nii.gz", spacing=(1.0, 1.0, float(z))))[0] for z in (1, 2, 3, 4, 10)
    ]
    summary = summarise(images, ["MR", "MR", "MR", "CT", "CT"])
    assert summary.num_images == 5
    assert (summary.modality, summary.modalities) == ("CT+MR", {"CT": 2, "MR": 3})
    assert summary.spacing_mm.median == (3.0, 1.0, 1.0)
    assert (summary.anisotropy.minimum, summary.anisotropy.maximum) == ((1.0,), (10.0,))
    assert summary.field_of_view_mm.maximum == (60.0, 7.0, 8.0)


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT", "CT"),
        ("MRI", "MR"),
        ("T1w", "MR"),
        ("t1-weighted Gd", "MR"),
        ("T2w_FLAIR", "MR"),
        ("ADC", "MR"),
        ("FDG-PET (SUV)", "PET"),
        ("ultrasound", "US"),
        ("X-ray", "XR"),
        ("octet", "octet"),  # holds the letters "ct", but not the word
        ("petri dish", "petri dish"),
        ("R", "R"),
        (" ", "unknown"),
    ],
)
def test_modality_by_whole_words(name, modality):
    assert modality_of(name) == modality


def test_another_compression_level_is_the_same_image(tmp_path):
    original = Path(write(tmp_path / "a.nii.gz"))
    copy = tmp_path / "b.nii.gz"
    copy.write_bytes(gzip.compress(gzip.decompress(original.read_bytes()), compresslevel=1))
    assert copy.read_bytes() != original.read_bytes()
    assert hash_of(original) == hash_of(copy)
