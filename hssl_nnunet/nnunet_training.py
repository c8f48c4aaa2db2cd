"""Around nnU-Net's `run_training`: our trainers found without a search, mistakes in its processes told as such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import trainers_dir


@contextmanager
def trainers_found_at_once() -> Iterator[None]:
    """Let nnU-Net's `run_training` find our trainers by their file.

    Its own search imports every variant of its trainers first, which takes a second and 40 MiB. Processes that it
    starts search as ever.
    """
    from nnunetv2.run import run_training as host

    search = host.recursive_find_trainer_class_by_name

    def found(name: str) -> type[Any]:
        ours = (trainers_dir() / f"{name}.py").is_file()
        return getattr(import_module(f"hssl_nnunet.trainers.{name}"), name) if ours else search(name)  # type: ignore[no-any-return]

    host.recursive_find_trainer_class_by_name = found
    try:
        yield
    finally:
        host.recursive_find_trainer_class_by_name = search


@contextmanager
def mistakes_of_processes_told() -> Iterator[None]:
    """Raise a user's mistake that nnU-Net's own processes, one a GPU, have ended with as it was, not as a traceback."""
    from torch.multiprocessing.spawn import ProcessRaisedException

    try:
        yield
    except ProcessRaisedException as error:
        _, mistake, told = str(error).partition(f"{HSSLError.__module__}.{HSSLError.__qualname__}: ")
        if not mistake:
            raise
        raise HSSLError(told.strip()) from None
