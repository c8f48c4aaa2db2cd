"""Freed memory is kept: a process of its own counts the pages that the system hands it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

BLOCKS, PAGES = 20, 16 * 1024  # 64 MiB each
SCRIPT = f"""
import resource, sys, torch
from hssl_nnunet.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({BLOCKS}):  # an aligned block needs a hole that is a little larger than the last one left
    torch.ones({PAGES} * 1024)
before = faults()
for _ in range({BLOCKS}):
    torch.ones({PAGES} * 1024)
print(faults() - before)
"""


def pages_asked_for(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_blocks_of_a_feature_maps_size_are_taken_from_the_system_once() -> None:
    assert 10 * pages_asked_for("kept") < pages_asked_for("as it is")
