"""Looks at a lock, which take nothing: real processes that hold, look and claim."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.locks import LOCK_FILE, claimed, in_use

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


def test_who_holds_refuses_the_next(tmp_path: Path, start: Start) -> None:
    start(HOLD)
    with pytest.raises(HSSLError, match=f"Another process trains in {tmp_path}"), claimed(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / LOCK_FILE).touch()
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with pytest.raises(HSSLError, match=rf"Cannot lock {tmp_path}.*: No locks available\. .*NFS"), claimed(tmp_path):
        pass
    with pytest.raises(HSSLError, match="No locks available"):
        in_use(tmp_path)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(HSSLError, match=f"Cannot write {file / below}.*: Not a directory"), claimed(file / below):
        pass


def test_what_goes_wrong_inside_is_not_the_locks(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="of the training"), claimed(tmp_path / "new"):
        raise PermissionError("of the training")
    assert (tmp_path / "new" / LOCK_FILE).is_file()
