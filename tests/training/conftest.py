from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import tiny_corpus
import torch


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """One thread, for more only wait for each other in tiny networks; and matplotlib's style, which nnU-Net changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with matplotlib.rc_context():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def corpus(nnunet_folders: dict[str, Path]) -> Path:
    """Folder of the tiny corpus, in an `nnUNet_preprocessed` of its own."""
    return tiny_corpus.write_corpus(nnunet_folders["nnUNet_preprocessed"])
