"""Who an image shows, and which images a person's exclusion takes out of a corpus.

Patients are compared by name across all domains: `STS_001` in a CT task and `STS_001` in an MR task are one person.
Where two datasets use the same names for different people, a rule says that one's patients are nobody else's:
`21=unique`, or a capture group of that name, `21=(?P<unique>.*)_`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hssl_nnunet.corpus.cases import dataset_id, datasets_called
from hssl_nnunet.errors import HSSLError

UNIQUE = "unique"
FORMS = "`case`, `dataset:case`, `patient:NAME` or `hash:CONTENT_HASH`"


@dataclass(frozen=True, slots=True)
class Subject:
    """What exclusion needs to know of a case: names, and the content hashes of its channels (none if unreadable)."""

    dataset_name: str
    case: str
    patient: str
    hashes: frozenset[str]


def parse_patient_regexes(texts: Sequence[str], dataset_names: Sequence[str]) -> dict[str, re.Pattern[str]]:
    r"""Parse `--patient_regex DATASET=REGEX`, for example `54=(.*)_` or `Dataset004_Hippocampus=hippocampus_\d+`.

    `DATASET=unique` stands for a regex that takes the whole name as that of a patient of this dataset alone.

    Returns:
        One pattern for each dataset that is named, by its full name.

    Raises:
        HSSLError: no `=`, a dataset that is not in the corpus or is named twice, or an invalid regex.
    """
    patterns: dict[str, re.Pattern[str]] = {}
    for text in texts:
        dataset, equals, regex = text.partition("=")
        name = find_dataset(dataset, dataset_names)
        if not equals or not regex or name is None:
            known = ", ".join(dataset_names)
            raise HSSLError(f"--patient_regex {text!r}: expected DATASET=REGEX with a dataset of the corpus ({known}).")
        if name in patterns:
            raise HSSLError(f"--patient_regex {text!r}: {name} has a regex already, {patterns[name].pattern!r}.")
        try:
            patterns[name] = re.compile(f"(?P<{UNIQUE}>.+)" if regex == UNIQUE else regex)
        except re.error as error:
            raise HSSLError(f"--patient_regex {text!r}: not a valid regular expression: {error}.") from None
    return patterns


def patient_of(case: str, dataset_name: str, patterns: Mapping[str, re.Pattern[str]]) -> str:
    """The patient of a case: what the dataset's regex finds in its name (first group, else all of it), else the name.

    A group called `unique` gives a name that no other dataset has, as `Dataset021_Thing:case_1`.

    Raises:
        HSSLError: the regex finds nothing, or an empty name.
    """
    pattern = patterns.get(dataset_name)
    if pattern is None:
        return case
    match = pattern.search(case)
    own = UNIQUE in pattern.groupindex
    patient = match[UNIQUE if own else 1 if pattern.groups else 0] if match else None
    if not patient:
        raise HSSLError(f"--patient_regex: {pattern.pattern!r} finds no patient in case '{case}' of {dataset_name}.")
    return f"{dataset_name}:{patient}" if own else patient


def find_dataset(text: str, dataset_names: Sequence[str]) -> str | None:
    """The one dataset that `text` means, see `cases.datasets_called`; None if there is none, or more than one."""
    found = datasets_called(text, dataset_names)
    return found[0] if len(found) == 1 else None


def shared_patients_note(subjects: Sequence[Subject]) -> list[str]:
    """A note on patients whose name occurs in several datasets, if there are any."""
    datasets: dict[str, dict[str, None]] = defaultdict(dict)
    for subject in subjects:
        datasets[subject.patient][subject.dataset_name] = None
    shared = {patient: list(names) for patient, names in datasets.items() if len(names) > 1}
    if not shared:
        return []
    patient, names = next(iter(shared.items()))
    return [
        f"{len(shared)} patient name(s) occur in several datasets, as {patient} in {' and '.join(names)}: each counts "
        f"as one person. Where they are not, add `--patient_regex {dataset_id(names[-1])}={UNIQUE}`."
    ]


def read_exclusions(path: str | Path) -> list[str]:
    """Lines of an exclusion file; `#` starts a comment, empty lines are skipped.

    Raises:
        HSSLError: the file cannot be read, or holds no line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HSSLError(f"--exclude {path}: cannot be read: {error}.") from None
    lines = [line for raw in text.splitlines() if (line := raw.partition("#")[0].strip())]
    if not lines:
        raise HSSLError(f"--exclude {path}: holds no line. Expected one of {FORMS} a line, or leave the option out.")
    return lines


def excluded_subjects(
    subjects: Sequence[Subject], lines: Sequence[str], source: str | Path | None, contents: Collection[str] = ()
) -> set[int]:
    """Indices of the subjects that `lines` exclude, or that show an image of `contents`, which need not occur.

    Whoever is excluded takes along every case of the same patient and every case that shares an image (the same
    content hash), in every domain, and these take along theirs in turn: nothing of an excluded person stays.

    Raises:
        HSSLError: lines that match no case, all of them listed, with the file that they come from (`source`).
    """
    names = sorted({s.dataset_name for s in subjects})
    index: dict[str, set[int]] = defaultdict(set)
    for i, subject in enumerate(subjects):
        for key in _keys(subject):
            index[key].add(i)
    hits = {line: index.get(_with_full_name(line, names), set()) for line in lines}
    idle = [line for line, found in hits.items() if not found]
    if idle:
        raise HSSLError(
            f"--exclude {source}: no case of the corpus matches {', '.join(map(repr, idle))}. "
            f"Expected {FORMS}, of {', '.join(names)}."
        )
    copies = {i for i, subject in enumerate(subjects) if not subject.hashes.isdisjoint(contents)}
    return _with_relatives(subjects, copies.union(*hits.values()))


def _keys(subject: Subject) -> list[str]:
    """The lines of an exclusion file that mean `subject`, datasets by their full name."""
    named = [subject.case, f"{subject.dataset_name}:{subject.case}", f"patient:{subject.patient}"]
    return named + [f"hash:{content_hash}" for content_hash in subject.hashes]


def _with_full_name(line: str, dataset_names: Sequence[str]) -> str:
    kind, colon, value = line.partition(":")
    dataset = find_dataset(kind, dataset_names) if colon and kind not in ("patient", "hash") else None
    return f"{dataset}:{value}" if dataset else line


def _with_relatives(subjects: Sequence[Subject], excluded: set[int]) -> set[int]:
    while True:
        patients = {subjects[i].patient for i in excluded}
        hashes = {h for i in excluded for h in subjects[i].hashes}
        grown = {i for i, s in enumerate(subjects) if s.patient in patients or s.hashes & hashes}
        if grown == excluded:
            return excluded
        excluded = grown
