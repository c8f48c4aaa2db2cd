"""A weights file gives back what was written, and every other file is refused by name and remedy."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import struct
from pathlib import Path

import pytest
import tiny_target as tiny
import torch
from safetensors.torch import save_file

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.transfer.checkpoints import load_checkpoint
from hssl_nnunet.transfer.import_checkpoint import import_checkpoint
from hssl_nnunet.transfer.weights_file import file_sha256, load_weights, read_metadata, save_weights


def header_of(path: Path) -> dict:
    """The header as the format's specification lays it out: its length as 8 bytes, then JSON."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "hssl.safetensors"
    shared, metadata = tiny.shared_tensors(), tiny.metadata()
    save_weights(path, shared, {"image.weight": torch.ones(2)}, metadata)

    tensors, read = load_weights(path)

    assert read == metadata == read_metadata(path)
    assert tensors.keys() == shared.keys()
    assert all(torch.equal(tensors[role], shared[role]) for role in shared)


def test_layout_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "hssl.safetensors"
    save_weights(path, {"encoder.0.w": torch.ones(2)}, {"image.weight": torch.ones(3)}, tiny.metadata())
    header = header_of(path)
    assert header.keys() == {"shared.encoder.0.w", "heads.image.weight", "__metadata__"}
    assert json.loads(header["__metadata__"]["hssl"]) == json.loads((tmp_path / "hssl.json").read_text())


def test_what_a_training_hands_over_is_stored_as_plain_float32(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 4, dtype=torch.float64).t())  # strided, with gradient
    half = torch.randn(3).bfloat16()
    save_weights(tmp_path / "w.safetensors", {"a": parameter, "b": parameter, "c": half}, {}, tiny.metadata())
    tensors, _ = load_weights(tmp_path / "w.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["a"], parameter.detach().float()) and torch.equal(tensors["a"], tensors["b"])
    assert torch.equal(tensors["c"], half.float()) and not tensors["a"].requires_grad


def test_a_gap_in_a_curve_survives(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {}, {}, tiny.metadata(curves={"probe": [math.nan, 0.5]}))
    first, second = read_metadata(path).curves["probe"]
    assert math.isnan(first) and second == 0.5


def test_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 9000)  # more than one block
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.write_weights(tmp_path / "hssl.safetensors")
    before = path.read_bytes()

    def full_disk(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(HSSLError, match="No space left on device"):
        tiny.write_weights(path)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"hssl.safetensors", "hssl.json"}


def test_no_length_of_the_header_is_taken_for_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    starts = set()
    for padding in range(0, 256, 8):  # the file starts with the header's length, a pickle with 0x80
        save_weights(path, {"a": torch.zeros(1)}, {}, tiny.metadata(citation="x" * padding))
        starts.add(path.read_bytes()[0])
        assert len(read_metadata(path).citation) == padding
    assert 0x80 in starts


class Bomb:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def a_pth(path: Path) -> None:
    torch.save({"network_weights": Bomb()}, path)


def truncated(path: Path) -> None:
    path.write_bytes(tiny.write_weights(path).read_bytes()[:-1000])


def cut_in_header(path: Path) -> None:
    path.write_bytes(tiny.write_weights(path).read_bytes()[:100])


def empty(path: Path) -> None:
    path.touch()


def a_folder(path: Path) -> None:
    path.mkdir()


def a_folder_of_a_pretraining(path: Path) -> None:
    tiny.write_weights(path / "hssl.safetensors")


def missing(path: Path) -> None:
    pass


def foreign(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


def newer(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path, metadata={"hssl": json.dumps({"format_version": 2, "news": []})})


def cut_and_like_a_pickle(path: Path) -> None:
    path.write_bytes((0x0280).to_bytes(8, "little") + b'{"x":')  # a header of this length begins as pickles do


def unknown_key(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path, metadata={"hssl": json.dumps({"format_version": 1, "news": []})})


def without_domains(path: Path) -> None:
    save_weights(path, {"x": torch.zeros(1)}, {}, tiny.metadata(domains=()))


def broken_header(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path, metadata={"hssl": "{"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (a_pickle, "is a pickle.*`hssl import .*given.safetensors -o imported.safetensors` first.*hssl pretrain"),
        (a_pth, "is a pickle.*`hssl import .*given.safetensors -o imported.safetensors` first.*hssl pretrain"),
        (truncated, "truncated.*hssl pretrain"),
        (cut_in_header, "truncated.*hssl pretrain"),
        (empty, "truncated.*hssl pretrain"),
        (cut_and_like_a_pickle, "truncated.*hssl pretrain"),
        (a_folder, "is a folder, expected a weights file.*hssl pretrain"),
        (a_folder_of_a_pretraining, "is a folder.*Give the file in it: .*given.safetensors/hssl.safetensors"),
        (missing, "does not exist.*hssl pretrain"),
        (foreign, "without an `hssl` header.*hssl pretrain"),
        (newer, "format version 2.*`git pull && pip install -e .`"),
        (unknown_key, "(?s)not a valid WeightsMetadata.*news.*newer hssl_nnunet.*`git pull && pip install -e .`"),
        (without_domains, "(?s)not a valid WeightsMetadata.*domains: .*at least 1 item"),
        (broken_header, "not valid JSON.*hssl pretrain"),
    ],
)
@pytest.mark.parametrize("read", [load_weights, read_metadata])
def test_refused(tmp_path: Path, spoil, message: str, read) -> None:
    path = tmp_path / "given.safetensors"
    spoil(path)
    with pytest.raises(HSSLError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everywhere")
@pytest.mark.parametrize(
    "read",
    [
        load_weights,
        lambda path: import_checkpoint(path, path.with_name("w.safetensors")),
        lambda path: load_checkpoint(path.rename(path.with_suffix(".pth"))),
    ],
)
def test_a_file_that_may_not_be_read(tmp_path: Path, read) -> None:
    path = tiny.write_weights(tmp_path / "given.safetensors")
    path.chmod(0)
    with pytest.raises(HSSLError, match=f"Cannot read {path.with_suffix('')}.*: Permission denied"):
        read(path)
