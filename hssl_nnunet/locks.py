"""A folder is held by one training or job at a time."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hssl_nnunet.errors import HSSLError

LOCK_FILE = ".hssl.lock"
# C's `struct flock` with an offset of 64 bits, and where its l_type lies
FLOCK_LINUX, FLOCK_BSD = ("hhqqi", 0), ("qqihh", 3)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` for one training at a time.

    A POSIX record lock: it ends with the process, however that ends, and nnU-Net's worker processes do not inherit it,
    so one that outlives a killed training does not block the next. Windows has none; there nothing is held.

    Raises:
        HSSLError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as handle:
        try:
            _lock(handle.fileno())
        except OSError:
            raise HSSLError(f"Another process trains in {folder}. Wait for it, or stop it.") from None
        yield


def in_use(folder: Path) -> bool:
    """Whether another process holds `folder`; never this one, for a process is not locked out by itself.

    Only asks: a look that took the lock, however shortly, would refuse who claims it at that moment.
    """
    path = folder / LOCK_FILE
    if sys.platform == "win32" or not path.is_file():
        return False
    import fcntl

    layout, kind = FLOCK_LINUX if sys.platform == "linux" else FLOCK_BSD
    whole_file = [0] * len(layout)
    whole_file[kind] = fcntl.F_WRLCK
    with path.open() as handle:
        answer = fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(layout, *whole_file))
    return bool(struct.unpack(layout, answer)[kind] != fcntl.F_UNLCK)


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
