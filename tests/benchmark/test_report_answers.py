"""The sentences that answer: what they claim of a difference, and of when it is reached."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from made_runs import arm, noise
from tiny_benchmark import SEEDS, Page, written_plan

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.convergence import Curves
from hssl_nnunet.benchmark.records import read_records, write_record
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.page import write_report


def verdict(
    low: float, high: float, seeds: tuple[tuple[int, ...], ...] = (SEEDS,), p: float = 0.01, **more: Any
) -> str:
    shared: dict[str, Any] = {"budget": "5%", "arm": "hssl", "difference": (low + high) / 2, "low": low, "high": high}
    shared |= more
    names = tuple("abc"[: len(seeds)])
    overall = [st.Overall(baseline=b, datasets=names, seeds=seeds, **shared) for b in st.BASELINES]
    rest: dict[str, Any] = {"patients": 9, "by_seed": (), "p": p, "p_holm": p, "verdict": "win"}
    alone = [st.Comparison(dataset_name="a", baseline=b, seeds=seeds[0], **shared, **rest) for b in st.BASELINES]
    return wording.answers([*overall, *(replace(o, arm="mae") for o in overall)], alone, ["5%"], {})[0]


def test_the_answer_on_one_dataset_claims_what_its_comparison_establishes() -> None:
    told = "by 2.0 Dice points (95\xa0% interval 1.0 to 3.0; 1 dataset, 3 seeds; Holm's p 0.010)"
    assert f"hssl beats vanilla nnU-Net {told}; it beats" in verdict(1, 3)
    assert f"hssl loses to vanilla nnU-Net {told}; it loses" in verdict(-3, -1)
    assert "shows no established difference to vanilla nnU-Net: +1.0 Dice points (95\xa0% interval −1.0 to 3.0;" in (
        verdict(-1, 3)
    )
    uncertain = verdict(1, 3, p=0.06)
    assert "no established difference to vanilla nnU-Net: +2.0" in uncertain and "Holm's p 0.060" in uncertain
    one_seed = verdict(1, 3, seeds=((0,),))
    assert "beats" not in one_seed and "interval over patients alone 1.0 to 3.0; 1 dataset, 1 seed, too few" in one_seed
    assert "95\xa0% interval unknown" in verdict(nan, nan)
    longer = verdict(1, 3, equal_length=False)
    assert "beats" not in longer and "another number of steps, which establishes nothing" in longer


def test_the_answer_over_datasets_is_that_of_the_interval_and_says_that_nothing_corrects_it() -> None:
    both = (SEEDS, SEEDS)
    told = "by 2.0 Dice points (95\xa0% interval 1.0 to 3.0; 2 datasets, 3 seeds; not corrected for 2 comparisons)"
    assert f"hssl is ahead of vanilla nnU-Net {told}; it is" in verdict(1, 3, seeds=both)
    assert f"hssl is behind vanilla nnU-Net {told}; it is" in verdict(-3, -1, seeds=both)
    for text in (verdict(-1, 3, seeds=both), verdict(1, 3, seeds=both, equal_length=False)):
        assert "no established difference to vanilla nnU-Net" in text and "corrected" not in text
    mixed = verdict(1, 3, seeds=(SEEDS, (0,)))
    assert "ahead" not in mixed and "alone" not in mixed and "2 datasets, 1 to 3 seeds, too few" in mixed


def test_the_answer_agrees_with_the_table_below_it(tmp_path: Path) -> None:
    """Five patients: the interval excludes 0, and no p can be small enough."""
    written_plan(tmp_path)
    rng = np.random.default_rng(0)
    scratch = 60 + noise(rng, 3, 5, 1, 1)
    for one in (*arm("scratch", scratch), *arm("hssl", scratch + 5 + noise(rng, 3, 5, 0.5, 0.5))):
        write_record(tmp_path, one)
    answer = Page(write_report(tmp_path).read_text()).sections["answer"]
    (comparison,) = st.compare_all(read_records(tmp_path))
    assert comparison.low > 0 and not comparison.finding
    assert "shows no established difference to scratch" in answer and "established gains 0" in answer


def curves(ours: dict[int, float], theirs: dict[int, float], seeds: tuple[int, ...] = SEEDS) -> Curves:
    epochs = {"hssl": 20, "vanilla": 20}
    return Curves(seeds=seeds, by_arm={"hssl": ours, "vanilla": theirs}, num_epochs=epochs)


def test_the_answer_says_when_the_baselines_final_dice_is_reached_and_on_what() -> None:
    shared: dict[str, Any] = {
        "budget": "5%",
        "arm": "hssl",
        "baseline": "vanilla",
        "difference": 1,
        "low": 0,
        "high": 2,
    }
    one = st.Overall(datasets=("a", "b"), seeds=(SEEDS, SEEDS), **shared)
    theirs = {4: 0.2, 16: 0.6, 20: 0.5}
    early, late, never = {4: 0.5, 20: 0.6}, {4: 0.4, 8: 0.5}, {4: 0.1, 20: 0.2}

    def answer(*training: Curves, **changes: Any) -> str:
        return wording.answers([replace(one, **changes)], [], ["5%"], {"5%": training})[0]

    assert (
        "; it reaches the final Dice of vanilla nnU-Net after 20 to 40\xa0% of the epochs on 2 of 3 datasets "
        "(1 to 3 seeds; vanilla itself first after 80\xa0% of the epochs)."
    ) in answer(curves(early, theirs), curves(late, theirs, (0,)), curves(never, theirs))
    assert "on 1 of 1 dataset (3 seeds;" in answer(curves(early, theirs))
    assert "it does not reach the final Dice of vanilla nnU-Net along its training on any of 1 dataset" in (
        answer(curves(never, theirs))
    )
    assert "final Dice" not in answer() and "final Dice" not in answer(curves(early, theirs), equal_length=False)
