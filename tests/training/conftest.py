from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_corpus
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks of a few features: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def corpus(nnunet_folders: dict[str, Path]) -> Path:
    """Folder of the tiny corpus, in an `nnUNet_preprocessed` of its own."""
    return tiny_corpus.write_corpus(nnunet_folders["nnUNet_preprocessed"])
