"""Fingerprint and plans of one dataset, by nnU-Net's own extractor and planners.

Datasets without masks get a fingerprint in nnU-Net's schema whose intensity statistics come from the nonzero voxels
instead of the foreground; nnU-Net's planner then works on it unchanged. Images that nnU-Net must not see (quarantined
ones, files without a channel suffix, images of imagesTr without a mask) are kept from it by a view: a temporary
nnUNet_raw that holds only a dataset.json which lists the good files, in nnU-Net's own `dataset` form. The user's raw
folder is never touched.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nnunetv2
import numpy as np
import numpy.typing as npt
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, plan_experiment_dataset
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from hssl_nnunet.corpus.cases import Case, RawDataset, changed_at, dataset_id
from hssl_nnunet.corpus.parallel import map_cases
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.paths import ENV_RAW, preprocessed_dir, raw_dir
from hssl_nnunet.plan_schema import DEFAULT_PLANS, Preset
from hssl_nnunet.typed_json import parse

# voxels a case and channel for the intensity statistics; nnU-Net's 10e7 over all would be GBs
SAMPLES_PER_CASE = 100_000
PERCENTILES = (0.5, 50.0, 99.5)  # nnU-Net's
SHARED_CONFIGURATIONS = ("2d", "3d_fullres")  # their spacing does not depend on the memory a preset plans for


@dataclass(frozen=True, slots=True)
class DatasetFingerprint:
    """What we read of nnU-Net's dataset_fingerprint.json."""

    spacings: list[Any]


def planner_class(preset: Preset) -> type[ExperimentPlanner]:
    """nnU-Net's planner of a preset; a preset with features of its own gets a subclass that reuses the default's data.

    Raises:
        HSSLError: nnU-Net has no planner of that name.
    """
    folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    base: Any = recursive_find_python_class(folder, preset.planner, "nnunetv2.experiment_planning")
    if base is None:
        raise HSSLError(f"nnU-Net has no planner '{preset.planner}'. Correct `planner` of the preset.")
    if preset.base_num_features is None and preset.max_num_features is None:
        return base  # type: ignore[no-any-return]

    class SizedPlanner(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if preset.base_num_features is not None:
                self.UNet_base_num_features = preset.base_num_features
            if preset.max_num_features is not None:
                self.UNet_max_features_2d = self.UNet_max_features_3d = preset.max_num_features

        def generate_data_identifier(self, configuration_name: str) -> str:
            name = DEFAULT_PLANS if configuration_name in SHARED_CONFIGURATIONS else self.plans_identifier
            return f"{name}_{configuration_name}"

    return SizedPlanner


def plan_dataset(
    dataset: RawDataset, cases: Sequence[Case], preset: Preset | None, reader: type[Any], num_processes: int
) -> None:
    """Write dataset_fingerprint.json, dataset.json and the preset's plans of a dataset.

    Must run inside `nnunet_sees(dataset, cases)`, with the good cases: the labelled ones, or, in a dataset without
    masks, all. An up-to-date fingerprint is kept. Without a preset any is, and nothing is planned.
    """
    number = dataset_id(dataset.name)
    path = preprocessed_dir() / dataset.name / "dataset_fingerprint.json"
    if not (path.is_file() if preset is None else _fingerprint_is_current(path, dataset, cases)):
        if dataset.labelled:
            extract_fingerprint_dataset(
                number, DatasetFingerprintExtractor, num_processes, verbose=False, show_progress_bar=sys.stderr.isatty()
            )
        else:
            write_json(path, label_free_fingerprint(cases, reader, num_processes))
    if preset is None:  # as nnU-Net's planner does, whose training wants this copy
        shutil.copy(raw_dir() / dataset.name / "dataset.json", path.with_name("dataset.json"))
        return
    with _environment(nnUNet_n_proc_DA=_planning_threads()):
        plan_experiment_dataset(
            number, planner_class(preset), preset.gpu_memory_target_gb, overwrite_plans_name=preset.plans_name
        )


@contextmanager
def nnunet_sees(dataset: RawDataset, cases: Sequence[Case]) -> Iterator[None]:
    """Inside, nnU-Net sees exactly `cases` in `dataset`; where it does so anyway, nothing is changed.

    Afterwards the dataset.json that nnU-Net copied into nnUNet_preprocessed names no temporary path.
    """
    hidden = any(p.name.startswith(".") for p in (dataset.folder / "imagesTr").glob("*"))
    if dataset.labelled == tuple(cases) and not dataset.maskless and not dataset.stray and not hidden:
        yield
        return
    true_json = dataset.dataset_json | {"numTraining": len(cases)}
    listed = {
        c.name: {"images": [str(i.absolute()) for i in c.images], "label": str(c.mask.absolute()) if c.mask else ""}
        for c in cases
    }
    # the planner counts labels for the network's outputs, hence at least the background
    view_json = true_json | {"dataset": listed, "labels": true_json["labels"] or {"background": 0}}
    with TemporaryDirectory(prefix="hssl_raw_") as folder:
        view = Path(folder) / dataset.name
        write_json(view / "dataset.json", view_json)
        splits = dataset.folder / "splits_final.json"
        if splits.is_file():
            shutil.copy(splits, view)
        try:
            with _environment(**{ENV_RAW: folder}):
                yield
        finally:
            write_json(preprocessed_dir() / dataset.name / "dataset.json", true_json)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def _planning_threads() -> str:
    """nnU-Net's planner hands nnUNet_n_proc_DA to torch.set_num_threads, which refuses the otherwise legal 0."""
    value = os.environ.get("nnUNet_n_proc_DA", "1")
    return value if value.isdigit() and int(value) > 0 else "1"


def _fingerprint_is_current(path: Path, dataset: RawDataset, cases: Sequence[Case]) -> bool:
    if not path.is_file():
        return False
    remedy = "Remove it and run it again."
    if len(parse(DatasetFingerprint, read_json(path, remedy), path, remedy).spacings) != len(cases):
        return False
    files = [dataset.folder, dataset.folder / "dataset.json", *(f for c in cases for f in c.files)]
    return path.stat().st_mtime > max(map(changed_at, files))


def label_free_fingerprint(cases: Sequence[Case], reader: type[Any], num_processes: int) -> dict[str, Any]:
    """nnU-Net's dataset fingerprint without masks: intensities of the nonzero voxels stand for the foreground's.

    Returns:
        The content of dataset_fingerprint.json: spacings (mm) and shapes after crop in array order (z, y, x), median
        relative size after cropping, intensity properties per channel.
    """
    analyze = partial(_analyze_case, reader=reader)
    results = list(map_cases(analyze, cases, num_processes, "Extracting dataset fingerprint"))
    shapes, spacings, intensities, sizes = zip(*results, strict=True)
    channels = [np.concatenate(c) for c in zip(*intensities, strict=True)]
    fingerprint = {
        "spacings": list(spacings),
        "shapes_after_crop": list(shapes),
        "foreground_intensity_properties_per_channel": {str(i): _statistics(c) for i, c in enumerate(channels)},
        "median_relative_size_after_cropping": float(np.median(sizes)),
    }
    recursive_fix_for_json_export(fingerprint)
    return fingerprint


CaseFingerprint = tuple[tuple[int, ...], list[float], list[npt.NDArray[np.float32]], float]


def _analyze_case(case: Case, reader: type[Any]) -> CaseFingerprint:
    """Shape after crop, spacing, sampled intensities per channel, relative size after crop."""
    images, properties = reader().read_images([str(i) for i in case.images])
    data, nonzero, _ = crop_to_nonzero(images)  # nonzero: 0 inside, -1 outside
    samples, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
        nonzero + np.int8(1), data, num_samples=SAMPLES_PER_CASE
    )
    spacing = [float(s) for s in properties["spacing"]]
    return data.shape[1:], spacing, samples, data[0].size / images[0].size


def _statistics(values: npt.NDArray[np.float32]) -> dict[str, float]:
    low, median, high = np.percentile(values, PERCENTILES)
    return {
        "mean": float(np.mean(values)),
        "median": float(median),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }
