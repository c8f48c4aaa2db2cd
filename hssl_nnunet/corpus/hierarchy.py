"""Groups of domains: from the user's file, from the table of the MSD tasks, or derived from the fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.cluster import AgglomerativeClustering

from hssl_nnunet.corpus.cases import datasets_called
from hssl_nnunet.corpus.manifest import SEPARATOR
from hssl_nnunet.corpus.summary import DomainFingerprint
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.paths import plans_dir
from hssl_nnunet.typed_json import STRICT, parse

MSD_FILE = "hierarchy_msd.json"
# Domains of one derived group differ by less than this (see `_features`): about a factor e in one size
LARGEST_DISTANCE = 1.0
REMEDY = 'Write one as {"groups": {"Dataset004_Hippocampus": ["brain", "MR"]}}, or leave --hierarchy out.'

Groups = tuple[str, ...]
GroupName = Annotated[str, Field(min_length=1, pattern=f"^[^{SEPARATOR}]+$")]


@dataclass(frozen=True, kw_only=True, slots=True)
class HierarchyFile:
    """A hierarchy as JSON, for `hssl corpus --hierarchy FILE`.

    Example:
        {"groups": {"Dataset004_Hippocampus": ["brain", "MR"], "54": ["heart", "MR"], "SarcomaCT": ["limb", "CT"]}}

    Attributes:
        groups: for each dataset (`Dataset004_Hippocampus`, its id `4`, or the part after `DatasetXXX_`, in any case)
            the names of its groups, from the finest level to the coarsest; the same number of levels for all. Group
            names hold no `;`. The file may name only datasets of the corpus, and must name all of them.
        description: free text.
    """

    groups: Annotated[dict[str, Annotated[tuple[GroupName, ...], Field(min_length=1)]], Field(min_length=1)]
    description: str = ""

    __pydantic_config__ = STRICT


def build_hierarchy(
    domains: Mapping[str, DomainFingerprint],
    hierarchy_file: str | Path | None = None,
    by_hand: Mapping[str, Groups] | None = None,
) -> tuple[dict[str, Groups], list[str]]:
    """Groups of each domain, finest level first, and notes for the user.

    Without a file, domains that are MSD tasks (by name, when their modality is the table's) take the groups of
    `plans/hierarchy_msd.json`; the groups of the others are derived from the fingerprint. Both have two levels: a
    group within a modality, and the modality.

    Args:
        domains: fingerprint of each dataset, by its full name.
        hierarchy_file: see `HierarchyFile`.
        by_hand: groups that a person has given to some of them before; a file goes before these.

    Raises:
        HSSLError: the file is wrong, names a dataset that is not in the corpus, or lacks one that is; or the groups by
            hand have other levels than those of the others.
    """
    if hierarchy_file is not None:
        groups = read_hierarchy(hierarchy_file, list(domains))
        return groups, _uninformative_levels(groups)
    known, notes = _msd_groups(domains)
    derived = derive_groups({name: f for name, f in domains.items() if name not in known})
    given = by_hand or {}  # laid over the others, which are as they would be without
    groups = {name: given.get(name) or known.get(name) or derived[name] for name in domains}
    levels = {name: len(g) for name, g in groups.items()}
    if len(set(levels.values())) > 1:
        raise HSSLError(
            f"The corpus that is there has groups given by hand, for {', '.join(given)}; beside those of the other "
            f"datasets the numbers of levels differ: {levels}. Give the groups of all with --hierarchy FILE."
        )
    return groups, notes + _uninformative_levels(groups)


def read_hierarchy(path: str | Path, dataset_names: Sequence[str]) -> dict[str, Groups]:
    """Read a `HierarchyFile` that must name exactly `dataset_names`.

    Raises:
        HSSLError: datasets are unknown, missing or named twice, or their numbers of levels differ; all are listed.
    """
    file = parse(HierarchyFile, read_json(path, REMEDY), path, REMEDY)
    found = {key: datasets_called(key, dataset_names) for key in file.groups}
    hits = [name for names in found.values() for name in names]
    faults = {
        "not in the corpus": [key for key, names in found.items() if not names],
        "ambiguous": [key for key, names in found.items() if len(names) > 1],
        "missing": [name for name in dataset_names if name not in hits],
        "named twice": sorted({name for name in hits if hits.count(name) > 1}),
    }
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
    if told:
        raise HSSLError(f"{path}: {told}. The corpus has {', '.join(dataset_names)}.")
    levels = {key: len(groups) for key, groups in file.groups.items()}
    if len(set(levels.values())) > 1:
        raise HSSLError(f"{path}: every dataset needs the same number of group levels, got {levels}.")
    return {names[0]: file.groups[key] for key, names in found.items()}


def _msd_groups(domains: Mapping[str, DomainFingerprint]) -> tuple[dict[str, Groups], list[str]]:
    path = plans_dir() / MSD_FILE
    table = {key.lower(): groups for key, groups in parse(HierarchyFile, read_json(path), path).groups.items()}
    groups, notes = {}, []
    for dataset_name, fingerprint in domains.items():
        entry = table.get(dataset_name.partition("_")[2].lower())
        if entry is None:
            continue
        if entry[-1] == fingerprint.modality:
            groups[dataset_name] = entry
        else:  # for example a dataset of liver MR that is also called Liver
            notes.append(
                f"{dataset_name} is called like an MSD task of modality {entry[-1]}, but its channels are "
                f"{fingerprint.modality}: its groups were derived from its images."
            )
    return groups, notes


def derive_groups(domains: Mapping[str, DomainFingerprint]) -> dict[str, Groups]:
    """Two levels from the fingerprint: a cluster of similar domains within a modality, and the modality.

    Clusters come from complete linkage, hence any two domains of a cluster are nearer than `LARGEST_DISTANCE` and the
    order of the domains only decides how clusters are numbered: `MR 1.0mm #1` (geometric mean of the members'
    spacings, number within the modality).
    """
    groups: dict[str, Groups] = {}
    for modality in sorted({f.modality for f in domains.values()}):
        members = {name: f for name, f in domains.items() if f.modality == modality}
        for number, cluster in enumerate(_clusters(members), start=1):
            spacings = [domains[name].spacing_mm.median for name in cluster]
            label = f"{modality} {np.exp(np.log(spacings).mean()):.1f}mm #{number}"
            groups.update(dict.fromkeys(cluster, (label, modality)))
    return groups


def _clusters(domains: Mapping[str, DomainFingerprint]) -> list[list[str]]:
    """Clusters of domains in the order of their first members."""
    names = list(domains)
    if len(names) == 1:
        return [names]
    clustering = AgglomerativeClustering(n_clusters=None, distance_threshold=LARGEST_DISTANCE, linkage="complete")
    labels = clustering.fit_predict(np.stack([_features(domains[name]) for name in names])).tolist()
    return [[n for n, other in zip(names, labels, strict=True) if other == label] for label in dict.fromkeys(labels)]


def _features(domain: DomainFingerprint) -> NDArray[np.float64]:
    """Nine numbers that say what a domain looks like, so that the Euclidean distance 1 is a factor e in one size.

    Natural logarithms of the finest and coarsest spacing and of the smallest and largest field of view (medians over
    images; independent of the order of axes), then the inner intensity percentiles as shares of the outer range.
    """
    sizes = [f(m) for m in (domain.spacing_mm.median, domain.field_of_view_mm.median) for f in (min, max)]
    percentiles = np.array(domain.percentiles.median)
    span = percentiles[-1] - percentiles[0]
    shape = (percentiles[1:-1] - percentiles[0]) / (span if span > 0 else 1.0)
    return np.concatenate([np.log(sizes), shape])


def _uninformative_levels(groups: Mapping[str, Groups]) -> list[str]:
    notes = []
    for level, members in enumerate(zip(*groups.values(), strict=True)):
        if len(set(members)) in (1, len(members)):
            fact = "all domains are in one group" if len(set(members)) == 1 else "every domain is alone in its group"
            notes.append(f"Group level {level} carries no information: {fact} ({', '.join(dict.fromkeys(members))}).")
    return notes
