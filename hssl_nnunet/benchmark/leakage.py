"""No arm may have seen a test case: by name, by content, or by patient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hssl_nnunet.benchmark.splits import DatasetSplit
from hssl_nnunet.benchmark.workspace import BenchmarkPlan
from hssl_nnunet.corpus.candidates import measured_candidates
from hssl_nnunet.corpus.domain_plans import read_sources
from hssl_nnunet.corpus.fingerprint import worker_pool
from hssl_nnunet.corpus.parallel import default_processes
from hssl_nnunet.corpus.patients import parse_patient_regexes
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.transfer.leakage import seen_cases
from hssl_nnunet.transfer.weights_file import WeightsMetadata, read_metadata


def audit(plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit]) -> dict[str, list[str]]:
    """Arms whose weights file has seen a test case of a target or one of its patients.

    This is about files that come from elsewhere; weights that the benchmark pretrains itself are made without test
    patients (`pretraining`). Both are looked at once more before each run (`refuse_leaks`). Test images are measured
    for it, unless they have been before.

    Returns:
        Arm -> what overlaps, as `Dataset:case`; arms without an overlap are left out.
    """
    given = {name: Path(arm.weights_file) for name, arm in plan.arms.items() if arm.weights_file is not None}
    if not given:
        return {}
    hashes = _test_hashes(plan, {name: splits[name] for name in plan.datasets})
    found = {name: overlap(read_metadata(path), splits, hashes) for name, path in given.items()}
    return {name: cases for name, cases in found.items() if cases}


def refuse_leaks(plan: BenchmarkPlan, weights: Path, dataset_name: str, split: DatasetSplit) -> None:
    """Check that weights have seen no test case of a target, nor its patient, nor a copy under another name.

    Raises:
        HSSLError: they have.
    """
    splits = {dataset_name: split}
    if seen := overlap(read_metadata(weights), splits, _test_hashes(plan, splits)):
        raise HSSLError(
            f"{weights} was pretrained on test cases or patients of {dataset_name}: {', '.join(seen)}. Leave copies "
            "out of the domains, or start a benchmark in another folder with `-o`."
        )


def overlap(
    metadata: WeightsMetadata, splits: Mapping[str, DatasetSplit], hashes: Mapping[str, Mapping[str, list[str]]]
) -> list[str]:
    """Test cases that a pretraining has seen.

    Args:
        metadata: what the weights were learned from.
        splits: dataset name -> split.
        hashes: dataset name -> test case -> content hashes of its channels.
    """
    patients = {image.patient for image in metadata.images}
    seen = []
    for name, split in splits.items():
        cases = set(seen_cases(metadata, name, split.kept_out, hashes.get(name, {})))
        cases |= {case for case in split.kept_out if split.patients[case] in patients}
        seen += [f"{name}:{case}" for case in sorted(cases)]
    return seen


def _test_hashes(plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit]) -> dict[str, dict[str, list[str]]]:
    sources = read_sources(list(splits), plan.plans_name, plan.configuration)
    names = [*plan.datasets, *(d for d in plan.domains if d not in plan.datasets)]
    patterns = parse_patient_regexes(plan.patient_regex, names)
    hashes: dict[str, dict[str, list[str]]] = {}
    with worker_pool(default_processes()) as mapper:
        for index, source in enumerate(sources):
            kept_out = set(splits[source.dataset.name].kept_out)
            candidates = measured_candidates(index, source, patterns, mapper)
            hashes[source.dataset.name] = {
                c.case.name: [f.content_hash for f in c.channels] for c in candidates if c.case.name in kept_out
            }
    return hashes
