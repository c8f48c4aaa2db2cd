"""The method against the arms that are pretrained otherwise: the question that the baselines leave open."""

from __future__ import annotations

from itertools import product

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.pairing import Runs
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.tables import Group

ALL = "all datasets"


def rivals(content: Content) -> list[Group]:
    """Arm and budget -> (where, method minus arm, interval, shared seeds); baselines have tables of their own.

    Over all datasets stands only what was run on every one of them.
    """
    comparisons, overall = compared(content.records)
    per_dataset = {(c.budget, c.arm, c.dataset_name): c for c in comparisons}
    over_all = {(o.budget, o.arm): o for o in overall}
    groups = []
    for budget, arm in product(content.budgets(), content.arms):
        where: dict[str, st.Comparison | st.Overall] = {
            name: c for name in content.datasets if (c := per_dataset.get((budget, arm, name)))
        }
        if len(where) == len(content.datasets):
            where = {ALL: over_all[budget, arm], **where}
        if where:
            rows = [(name, *_cells(found)) for name, found in where.items()]
            groups.append(Group(title=arm, note=budget, rows=rows))
    return groups


def compared(records: Runs) -> tuple[list[st.Comparison], list[st.Overall]]:
    """Arms other than the baselines against the method, on each dataset and over all; arm minus method."""
    arms = [r for r in records if r.arm not in st.BASELINES]
    return st.compare_all(arms, [wording.METHOD]), st.overall(arms, [wording.METHOD])


def _cells(found: st.Comparison | st.Overall) -> tuple[str, str, str]:
    seeds = [found.seeds] if isinstance(found, st.Comparison) else found.seeds
    value = wording.signed(-found.difference) + ("" if found.equal_length else wording.UNEQUAL)
    return value, wording.marked_interval(-found.high, -found.low, seeds), wording.numbers(map(len, seeds))
