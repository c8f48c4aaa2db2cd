"""`hssl plan_and_preprocess`: raw datasets, with or without masks, made ready for pretraining and training.

Labelled cases are planned by nnU-Net itself and preprocessed by its own preprocessor, so that the files are those of
`nnUNetv2_plan_and_preprocess`. Images without masks go beside them, into `<data_identifier>_unlabelled`, where stock
training never looks. Cases that fail a check are quarantined: left out, listed, and looked at anew by the next run.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from hssl_nnunet.corpus.cases import Case, RawDataset, dataset_id, read_raw_dataset
from hssl_nnunet.corpus.integrity import EXIT_QUARANTINED, Problem, write_quarantine
from hssl_nnunet.corpus.outputs import (
    LABELLED_RECIPE_FILE,
    RECIPE_FILE,
    UNFINISHED,
    DatedPlans,
    date_kept,
    dated_plans,
    keep_only,
    preprocess_cases,
    recipe_of,
    remove_folder,
    take_over,
)
from hssl_nnunet.corpus.parallel import default_processes
from hssl_nnunet.corpus.planning import nnunet_sees, plan_dataset
from hssl_nnunet.corpus.screening import check_dataset, find_reader
from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.files import write_json
from hssl_nnunet.nnunet_plans import plans_in, read_plans
from hssl_nnunet.paths import preprocessed_dir, unlabelled_folder
from hssl_nnunet.plan_schema import Preset, load_preset
from hssl_nnunet.remedies import DEFAULT_PRESET, plan_command

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")


@dataclass(frozen=True)
class DatasetReport:
    """What became of one dataset.

    Attributes:
        name: `DatasetXXX_Name`.
        problems: of the cases left out.
        notes: what the user may not expect.
        labelled: number of cases planned and preprocessed with their masks.
        unlabelled: number of images preprocessed without masks.
        lacking: why nothing was preprocessed, where the plans have none of the configurations.
    """

    name: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    labelled: int = 0
    unlabelled: int = 0
    lacking: str | None = None

    @property
    def quarantined(self) -> int:
        """Number of cases left out; one of imagesTs may bear the name of one of imagesTr."""
        return len({(p.case, Path(p.file).parent.name.startswith("imagesTs")) for p in self.problems})

    @property
    def planned(self) -> bool:
        """Whether a case was left to plan from."""
        return self.labelled + self.unlabelled > 0

    @property
    def lines(self) -> list[str]:
        """What became of it, and notes, for the user."""
        fate = "" if self.planned else "; nothing is left to plan from"
        told = f"{self.labelled} with masks, {self.unlabelled} without, {self.quarantined} quarantined{fate}"
        first = f"{self.name}: {'nothing preprocessed' if self.lacking else told}"
        return [first, *(f"Note: {note}" for note in self.notes)]


@dataclass(frozen=True)
class Report:
    """Outcome of `plan_and_preprocess`."""

    plans_name: str
    datasets: tuple[DatasetReport, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Of all datasets' cases that were left out."""
        return tuple(p for d in self.datasets for p in d.problems)

    @property
    def lines(self) -> list[str]:
        """What became of each dataset, notes, and the plans that were used, for the user."""
        told = [line for d in self.datasets for line in d.lines]
        return told + ([f"Plans: {self.plans_name}"] if any(d.planned for d in self.datasets) else [])

    @property
    def exit_code(self) -> int:
        """0, or 3 if a case is quarantined or a dataset lacks the configurations."""
        return EXIT_QUARANTINED if self.problems or any(d.lacking for d in self.datasets) else 0


@dataclass(frozen=True)
class _Request:
    """What to preprocess with: a preset that plans, or None and the name of plans that are there."""

    preset: Preset | None
    plans_name: str
    configurations: tuple[str, ...]
    num_processes: dict[str, int]  # of each configuration
    fingerprint_processes: int


def plan_and_preprocess(
    datasets: Sequence[str | int],
    configurations: Sequence[str] = ("3d_fullres",),
    preset: str | None = None,
    num_processes: int | Sequence[int] | None = None,
    plans_name: str | None = None,
    fingerprint_processes: int | None = None,
) -> Report:
    """Check, plan and preprocess datasets of nnUNet_raw.

    Args:
        datasets: names or ids.
        configurations: of `2d`, `3d_fullres`, `3d_lowres`, or of the plans named; one that a dataset's plans lack is
            noted.
        preset: name of a `plans/preset_<name>.json`; default: `default`.
        num_processes: worker processes, one number for all or one for each configuration; default: nnU-Net's, but not
            more than there are processors.
        plans_name: plans that are there, of any planner, to use as they are; None = plan by the preset.
        fingerprint_processes: worker processes that check the cases and take the fingerprint; default: the most
            of a configuration.

    Returns:
        Counts per dataset, and the problems of the quarantined cases.

    Raises:
        HSSLError: see `check_request`; disk full, a worker out of memory, or no dataset's plans have any of the
            configurations.
    """
    given = num_processes or default_processes()
    raw = check_request(datasets, configurations, preset, plans_name, given)  # all of them, before the first long step
    processes = _processes(configurations, given)
    chosen = load_preset(preset or DEFAULT_PRESET) if plans_name is None else None
    name = chosen.plans_name if chosen else str(plans_name)
    most = fingerprint_processes or max(processes.values())
    request = _Request(chosen, name, tuple(configurations), processes, most)
    reports = tuple(_one_dataset(dataset, request) for dataset in raw)
    lacking = [r.lacking for r in reports if r.lacking]
    if lacking and len(lacking) == len(reports):
        raise HSSLError(f"{'; '.join(lacking)}. Choose one of these with -c.")
    return Report(name, reports)


def _processes(configurations: Sequence[str], given: int | Sequence[int]) -> dict[str, int]:
    """Worker processes of each configuration, as nnU-Net's `-np` gives them."""
    numbers = [given] if isinstance(given, int) else given
    if len(numbers) not in (1, len(configurations)):
        raise HSSLError(
            f"Got {len(numbers)} numbers of processes, -np {' '.join(map(str, numbers))}, for {len(configurations)} "
            f"configuration(s), -c {' '.join(configurations)}. Give one number for all, or one for each."
        )
    each = numbers if len(numbers) == len(configurations) else [numbers[0]] * len(configurations)
    return dict(zip(configurations, each, strict=True))


def check_request(
    datasets: Sequence[str | int],
    configurations: Sequence[str],
    preset: str | None,
    plans_name: str | None,
    num_processes: int | Sequence[int] | None,
) -> list[RawDataset]:
    """Refuse what `plan_and_preprocess` would end at once with; returns the datasets' cases, no image is read.

    Raises:
        HSSLError: both a preset and plans, unknown preset or configuration, other numbers of processes than
            configurations, a missing or empty dataset, plans that a dataset does not have.
    """
    _processes(configurations, num_processes or 1)
    preprocessed_dir()  # not set is an error now, not after the first image
    if preset is not None and plans_name is not None:
        raise HSSLError(
            f"Got --preset {preset} and -p {plans_name}: a preset plans anew, -p uses plans that are there."
        )
    load_preset(preset or DEFAULT_PRESET)
    for configuration in configurations:
        if plans_name is None and configuration not in CONFIGURATIONS:
            raise unknown_name("configuration", configuration, CONFIGURATIONS)
    raw = [read_raw_dataset(d) for d in datasets]
    for dataset in raw:
        if plans_name is not None:
            _check_plans(dataset.name, plans_name)
    return raw


def _check_plans(dataset: str, plans_name: str) -> None:
    path = preprocessed_dir() / dataset / f"{plans_name}.json"
    command = plan_command(dataset, plans_name)
    if not path.is_file():
        there = ", ".join(p.stem for p in plans_in(path.parent))
        choice = f"It has {there}: name one with -p, or run" if there else "Run"
        raise HSSLError(f"{dataset} has no {path.name} in {path.parent}. {choice} `{command}` first.")
    own = read_plans(path, f"Repair it, or run `{command}` to write it anew.")["plans_name"]
    if own != path.stem:
        raise HSSLError(
            f'{path} calls itself `{own}`, as a copy of other plans does. Set `"plans_name": "{path.stem}"` in it.'
        )


def _one_dataset(dataset: RawDataset, request: _Request) -> DatasetReport:
    reader, processes = find_reader(dataset), request.fingerprint_processes
    problems, labelled, unlabelled = check_dataset(dataset, request.configurations, reader, processes)
    write_quarantine(dataset.name, problems)
    report = DatasetReport(dataset.name, tuple(problems), dataset.notes)
    planned_from = labelled if dataset.labelled else unlabelled
    if not planned_from:  # the list of problems says why
        return report
    path = preprocessed_dir() / dataset.name / f"{request.plans_name}.json"
    before = dated_plans(path.parent)
    with _explained(dataset.name), nnunet_sees(dataset, planned_from):
        with date_kept(path), _quiet():
            plan_dataset(dataset, planned_from, request.preset, reader, processes)
        plans = PlansManager(str(path))
        planned, lacking = _planned(path, plans, request)
        if lacking:
            report = replace(report, notes=(*report.notes, f"{lacking}."))
        if not planned:
            return replace(report, lacking=lacking)
        if dataset.labelled:
            _preprocess_labelled(dataset, labelled, plans, planned, request.num_processes, before)
    with _explained(dataset.name):
        for configuration in planned:
            _preprocess_unlabelled(dataset, unlabelled, plans, configuration, request.num_processes[configuration])
    return replace(report, labelled=len(labelled), unlabelled=len(unlabelled))


def _planned(path: Path, plans: PlansManager, request: _Request) -> tuple[list[str], str | None]:
    """The configurations of a request that the plans have, and which they lack."""
    there = [c for c in plans.available_configurations if request.preset is None or c in CONFIGURATIONS]
    missing = [c for c in request.configurations if c not in there]
    lacking = f"{path.stem} of {path.parent.name} have no {', '.join(missing)} (planned: {', '.join(there)})"
    return [c for c in request.configurations if c in there], lacking if missing else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the terminal what nnU-Net prints of its plans: pages, in which our few lines drown."""
    with redirect_stdout(io.StringIO()):
        yield


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
    dataset: RawDataset,
    cases: Sequence[Case],
    plans: PlansManager,
    configurations: Sequence[str],
    num_processes: Mapping[str, int],
    before: DatedPlans,
) -> None:
    """The files of nnU-Net's own preprocessing; cases that are done and current stay, so that a stopped run goes on.

    Until every case is there they lie in a folder of another name, for training would not notice that some lack.
    """
    for configuration in configurations:
        folder = preprocessed_dir() / dataset.name / plans.get_configuration(configuration).data_identifier
        unfinished = folder.with_name(f".{folder.name}{UNFINISHED}")
        made = recipe_of(plans, configuration)
        recipe = made | {"labels": dataset.dataset_json["labels"]}
        if folder.is_dir():
            remove_folder(unfinished)
            stock = not (folder / LABELLED_RECIPE_FILE).is_file()
            if stock and take_over(folder, cases, made, dataset.folder / "dataset.json", before):
                write_json(folder / LABELLED_RECIPE_FILE, recipe)
            folder.rename(unfinished)
        keep_only(unfinished, cases, recipe, unfinished / LABELLED_RECIPE_FILE)
        preprocess_cases(dataset, cases, plans, configuration, unfinished, num_processes[configuration])
        unfinished.rename(folder)
    with _quiet():
        preprocess_dataset(dataset_id(dataset.name), plans.plans_name, (), [1])  # copies the masks, no more


def _preprocess_unlabelled(
    dataset: RawDataset, cases: Sequence[Case], plans: PlansManager, configuration: str, num_processes: int
) -> None:
    identifier = plans.get_configuration(configuration).data_identifier
    folder = preprocessed_dir() / dataset.name / unlabelled_folder(identifier)
    keep_only(folder, cases, recipe_of(plans, configuration), folder / RECIPE_FILE)
    preprocess_cases(dataset, cases, plans, configuration, folder, num_processes)
