"""Commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture
def environment(nnunet_folders: dict[str, Path]) -> dict[str, str]:
    """nnU-Net's folders, one thread and one worker."""
    names = ("OMP_NUM_THREADS", "nnUNet_def_n_proc", "nnUNet_n_proc_DA")
    return os.environ | {variable: str(path) for variable, path in nnunet_folders.items()} | dict.fromkeys(names, "1")


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Runs a command, checks its exit code, returns all it said."""

    def call(command: str, *args: str | int | Path, code: int = 0, **variables: str) -> str:
        words = [str(BIN / command), *map(str, args)]
        result = subprocess.run(
            words, env=environment | variables, cwd=tmp_path, timeout=300, text=True, capture_output=True, check=False
        )
        said = result.stdout + result.stderr
        assert result.returncode == code, f"{words}\n{said[-4000:]}"
        return said

    return call
