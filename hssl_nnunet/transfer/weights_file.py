"""The pretrained weights as one file, `hssl.safetensors`: tensors, and in its header what they were learned from.

The format holds numbers and text only, so that reading a stranger's file runs none of a stranger's code.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import cannot, write_json, written_whole
from hssl_nnunet.paths import WEIGHTS_FILE
from hssl_nnunet.plan_schema import DomainPlan
from hssl_nnunet.plan_values import PretrainingPlan
from hssl_nnunet.typed_json import STRICT, parse, to_json

FORMAT_VERSION = 1
HEADER_KEY = "hssl"
SHARED, HEADS = "shared.", "heads."
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # a zip archive, as torch.save writes it, and a bare pickle
REMEDY = "Give the `hssl.safetensors` that `hssl pretrain` wrote, or what `hssl import` made of another checkpoint."
UPDATE = "Update it: run `git pull && pip install -e .` in its checkout."


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenImage:
    """One image that pretraining has seen.

    Attributes:
        dataset_name: nnU-Net's dataset name.
        case: case identifier in that dataset.
        channel: channel of the case, from 0.
        patient: patient the case belongs to; the case itself where nothing else is known.
        content_hash: hash of the voxels, the same for a renamed or re-saved copy.
    """

    dataset_name: str
    case: str
    channel: int
    patient: str
    content_hash: str

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsMetadata:
    """What a weights file says about itself.

    Attributes:
        format_version: version of this file format.
        family: network family, `PlainConvUNet` or `ResidualEncoderUNet`.
        dim: spatial axes of the pretraining networks, 2 or 3.
        domains: the corpus' domains, with topologies and hierarchy; after them those of the weights that it went on
            from, where these do not list their images.
        pretraining: the pretraining run; null in imported weights.
        images: every image seen, training and held-out; null where that is not known, as in imported weights.
        curves: name of a curve -> its value for each epoch; nan where there is none.
        versions: package -> version.
        seed: seed of the run; null where it is not known.
        created: time of writing, ISO 8601.
        licence: licence of the weights, as the user states it; may be empty.
        citation: how to cite them; may be empty.
        epochs_done: epochs trained.
        origin: what the weights were imported from, or the pretraining went on from; empty where it drew them anew.
    """

    format_version: Literal[1] = 1
    family: str
    dim: int
    domains: Annotated[tuple[DomainPlan, ...], Field(min_length=1)]
    pretraining: PretrainingPlan | None
    images: tuple[SeenImage, ...] | None
    curves: dict[str, list[float]]
    versions: dict[str, str]
    seed: int | None
    created: str
    licence: str
    citation: str
    epochs_done: int
    origin: str = ""

    __pydantic_config__ = STRICT


def save_weights(
    path: str | Path, shared: Mapping[str, Tensor], heads: Mapping[str, Tensor], metadata: WeightsMetadata
) -> None:
    """Write a weights file, and a readable copy of its metadata beside it (`hssl.json` for `hssl.safetensors`).

    Args:
        path: the file; a file that is there is replaced, whole or not at all.
        shared: role -> shared tensor, any device and floating dtype; stored as float32.
        heads: parameter name -> tensor of the pretraining heads, which only a resumed or probed pretraining needs.
        metadata: what the weights were learned from.

    Raises:
        HSSLError: the disk is full or the folder cannot be written.
    """
    named = {SHARED + k: v for k, v in shared.items()} | {HEADS + k: v for k, v in heads.items()}
    tensors = {name: _stored(tensor) for name, tensor in named.items()}
    content = to_json(metadata)
    with written_whole(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={HEADER_KEY: json.dumps(content)}))
    write_json(Path(path).with_suffix(".json"), content)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Read the shared tensors, role -> float32 CPU tensor, and the metadata of a weights file.

    Raises:
        HSSLError: the file is missing, may not be read, is truncated, a pickle, of a newer version, or not one of ours.
    """
    with _opened(path) as file:
        metadata = _metadata(file, path)
        tensors = {k.removeprefix(SHARED): file.get_tensor(k) for k in file.keys() if k.startswith(SHARED)}
    return tensors, metadata


def read_metadata(path: str | Path) -> WeightsMetadata:
    """Read the metadata of a weights file without its tensors.

    Raises:
        HSSLError: as `load_weights`.
    """
    with _opened(path) as file:
        return _metadata(file, path)


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins as the format does: with the length of its header in 8 bytes, and then the header.

    Raises:
        HSSLError: it cannot be read.
    """
    return _start(Path(path), 9)[8:] == b"{"


def _start(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise cannot("read", path, error) from error


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _stored(tensor: Tensor) -> Tensor:
    # the clone separates tensors that share storage, which the format refuses
    return tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    path = Path(path)
    if not path.is_file():
        raise _no_file(path)
    _start(path, 0)  # safe_open calls a file that may not be read a missing one
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            yield opened
    except SafetensorError as error:
        raise _unreadable(path, error) from None


def _no_file(path: Path) -> HSSLError:
    if not path.is_dir():
        return HSSLError(f"The weights file {path} does not exist. {REMEDY}")
    inside = path / WEIGHTS_FILE
    remedy = f"Give the file in it: {shlex.quote(str(inside))}." if inside.is_file() else REMEDY
    return HSSLError(f"{path} is a folder, expected a weights file. {remedy}")


def _unreadable(path: Path, error: SafetensorError) -> HSSLError:
    # the length of a header may look like a pickle
    if _start(path, len(PICKLE_STARTS[0])).startswith(PICKLE_STARTS) and not is_safetensors(path):
        command = f"hssl import {shlex.quote(str(path))} -o imported.safetensors"
        return HSSLError(
            f"{path} is a pickle, which is never loaded. If it is a checkpoint of nnU-Net or nnssl, run `{command}` "
            f"first, and give what that writes. {REMEDY}"
        )
    return HSSLError(f"{path} is truncated or no safetensors file ({error}). {REMEDY}")


def _metadata(file: Any, path: str | Path) -> WeightsMetadata:
    header = (file.metadata() or {}).get(HEADER_KEY)
    if header is None:
        raise HSSLError(f"{path} is a safetensors file without an `{HEADER_KEY}` header, hence not ours. {REMEDY}")
    try:
        content = json.loads(header)
    except json.JSONDecodeError as error:
        raise HSSLError(f"The `{HEADER_KEY}` header of {path} is not valid JSON: {error}. {REMEDY}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise HSSLError(f"{path} has format version {version}, this hssl_nnunet reads up to {FORMAT_VERSION}. {UPDATE}")
    return parse(WeightsMetadata, content, path, f"A newer hssl_nnunet may have written it. {UPDATE}")
