from __future__ import annotations

import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hssl_nnunet import doctor
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW, ENV_TRAINERS, trainers_dir


@pytest.fixture(autouse=True)
def set_folders(nnunet_folders):
    """nnU-Net's folders exist, unless a test says otherwise."""


def by_name() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.checks()}


def test_a_sound_machine_passes_and_every_other_line_has_a_remedy():
    output = io.StringIO()
    assert doctor.run_doctor(Console(file=output, width=500)) == 0
    found = by_name()
    assert not [c for c in found.values() if c.status == "failed"]
    assert all(bool(c.remedy) == (c.status != "ok") for c in found.values())
    assert {"torch", "nnunetv2", "cpu", ENV_RAW, "nnUNetTrainerHSSLPretrain"} <= found.keys()
    assert all(c.remedy in output.getvalue() for c in found.values())


def test_a_missing_folder_fails_with_the_command_that_makes_it(monkeypatch, unset, tmp_path: Path):
    nowhere = tmp_path / "it's here"
    monkeypatch.setenv(ENV_RAW, str(nowhere))
    unset(ENV_PREPROCESSED)
    found = by_name()
    assert found[ENV_RAW].status == "failed"
    assert shlex.split(found[ENV_RAW].remedy) == ["mkdir", "-p", str(nowhere)]
    assert found[ENV_PREPROCESSED].remedy.startswith(f"export {ENV_PREPROCESSED}=")
    assert doctor.run_doctor(Console(file=io.StringIO())) == 1


def test_a_folder_that_is_found_from_here_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "raw").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ENV_RAW, "raw")
    check = doctor.folder(ENV_RAW)
    assert check.status == "warning" and check.remedy == f"export {ENV_RAW}={tmp_path / 'raw'}"


def test_a_file_in_place_of_a_folder_is_not_to_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(ENV_RAW, str(tmp_path / "file"))
    check = doctor.folder(ENV_RAW)
    assert check.status == "failed" and "is a file, expected a folder" in check.found
    assert check.remedy.startswith(f"export {ENV_RAW}=")


def test_raw_data_that_can_only_be_read_are_no_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    raw, preprocessed = doctor.folder(ENV_RAW), doctor.folder(ENV_PREPROCESSED)
    assert (raw.status, preprocessed.status) == ("warning", "failed")
    assert "not for `hssl convert_msd`" in raw.found and raw.remedy.startswith("To convert: chmod u+w ")
    assert preprocessed.found.endswith("is not writable")


def test_a_folder_that_may_not_be_looked_at_is_told(monkeypatch: pytest.MonkeyPatch):
    def closed(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", closed)
    check = doctor.folder(ENV_RAW)
    assert check.status == "failed" and check.found.endswith(": Permission denied")


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "nnUNet_def_n_proc", "nnUNet_n_proc_DA"])
@pytest.mark.parametrize("value", ["many", "", "-1", "2,1"])
def test_a_number_that_is_none_is_told_instead_of_what_follows_from_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
):
    monkeypatch.setenv(variable, value)
    found = by_name()
    assert found[variable].status == "failed" and f"unset {variable}" in found[variable].remedy
    assert found["trainers"].remedy.startswith(f"Set {variable} right first")
    monkeypatch.setenv(variable, "3")
    assert doctor.number(variable, "").status == "ok"
    monkeypatch.delenv(variable)
    assert doctor.number(variable, "one").found == "not set (one)"


def test_the_report_holds_no_warning_of_other_packages(nnunet_folders):
    done = subprocess.run([sys.executable, "-m", "hssl_nnunet", "doctor"], capture_output=True, text=True, check=True)
    assert done.stderr == "" and "Warning" not in done.stdout


def test_a_broken_neighbour_in_the_trainer_folders_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "broken.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.setenv(ENV_TRAINERS, str(tmp_path))
    check = by_name()["nnUNetTrainerHSSLPretrain"]
    assert check.status == "failed"
    assert "a_package_that_nobody_has" in check.found
    assert str(tmp_path) in check.remedy


def test_the_lookup_leaves_the_environment_as_it_was():
    before = dict(os.environ)
    list(doctor.trainer_lookup())
    assert dict(os.environ) == before


def test_the_shell_that_lists_our_trainers_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    assert doctor.shell_variable().status == "warning"
    monkeypatch.setenv(ENV_TRAINERS, os.pathsep.join(["/elsewhere", str(trainers_dir())]))
    assert doctor.shell_variable().status == "ok"


def test_no_augmenting_processes_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert doctor.augmentation_workers().status == "warning"
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    assert doctor.augmentation_workers().status == "ok"


def test_another_nnunet_or_a_missing_package_fails():
    assert doctor.package("nnunetv2", "2.7.0").status == "failed"
    assert doctor.package("nnunetv2", "2.8.1").status == "ok"
    assert doctor.package("torch", "2.7.0").status == "ok"
    assert doctor.package("torch", "not installed").remedy == "pip install torch"
    assert doctor.package("hssl_nnunet", "not installed").remedy.startswith("pip install -e .")


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "LITTLE_DISK_BYTES", 1 << 62)
    monkeypatch.setattr(doctor, "LITTLE_SHARED_MEMORY_BYTES", 1 << 62)
    assert doctor.folder(ENV_RAW).status == "warning"
    assert all(check.status == "warning" for check in doctor.shared_memory())
