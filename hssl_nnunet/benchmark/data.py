"""What a benchmark's records stand on outside its folder: plans, labels, images and masks of every dataset.

`data.json` in the folder keeps how they were when a dataset joined; a later run on anything else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hssl_nnunet.benchmark.masks import Mask
from hssl_nnunet.benchmark.plan import BenchmarkPlan, patterns_of
from hssl_nnunet.corpus.candidates import Candidate, measured_candidates
from hssl_nnunet.corpus.domain_plans import Source, read_sources
from hssl_nnunet.corpus.parallel import default_processes
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.typed_json import STRICT, differences, parse, to_json

DATA_FILE = "data.json"
SHOWN = 5  # changes, and files of each kind, that an error names
DATASET_KEYS = ("channel_names", "labels", "regions_class_order", "file_ending")  # what training and scores depend on


@dataclass(frozen=True, slots=True)
class Measured:
    """A dataset as it is: its plans, and its raw cases with each image measured."""

    source: Source
    candidates: tuple[Candidate, ...]

    @property
    def contents(self) -> dict[str, list[str]]:
        """Labelled case -> content hash of each channel; imagesTs may hold another case of the same name."""
        return {c.case.name: [f.content_hash for f in c.channels] for c in self.candidates if c.labelled}


def measured(plan: BenchmarkPlan, names: Iterable[str]) -> dict[str, Measured]:
    """Datasets as they are, by name.

    Images are measured as `hssl corpus` does it, once: what it has measured before is not read again.

    Raises:
        HSSLError: a dataset has no raw images or no such plans, or a case's name does not match its patient regex.
    """
    sources, patterns = read_sources(list(names), plan.plans_name, plan.configuration), patterns_of(plan)
    processes = default_processes()
    found = [measured_candidates(index, source, patterns, processes) for index, source in enumerate(sources)]
    return {source.dataset.name: Measured(source, tuple(each)) for source, each in zip(sources, found, strict=True)}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataState:
    """What the records of a dataset stand on.

    Attributes:
        plans: its plans, of the configurations the benchmark's alone, with what it inherits.
        dataset: the `DATASET_KEYS` of its dataset.json.
        images: preprocessed file of each usable case -> content hash of each raw channel.
        masks: labelled case -> SHA-256 of its mask; empty for a dataset that is no target.
    """

    plans: dict[str, Any]
    dataset: dict[str, Any]
    images: dict[str, list[str]]
    masks: dict[str, str]

    __pydantic_config__ = STRICT


def data_state(data: Measured, masks: Mapping[str, Mask]) -> DataState:
    """How a dataset is now.

    Args:
        data: the dataset.
        masks: labelled case -> mask; empty for a dataset that is no target.
    """
    source = data.source
    own = {key: value for key, value in source.plans.items() if key != "configurations"}
    usable = [c for c in data.candidates if not c.problems]
    return DataState(
        plans={**own, "configuration": source.configuration},
        dataset={key: source.dataset.dataset_json.get(key) for key in DATASET_KEYS},
        images={c.preprocessed.partition("/")[2]: [f.content_hash for f in c.channels] for c in usable},
        masks={case: mask.sha256 for case, mask in masks.items()},
    )


def checked_data(folder: Path, now: Mapping[str, DataState]) -> dict[str, DataState]:
    """What a benchmark's records stand on, datasets beside it that join; a folder of before knows none of them.

    Args:
        folder: the benchmark's folder.
        now: dataset name -> its state.

    Raises:
        HSSLError: a dataset is not what it was.
    """
    path = folder / DATA_FILE
    known = parse(dict[str, DataState], read_json(path), path) if path.is_file() else {}
    changes = [line for name, state in now.items() if name in known for line in _changes(name, known[name], state)]
    if changes:
        raise HSSLError(
            f"{folder} holds a benchmark of other data: {'; '.join(_first(changes))}. Its records would not be "
            "comparable: restore the data, or start another benchmark with `-o`."
        )
    # a domain that has become a target has masks from now on, and keeps them
    joined = {
        name: replace(state, masks=state.masks or known[name].masks) if name in known else state
        for name, state in now.items()
    }
    return {**known, **joined}


def write_data(folder: Path, states: Mapping[str, DataState]) -> None:
    """Keep what a benchmark's records stand on."""
    write_json(folder / DATA_FILE, {name: to_json(state) for name, state in states.items()})


def _changes(name: str, was: DataState, now: DataState) -> list[str]:
    lines = differences(f"{name}.plans", was.plans, now.plans) + differences(
        f"{name}.dataset", was.dataset, now.dataset
    )
    lines += _files(f"{name}: images", was.images, now.images)
    return lines + (_files(f"{name}: masks", was.masks, now.masks) if was.masks and now.masks else [])


def _files(what: str, was: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    other = [key for key in was.keys() & now.keys() if was[key] != now[key]]
    kinds = {"gone": was.keys() - now.keys(), "new": now.keys() - was.keys(), "with other content": other}
    return [f"{what} {kind}: {', '.join(_first(sorted(keys)))}" for kind, keys in kinds.items() if keys]


def _first(lines: list[str]) -> list[str]:
    return [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])]
