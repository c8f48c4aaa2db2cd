"""The numbers of a benchmark's page, in tables, figures and sentences, are the statistics'."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_benchmark import ARMS, BUDGETS, DATASETS, EVIL_ARM, SEEDS, Page, heading, run

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.records import read_records
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import not_run, read_content
from hssl_nnunet.benchmark.report.numbers import numbers
from hssl_nnunet.benchmark.report.rivals import rivals
from hssl_nnunet.benchmark.report.surfaces import surfaces


def number(value: float, form: str = ".1f") -> str:
    """A number as the page writes it."""
    shown = format(value, form)
    return re.sub(r"^[+-](0\.0+)$", r"\1", shown).replace("-", "−")


def ends(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def test_the_numbers_beside_the_page_are_those_of_the_statistics(folder: Path, text: str) -> None:
    found, records = json.loads((folder / "report.json").read_text()), read_records(folder)
    assert "NaN" not in (folder / "report.json").read_text()
    for kept, c in zip(found["comparisons"], st.compare_all(records), strict=True):
        assert kept["difference"] == pytest.approx(c.difference, abs=1e-4)
        assert (kept["finding"], kept["verdict"], kept["seeds"]) == (c.finding, c.verdict, list(c.seeds))
    means: dict[tuple[str, str, str], list[float]] = {}
    for r in found["runs"]:
        assert r["dice"] == pytest.approx(np.mean(list(r["dice_by_patient"].values())), abs=0.01)
        means.setdefault((r["dataset_name"], r["budget"], r["arm"]), []).append(r["dice"])
    for s in st.seed_spread(records):
        assert np.mean(means[s.dataset_name, s.budget, s.arm]) == pytest.approx(s.mean, abs=1e-3)
    assert len(found["not_run"]) == len(not_run(read_content(folder)))
    small = replace(read_content(folder), facts=replace(read_content(folder).facts, settings={"weight_decay": 3e-5}))
    assert numbers(small)["asked"]["settings"] == {"weight_decay": 3e-5}


def test_other_pretrainings_stand_beside_the_method_and_baselines_do_not(folder: Path, page: Page) -> None:
    content, table = read_content(folder), page.tables["hssl against other pretrainings"]
    assert table[0] == ["arm", "all datasets", *content.datasets]
    rows = [row for row in table[1:] if len(row) > 1]
    assert {row[0] for row in rows} == {EVIL_ARM} and len(rows) == len(content.budgets())
    for row, budget in zip(rows, content.budgets(), strict=True):
        for cell, name in zip(row[2:], content.datasets, strict=True):
            ours, theirs = content.of(name, budget, "hssl"), content.of(name, budget, EVIL_ARM)
            differences = st.paired(ours, theirs)  # (seeds, patients), hssl minus the other
            assert cell.startswith(f"{number(differences.mean(), '+.1f')} (")
    assert rivals(replace(content, records=[r for r in content.records if r.arm != "hssl"])) == []


def test_surfaces_count_missed_labels_and_leave_empty_ones_out(folder: Path) -> None:
    record = run(DATASETS[0], "5%", "hssl", 0)
    values = [(0.9, 2.0), (0.7, 4.0), (0.0, inf), (nan, nan)]
    scores = tuple(replace(s, nsd=n, hd95_mm=h) for s, (n, h) in zip(record.scores, values, strict=False))
    content = replace(read_content(folder), records=(replace(record, scores=scores),))
    assert [g.rows for g in surfaces(content)] == [(("hssl", "53.3", "4.0 mm", "33 %"),)]
    missed = tuple(replace(s, nsd=0.0, hd95_mm=inf) for s in scores[:3])
    content = replace(content, records=(replace(record, scores=missed),))
    assert surfaces(content)[0].rows == (("hssl", "0.0", "infinite", "100 %"),)


def test_every_arm_has_its_surfaces(page: Page) -> None:
    shown = page.grouped("Surface metrics of every arm")
    assert len([heading for heading, _ in shown if heading]) == len(
        [heading for heading, _ in page.grouped("Results of every arm") if heading]
    )
    assert shown[f"{DATASETS[0]}, 5%", "hssl"] == ["50.0", "2.0 mm", "0 %"]


def test_the_table_of_results_shows_the_statistics(folder: Path, page: Page) -> None:
    rows, records = page.grouped("Results of every arm"), read_records(folder)
    spreads = st.seed_spread(records)
    assert {key for key in rows if key[0]} == {(heading(s.dataset_name, s.budget), s.arm) for s in spreads}
    for s in spreads:
        cells = rows[heading(s.dataset_name, s.budget), s.arm]
        dice = number(s.mean) if len(s.seeds) == 1 else f"{number(s.mean)} ± {number(s.sd)}"
        assert cells[:2] == [dice, str(len(s.seeds))]
    compared = {(c.dataset_name, c.budget, c.arm, c.baseline): c for c in st.compare_all(records)}
    marks = set()
    for dataset_name, budget, arm, (place, baseline) in product(DATASETS, BUDGETS, ARMS, enumerate(st.BASELINES)):
        cells = rows[heading(dataset_name, budget), arm][2 + 3 * place : 5 + 3 * place]
        c = compared.get((dataset_name, budget, arm, baseline))
        if c is None:
            assert cells == ["–", "", ""]
            continue
        mark = "" if not c.finding else "▲ " if c.difference > 0 else "▼ "
        p = "<0.001" if c.p_holm < 0.001 else number(c.p_holm, ".3f")
        assert cells == [mark + number(c.difference, "+.1f"), ends(c.low, c.high), p]
        marks.add(mark)
    assert marks == {"", "▲ ", "▼ "}
    assert len(compared) == 23  # of 24, hssl and scratch share no seed on the second dataset at 20 %


def test_the_pooled_table_and_the_epochs_show_the_statistics(folder: Path, page: Page) -> None:
    records = read_records(folder)
    rows, ranks = page.grouped("Results averaged over datasets"), st.mean_ranks(records)
    comparisons = st.compare_all(records)
    for o in st.overall(records):
        cells = rows[o.budget, o.arm][2 + 3 * st.BASELINES.index(o.baseline) :][:3]
        tally = st.wins_ties_losses(c for c in comparisons if c.budget == o.budget)[o.arm, o.baseline]
        assert cells == [number(o.difference, "+.1f"), ends(o.low, o.high), " / ".join(map(str, tally))]
    assert all(rows[budget, arm][0] == number(rank) for budget, of in ranks.items() for arm, rank in of.items())
    reached = page.grouped("Epochs to reach the final Dice of vanilla")
    assert len(reached) == 1 + len(DATASETS) * len(BUDGETS)
    for dataset_name, budget, (place, arm) in product(DATASETS, BUDGETS, enumerate(ARMS)):
        reach = st.epochs_to_reach(records, dataset_name, budget, arm)
        told = f"{reach.epoch} ({100 * reach.share:.0f} %)" if reach else "not reached"
        assert reached[dataset_name, budget][place] == told
    assert reached[DATASETS[0], "5%"] == ["40 (100 %)", "40 (100 %)", "10 (25 %)", "40 (100 %)"]
    of_scratch = page.grouped("Epochs to reach the final Dice of scratch")
    reach = st.epochs_to_reach(records, DATASETS[0], "5%", "hssl", "scratch")
    assert reach is not None and of_scratch[DATASETS[0], "5%"][2].startswith(f"{reach.epoch} (")


def test_the_figures_tell_the_statistics(folder: Path, page: Page) -> None:
    told = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes]
    assert len(told) == 2 * len(DATASETS) + 2 * len(DATASETS) * len(BUDGETS)
    records = read_records(folder)
    for s in st.seed_spread(records):
        assert any(f"{s.arm} " in t and f"{s.mean:.1f} at {s.budget}" in t for t in told)
    for c in st.compare_all(records, ["vanilla"]):
        assert any("over vanilla" in t and f"{c.difference:.1f} at {c.budget}" in t for t in told)
    assert any("hssl is above vanilla in 12 of 12 patients" in t for t in told)


def verdict(low: float, high: float, seeds: tuple[int, ...] = SEEDS) -> str:
    difference = (low + high) / 2
    shared: dict[str, Any] = {"budget": "5%", "arm": "hssl", "difference": difference, "low": low, "high": high}
    overall, comparisons = [], []
    for b in st.BASELINES:
        overall.append(st.Overall(baseline=b, datasets=("a",), **shared))
        rest: dict[str, Any] = {"p": 0.5, "p_holm": 0.5, "verdict": "tie", "by_seed": (0.0,) * len(seeds)}
        comparisons.append(
            st.Comparison(dataset_name="a", baseline=b, seeds=seeds, patients=9, **shared, **rest)
        )  # fmt: skip
    return wording.answers(overall, comparisons, ["5%"])[0]


def test_the_answer_claims_no_more_than_the_interval() -> None:
    assert (
        "hssl beats vanilla nnU-Net by 2.0 Dice points (95\xa0% interval 1.0 to 3.0; 1 dataset, 3 seeds); it beats"
        in (verdict(1, 3))
    )
    assert "hssl loses to vanilla nnU-Net by 2.0 Dice points (95\xa0% interval 1.0 to 3.0;" in verdict(-3, -1)
    assert "shows no established difference to vanilla nnU-Net: +1.0 Dice points (95\xa0% interval −1.0 to 3.0;" in (
        verdict(-1, 3)
    )
    assert "beats" not in verdict(1, 3, seeds=(0,)) and "1 seed, too few" in verdict(1, 3, seeds=(0,))
    assert "95\xa0% interval unknown" in verdict(nan, nan)


def test_numbers_are_written_for_people() -> None:
    assert [wording.signed(v) for v in (3.21, -0.44, -0.04, 0.04, nan)] == ["+3.2", "−0.4", "0.0", "0.0", "–"]
    assert [wording.p_value(v) for v in (0.0004, 0.0406, 1.0)] == ["<0.001", "0.041", "1.000"]
    assert [wording.duration(s) for s in (4.24, 41, 270, 7560)] == ["4.2 s", "41 s", "4.5 min", "2.1 h"]
