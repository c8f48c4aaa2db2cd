import random
from dataclasses import replace

import pytest

from hssl_nnunet.corpus.manifest import COLUMNS, ImageRow, read_manifest, write_manifest
from hssl_nnunet.errors import HSSLError

ROW = ImageRow(
    domain=0,
    dataset_name="Dataset004_Hippocampus",
    case="hippocampus_001",
    channel=0,
    patient="001",
    labelled=True,
    preprocessed="Dataset004_Hippocampus/nnUNetPlans_3d_fullres/hippocampus_001.b2nd",
    content_hash="0" * 32,
    spacing_mm=(1.0, 1.0, 1.0),
    shape=(35, 50, 36),
    groups=("MR brain", "MR"),
)


def changed(path, column, value):
    header, *lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    cells[COLUMNS.index(column)] = value
    lines[1] = ",".join(cells)
    path.write_text("\n".join([header, *lines]) + "\n")


def test_every_value_comes_back_exactly(tmp_path):
    draw = random.Random(0)
    rows = [
        replace(
            ROW,
            domain=i % 7,
            channel=i % 3,
            case=f'a "quoted", name {i}',
            patient="Müller\nAnna",
            labelled=bool(i % 2),
            spacing_mm=tuple(draw.uniform(0.1, 9) for _ in range(3)),
            groups=("CT + PET, limb", "a|b"),
        )
        for i in range(50)
    ]
    write_manifest(tmp_path / "manifest.csv", rows)
    assert read_manifest(tmp_path / "manifest.csv") == rows


def test_a_manifest_without_images_reads_as_empty(tmp_path):
    write_manifest(tmp_path / "manifest.csv", [])
    assert read_manifest(tmp_path / "manifest.csv") == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("domain", "-1"),
        ("domain", "one"),
        ("channel", "0.0"),
        ("labelled", "yes"),
        ("case", ""),
        ("spacing_mm", "1.0;0;1.0"),
        ("spacing_mm", "1.0;nan;1.0"),
        ("spacing_mm", ""),
        ("shape", "3;4.5;5"),
        ("groups", "MR;"),
    ],
)
def test_a_bad_value_is_named_with_line_and_column(tmp_path, column, value):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [ROW, ROW, ROW])
    changed(path, column, value)
    with pytest.raises(HSSLError, match=rf"line 3, column `{column}`: got '{value}'"):
        read_manifest(path)


def test_wrong_header_missing_column_and_missing_file_are_errors(tmp_path):
    path = tmp_path / "manifest.csv"
    with pytest.raises(HSSLError, match="does not exist"):
        read_manifest(path)
    path.write_text("domain,case\n0,a\n")
    with pytest.raises(HSSLError, match="line 1.*expected domain, dataset_name"):
        read_manifest(path)
    path.write_text(",".join(COLUMNS) + "\n0,a\n")
    with pytest.raises(HSSLError, match="line 2: got 2 columns, expected 11"):
        read_manifest(path)


def test_manifests_of_earlier_versions_name_the_raw_file_too(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [ROW, replace(ROW, case="hippocampus_002")])
    header, *lines = ([*line.split(",")] for line in path.read_text().splitlines())
    old = [[*header[:6], "file", *header[6:]], *([*line[:6], "/data/a.nii.gz", *line[6:]] for line in lines)]
    path.write_text("".join(",".join(line) + "\n" for line in old))
    assert read_manifest(path) == [ROW, replace(ROW, case="hippocampus_002")]


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [ROW])

    def broken():
        yield ROW
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_manifest(path, broken())
    assert read_manifest(path) == [ROW]
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]
