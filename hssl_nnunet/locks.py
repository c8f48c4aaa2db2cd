"""A folder is held by one training or job at a time."""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import cannot

LOCK_FILE = ".hssl.lock"
HELD = (errno.EACCES, errno.EAGAIN)  # what POSIX says of a lock that another process holds
# C's `struct flock` with an offset of 64 bits, and where its l_type lies
FLOCK_LINUX, FLOCK_BSD = ("hhqqi", 0), ("qqihh", 3)


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for one training at a time.

    A POSIX record lock: it ends with the process, however that ends, and nnU-Net's worker processes do not inherit it,
    so one that outlives a killed training does not block the next. Windows has none; there nothing is held.

    Args:
        folder: the folder; it is made.
        wait: wait for another process that holds it, instead of an error.

    Raises:
        HSSLError: another process holds it, it cannot be written, or its file system has no locks.
    """
    with _lock_file(folder) as handle:
        try:
            _lock(handle.fileno(), wait)
        except OSError as error:
            if error.errno in HELD:
                raise HSSLError(f"Another process trains in {folder}. Wait for it, or stop it.") from None
            raise _no_lock(folder, error) from error
        yield


def in_use(folder: Path) -> bool:
    """Whether another process holds `folder`; never this one, for a process is not locked out by itself.

    Only asks: a look that took the lock, however shortly, would refuse who claims it at that moment.

    Raises:
        HSSLError: the lock cannot be read, or the file system has no locks.
    """
    path = folder / LOCK_FILE
    if sys.platform == "win32" or not path.is_file():
        return False
    import fcntl

    layout, kind = FLOCK_LINUX if sys.platform == "linux" else FLOCK_BSD
    whole_file = [0] * len(layout)
    whole_file[kind] = fcntl.F_WRLCK
    try:
        with path.open() as handle:
            answer = fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(layout, *whole_file))
    except OSError as error:
        raise _no_lock(folder, error) from error
    return bool(struct.unpack(layout, answer)[kind] != fcntl.F_UNLCK)


def _lock_file(folder: Path) -> TextIO:
    try:
        with suppress(FileExistsError):  # a file of that name is told when it is opened as a folder
            folder.mkdir(parents=True)
        return (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise cannot("write", folder / LOCK_FILE, error) from error


def _no_lock(folder: Path, error: OSError) -> HSSLError:
    return HSSLError(
        f"Cannot lock {folder / LOCK_FILE}: {error.strerror or error}. Move the folder to a file system that has POSIX "
        "locks; on NFS, let its lock service run."
    )


def _lock(descriptor: int, wait: bool) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
