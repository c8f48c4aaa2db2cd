"""Preprocessed files of one configuration: made case by case, kept while they are current, taken over from nnU-Net."""

from __future__ import annotations

import logging
import math
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from hssl_nnunet.corpus.cases import Case, RawDataset, changed_at
from hssl_nnunet.corpus.parallel import map_cases
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.nnunet_plans import plans_in

logger = logging.getLogger(__name__)

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
UNFINISHED = ".unfinished"  # end of the hidden name of a folder that lacks cases

Recipe = dict[str, Any]
DatedPlans = Mapping[Path, tuple[dict[str, Any], float]]


class UnlabelledPreprocessor(DefaultPreprocessor):  # type: ignore[misc]
    """nnU-Net's preprocessor for images without masks; the loader wants `class_locations`, here empty."""

    def run_case(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
        """As nnU-Net's: image (C, X, Y, Z) float32, nonzero mask (1, X, Y, Z), 0 inside and -1 outside, properties."""
        data, seg, properties = super().run_case(*args, **kwargs)
        return data, seg, properties | {"class_locations": {}}


def recipe_of(plans: PlansManager, configuration: str) -> Recipe:
    """All of the plans that decides the voxels of a preprocessed image.

    Raises:
        KeyError: the plans lack a value, as those of an old nnU-Net do.
    """
    values = plans.get_configuration(configuration).configuration
    recipe = {key: values[key] for key in RECIPE_KEYS}
    recipe["transpose_forward"] = plans.plans["transpose_forward"]
    recipe["image_reader_writer"] = plans.plans["image_reader_writer"]
    if "CTNormalization" in values["normalization_schemes"]:  # the others look at the image alone
        recipe["intensities"] = plans.plans["foreground_intensity_properties_per_channel"]
    return recipe


def preprocess_cases(
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


def keep_only(folder: Path, cases: Sequence[Case], recipe: Recipe, path: Path) -> None:
    """Remove outputs of other recipes, of cases that are gone, of killed workers; without cases, the whole folder.

    `path` is where the recipe is written, inside the folder, so that it goes when nnU-Net replaces the folder.
    """
    was = read_json(path, f"Remove {folder} and run it again.") if cases and path.is_file() else None
    if was is not None and was != recipe:
        shown = folder.with_name(folder.name.removeprefix(".").removesuffix(UNFINISHED))
        logger.info("%s is made anew: it was made with other values: %s.", shown, _differing(was, recipe))
    if was != recipe:
        remove_folder(folder)
    if not cases:
        return
    if not path.is_file():
        write_json(path, recipe)
    for left in folder.glob(f"*{TEMPORARY}"):
        remove_folder(left)
    names = {c.name for c in cases}
    for image in folder.glob("*.b2nd"):
        name = image.name.removesuffix(".b2nd")
        if name not in names and name.removesuffix("_seg") not in names:
            image.unlink()
            image.with_suffix(".pkl").unlink(missing_ok=True)


def _differing(was: Recipe, now: Recipe) -> str:
    return ", ".join(key for key in dict.fromkeys((*was, *now)) if was.get(key) != now.get(key))


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there; what cannot be removed is an error, for it would pass for current."""
    if folder.exists():
        shutil.rmtree(folder)


def take_over(
    folder: Path,
    cases: Sequence[Case],
    recipe: Recipe,
    about: Path,
    before: DatedPlans,
) -> bool:
    """Whether files that nnU-Net itself has preprocessed are those that would be made; if not, why is told.

    They are where plans from before them had the same values for them and no plans have others, every case is there
    whole and newer than its image and mask, and than dataset.json.

    Args:
        folder: nnU-Net's folder of the configuration.
        cases: the cases that it must hold.
        recipe: `recipe_of` the configuration.
        about: the raw dataset's dataset.json.
        before: the plans files of the dataset as they were before this run.
    """
    files = [file for case in cases for file in _outputs(folder, case)]
    missing = next((f"{f.name} is missing" for f in files if not f.is_file()), None)
    why = missing or _other_files(folder, cases, about)
    why = why or _other_plans(folder.name, min(f.stat().st_mtime for f in files), recipe, before)
    if why:
        logger.info("%s, which nnU-Net has preprocessed, is made anew: %s.", folder, why)
    return not why


def dated_plans(folder: Path) -> DatedPlans:
    """The plans files of a preprocessed dataset: what they hold, and when they were written."""
    return {path: (content, path.stat().st_mtime) for path, content in plans_in(folder).items()}


def _other_plans(data_identifier: str, oldest: float, recipe: Recipe, before: DatedPlans) -> str | None:
    """Why files, the oldest of that date, need not be made by the recipe, or nothing."""
    dated = {path: (_recipes(content, data_identifier), date) for path, (content, date) in before.items()}
    for path, (recipes, _) in dated.items():
        if any(r != recipe for r in recipes):
            return f"{path.name} has other values for it"
    if not any(recipes and date < oldest for recipes, date in dated.values()):
        return "no plans that are older than its files tell how they were made"
    return None


def _recipes(content: dict[str, Any], data_identifier: str) -> list[Recipe | None]:
    """What plans say of a folder, once for each configuration that uses it; None where it cannot be read."""
    plans, found = PlansManager(content), list[Recipe | None]()
    for name in content["configurations"]:
        try:
            if plans.get_configuration(name).configuration.get("data_identifier") == data_identifier:
                found.append(recipe_of(plans, name))
        except (KeyError, TypeError, ValueError, RuntimeError):  # plans of an old nnU-Net, or edited ones
            found.append(None)
    return found


def _other_files(folder: Path, cases: Sequence[Case], about: Path) -> str | None:
    """Why the cases of nnU-Net's folder are not those that would be made, or nothing."""
    if min((folder / f"{case.name}.pkl").stat().st_mtime for case in cases) < changed_at(about):
        return f"{about.name}, which has the labels, is newer"  # not asked of the files: they would be unpickled
    for case in cases:
        if not _is_current(folder, case):
            return f"the image or mask of {case.name} is newer"
        if not all(map(_is_whole, _outputs(folder, case))):
            return f"the files of {case.name} are damaged"
    return None


def _is_whole(path: Path) -> bool:
    """Whether a pickle has its end; whether an array holds all its chunks, and the last of them can be unpacked."""
    if path.suffix == ".pkl":
        return path.read_bytes().endswith(pickle.STOP)
    try:
        array = blosc2.open(str(path), mode="r")
        chunks = math.prod(math.ceil(n / c) for n, c in zip(array.shape, array.chunks, strict=True))
        array.schunk.decompress_chunk(chunks - 1)
        return bool(array.schunk.nchunks == chunks)
    except Exception:  # blosc2 has no exception of its own for a cut file
        return False


@contextmanager
def date_kept(path: Path) -> Iterator[None]:
    """A JSON file that is written anew inside with the content that it had keeps its date.

    Plans that nnU-Net's planner makes again and again stay older than the images that were made with them.
    """
    content, date = None, 0
    with suppress(HSSLError):  # missing, or damaged and about to be replaced
        content, date = read_json(path), path.stat().st_mtime_ns
    yield
    if content is not None and read_json(path) == content:
        os.utime(path, ns=(date, date))


def _outputs(folder: Path, case: Case) -> list[Path]:
    return [folder / (case.name + suffix) for suffix in SUFFIXES]


def _is_current(folder: Path, case: Case) -> bool:
    """Whether a case's files are all there, made of its raw files as they are."""
    outputs = _outputs(folder, case)
    if not all(o.is_file() for o in outputs):
        return False
    return min(o.stat().st_mtime for o in outputs) > max(map(changed_at, case.files))


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
