"""`hssl plan_and_preprocess`: raw datasets, with or without masks, made ready for pretraining and training.

Labelled cases are planned by nnU-Net itself and preprocessed by its own preprocessor, so that the files are those of
`nnUNetv2_plan_and_preprocess`. Images without masks go beside them, into `<data_identifier>_unlabelled`, where stock
training never looks. Cases that fail a check are quarantined: left out, listed, and looked at anew by the next run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from hssl_nnunet.corpus.cases import Case, RawDataset, dataset_id, read_raw_dataset
from hssl_nnunet.corpus.integrity import Problem, write_quarantine
from hssl_nnunet.corpus.parallel import default_processes, map_cases
from hssl_nnunet.corpus.planning import changed_at, nnunet_sees, plan_dataset
from hssl_nnunet.corpus.screening import check_dataset, find_reader
from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.paths import preprocessed_dir, unlabelled_folder
from hssl_nnunet.plan_schema import Preset, load_preset

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
RECIPE_FILE = "preprocessing.json"
LABELLED_RECIPE_FILE = f"hssl/{RECIPE_FILE}"  # nnU-Net takes no folder with a file of another ending beside its own
RECIPE_KEYS = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
    "preprocessor_name",
)
SUFFIXES = ("_seg.b2nd", ".pkl", ".b2nd")  # of a case's files, the image last
TEMPORARY = ".tmp"  # end of the name of a worker's folder
QUARANTINE_EXIT_CODE = 3


@dataclass(frozen=True)
class DatasetReport:
    """What became of one dataset: number of cases by fate.

    Attributes:
        name: `DatasetXXX_Name`.
        labelled: cases planned and preprocessed with their masks.
        unlabelled: images preprocessed without masks.
        quarantined: cases left out.
        notes: what the user may not expect.
    """

    name: str
    labelled: int
    unlabelled: int
    quarantined: int
    notes: tuple[str, ...] = ()

    @property
    def planned(self) -> bool:
        """Whether a case was left to plan from."""
        return self.labelled + self.unlabelled > 0


@dataclass(frozen=True)
class Report:
    """Outcome of `plan_and_preprocess`."""

    plans_name: str
    datasets: tuple[DatasetReport, ...]
    problems: tuple[Problem, ...]

    @property
    def lines(self) -> list[str]:
        """What became of each dataset, notes, and the plans that were written, for the user."""
        told = []
        for d in self.datasets:
            fate = "" if d.planned else "; nothing is left to plan from"
            told.append(f"{d.name}: {d.labelled} with masks, {d.unlabelled} without, {d.quarantined} quarantined{fate}")
            told += [f"Note: {note}" for note in d.notes]
        return told + ([f"Plans: {self.plans_name}"] if any(d.planned for d in self.datasets) else [])

    @property
    def exit_code(self) -> int:
        """0, or 3 if a case is quarantined."""
        return QUARANTINE_EXIT_CODE if self.problems else 0


def plan_and_preprocess(
    datasets: Sequence[str | int],
    configurations: Sequence[str] = ("3d_fullres",),
    preset: str = "default",
    num_processes: int | None = None,
) -> Report:
    """Check, plan and preprocess datasets of nnUNet_raw.

    Args:
        datasets: names or ids.
        configurations: of `2d`, `3d_fullres`, `3d_lowres`; one that nnU-Net does not plan for a dataset is noted.
        preset: name of a `plans/preset_<name>.json`.
        num_processes: worker processes; default: nnU-Net's, but not more than there are processors.

    Returns:
        Counts per dataset, and the problems of the quarantined cases.

    Raises:
        HSSLError: unknown preset or configuration, missing or empty dataset, disk full, a worker out of memory, or
            nnU-Net plans none of the configurations for a dataset.
    """
    preprocessed_dir()  # not set is an error now, not after the first image
    for configuration in configurations:
        if configuration not in CONFIGURATIONS:
            raise unknown_name("configuration", configuration, CONFIGURATIONS)
    chosen = load_preset(preset)
    processes = num_processes or default_processes()
    raw = [read_raw_dataset(d) for d in datasets]  # all of them, before the first long step
    results = [_one_dataset(dataset, configurations, chosen, processes) for dataset in raw]
    return Report(chosen.plans_name, tuple(r for r, _ in results), tuple(p for _, ps in results for p in ps))


def _one_dataset(
    dataset: RawDataset, configurations: Sequence[str], preset: Preset, num_processes: int
) -> tuple[DatasetReport, list[Problem]]:
    reader = find_reader(dataset)
    problems, labelled, unlabelled = check_dataset(dataset, configurations, reader, num_processes)
    write_quarantine(dataset.name, problems)
    planned_from = labelled if dataset.labelled else unlabelled
    if not planned_from:  # nothing to plan from: the list of problems says why
        return DatasetReport(dataset.name, 0, 0, _quarantined(problems), dataset.notes), problems
    with _explained(dataset.name), nnunet_sees(dataset, planned_from):
        plan_dataset(dataset, planned_from, preset, reader, num_processes)
        plans = PlansManager(str(preprocessed_dir() / dataset.name / f"{preset.plans_name}.json"))
        planned, unplanned = _planned(dataset.name, plans, configurations)
        if dataset.labelled:
            _preprocess_labelled(dataset, labelled, plans, planned, num_processes)
    with _explained(dataset.name):
        for configuration in planned:
            _preprocess_unlabelled(dataset, unlabelled, plans, configuration, num_processes)
    counts = len(labelled), len(unlabelled), _quarantined(problems)
    return DatasetReport(dataset.name, *counts, (*dataset.notes, *unplanned)), problems


def _planned(dataset: str, plans: PlansManager, configurations: Sequence[str]) -> tuple[list[str], list[str]]:
    """The configurations that nnU-Net plans for a dataset, and a note on the others.

    Raises:
        HSSLError: it plans none of them.
    """
    there = [c for c in CONFIGURATIONS if c in plans.available_configurations]
    missing = [c for c in configurations if c not in there]
    told = f"nnU-Net plans no {', '.join(missing)} for {dataset} (planned: {', '.join(there)})"
    if len(missing) == len(configurations):
        raise HSSLError(f"{told}. Choose one of these with -c.")
    return [c for c in configurations if c in there], [f"{told}."] if missing else []


def _quarantined(problems: Sequence[Problem]) -> int:
    return len({(p.case, Path(p.file).parent.name.startswith("imagesTs")) for p in problems})


@contextmanager
def _explained(dataset: str) -> Iterator[None]:
    """Turn what nnU-Net raises into errors with a remedy."""
    try:
        yield
    except HSSLError:
        raise
    except OSError as error:
        raise HSSLError(f"{dataset}: {error}. Free disk space or permissions, then run it again.") from error
    except RuntimeError as error:
        remedy = "If memory ran out, run it again with fewer processes (`-np 1`); free space on a full disk."
        raise HSSLError(f"{dataset}: nnU-Net stopped: {str(error).strip()}. {remedy}") from error


def _preprocess_labelled(
    dataset: RawDataset, cases: Sequence[Case], plans: PlansManager, configurations: Sequence[str], num_processes: int
) -> None:
    """The files of nnU-Net's own preprocessing; cases that are done and current stay, so that a stopped run goes on.

    Until every case is there they lie in a folder of another name, for training would not notice that some lack.
    """
    for configuration in configurations:
        folder = preprocessed_dir() / dataset.name / plans.get_configuration(configuration).data_identifier
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        if folder.is_dir():
            _remove(unfinished)
            folder.rename(unfinished)
        recipe = _recipe(plans, configuration) | {"labels": dataset.dataset_json["labels"]}
        _keep_only(unfinished, cases, recipe, unfinished / LABELLED_RECIPE_FILE)
        _preprocess(dataset, cases, plans, configuration, unfinished, num_processes)
        unfinished.rename(folder)
    preprocess_dataset(dataset_id(dataset.name), plans.plans_name, (), [num_processes])  # copies the masks, no more


class UnlabelledPreprocessor(DefaultPreprocessor):  # type: ignore[misc]
    """nnU-Net's preprocessor for images without masks; the loader wants `class_locations`, here empty."""

    def run_case(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
        """As nnU-Net's: image (C, X, Y, Z) float32, nonzero mask (1, X, Y, Z), 0 inside and -1 outside, properties."""
        data, seg, properties = super().run_case(*args, **kwargs)
        return data, seg, properties | {"class_locations": {}}


def _preprocess_unlabelled(
    dataset: RawDataset, cases: Sequence[Case], plans: PlansManager, configuration: str, num_processes: int
) -> None:
    identifier = plans.get_configuration(configuration).data_identifier
    folder = preprocessed_dir() / dataset.name / unlabelled_folder(identifier)
    _keep_only(folder, cases, _recipe(plans, configuration), folder / RECIPE_FILE)
    _preprocess(dataset, cases, plans, configuration, folder, num_processes)


def _preprocess(
    dataset: RawDataset,
    cases: Sequence[Case],
    plans: PlansManager,
    configuration: str,
    folder: Path,
    num_processes: int,
) -> None:
    """Preprocess into `folder` the cases that are new or changed."""
    todo = [c for c in cases if not _is_current(folder, c)]
    work = partial(_preprocess_case, plans=plans, configuration=configuration, folder=folder, json=dataset.dataset_json)
    for _ in map_cases(work, todo, num_processes, f"Preprocessing {dataset.name}, {configuration}"):
        pass


def _recipe(plans: PlansManager, configuration: str) -> dict[str, Any]:
    """All of the plans that decides the voxels of a preprocessed image."""
    values = plans.get_configuration(configuration).configuration
    recipe = {key: values[key] for key in RECIPE_KEYS}
    recipe["transpose_forward"] = plans.plans["transpose_forward"]
    recipe["image_reader_writer"] = plans.plans["image_reader_writer"]
    if "CTNormalization" in values["normalization_schemes"]:  # the others look at the image alone
        recipe["intensities"] = plans.plans["foreground_intensity_properties_per_channel"]
    return recipe


def _keep_only(folder: Path, cases: Sequence[Case], recipe: dict[str, Any], path: Path) -> None:
    """Remove outputs of other recipes, of cases that are gone, of killed workers; without cases, the whole folder.

    `path` is where the recipe is written, inside the folder, so that it goes when nnU-Net replaces the folder.
    """
    if not cases or not path.is_file() or read_json(path, f"Remove {folder} and run it again.") != recipe:
        _remove(folder)
    if not cases:
        return
    if not path.is_file():
        write_json(path, recipe)
    for left in folder.glob(f"*{TEMPORARY}"):
        _remove(left)
    names = {c.name for c in cases}
    for image in folder.glob("*.b2nd"):
        name = image.name.removesuffix(".b2nd")
        if name not in names and name.removesuffix("_seg") not in names:
            image.unlink()
            image.with_suffix(".pkl").unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    if folder.exists():  # what cannot be removed is an error: it would pass for current
        shutil.rmtree(folder)


def _is_current(folder: Path, case: Case) -> bool:
    """Whether a case's files are all there, made of its raw files as they are."""
    outputs = [folder / (case.name + suffix) for suffix in SUFFIXES]
    if not all(o.is_file() for o in outputs):
        return False
    raw = [f for f in (*case.images, case.mask) if f is not None]
    return min(o.stat().st_mtime for o in outputs) > max(changed_at(f) for f in raw)


def _preprocess_case(case: Case, plans: PlansManager, configuration: str, folder: Path, json: dict[str, Any]) -> None:
    """Preprocess one case; its files appear whole, the image last, dated to when its raw files were not yet read."""
    values = plans.get_configuration(configuration)
    kind = UnlabelledPreprocessor if case.mask is None else values.preprocessor_class
    temporary = folder / f".{case.name}.{os.getpid()}{TEMPORARY}"
    try:
        temporary.mkdir()
        begun = temporary.stat().st_mtime_ns
        output, images = str(temporary / case.name), [str(i) for i in case.images]
        kind(verbose=False).run_case_save(output, images, case.mask and str(case.mask), plans, values, json)
        for suffix in SUFFIXES:
            made = temporary / (case.name + suffix)
            os.utime(made, ns=(begun, begun))  # a raw file that changed meanwhile is newer
            made.replace(folder / made.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
