"""The results folder of one training: never overwritten, and finished or to be continued."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import FINAL_CHECKPOINT


def final_checkpoint(folder: Path, last_file: str) -> dict[str, Any] | None:
    """nnU-Net's checkpoint of a training that has ended; None while it has not.

    Args:
        folder: its folder.
        last_file: what it writes last, after its final checkpoint; relative to the folder.

    Raises:
        HSSLError: the final checkpoint is damaged.
    """
    checkpoint, last = folder / FINAL_CHECKPOINT, folder / last_file
    if not (checkpoint.is_file() and last.is_file()):
        return None
    if last.stat().st_mtime_ns < checkpoint.stat().st_mtime_ns:  # of an earlier end, before `num_epochs` was raised
        return None
    from hssl_nnunet.transfer.checkpoints import load_checkpoint

    return load_checkpoint(checkpoint)


def refuse_to_overwrite(folder: Path, plans: Path, last_file: str) -> None:
    """Refuse a folder that holds a training.

    Args:
        folder: the folder.
        plans: the plans' file, for the error.
        last_file: what a training writes last, after its final checkpoint; relative to the folder.

    Raises:
        HSSLError: it does; says whether that is finished.
    """
    saved = sorted(p.name for p in folder.glob("checkpoint_*.pth"))
    if FINAL_CHECKPOINT in saved and (folder / last_file).is_file():
        raise HSSLError(
            f"{folder} is finished: it holds {FINAL_CHECKPOINT}. Move the folder away to start again; to train longer, "
            f"raise `num_epochs` in {plans} and add --c."
        )
    if saved:
        raise HSSLError(
            f"{folder} already holds a training ({', '.join(saved)}). Add --c to continue it, or move the folder away "
            "to start again."
        )


def refuse_unfinished(folder: Path) -> None:
    """Refuse to validate a training that has not ended.

    Raises:
        HSSLError: it lacks its final checkpoint.
    """
    if not (folder / FINAL_CHECKPOINT).is_file():
        raise HSSLError(f"{folder} holds no {FINAL_CHECKPOINT} to validate: the training is not finished. Add --c.")


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say after Ctrl-C whether the training can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        saved = any(folder.glob("checkpoint_*.pth"))
        remedy = "Run the same command with --c to resume." if saved else "No checkpoint was written yet."
        print(f"\nStopped. {remedy} ({folder})", file=sys.stderr)
        raise
