"""The files of a corpus, written from its images, fingerprints, groups and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hssl_nnunet.corpus.candidates import Image
from hssl_nnunet.corpus.domain_plans import Source
from hssl_nnunet.corpus.fingerprint import PERCENTILES
from hssl_nnunet.corpus.former import FINGERPRINT, set_aside
from hssl_nnunet.corpus.hierarchy import Groups
from hssl_nnunet.corpus.manifest import MANIFEST, ImageRow, write_manifest
from hssl_nnunet.corpus.picture import draw_fingerprint
from hssl_nnunet.corpus.summary import DomainFingerprint, summarise
from hssl_nnunet.files import write_json
from hssl_nnunet.typed_json import to_json

PICTURE = "hssl_fingerprint.png"


def summaries(images: Sequence[Image], dataset_names: Sequence[str]) -> dict[str, DomainFingerprint]:
    """Fingerprint of each domain, by its dataset's name; each has at least one image."""
    return {name: _summary([i for i in images if i.candidate.dataset_name == name]) for name in dataset_names}


def _summary(images: Sequence[Image]) -> DomainFingerprint:
    return summarise([i.fingerprint for i in images], [i.modality for i in images])


def write_corpus(
    folder: Path,
    plans: dict[str, Any],
    body: Source,
    images: Sequence[Image],
    fingerprints: Mapping[str, DomainFingerprint],
    groups: Mapping[str, Groups],
    derived: Mapping[str, Groups],
) -> None:
    """Write the corpus, its plans last: without them no command takes the folder for a finished corpus."""
    with set_aside(folder):  # plans of another name would not fit the new manifest
        write_manifest(folder / MANIFEST, (_row(i, groups) for i in images))
        write_json(folder / FINGERPRINT, _fingerprint_json(images, fingerprints, derived))
        draw_fingerprint(
            folder / PICTURE,
            {n: [i.fingerprint for i in images if i.candidate.dataset_name == n] for n in fingerprints},
            groups,
        )
        write_json(folder / "dataset.json", _dataset_json(plans["dataset_name"], len(images), body))
        write_json(folder / "dataset_fingerprint.json", _nnunet_fingerprint(images, plans))
        write_json(folder / f"{plans['plans_name']}.json", plans)


def _row(image: Image, groups: Mapping[str, Groups]) -> ImageRow:
    candidate, fingerprint = image.candidate, image.fingerprint
    return ImageRow(
        domain=candidate.domain,
        dataset_name=candidate.dataset_name,
        case=candidate.case.name,
        channel=image.channel,
        patient=candidate.patient,
        labelled=candidate.labelled,
        preprocessed=candidate.preprocessed,
        content_hash=fingerprint.content_hash,
        spacing_mm=fingerprint.spacing_mm,
        shape=fingerprint.shape,
        groups=groups[candidate.dataset_name],
    )


def _fingerprint_json(
    images: Sequence[Image], fingerprints: Mapping[str, DomainFingerprint], derived: Mapping[str, Groups]
) -> dict[str, Any]:
    return {
        "percentiles": PERCENTILES,
        "domains": {name: to_json(fingerprint) for name, fingerprint in fingerprints.items()},
        "all": to_json(_summary(images)),
        "derived_groups": dict(derived),
    }


def _dataset_json(dataset_name: str, num_images: int, body: Source) -> dict[str, Any]:
    return {
        "name": dataset_name,
        "description": "Corpus of hssl: no images of its own, see manifest.csv and the `hssl` block of the plans",
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "image": 1},  # nnU-Net wants a label; nothing is segmented
        "numTraining": num_images,
        "file_ending": body.dataset.dataset_json["file_ending"],
    }


def _nnunet_fingerprint(images: Sequence[Image], plans: dict[str, Any]) -> dict[str, Any]:
    """What nnU-Net's trainer copies into each results folder; shapes are those before cropping."""
    return {
        "spacings": [i.fingerprint.spacing_mm for i in images],
        "shapes_after_crop": [i.fingerprint.shape for i in images],
        "foreground_intensity_properties_per_channel": plans["foreground_intensity_properties_per_channel"],
        "median_relative_size_after_cropping": 1.0,
    }
