from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `nnUNet_preprocessed`; raw and results are empty folders beside it."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path / "nnUNet_preprocessed"


@pytest.fixture
def results(preprocessed: Path) -> Path:
    """An empty `nnUNet_results`."""
    return preprocessed.parent / "nnUNet_results"
