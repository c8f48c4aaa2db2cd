"""Numbers and sentences of the page, and what it may claim: no more than the statistics establish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan

from hssl_nnunet.benchmark.statistics import BASELINES, SEEDS_OF_A_FINDING, Comparison, Overall

METHOD = "hssl"
NAMES = {"vanilla": "vanilla nnU-Net", "scratch": "scratch (the same schedule without weights)"}
NOTHING = "\N{EN DASH}"
LEVEL = "95\N{NO-BREAK SPACE}% interval"


def points(value: float) -> str:
    """Dice points: `72.3`, `−0.4`; a dash for nan."""
    if isnan(value):
        return NOTHING
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A difference: `+3.2`, `−0.4`, `0.0`."""
    text = points(value)
    return f"+{text}" if value > 0 and text != "0.0" else text


def interval(low: float, high: float) -> str:
    """`−0.8 to 1.5`; a dash without one."""
    return NOTHING if isnan(low) or isnan(high) else f"{points(low)} to {points(high)}"


def p_value(value: float) -> str:
    """Three decimals, `<0.001` below."""
    return NOTHING if isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def spread(mean: float, sd: float) -> str:
    """`72.3 ± 1.2`; without the second of one seed."""
    return points(mean) if isnan(sd) else f"{points(mean)} ± {points(sd)}"


def duration(seconds: float) -> str:
    """`41 s`, `4.5 min` or `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def count(number: int, thing: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def answers(overall: Sequence[Overall], comparisons: Sequence[Comparison], budgets: Sequence[str]) -> list[str]:
    """A sentence for each budget where the method was compared: whether it beats the baselines, and by how much.

    It beats or loses only where the interval over all datasets lies on one side of 0, with `SEEDS_OF_A_FINDING` seeds.

    Args:
        overall: of the statistics.
        comparisons: of the statistics.
        budgets: label budgets, the smallest first.
    """
    found = {budget: [o for o in overall if (o.budget, o.arm) == (budget, METHOD)] for budget in budgets}
    sentences = []
    for budget in (b for b in budgets if found[b]):
        clauses = [_clause(o, [c for c in comparisons if _same(c, o)]) for o in found[budget]]
        compared = {o.baseline for o in found[budget]}
        clauses += [f"has not been compared with {NAMES[b]}" for b in BASELINES if b not in compared]
        where = (
            f"With {budget} of the labels" if budget.endswith("%") else f"With {count(int(budget), 'labelled case')}"
        )
        sentences.append(f"{where}, {METHOD} {'; it '.join(clauses)}.")
    return sentences or [f"No run of {METHOD} can be compared with {' or '.join(BASELINES)} yet: there is no answer."]


def _same(c: Comparison, o: Overall) -> bool:
    return (c.budget, c.arm, c.baseline) == (o.budget, o.arm, o.baseline)


def _clause(one: Overall, paired: Sequence[Comparison]) -> str:
    name, counts = NAMES[one.baseline], sorted({len(c.seeds) for c in paired})
    seeds = counts[0]
    told = count(seeds, "seed") if len(counts) == 1 else f"{seeds} to {counts[-1]} seeds"
    basis = f"{count(len(one.datasets), 'dataset')}, {told}"
    if seeds >= SEEDS_OF_A_FINDING and one.low > 0:
        return f"beats {name} by {points(one.difference)} Dice points ({LEVEL} {_ends(one)}; {basis})"
    if seeds >= SEEDS_OF_A_FINDING and one.high < 0:
        ends = interval(-one.high, -one.low)
        return f"loses to {name} by {points(-one.difference)} Dice points ({LEVEL} {ends}; {basis})"
    return (
        f"shows no established difference to {name}: {signed(one.difference)} Dice points "
        f"({LEVEL} {_ends(one)}; {basis}{', too few to establish one' if seeds < SEEDS_OF_A_FINDING else ''})"
    )


def _ends(one: Overall) -> str:
    return "unknown" if isnan(one.low) else interval(one.low, one.high)


def tally(comparisons: Iterable[Comparison], baseline: str) -> str:
    """How many of the method's comparisons with a baseline are established, either way; empty without any."""
    found = [c for c in comparisons if (c.arm, c.baseline) == (METHOD, baseline)]
    if not found:
        return ""
    gains, losses = (sum(c.finding and sign * c.difference > 0 for c in found) for sign in (1, -1))
    return (
        f"Against {baseline}, dataset by dataset and budget by budget: established gains {gains}, established losses "
        f"{losses}, not established {len(found) - gains - losses}."
    )
