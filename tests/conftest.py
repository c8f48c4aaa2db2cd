"""Settings for all tests, made before nnU-Net or torch is imported, and fixtures that several folders share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net's default of 8 processes swamps a small machine
os.environ.setdefault("nnUNet_n_proc_DA", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("COLUMNS", "120")

import pytest  # noqa: E402

from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW, ENV_RESULTS, ENV_TRAINERS  # noqa: E402


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it to remove a variable for this test, together with whatever the test sets it to afterwards."""

    def remove(variable: str) -> None:
        monkeypatch.setenv(variable, "")  # so that monkeypatch restores it even if it was not set before
        monkeypatch.delenv(variable)

    return remove


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: Callable[[str], None]) -> dict[str, Path]:
    """nnU-Net's three folders, empty, set for this test; `nnUNet_extTrainer` unset. Keys are the variables' names."""
    folders = {variable: tmp_path / variable for variable in (ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS)}
    for variable, folder in folders.items():
        folder.mkdir()
        monkeypatch.setenv(variable, str(folder))
    unset(ENV_TRAINERS)
    return folders


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real MSD tasks, named by HSSL_TEST_DATA; a test that asks for it is skipped without."""
    value = os.environ.get("HSSL_TEST_DATA")
    if not value:
        pytest.skip("HSSL_TEST_DATA does not name a folder of real MSD tasks")
    return Path(value)
