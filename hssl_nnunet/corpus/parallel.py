"""One function over many cases, in worker processes, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from nnunetv2.configuration import default_num_processes
from tqdm import tqdm

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.ranks import available_cpus

T = TypeVar("T")
R = TypeVar("R")


def default_processes() -> int:
    """nnU-Net's number of worker processes (`nnUNet_def_n_proc`), but not more than this process may use."""
    return max(1, min(int(default_num_processes), available_cpus()))


def map_cases(
    function: Callable[[T], R], cases: Sequence[T], num_processes: int, description: str
) -> Generator[R, None, None]:
    """Yield `function(case)` in the order of `cases`; with one process nothing is started, with more it is pickled.

    Raises:
        HSSLError: a worker was killed, in general for want of memory.
    """
    workers = min(num_processes, len(cases))
    # None: shown on a terminal alone
    progress = {"total": len(cases), "desc": description, "disable": None if cases else True}
    if workers <= 1:
        yield from tqdm(map(function, cases), **progress)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:  # as nnU-Net's
        try:
            yield from tqdm(pool.map(function, cases), **progress)
        except BrokenProcessPool:
            remedy = f"Most likely memory ran out: run it again with fewer processes (`-np {max(1, workers // 2)}`)."
            raise HSSLError(f"{description}: a worker process was killed. {remedy}") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # an error or Ctrl-C does not wait for the cases to come
