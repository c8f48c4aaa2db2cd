"""Surface metrics beside Dice: how close the predicted border lies, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf, isnan
from statistics import fmean, median

from hssl_nnunet.benchmark.records import RunRecord
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.tables import Group


def surfaces(content: Content) -> list[Group]:
    """Dataset and budget -> (arm, NSD, median HD95, share of missed labels), over test cases, labels and seeds."""
    groups = []
    for dataset_name, budget in content.places:
        runs = {arm: content.of(dataset_name, budget, arm) for arm in content.arms}
        rows = [(arm, *_surface(records)) for arm, records in runs.items() if records]
        groups.append(Group(title=f"{dataset_name}, {budget}", rows=rows))
    return groups


def _surface(records: Sequence[RunRecord]) -> tuple[str, str, str]:
    scores = [s for record in records for s in record.scores if not isnan(s.hd95_mm)]
    if not scores:
        return (wording.NOTHING,) * 3
    middle = median(s.hd95_mm for s in scores)  # an infinite distance counts as the largest
    return (
        wording.points(100 * fmean(s.nsd for s in scores)),
        "infinite" if isinf(middle) else f"{middle:.1f} mm",
        f"{100 * fmean(isinf(s.hd95_mm) for s in scores):.0f} %",
    )
