"""The corpus manifest: one line an image (one channel of one case), as CSV that a person can open."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import written_whole

MANIFEST = "manifest.csv"
SEPARATOR = ";"
SHARED_VALUES = 1024  # rows with equal values hold one copy of them; a corpus may have 10^5 rows
REMEDY = "Run `hssl corpus -d ... -o ... --overwrite` to write it anew."


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a corpus.

    Attributes:
        domain: index into `CorpusBlock.domains`.
        dataset_name: nnU-Net's name of the domain, as in `CorpusBlock.domains[domain]`.
        case: nnU-Net's case identifier.
        channel: index along the channel axis of the preprocessed array.
        patient: the person; compared by name across domains.
        labelled: whether the case was preprocessed with a mask (and stock training sees it).
        preprocessed: the case's `.b2nd` file, relative to `nnUNet_preprocessed`, with forward slashes.
        content_hash: hash of the raw voxels and their shape (see `fingerprint.content_hash`).
        spacing_mm: spacing of the raw image in array order (z, y, x).
        shape: voxels of the raw image in array order (z, y, x).
        groups: the domain's groups, finest level first.
    """

    domain: int
    dataset_name: str
    case: str
    channel: int
    patient: str
    labelled: bool
    preprocessed: str
    content_hash: str
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    groups: tuple[str, ...]


COLUMNS = tuple(field.name for field in fields(ImageRow))
OLD_COLUMN = "file"  # the raw image, in manifests of earlier versions; passed over


def write_manifest(path: str | Path, rows: Iterable[ImageRow]) -> None:
    """Write `rows` as CSV with a header, whole or not at all; tuples are joined by `;`, floats keep every digit."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_text(getattr(row, column)) for column in COLUMNS] for row in rows)


def read_manifest(path: str | Path) -> list[ImageRow]:
    """Read what `write_manifest` wrote; an empty corpus gives an empty list.

    Raises:
        HSSLError: the file is missing, its header is another, or a value does not parse (line and column are named).
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            header = next(reader, [])
            old = header.index(OLD_COLUMN) if OLD_COLUMN in header else len(header)
            _check_header(header[:old] + header[old + 1 :], path)
            return [_row(cells[:old] + cells[old + 1 :], path, reader.line_num) for cells in reader]
    except FileNotFoundError:
        raise HSSLError(f"{path} does not exist. Run `hssl corpus -d ... -o ...` first.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise HSSLError(f"{path} is not a manifest: {error}. {REMEDY}") from None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return SEPARATOR.join(map(str, value))
    return str(value)


def _check_header(header: list[str], path: Path) -> None:
    if tuple(header) != COLUMNS:
        raise HSSLError(f"{path}, line 1: got the columns {', '.join(header)}; expected {', '.join(COLUMNS)}. {REMEDY}")


def _row(cells: list[str], path: Path, line: int) -> ImageRow:
    if len(cells) != len(COLUMNS):
        raise HSSLError(f"{path}, line {line}: got {len(cells)} columns, expected {len(COLUMNS)}. {REMEDY}")
    values = []
    for column, parser, cell in zip(COLUMNS, PARSERS, cells, strict=True):
        try:
            values.append(parser(cell))
        except ValueError as error:
            raise HSSLError(f"{path}, line {line}, column `{column}`: got {cell!r}, {error}. {REMEDY}") from None
    return ImageRow(*values)


@lru_cache(SHARED_VALUES)
def _name(text: str) -> str:
    if not text:
        raise ValueError("expected a name")
    return text


def _index(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("expected an integer from 0")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("expected `true` or `false`")
    return text == "true"


def _positive(kind: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    values = tuple(kind(part) for part in text.split(SEPARATOR))
    if not all(0 < value < float("inf") for value in values):
        raise ValueError("expected positive numbers")
    return values


@lru_cache(SHARED_VALUES)
def _spacing(text: str) -> tuple[float, ...]:
    return _positive(float, text)


@lru_cache(SHARED_VALUES)
def _shape(text: str) -> tuple[int, ...]:
    return _positive(int, text)


@lru_cache(SHARED_VALUES)
def _groups(text: str) -> tuple[str, ...]:
    return tuple(_name(part) for part in text.split(SEPARATOR))


PARSERS: tuple[Callable[[str], Any], ...] = (
    *(_index, _name, _name, _index, _name, _flag, _name, _name),  # domain ... content_hash
    *(_spacing, _shape, _groups),
)
