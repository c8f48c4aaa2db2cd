"""What a weights file holds, for a person to read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.transfer.weights_file import WeightsMetadata, file_sha256, read_metadata

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40


def render_inspection(path: str | Path) -> RenderableType:
    """Lay out a weights file for `rich.console.Console.print`: run, domains and hierarchy, images seen, loss curves.

    Raises:
        HSSLError: the file is missing, damaged, a pickle, of a newer version, or not ours.
    """
    metadata = read_metadata(path)
    return Group(_run(path, metadata), _domains(metadata), _curves(metadata))


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Draw a curve as one line of text from its lowest (`▁`) to its highest value (`█`).

    Args:
        values: the curve; at most `width` of them are drawn, evenly spaced, the last always; nan is a blank.
        width: characters.
    """
    count = min(width, len(values))
    drawn = [values[len(values) - 1 - round(i * (len(values) - 1) / max(count - 1, 1))] for i in reversed(range(count))]
    finite = [v for v in drawn if math.isfinite(v)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    scale = (len(BARS) - 1) / span if span else 0.0
    return "".join(BARS[round((v - low) * scale)] if math.isfinite(v) else " " for v in drawn)


def _run(path: str | Path, metadata: WeightsMetadata) -> Table:
    table = Table(title=escape(str(path)), title_justify="left", show_header=False)
    planned = "" if metadata.pretraining is None else f" of {metadata.pretraining.num_epochs}"
    rows = {
        "network": f"{metadata.family}, {metadata.dim}d",
        "epochs": f"{metadata.epochs_done}{planned}",
        "images seen": _images(metadata),
        "imported from" if metadata.pretraining is None else "goes on from": metadata.origin or "nothing",
        "created": metadata.created,
        "seed": "not known" if metadata.seed is None else str(metadata.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(metadata.versions.items())),
        "licence": metadata.licence or "not stated",
        "citation": metadata.citation or "not stated",
        "sha256": file_sha256(path),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _images(metadata: WeightsMetadata) -> str:
    if metadata.images is None:
        return "not known"
    patients = {image.patient for image in metadata.images}  # compared by name across all domains, as in a corpus
    domains = {image.dataset_name for image in metadata.images}  # also those of the weights that it went on from
    return f"{len(metadata.images)} of {len(patients)} patients in {len(domains)} domains"


def _domains(metadata: WeightsMetadata) -> Table:
    table = Table("domain", "modality", "groups", "images", "spacing (mm)", "patch", "stages", title="Domains")
    seen = Counter(image.dataset_name for image in metadata.images or ())
    for domain in metadata.domains:
        table.add_row(
            escape(domain.dataset_name),
            escape(domain.modality),
            escape(" < ".join(domain.groups)),
            str(seen[domain.dataset_name]) if metadata.images is not None else "not known",
            " ".join(f"{s:.3g}" for s in domain.spacing),
            " ".join(map(str, domain.patch_size)),
            str(Topology.from_architecture(domain.architecture, domain.dataset_name).n_stages),
        )
    return table


def _curves(metadata: WeightsMetadata) -> Table:
    table = Table("curve", "over the epochs", "first", "last", title="Curves")
    for name, values in metadata.curves.items():
        first, last = (f"{values[0]:.4g}", f"{values[-1]:.4g}") if values else ("", "")
        table.add_row(escape(name), sparkline(values), first, last)
    return table
