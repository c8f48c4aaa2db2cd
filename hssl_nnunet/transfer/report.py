"""What a target network takes from pretrained weights, tensor by tensor: nothing is left out silently."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hssl_nnunet.networks.projection import Entry

PARTS = ("encoder", "decoder")
STATUSES = ("exact", "adapted", "fresh")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferReport:
    """The transfer into one configuration of one target.

    Attributes:
        dataset: nnU-Net's dataset name of the target.
        configuration: nnU-Net's configuration.
        entries: one for each parameter of the target's network, in its order.
        notes: sentences the user should read, for example on images that pretraining has seen.
    """

    dataset: str
    configuration: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def totals(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Part -> status -> (tensors, parameters); parts `encoder`, `decoder`, statuses as in `Entry`."""
        return {part: {status: self._count(part, status) for status in STATUSES} for part in PARTS}

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, totals included."""
        return {**asdict(self), "totals": self.totals()}

    def _count(self, part: str, status: str) -> tuple[int, int]:
        sizes = [math.prod(e.shape) for e in self.entries if e.part == part and e.status == status]
        return len(sizes), sum(sizes)


def render(report: TransferReport, full: bool = False) -> RenderableType:
    """Lay a report out for `rich.console.Console.print`: with `full` every tensor, totals, and notes last."""
    parts: list[RenderableType] = [_summary(report), *(Text(f"Note: {note}", style="yellow") for note in report.notes)]
    return Group(_every_tensor(report), *parts) if full else Group(*parts)


def _summary(report: TransferReport) -> Table:
    table = Table(title=f"{report.dataset} {report.configuration}: tensors (parameters)", title_justify="left")
    table.add_column("")
    for status in STATUSES:
        table.add_column(status, justify="right")
    for part, by_status in report.totals().items():
        table.add_row(part, *(f"{tensors} ({parameters:,})" for tensors, parameters in by_status.values()))
    return table


def _every_tensor(report: TransferReport) -> Table:
    table = Table("parameter", "shape", "status", "how, or why not")
    for entry in report.entries:
        table.add_row(entry.name, "x".join(map(str, entry.shape)), entry.status, escape(entry.how))
    return table
