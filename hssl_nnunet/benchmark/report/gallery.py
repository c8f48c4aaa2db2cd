"""The section of cases: for each dataset the test cases worth a look, as pictures where the files are there."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from hssl_nnunet.benchmark.plan import CASES_FILE
from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.report.cases import Choice, choose, draw_slice, read_slice
from hssl_nnunet.benchmark.report.content import CaseFiles, Content
from hssl_nnunet.benchmark.report.wording import METHOD, points, signed
from hssl_nnunet.benchmark.statistics import BASELINES


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture inside the page.

    Attributes:
        uri: a data URI.
        alt: what it shows.
        title: the arm, with the target's name where each has its own.
    """

    uri: str
    alt: str
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A test case.

    Attributes:
        choice: which case, and why.
        told: its Dice with both arms, as text.
        where: the slice that is shown.
        pictures: of the method and of the baseline; empty when a file is missing.
        missing: why there is no picture.
    """

    choice: Choice
    told: str
    where: str = ""
    pictures: tuple[Picture, ...] = ()
    missing: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The cases of one dataset at its smallest budget and seed.

    Attributes:
        dataset_name: the dataset.
        budget: its smallest label budget with both arms.
        seed: the seed of both runs.
        baseline: the arm that the method is held against.
        cards: worst, median and best case.
    """

    dataset_name: str
    budget: str
    seed: int
    baseline: str
    cards: tuple[Card, ...]


def galleries(content: Content) -> list[Gallery]:
    """One gallery for each dataset that has the method and a baseline on one seed."""
    return [g for g in (_gallery(content, name) for name in content.datasets) if g is not None]


def _gallery(content: Content, dataset_name: str) -> Gallery | None:
    for budget in content.budgets(dataset_name):
        ours = {r.seed: r for r in content.of(dataset_name, budget, METHOD)}
        for baseline in BASELINES:
            theirs = {r.seed: r for r in content.of(dataset_name, budget, baseline)}
            if shared := sorted(ours.keys() & theirs.keys()):
                pair = ours[shared[0]], theirs[shared[0]]
                cards = tuple(_card(content, choice, *pair) for choice in choose(*(r.case_dice for r in pair)))
                return Gallery(dataset_name=dataset_name, budget=budget, seed=shared[0], baseline=baseline, cards=cards)
    return None


def _card(content: Content, choice: Choice, ours: RunRecord, theirs: RunRecord) -> Card:
    difference = signed(100 * (choice.first - choice.second))
    told = f"{ours.arm} {points(100 * choice.first)}, {theirs.arm} {points(100 * choice.second)} ({difference})"
    files = content.cases.get(ours.dataset_name, {}).get(choice.case)
    if files is None:
        return Card(choice=choice, told=told, missing=f"{CASES_FILE} does not name this case")
    try:
        shown = read_slice(*_paths(content.folder, files, choice.case, ours, theirs))
    except ValueError as error:
        return Card(choice=choice, told=told, missing=str(error).replace(f"{content.folder}/", ""))
    pictures = []
    for place, (record, dice) in enumerate(((ours, choice.first), (theirs, choice.second)), start=1):
        alt = f"{choice.case}, {shown.where}: contours of the truth and of {record.arm}, Dice {points(100 * dice)}"
        pictures.append(Picture(uri=data_uri(draw_slice(shown, prediction=place)), alt=alt, title=record.arm))
    return Card(choice=choice, told=told, where=shown.where, pictures=tuple(pictures))


def _paths(folder: Path, files: CaseFiles, case: str, *records: RunRecord) -> tuple[Path, Path, Path, Path]:
    truth = Path(files.truth)
    name = truth.name if truth.name.startswith(case) else case + "".join(truth.suffixes)  # the dataset's file ending
    first, second = (record.predictions(folder) / name for record in records)
    return folder / files.image, folder / files.truth, first, second


def embeddings(content: Content) -> list[Picture]:
    """The embedding that each pretraining has drawn beside its weights, the method's first."""
    pictures = []
    for name, pretraining in sorted(content.pretraining.items(), key=lambda item: item[0] != METHOD):
        path = (content.folder / pretraining.weights).with_name("embeddings.png")
        if pretraining.weights and path.is_file():
            alt = f"Embedding of images in a plane ({name}): one point an image, coloured by domain and by group"
            pictures.append(Picture(uri=data_uri(path.read_bytes()), alt=alt, title=name))
    return pictures


def data_uri(png: bytes) -> str:
    """A PNG inside an attribute."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
