"""A person sees what the weights were learned from."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import tiny_target as tiny
from rich.console import Console

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.transfer.inspect_weights import render_inspection, sparkline
from hssl_nnunet.transfer.weights_file import file_sha256, save_weights


def test_everything_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "hssl.safetensors"
    images = tuple(tiny.seen(case) for case in "abc")
    curves = {"train_loss": [2.0, 0.25], "never_logged": []}
    save_weights(path, {}, {}, tiny.metadata(images=images, curves=curves, citation="Doe [2026]"))
    stream = io.StringIO()
    Console(file=stream, width=200).print(render_inspection(path))
    text = stream.getvalue()
    for expected in (
        "PlainConvUNet, 3d",
        "4 of 50",
        "3 of 3 patients in 1 domains",
        "torch 2.15.0",
        "CC-BY-4.0",
        "Doe [2026]",
        file_sha256(path),
        "Dataset900_Elsewhere",
        "MR brain < MR",
        "16 16 16",
        "0.25",
        "█▁",
        "never_logged",
    ):
        assert expected in text


def test_a_person_of_several_datasets_is_one_patient_and_earlier_datasets_count(tmp_path: Path) -> None:
    path = tmp_path / "hssl.safetensors"
    earlier = (tiny.seen("STS_001", "Dataset051_CT"), tiny.seen("STS_002", "Dataset051_CT"))  # went on from these
    save_weights(path, {}, {}, tiny.metadata(images=(*earlier, tiny.seen("STS_001"))))
    stream = io.StringIO()
    Console(file=stream, width=200).print(render_inspection(path))
    assert "3 of 2 patients in 2 domains" in stream.getvalue()


def test_refuses_what_is_not_a_weights_file(tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match="does not exist"):
        render_inspection(tmp_path / "hssl.safetensors")


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([3.0], "▁"),
        ([1.0, 1.0], "▁▁"),
        ([0.0, 7.0, 3.0], "▁█▄"),
        ([math.nan, 7.0, 0.0], " █▁"),
        ([math.nan], " "),
    ],
)
def test_sparkline(values: list[float], drawn: str) -> None:
    assert sparkline(values) == drawn


def test_long_curve_keeps_both_ends() -> None:
    drawn = sparkline([9.0, *[5.0] * 998, 1.0], width=10)
    assert len(drawn) == 10 and drawn[0] == "█" and drawn[-1] == "▁"
