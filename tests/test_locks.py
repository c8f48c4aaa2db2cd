"""Looks at a lock, which take nothing: real processes that hold, look and claim."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hssl_nnunet.locks import claimed, in_use

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no record locks")
IMPORTS = "import sys, time\nfrom pathlib import Path\nfrom hssl_nnunet.locks import claimed, in_use\n"
HOLD = "with claimed(Path(sys.argv[1])):\n    print('holds', flush=True)\n    time.sleep(60)\n"
LOOK = "print('looks', flush=True)\nwhile True:\n    in_use(Path(sys.argv[1]))\n"
CLAIMS = 2000

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that holds or looks at `tmp_path`, and wait for it to begin; killed at the end."""
    started = []

    def begin(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", IMPORTS + code, str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline()
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_nobody_is_refused_because_others_look(tmp_path: Path, start: Start) -> None:
    with claimed(tmp_path):  # makes the file
        pass
    for _ in range(2):
        start(LOOK)
    for _ in range(CLAIMS):
        with claimed(tmp_path):
            pass


def test_a_look_tells_who_holds_and_takes_nothing(tmp_path: Path, start: Start) -> None:
    assert not in_use(tmp_path) and not in_use(tmp_path / "missing")
    holder = start(HOLD)
    assert in_use(tmp_path) and in_use(tmp_path)
    holder.kill()
    holder.wait()
    assert not in_use(tmp_path)
    with claimed(tmp_path):
        assert not in_use(tmp_path)  # this process itself


def test_two_who_look_do_not_see_each_other(tmp_path: Path, start: Start) -> None:
    with claimed(tmp_path):
        pass
    start(LOOK)
    assert not any(in_use(tmp_path) for _ in range(CLAIMS))
