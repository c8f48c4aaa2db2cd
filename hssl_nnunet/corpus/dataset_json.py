"""dataset.json of a raw dataset: what nnU-Net expects of it, checked once, each mistake with what repairs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name
from pydantic import Field

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.typed_json import parse

REQUIRED_KEYS = ("channel_names", "labels", "file_ending")
SHOWN = 80  # characters of a wrong value in a message
CONVERT = "`hssl convert_msd -i TaskXX_Name`"


@dataclass(frozen=True, slots=True)
class ListedCase:
    """A case of nnU-Net's own key `dataset`, which names files that lie anywhere."""

    images: Annotated[list[str], Field(min_length=1)]
    label: str


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Read and check the dataset.json of a raw dataset.

    Raises:
        HSSLError: it is missing, lacks a key, or a value is not of nnU-Net's form.
    """
    path = folder / "dataset.json"
    content = read_json(path, f"nnU-Net needs it; {CONVERT} writes one.")
    if not isinstance(content, dict):
        raise HSSLError(f"{path} holds {_shown(content)}, expected an object with {', '.join(REQUIRED_KEYS)}.")
    missing = [key for key in REQUIRED_KEYS if key not in content]
    if missing:
        raise HSSLError(f"{path} lacks the key(s) {', '.join(missing)}. Add them, or run {CONVERT} again.")
    for key, fault_of in FAULTS.items():
        fault = fault_of(content[key]) if key in content else None
        if fault is not None:
            raise HSSLError(f"`{key}` of {path} is {_shown(content[key])}; {fault}")
    if "dataset" in content:
        parse(dict[str, ListedCase], content["dataset"], f"`dataset` of {path}")
    return content


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _labels_fault(labels: Any) -> str | None:
    if not isinstance(labels, dict):
        return 'expected an object of names and values. Write it as {"background": 0, "thing": 1}.'
    if labels and all(name.isdecimal() and isinstance(value, str) for name, value in labels.items()):
        swapped = {"background" if int(value) == 0 else name: int(value) for value, name in labels.items()}
        return f"expected names before values. Swap them: {json.dumps(swapped)}; {CONVERT} does it for an MSD task."
    wrong = {name: value for name, value in labels.items() if not _is_label(value)}
    if wrong:
        return (
            f"expected integers from 0 or lists of such, not {_shown(wrong)}. "
            "Write 1, without quotes and without a decimal point."
        )
    if labels and labels.get("background") != 0:
        zeros = [name for name, value in labels.items() if value == 0]
        repair = f'Rename "{zeros[0]}" to "background"' if zeros else 'Write "background": 0'
        return f"expected a background of 0. {repair}; of a dataset without masks, write {{}}."
    return None


def _is_label(value: Any) -> bool:
    """Whether a value is an integer from 0, or a region: a list of them."""
    members = value if isinstance(value, list) and value else [value]
    return all(type(member) is int and member >= 0 for member in members)  # True is an int, but no label


def _channel_names_fault(names: Any) -> str | None:
    if isinstance(names, dict) and names and all(k.isdecimal() and isinstance(n, str) for k, n in names.items()):
        return None
    listed = names if isinstance(names, list) and names and all(isinstance(n, str) for n in names) else ["CT"]
    example = json.dumps({str(channel): name for channel, name in enumerate(listed)})
    return f"expected an object of channel numbers and names. Write it as {example}."


def _file_ending_fault(ending: Any) -> str | None:
    if isinstance(ending, str) and ending.startswith(".") and len(ending) > 1:
        return None
    example = f".{ending}" if isinstance(ending, str) and ending.strip(".") else ".nii.gz"
    return f'expected text that begins with a dot. Write it as "{example}".'


def _reader_fault(name: Any) -> str | None:
    known = ["None", *(reader.__name__ for reader in LIST_OF_IO_CLASSES)]
    if name in known or (isinstance(name, str) and _is_found(name)):
        return None
    remedy = "Correct it, or remove the key: nnU-Net then chooses by `file_ending`."
    return f"expected a reader of nnU-Net: {', '.join(known)}. {remedy}"


def _is_found(reader: str) -> bool:
    """Whether nnU-Net's own search has a class of this name, as that of a user who put a reader there."""
    try:
        recursive_find_reader_writer_by_name(reader)
    except RuntimeError:
        return False
    return True


FAULTS: dict[str, Callable[[Any], str | None]] = {
    "labels": _labels_fault,
    "channel_names": _channel_names_fault,
    "file_ending": _file_ending_fault,
    "overwrite_image_reader_writer": _reader_fault,
}
