"""Numbers and sentences of the page, and what it may claim: no more than the statistics establish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isnan

from hssl_nnunet.benchmark.convergence import Curves
from hssl_nnunet.benchmark.statistics import BASELINES, SEEDS_OF_A_FINDING, Comparison, Overall

METHOD = "hssl"
NAMES = {"vanilla": "vanilla nnU-Net", "scratch": "scratch (the same schedule without weights)"}
NOTHING = "\N{EN DASH}"
ALONE, UNEQUAL = " †", " ≠"  # marks of an interval over patients alone, and of unequal length
LEVEL = "95\N{NO-BREAK SPACE}% interval"


def points(value: float) -> str:
    """Dice points: `72.3`, `−0.4`, `−0.0` just below zero; a dash for nan."""
    if isnan(value):
        return NOTHING
    return f"{value or 0.0:.1f}".replace("-", "\N{MINUS SIGN}")  # -0.0 is zero


def signed(value: float) -> str:
    """A difference: `+3.2`, `−0.4`, `+0.0` just above zero, `0.0` for none."""
    return f"+{points(value)}" if value > 0 else points(value)


def interval(low: float, high: float) -> str:
    """`−0.8 to 1.5`; a dash without one."""
    return NOTHING if isnan(low) or isnan(high) else f"{points(low)} to {points(high)}"


def marked_interval(low: float, high: float, seeds: Iterable[Sequence[int]]) -> str:
    """An interval, marked where that of a dataset in it is over patients alone: one shared seed.

    Args:
        low: lower end.
        high: upper end.
        seeds: shared seeds of each dataset.
    """
    return interval(low, high) + (ALONE if min(map(len, seeds)) == 1 else "")


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


def labels(budget: str) -> str:
    """`5% of the labels`, `10 labelled cases`."""
    return f"{budget} of the labels" if budget.endswith("%") else count(int(budget), "labelled case")


def span(counts: Iterable[int], thing: str) -> str:
    """`9 labelled cases`; `9 to 12 labelled cases` where they differ."""
    found = sorted(set(counts))
    return count(found[0], thing) if len(found) == 1 else f"{numbers(found)} {thing}s"


def numbers(counts: Iterable[int]) -> str:
    """`3`; `1 to 3` where they differ."""
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def basis(of_datasets: Sequence[Sequence[int]]) -> str:
    """`3 datasets, 1 to 3 seeds`, of the seeds of each dataset."""
    return f"{count(len(of_datasets), 'dataset')}, {span(map(len, of_datasets), 'seed')}"


def answers(
    overall: Sequence[Overall],
    comparisons: Iterable[Comparison],
    budgets: Sequence[str],
    training: Mapping[str, Sequence[Curves]],
) -> list[str]:
    """A sentence for each budget where the method was compared: where it stands to the baselines, and by how much.

    On one dataset it beats or loses where that comparison is established. Over several it is ahead or behind where the
    interval lies on one side of 0, with `SEEDS_OF_A_FINDING` seeds: there is no p of several datasets to correct.

    Args:
        overall: of the statistics.
        comparisons: of the statistics.
        budgets: label budgets, the smallest first.
        training: budget -> curves of each dataset that has the method's and the first baseline's.
    """
    found = {budget: [o for o in overall if (o.budget, o.arm) == (budget, METHOD)] for budget in budgets}
    alone = {(c.dataset_name, c.budget, c.baseline): c for c in comparisons if c.arm == METHOD}
    family = Counter(o.baseline for o in overall)
    sentences = []
    for budget in (b for b in budgets if found[b]):
        clauses = [
            _of_one(o, alone[o.datasets[0], budget, o.baseline])
            if len(o.datasets) == 1
            else _of_several(o, family[o.baseline])
            for o in found[budget]
        ]
        compared = {o.baseline: o for o in found[budget]}
        clauses += [f"has not been compared with {NAMES[b]}" for b in BASELINES if b not in compared]
        if BASELINES[0] in compared and compared[BASELINES[0]].equal_length:
            clauses += _reached(training.get(budget, ()))
        sentences.append(f"With {labels(budget)}, {METHOD} {'; it '.join(clauses)}.")
    return sentences or [f"No run of {METHOD} can be compared with {' or '.join(BASELINES)} yet: there is no answer."]


def _of_one(one: Overall, comparison: Comparison) -> str:
    """On a single dataset: what its comparison establishes."""
    words = ("beats", "loses to") if comparison.finding else None
    return _clause(one, words, f"; Holm's p {p_value(comparison.p_holm)}")


def _of_several(one: Overall, family: int) -> str:
    """Over datasets: what the interval says, which knows of no other comparison."""
    clear = one.equal_length and _fewest(one) >= SEEDS_OF_A_FINDING and (one.low > 0 or one.high < 0)
    corrected = f"; not corrected for {family} comparisons" if family > 1 else ""
    return _clause(one, ("is ahead of", "is behind") if clear else None, corrected if clear else "")


def _clause(one: Overall, words: tuple[str, str] | None, more: str) -> str:
    """A difference in words for either sign; None = it may be nothing."""
    name, told = NAMES[one.baseline], f"; {basis(one.seeds)}"
    if words is not None:
        low, high = sorted((one.low, one.high) if one.difference > 0 else (-one.low, -one.high))
        by = f"by {points(abs(one.difference))} Dice points ({LEVEL} {interval(low, high)}{told}{more})"
        return f"{words[one.difference < 0]} {name} {by}"
    alone = " over patients alone" if max(map(len, one.seeds)) == 1 else ""
    few = ", too few to establish one" if _fewest(one) < SEEDS_OF_A_FINDING else ""
    other = "" if one.equal_length else "; fine-tuned for another number of steps, which establishes nothing"
    ends = "unknown" if isnan(one.low) else interval(one.low, one.high)
    return (
        f"shows no established difference to {name}: {signed(one.difference)} Dice points "
        f"({LEVEL}{alone} {ends}{told}{few}{more}{other})"
    )


def _fewest(one: Overall) -> int:
    return min(map(len, one.seeds))


def _reached(training: Sequence[Curves]) -> list[str]:
    """After how much of its training the method has the first baseline's final Dice."""
    if not training:
        return []
    baseline = BASELINES[0]
    ours, own = ([c.reach(arm, baseline) for c in training] for arm in (METHOD, baseline))
    shares = [r.share for r in ours if r]
    itself = f"{baseline} itself first {_shares([r.share for r in own if r])}"
    told = f"{span((len(c.seeds) for c in training), 'seed')}; {itself}"
    of = f"of {count(len(training), 'dataset')}"
    if not shares:
        return [f"does not reach the final Dice of {NAMES[baseline]} along its training on any {of} ({told})"]
    return [f"reaches the final Dice of {NAMES[baseline]} {_shares(shares)} on {len(shares)} {of} ({told})"]


def _shares(shares: Sequence[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"after {low if low == high else f'{low} to {high}'}\N{NO-BREAK SPACE}% of the epochs"


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
