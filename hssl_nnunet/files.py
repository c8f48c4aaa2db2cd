"""Files and folders written whole or not at all, and what goes wrong with files as errors that say so."""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError

# a writer that was killed is known by its silence: its process id means nothing to other machines and containers
ABANDONED_S = 3600.0


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without an error.

    What earlier writers of `path` left when they were killed is removed first: it may be what fills the disk.

    Raises:
        HSSLError: the disk is full, the folder cannot be written, or `path` is a folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise HSSLError(f"Cannot write {path}: it is a folder. Name a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise cannot("write", path, error) from error
    finally:
        with suppress(OSError):  # one of its own would hide the error above
            temporary.unlink()


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`; when the block ends it is removed with all that still lies in it.

    What earlier writers of `path` left when they were killed is removed first, as in `written_whole`.

    Raises:
        OSError: the folder cannot be made.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.folder.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files and folders of `path` that nobody has written to for an hour."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):  # another process may remove it at the same time
            written = max(p.stat().st_mtime for p in (left, *left.rglob("*")))
            if time.time() - written > ABANDONED_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def cannot(do: str, path: str | Path, error: OSError) -> HSSLError:
    """Build the error for a file or folder that the system does not let us write or remove."""
    return HSSLError(f"Cannot {do} {path}: {error.strerror or error}. Free space or permissions, then run it again.")


def remove_file(path: Path) -> None:
    """Remove a file; one that is missing already is as well.

    Raises:
        HSSLError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot("remove", path, error) from error


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("w") as stream:
        json.dump(content, stream, indent=2)  # piece by piece: it may list 10^5 images
        stream.write("\n")


def read_json(path: str | Path, remedy: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        remedy: the sentence that tells how to get the file; added to the errors.

    Raises:
        HSSLError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise HSSLError(f"{path} does not exist. {remedy}".rstrip()) from None
    except OSError as error:
        raise HSSLError(f"{path} cannot be read: {error.strerror or error}. {remedy}".rstrip()) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HSSLError(f"{path} is not valid JSON: {error}. {remedy}".rstrip()) from None
