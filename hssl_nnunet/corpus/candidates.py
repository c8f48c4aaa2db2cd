"""From raw cases and preprocessed files to the images of a corpus: measured, excluded, every image once."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hssl_nnunet.corpus.cases import Case, RawDataset, changed_at, dataset_id
from hssl_nnunet.corpus.domain_plans import Source
from hssl_nnunet.corpus.fingerprint import CACHE_FILE, BadImage, ImageFingerprint, Result, fingerprint_files
from hssl_nnunet.corpus.integrity import QUARANTINE_FILE, Problem, channel_finding, read_quarantine
from hssl_nnunet.corpus.modality import modality_of
from hssl_nnunet.corpus.patients import Subject, excluded_subjects, patient_of, read_exclusions
from hssl_nnunet.errors import listed
from hssl_nnunet.paths import preprocessed_dir, unlabelled_folder
from hssl_nnunet.remedies import preprocess_command

Measured = Mapping[str, Result]
Quarantine = Mapping[str, tuple[list[Problem], bool]]
NOT_PREPROCESSED = "not preprocessed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A raw case, before it is admitted.

    Attributes:
        domain: index of its source.
        dataset_name: name of its source.
        case: its files.
        patient: the person.
        labelled: whether it was preprocessed with a mask.
        preprocessed: its `.b2nd` file relative to `nnUNet_preprocessed`.
        channels: its channels that could be measured.
        problems: why it cannot be used; empty = it can.
    """

    domain: int
    dataset_name: str
    case: Case
    patient: str
    labelled: bool
    preprocessed: str
    channels: tuple[ImageFingerprint, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """One channel of a candidate that the corpus takes."""

    candidate: Candidate
    channel: int
    fingerprint: ImageFingerprint
    modality: str

    @property
    def label(self) -> str:
        """Name for messages."""
        return f"{self.candidate.case.name} channel {self.channel}"


def measured_candidates(
    domain: int, source: Source, patterns: Mapping[str, re.Pattern[str]], num_processes: int
) -> list[Candidate]:
    """All raw cases of a domain, the source of that index, measured; those already measured are not read again.

    Raises:
        HSSLError: a case's name does not match the dataset's patient regex.
    """
    dataset = source.dataset
    patients = [patient_of(case.name, dataset.name, patterns) for case in dataset.cases]  # fails before images are read
    files = [str(image) for case in dataset.cases for image in case.images]
    cache_file = preprocessed_dir() / dataset.name / CACHE_FILE
    measured = fingerprint_files(files, cache_file=cache_file, num_processes=num_processes)
    quarantine = _quarantine(dataset)
    return [
        _candidate(domain, source, case, patient, measured, quarantine)
        for case, patient in zip(dataset.cases, patients, strict=True)
    ]


def _quarantine(dataset: RawDataset) -> Quarantine:
    """By file, for a name may occur in imagesTr and in imagesTs: its problems, and whether they may be repaired since.

    A file that was added, removed or renamed changes its folder: what was wrong may have been wrong beside that one.
    """
    problems: dict[str, list[Problem]] = defaultdict(list)
    for problem in read_quarantine(dataset.name):
        problems[problem.file].append(problem)
    if not problems:
        return {}
    written = (preprocessed_dir() / dataset.name / QUARANTINE_FILE).stat().st_mtime
    around = [dataset.folder / name for name in ("dataset.json", "imagesTr", "imagesTs", "labelsTr")]
    touched = any(changed_at(p) > written for p in around if p.exists())
    newer = {f for f in problems if touched or (Path(f).exists() and changed_at(Path(f)) > written)}
    return {file: ([] if file in newer else found, file in newer) for file, found in problems.items()}


def _candidate(
    domain: int, source: Source, case: Case, patient: str, measured: Measured, quarantine: Quarantine
) -> Candidate:
    name, identifier = source.dataset.name, source.configuration["data_identifier"]
    folder = unlabelled_folder(identifier) if case.mask is None else identifier
    preprocessed = str(PurePosixPath(name, folder, f"{case.name}.b2nd"))
    results = [measured[str(file)] for file in case.images]
    held = [quarantine[str(file)] for file in case.files if str(file) in quarantine]
    bad = [p for problems, _ in held for p in problems]
    outdated = any(newer for _, newer in held)
    return Candidate(
        domain=domain,
        dataset_name=name,
        case=case,
        patient=patient,
        labelled=case.mask is not None,
        preprocessed=preprocessed,
        channels=tuple(c for result in results if not isinstance(result, BadImage) for c in result),
        problems=tuple(bad or _problems(source, case, results, preprocessed, outdated)),
    )


def _problems(
    source: Source, case: Case, results: Sequence[Result], preprocessed: str, outdated: bool
) -> list[Problem]:
    """The nearest cause why a case that is not in quarantine, or repaired since, cannot be used, or nothing."""
    name = source.dataset.name
    unreadable = [r for r in results if isinstance(r, BadImage)]
    if unreadable:
        remedy = "Repair or remove the file, then preprocess again."
        return [Problem(name, case.name, bad.file, f"the image {bad.reason}", remedy) for bad in unreadable]
    found, expected = sum(map(len, results)), len(source.dataset.dataset_json["channel_names"])
    if found != expected:
        return [Problem(name, case.name, str(case.images[0]), *channel_finding(found, expected))]
    path = preprocessed_dir() / preprocessed
    if outdated or not path.is_file():
        command = preprocess_command(dataset_id(name), source.plans_name, source.configuration_name)
        return [Problem(name, case.name, str(path), NOT_PREPROCESSED, f"Run `{command}`.")]
    return []


def joined_problems(problems: Iterable[Problem]) -> list[Problem]:
    """Problems in their order; the cases of a dataset that only lack preprocessing share one: one command helps all."""
    groups: dict[object, list[Problem]] = defaultdict(list)
    for number, problem in enumerate(problems):
        groups[problem.dataset if problem.what == NOT_PREPROCESSED else number].append(problem)
    return [_joined(group) for group in groups.values()]


def _joined(problems: Sequence[Problem]) -> Problem:
    if len(problems) == 1:
        return problems[0]
    return replace(problems[0], case=listed([p.case for p in problems]), file=str(Path(problems[0].file).parents[1]))


def subjects_of(candidates: Sequence[Candidate]) -> list[Subject]:
    """Who each candidate shows, and the content of its channels."""
    return [
        Subject(c.dataset_name, c.case.name, c.patient, frozenset(f.content_hash for f in c.channels))
        for c in candidates
    ]


def without_excluded(
    candidates: Sequence[Candidate], exclude_file: str | Path | None, contents: Collection[str] = ()
) -> tuple[list[Candidate], list[str]]:
    """Candidates that an exclusion file and content hashes leave, and one note for each domain that loses cases.

    Raises:
        HSSLError: the file cannot be read, or has lines that match nothing.
    """
    subjects = subjects_of(candidates)
    lines = read_exclusions(exclude_file) if exclude_file is not None else []
    excluded = excluded_subjects(subjects, lines, exclude_file, contents)
    gone: dict[str, list[str]] = defaultdict(list)
    for index in sorted(excluded):
        gone[candidates[index].dataset_name].append(candidates[index].case.name)
    what = exclude_file or "Exclusion by content"
    notes = [f"{what} takes {len(c)} case(s) out of {name}: {', '.join(c)}." for name, c in gone.items()]
    return [c for index, c in enumerate(candidates) if index not in excluded], notes


def images_of(candidates: Sequence[Candidate], sources: Sequence[Source]) -> list[Image]:
    """The channels of all candidates without a problem."""
    images = []
    for candidate in (c for c in candidates if not c.problems):
        channel_names = sources[candidate.domain].dataset.dataset_json["channel_names"]
        names = [channel_names[key] for key in sorted(channel_names, key=int)]
        channels = zip(candidate.channels, names, strict=True)
        images += [Image(candidate, i, f, modality_of(n)) for i, (f, n) in enumerate(channels)]
    return images


def without_duplicates(images: Sequence[Image]) -> tuple[list[Image], list[str]]:
    """The first image of each content hash, and one note for each pair of domains that share images."""
    kept: dict[str, Image] = {}
    copies: dict[tuple[str, str], list[str]] = defaultdict(list)
    for image in images:
        first = kept.setdefault(image.fingerprint.content_hash, image)
        if first is not image:
            pair = image.candidate.dataset_name, first.candidate.dataset_name
            copies[pair].append(f"{image.label} (= {first.label})")
    notes = [
        f"{len(labels)} image(s) of {copy} are copies of images of {original} and were left out: {', '.join(labels)}."
        for (copy, original), labels in copies.items()
    ]
    return list(kept.values()), notes


def orphan_notes(sources: Sequence[Source], candidates: Sequence[Candidate]) -> list[str]:
    """One note for each domain that has preprocessed cases without a raw image, which cannot be measured."""
    known = {c.preprocessed for c in candidates}
    notes = []
    for source in sources:
        name, identifier = source.dataset.name, source.configuration["data_identifier"]
        folders = [preprocessed_dir() / name / folder for folder in (identifier, unlabelled_folder(identifier))]
        files = [f for folder in folders for f in sorted(folder.glob("*.b2nd")) if not f.stem.endswith("_seg")]
        orphans = [f.stem for f in files if f.relative_to(preprocessed_dir()).as_posix() not in known]
        if orphans:
            notes.append(
                f"{len(orphans)} preprocessed case(s) of {name} have no raw image and were left out: "
                f"{', '.join(orphans)}."
            )
    return notes
