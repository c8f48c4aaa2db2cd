"""`hssl corpus`: many preprocessed datasets become one corpus, an nnU-Net dataset that holds no images of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from hssl_nnunet.corpus.candidates import (
    Image,
    images_of,
    joined_problems,
    measured_candidates,
    orphan_notes,
    subjects_of,
    without_duplicates,
    without_excluded,
)
from hssl_nnunet.corpus.cases import dataset_id, folders_of_id
from hssl_nnunet.corpus.domain_plans import Source, corpus_plans, read_sources
from hssl_nnunet.corpus.former import former_corpus, kept_groups, kept_pretraining, weights_note
from hssl_nnunet.corpus.hierarchy import Groups, build_hierarchy
from hssl_nnunet.corpus.integrity import EXIT_QUARANTINED, Problem
from hssl_nnunet.corpus.manifest import MANIFEST
from hssl_nnunet.corpus.patients import parse_patient_regexes, shared_patients_note
from hssl_nnunet.corpus.summary import DomainFingerprint
from hssl_nnunet.corpus.writing import summaries, write_corpus
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import DATASET_WORDS, preprocessed_dir, raw_dir
from hssl_nnunet.plan_schema import CorpusBlock, DomainPlan, preset_of_plans
from hssl_nnunet.plan_values import PretrainingPlan
from hssl_nnunet.remedies import preprocess_command


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """What `build_corpus` wrote, and what the user should know of it.

    Attributes:
        dataset_name: name of the corpus.
        folder: its folder in `nnUNet_preprocessed`.
        block: the `hssl` block of its plans.
        fingerprints: one a domain, in the order of `block.domains`.
        problems: cases that could not be used.
        notes: exclusions, duplicates, patients in several datasets, what was kept of the corpus before, and levels of
            the hierarchy that tell nothing.
        configuration: configuration of the domains.
    """

    dataset_name: str
    folder: Path
    block: CorpusBlock
    fingerprints: tuple[DomainFingerprint, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    configuration: str

    @property
    def repair_command(self) -> str:
        """What preprocesses the datasets that have problems once these are repaired."""
        datasets = [dataset_id(name) for name in dict.fromkeys(p.dataset for p in self.problems)]
        return preprocess_command(datasets, self.block.domains[0].plans_name, self.configuration)

    @property
    def exit_code(self) -> int:
        """0, or 3 when cases had to be left out."""
        return EXIT_QUARANTINED if self.problems else 0


def build_corpus(
    datasets: Sequence[str | int],
    output_id: int,
    name: str = "Corpus",
    *,
    plans_name: str | None = None,
    configuration: str = "3d_fullres",
    hierarchy_file: str | Path | None = None,
    exclude_file: str | Path | None = None,
    exclude_contents: Collection[str] = (),
    patient_regex: Sequence[str] = (),
    num_processes: int = 1,
    pretraining_overrides: Mapping[str, Any] | None = None,
    regroup: Callable[[Mapping[str, Groups]], Mapping[str, Groups]] | None = None,
    overwrite: bool = False,
) -> CorpusReport:
    r"""Build `nnUNet_preprocessed/DatasetNNN_Name` from datasets that are preprocessed; no voxel is copied.

    Args:
        datasets: ids or names of the domains, in the order they get in the corpus.
        output_id: dataset id of the corpus.
        name: name of the corpus.
        plans_name: plans file that every domain has, and the corpus gets; None = see `read_sources`.
        configuration: configuration of these plans that every domain was preprocessed for.
        hierarchy_file: see `hierarchy.HierarchyFile`; None = MSD table, else derived.
        exclude_file: see `patients.excluded_subjects`.
        exclude_contents: content hashes of images that no domain may show, nor another image of such a patient.
        patient_regex: `DATASET=REGEX` for each dataset whose case names are not its patients, as `54=(.*)_`.
        num_processes: processes that read raw images.
        pretraining_overrides: values of `PretrainingPlan` that differ from the preset's; nested keys merge.
        regroup: makes other groups of the hierarchy's, by dataset name; None leaves them.
        overwrite: replace an existing corpus of the same name. Plan values that are not its preset's and groups that
            were given by hand stay where this call gives none, and a note names them.

    Raises:
        HSSLError: wrong input; nothing has been written then.
    """
    dataset_name = _free_dataset_name(output_id, name, overwrite)
    sources = read_sources(datasets, plans_name, configuration)
    body = max(sources, key=lambda s: s.n_stages)  # the first of the deepest
    folder = preprocessed_dir() / dataset_name
    former = former_corpus(folder, body.plans_name)
    pretraining, value_notes = kept_pretraining(former, preset_of_plans(body.plans), pretraining_overrides)
    patterns = parse_patient_regexes(patient_regex, [s.dataset.name for s in sources])
    images, problems, notes = _admitted(sources, patterns, exclude_file, exclude_contents, num_processes)
    fingerprints = summaries(images, [s.dataset.name for s in sources])
    derived, _ = build_hierarchy(fingerprints)
    by_hand, hand_notes = kept_groups(None if hierarchy_file else former, derived)
    hierarchy, group_notes = build_hierarchy(fingerprints, hierarchy_file, by_hand)
    groups = regroup(hierarchy) if regroup else hierarchy
    block = _block(sources, fingerprints, groups, pretraining)
    if former is not None:
        block = replace(block, weights=former.block.weights, weights_sha256=former.block.weights_sha256)
    plans = corpus_plans(dataset_name, body, block)
    write_corpus(folder, plans, body, images, fingerprints, groups, derived)
    told = (*notes, *value_notes, *weights_note(former), *hand_notes, *group_notes)
    return CorpusReport(dataset_name, folder, block, tuple(fingerprints.values()), tuple(problems), told, configuration)


def corpus_table(report: CorpusReport) -> Table:
    """One line a domain: spacing, anisotropy, patch, stages, groups, images."""
    table = Table(title=report.dataset_name)
    for header in ("domain", "spacing (mm)", "anisotropy", "patch", "stages", "groups", "images"):
        table.add_column(header, justify="right" if header in ("anisotropy", "stages", "images") else "left")
    for domain, fingerprint in zip(report.block.domains, report.fingerprints, strict=True):
        table.add_row(
            domain.dataset_name,
            " / ".join(f"{s:.3g}" for s in domain.spacing),
            f"{fingerprint.anisotropy.median[0]:.1f}",
            " x ".join(map(str, domain.patch_size)),
            str(domain.architecture["arch_kwargs"]["n_stages"]),
            ", ".join(domain.groups),
            str(domain.num_images),
        )
    return table


def _free_dataset_name(output_id: int, name: str, overwrite: bool) -> str:
    """Full name of the corpus, after a check that its id is free or its own."""
    if not 1 <= output_id <= 999 or not DATASET_WORDS.fullmatch(name):
        raise HSSLError(
            f"-o {output_id} -n {name!r}: expected an id from 1 to 999 and a name of letters, digits, _ and -."
        )
    dataset_name = f"Dataset{output_id:03d}_{name}"
    for folder in folders_of_id(output_id):
        if folder.name != dataset_name or folder.parent == raw_dir():
            raise HSSLError(f"Dataset id {output_id} is taken by {folder}. Choose another id with -o.")
    folder = preprocessed_dir() / dataset_name
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MANIFEST).is_file():
            raise HSSLError(f"{folder} exists and is not a corpus. Choose another id with -o or another name with -n.")
        if not overwrite:
            raise HSSLError(f"The corpus {folder} exists. Add --overwrite to replace it, or choose another id with -o.")
    return dataset_name


def _admitted(
    sources: Sequence[Source],
    patterns: Mapping[str, re.Pattern[str]],
    exclude_file: str | Path | None,
    exclude_contents: Collection[str],
    num_processes: int,
) -> tuple[list[Image], list[Problem], list[str]]:
    """Images of the corpus, cases that could not be used, and notes."""
    every = [c for d, s in enumerate(sources) for c in measured_candidates(d, s, patterns, num_processes)]
    remaining, exclusion_notes = without_excluded(every, exclude_file, exclude_contents)
    images, duplicate_notes = without_duplicates(images_of(remaining, sources))
    problems = joined_problems(p for c in remaining for p in c.problems)
    notes = exclusion_notes + duplicate_notes + orphan_notes(sources, every)
    notes += shared_patients_note(subjects_of(every))  # also of those who were excluded with a namesake
    for domain, source in enumerate(sources):
        if not any(i.candidate.domain == domain for i in images):
            causes = [str(p) for p in problems if p.dataset == source.dataset.name][:3]
            causes += [n for n in notes if source.dataset.name in n][:3]
            raise HSSLError("\n  ".join([f"No image of {source.dataset.name} is left for the corpus:", *causes]))
    return images, problems, notes


def _block(
    sources: Sequence[Source],
    fingerprints: Mapping[str, DomainFingerprint],
    groups: Mapping[str, Groups],
    pretraining: PretrainingPlan,
) -> CorpusBlock:
    domains = tuple(
        DomainPlan(
            dataset_name=s.dataset.name,
            plans_name=s.plans_name,
            data_identifier=s.configuration["data_identifier"],
            modality=fingerprints[s.dataset.name].modality,
            groups=groups[s.dataset.name],
            num_images=fingerprints[s.dataset.name].num_images,
            spacing=tuple(s.configuration["spacing"]),  # nnU-Net writes it after transpose_forward
            patch_size=tuple(s.configuration["patch_size"]),
            architecture=s.configuration["architecture"],
        )
        for s in sources
    )
    return CorpusBlock(domains=domains, pretraining=pretraining)
