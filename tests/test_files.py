"""What cannot be written, removed or read is said with its cause; nothing half-written stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, remove_file, write_json, written_whole


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HSSLError, match=r"Cannot write .*file/a\.json: .* Free space or permissions"):
        write_json(tmp_path / "file" / "a.json", {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match=r"it is a folder\. Name a file"):
        write_json(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_file_of_before(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(KeyError), written_whole(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert read_json(tmp_path / "a.json") == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    killed, alive, of_another = (tmp_path / name for name in (".a[1].pth.7.tmp", ".a[1].pth.8.tmp", ".b.pth.7.tmp"))
    for file in (killed, alive, of_another):
        file.write_text("half")
    for file in (killed, of_another):
        os.utime(file, (0, 0))
    write_json(tmp_path / "a[1].pth", [1])
    assert sorted(tmp_path.iterdir()) == sorted([alive, of_another, tmp_path / "a[1].pth"])


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match=r"cannot be read: Is a directory\. Do this\.$"):
        read_json(tmp_path, "Do this.")
    with pytest.raises(HSSLError, match=r"missing does not exist\. Do this\.$"):
        read_json(tmp_path / "missing", "Do this.")


def test_what_cannot_be_removed_is_said_and_what_is_gone_is_not(tmp_path: Path) -> None:
    remove_file(tmp_path / "missing")
    with pytest.raises(HSSLError, match=f"Cannot remove {tmp_path}: "):
        remove_file(tmp_path)
