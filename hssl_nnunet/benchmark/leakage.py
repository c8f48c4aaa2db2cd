"""No arm may have seen a test case: by name, by content, or by patient."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from hssl_nnunet.benchmark.data import measured
from hssl_nnunet.benchmark.plan import LEAKAGE_FILE, BenchmarkPlan, patterns_of
from hssl_nnunet.benchmark.records import LeakageCheck
from hssl_nnunet.benchmark.splits import DatasetSplit
from hssl_nnunet.corpus.patients import patient_of
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.transfer.leakage import seen_cases
from hssl_nnunet.transfer.weights_file import SeenImage, WeightsMetadata, read_metadata
from hssl_nnunet.typed_json import parse


def audit(
    weights: Mapping[tuple[str, str], Path],
    splits: Mapping[str, DatasetSplit],
    contents: Mapping[str, Mapping[str, list[str]]],
    patterns: Mapping[str, re.Pattern[str]],
) -> dict[str, list[str]]:
    """What weights that are there have seen of the test cases of the targets they are for, or of their patients.

    Weights that the benchmark pretrains itself are made without the test patients of its targets (`pretraining`), but a
    target may have come later. All are looked at once more before each run (`checked`).

    Args:
        weights: arm and target -> the weights file.
        splits: dataset name -> split, of every target.
        contents: dataset name -> case -> content hashes, see `data.Measured`.
        patterns: the benchmark's patient regexes by dataset name.

    Returns:
        Arm -> what overlaps, as `Dataset:case`; empty for an arm without an overlap.
    """
    read = {path: read_metadata(path) for path in weights.values()}
    found: dict[str, list[str]] = {}
    for (arm, name), path in weights.items():
        found.setdefault(arm, []).extend(overlap(read[path], name, splits[name], contents[name], patterns))
    return found


def read_findings(folder: Path) -> dict[str, list[str]]:
    """What the audits of a benchmark's runs have found, as `audit` tells it; empty before the first."""
    path = folder / LEAKAGE_FILE
    return parse(dict[str, list[str]], read_json(path), path) if path.is_file() else {}


def with_earlier(
    audited: Mapping[str, list[str]], earlier: Mapping[str, list[str]], pairs: Collection[tuple[str, str]]
) -> dict[str, list[str]]:
    """An audit of arms on targets (`pairs`), with what earlier ones found of others.

    An arm whose weights are gone is free again: it will be pretrained anew, or its file is missed.
    """
    found = {arm: list(cases) for arm, cases in audited.items()}
    for arm, cases in earlier.items():
        others = [case for case in cases if (arm, case.partition(":")[0]) not in pairs]
        found[arm] = others + found.get(arm, [])
    return found


def refused_arms(plan: BenchmarkPlan, findings: Mapping[str, list[str]]) -> dict[tuple[str, str], list[str]]:
    """Arms, each with a target whose test cases its weights, or those of the arm it builds on, have seen, and which."""
    refused: dict[tuple[str, str], list[str]] = {}
    for arm in plan.arms:
        source = plan.source(arm)
        sources = (source, plan.arms[source].continues or source)
        for seen in dict.fromkeys(case for name in sources for case in findings.get(name, ())):
            refused.setdefault((arm, seen.partition(":")[0]), []).append(seen)
    return refused


def checked(plan: BenchmarkPlan, weights: Path, dataset_name: str, split: DatasetSplit) -> LeakageCheck:
    """Check that weights have seen no test case of a target, nor its patient, nor a copy under another name.

    Returns:
        What was compared.

    Raises:
        HSSLError: they have.
    """
    metadata, data = read_metadata(weights), measured(plan, [dataset_name])[dataset_name]
    if seen := overlap(metadata, dataset_name, split, data.contents, patterns_of(plan)):
        raise HSSLError(
            f"{weights} was pretrained on test cases or patients of {dataset_name}: {', '.join(seen)}. Leave copies "
            "out of the domains, or start a benchmark in another folder with `-o`."
        )
    images = None if metadata.images is None else len(metadata.images)
    return LeakageCheck(images=images, test_cases=len(split.kept_out))


def overlap(
    metadata: WeightsMetadata,
    dataset_name: str,
    split: DatasetSplit,
    contents: Mapping[str, list[str]],
    patterns: Mapping[str, re.Pattern[str]],
) -> list[str]:
    """Test cases of a target that a pretraining has seen, as `Dataset:case`.

    Args:
        metadata: what the weights were learned from.
        dataset_name: the target.
        split: its split.
        contents: case -> content hashes of its channels.
        patterns: the benchmark's patient regexes by dataset name; the weights' own may have been others.
    """
    patients = {name for image in metadata.images or () for name in _patients(image, patterns)}
    seen = set(seen_cases(metadata, dataset_name, split.kept_out, contents))
    seen |= {case for case in split.kept_out if names_of(split, dataset_name, case, patterns) & patients}
    return [f"{dataset_name}:{case}" for case in sorted(seen)]


def names_of(split: DatasetSplit, dataset_name: str, case: str, patterns: Mapping[str, re.Pattern[str]]) -> set[str]:
    """Names of a case's patient: the split's, which copies of one image share, and its own."""
    return {split.patients[case], patient_of(case, dataset_name, patterns)}


def _patients(image: SeenImage, patterns: Mapping[str, re.Pattern[str]]) -> set[str]:
    """Who an image shows, by the weights' naming and by the benchmark's."""
    try:
        return {image.patient, patient_of(image.case, image.dataset_name, patterns)}
    except HSSLError:  # another dataset of this name, whose cases the regex does not know
        return {image.patient}
