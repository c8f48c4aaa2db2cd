"""The method against the arms that are pretrained otherwise: the question that the baselines leave open."""

from __future__ import annotations

from collections.abc import Sequence

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.pairing import Runs
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.tables import Group


def rivals(content: Content) -> list[Group]:
    """Budget -> (arm, method minus arm over all datasets, the same on each); baselines have tables of their own.

    Over all datasets stands only what was run on every one of them.
    """
    comparisons, overall = compared(content.records)
    per_dataset = {(c.budget, c.arm, c.dataset_name): c for c in comparisons}
    over_all = {(o.budget, o.arm): o for o in overall}
    groups = []
    for budget in content.budgets():
        rows = []
        for arm in content.arms:
            if found := over_all.get((budget, arm)):
                each = [per_dataset.get((budget, arm, name)) for name in content.datasets]
                rows.append((arm, _cell(found) if all(each) else (wording.NOTHING, ""), *map(_cell, each)))
        if rows:
            groups.append(Group(title=budget, note="", rows=tuple(rows)))
    return groups


def compared(records: Runs) -> tuple[list[st.Comparison], list[st.Overall]]:
    """Arms other than the baselines against the method, on each dataset and over all; arm minus method."""
    arms = [r for r in records if r.arm not in st.BASELINES]
    return st.compare_all(arms, [wording.METHOD]), st.overall(arms, [wording.METHOD])


def _cell(found: st.Comparison | st.Overall | None) -> tuple[str, str]:
    """The difference, and what it stands on."""
    if found is None:
        return wording.NOTHING, ""
    low, high = sorted((-found.low, -found.high))
    counts = [len(found.seeds)] if isinstance(found, st.Comparison) else list(map(len, found.seeds))
    marks = f"{wording.ALONE if min(counts) == 1 else ''}{'' if found.equal_length else wording.UNEQUAL}"
    ends = f"{wording.interval(low, high)}{marks}"
    return wording.signed(-found.difference), f"({ends}; {wording.seeds(counts)})"


def columns(content: Content) -> Sequence[str]:
    """Names of the columns after the arm's."""
    return ["all datasets", *content.datasets]
