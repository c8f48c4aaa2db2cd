"""Along the training: the seeds that curves, dotted levels and epochs stand on, the same for all three."""

from __future__ import annotations

from hssl_nnunet.benchmark.convergence import Curves, curves
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.tables import Group
from hssl_nnunet.benchmark.statistics import BASELINES


def against(content: Content, dataset_name: str, budget: str, baseline: str) -> Curves | None:
    """Curves on the seeds that a baseline shares with the method, or on the baseline's own without the method."""
    with_curve = {
        arm for arm in (baseline, wording.METHOD) if any(r.epochs for r in content.of(dataset_name, budget, arm))
    }
    return curves(content.records, dataset_name, budget, sorted({baseline, *with_curve}))


def drawn(content: Content, dataset_name: str, budget: str) -> list[tuple[Curves, list[str]]]:
    """What is drawn: curves and the baselines whose level they have, one for each set of seeds.

    Without a baseline it is what the seeds allow that all arms with a curve share.
    """
    found: dict[tuple[int, ...], tuple[Curves, list[str]]] = {}
    for baseline in BASELINES:
        if one := against(content, dataset_name, budget, baseline):
            found.setdefault(one.seeds, (one, []))[1].append(baseline)
    if found:
        return list(found.values())
    arms = [arm for arm in content.arms if any(r.epochs for r in content.of(dataset_name, budget, arm))]
    one = curves(content.records, dataset_name, budget, arms)
    return [(one, [])] if one and one.by_arm else []


def headline(content: Content) -> dict[str, list[Curves]]:
    """Budget -> curves of each dataset where the method can be held against the first baseline."""
    found: dict[str, list[Curves]] = {}
    for budget in content.budgets():
        for dataset_name in content.datasets:
            one = against(content, dataset_name, budget, BASELINES[0])
            if one and {wording.METHOD, BASELINES[0]} <= one.by_arm.keys():
                found.setdefault(budget, []).append(one)
    return found


def reaches(content: Content, baseline: str) -> list[Group]:
    """Dataset -> for each budget: its seeds, and epochs that each arm needs to reach the baseline's final Dice."""
    groups = []
    for dataset_name in content.datasets:
        rows = []
        for budget in content.budgets(dataset_name):
            one = against(content, dataset_name, budget, baseline)
            if one and baseline in one.by_arm:
                cells = tuple(_reach(one, arm, baseline) for arm in content.arms)
                rows.append((budget, str(len(one.seeds)), cells))
        if rows:
            groups.append(Group(title=dataset_name, rows=rows))
    return groups


def _reach(one: Curves, arm: str, baseline: str) -> str:
    if arm not in one.by_arm:
        return wording.NOTHING
    reach = one.reach(arm, baseline)
    return f"{reach.epoch} ({100 * reach.share:.0f} %)" if reach else "not reached"
