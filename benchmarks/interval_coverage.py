"""How often do the 95 % intervals of a benchmark hold the truth, when seeds and patients both vary?

    python benchmarks/interval_coverage.py [--simulations 4000] [--out benchmarks/results/interval_coverage.json]

Tables of differences (seeds x patients) are simulated around a true mean of 0: effects of seeds, of patients, and the
rest, normal, with the standard deviations of each case in Dice points; in the last case one seed in five loses 10
points. `crossed` is the interval in use, `bootstrap` the percentile bootstrap over both levels, `wilcoxon` the share of
p < 0.05, which should be 0.05.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hssl_nnunet.benchmark.intervals import LEVEL, crossed_interval, wilcoxon_p
from hssl_nnunet.files import write_json
from hssl_nnunet.versions import versions

# seeds, patients, sd of seeds, sd of patients, sd of the rest, loss of one seed in five
CASES = (
    (3, 20, 0, 4, 4, 0),
    (3, 20, 1, 4, 4, 0),
    (3, 20, 2, 4, 4, 0),
    (3, 20, 4, 4, 4, 0),
    (3, 40, 4, 4, 4, 0),
    (5, 40, 1, 4, 4, 0),
    (5, 40, 4, 4, 4, 0),
    (2, 20, 4, 4, 4, 0),
    (3, 20, 1, 4, 4, 10),
)
DRAWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000, help="of the crossed interval; else a quarter")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/interval_coverage.json"))
    args = parser.parse_args()
    rng, rows = np.random.default_rng(7), []
    for case in CASES:
        tables = [simulated(rng, *case) for _ in range(args.simulations)]
        few = tables[: args.simulations // 4]
        names = ("seeds", "patients", "sd_seeds", "sd_patients", "sd_rest", "loss_of_one_in_five")
        rows.append(
            {
                **dict(zip(names, case, strict=True)),
                "crossed": coverage([crossed_interval([t]) for t in tables]),
                "bootstrap": coverage([bootstrap_interval(t, draws=DRAWS, seed=i) for i, t in enumerate(few)]),
                "wilcoxon": round(float(np.mean([wilcoxon_p(t) < 0.05 for t in few])), 3),
            }
        )
        print(rows[-1], flush=True)
    about = {"command": f"python benchmarks/interval_coverage.py --simulations {args.simulations}", "seed": 7}
    write_json(args.out, {**about, "versions": versions(), "simulations": args.simulations, "cases": rows})


def simulated(
    rng: np.random.Generator, seeds: int, patients: int, a: float, b: float, e: float, loss: float
) -> NDArray[np.float64]:
    """One table of differences with mean 0."""
    effects = rng.normal(size=(seeds, 1)) * a - loss * ((rng.random((seeds, 1)) < 0.2) - 0.2)
    return effects + rng.normal(size=patients) * b + rng.normal(size=(seeds, patients)) * e


def bootstrap_interval(differences: NDArray[np.float64], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a two-level bootstrap: seeds and, independently of them, patients are resampled.

    Source: Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1(2). It assumes no distribution, but it
    cannot reach beyond the best and the worst seed: with three seeds that caps its coverage at 75 % where seeds are all
    that varies. Hence comparisons use `crossed_interval`, where both were measured. From about ten seeds they agree.

    Args:
        differences: (seeds, patients).
        draws: resamples.
        seed: of the resampling.
    """
    seeds, patients = differences.shape
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    for start in range(0, draws, 1000):  # blocks bound the memory: 1000 x patients
        size = min(1000, draws - start)
        times_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size)
        times_patient = rng.multinomial(patients, np.full(patients, 1 / patients), size)
        means.append(((times_seed @ differences) * times_patient).sum(1) / differences.size)
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def coverage(intervals: list[tuple[float, float]]) -> float:
    """Share of intervals that hold 0."""
    low, high = np.array(intervals).T
    return round(float(((low <= 0) & (high >= 0)).mean()), 3)


if __name__ == "__main__":
    main()
