"""The numbers of a benchmark's page, in tables, figures and sentences, are the statistics'."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from tiny_benchmark import ARMS, BUDGETS, DATASETS, EVIL_ARM, SEEDS, Page, heading, run

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.label_gap import label_gaps
from hssl_nnunet.benchmark.pairing import dice_table
from hssl_nnunet.benchmark.records import EpochScore, read_records
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.content import not_run, read_content
from hssl_nnunet.benchmark.report.drawing import arm_styles
from hssl_nnunet.benchmark.report.labels import against_most
from hssl_nnunet.benchmark.report.numbers import numbers
from hssl_nnunet.benchmark.report.page import render
from hssl_nnunet.benchmark.report.panels import all_panels
from hssl_nnunet.benchmark.report.rivals import rivals
from hssl_nnunet.benchmark.report.surfaces import surfaces
from hssl_nnunet.benchmark.report.training import against, drawn


def number(value: float, form: str = ".1f") -> str:
    """A number as the page writes it."""
    return format(value, form).replace("-", "−")


def ends(low: float, high: float, seeds: int = 3) -> str:
    return f"{number(low)} to {number(high)}{' †' if seeds == 1 else ''}"


def span(counts: list[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


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
    content = read_content(folder)
    small = replace(content, plan=replace(content.plan, finetuning={"weight_decay": 3e-5}))
    assert numbers(small)["asked"]["settings"]["finetuning"] == {"weight_decay": 3e-5}


def test_other_pretrainings_stand_beside_the_method_and_baselines_do_not(folder: Path, page: Page) -> None:
    content, rows = read_content(folder), page.grouped("hssl against other pretrainings")
    titles = {f"{EVIL_ARM} {budget}": budget for budget in BUDGETS}
    assert {key for key in rows if key[0]} == set(product(titles, ("all datasets", *DATASETS)))
    for (title, budget), name in product(titles.items(), DATASETS):
        # (seeds, patients), hssl minus the other
        ours, theirs = dice_table(*(content.of(name, budget, arm) for arm in ("hssl", EVIL_ARM))).points
        differences = ours - theirs
        cells = rows[title, name]
        assert cells[::2] == [number(differences.mean(), "+.1f"), str(len(differences))]
    assert rows[f"{EVIL_ARM} 20%", "all datasets"][2] == "2 to 3"
    partly = [r for r in content.records if (r.dataset_name, r.arm) != (DATASETS[1], EVIL_ARM)]
    for group in rivals(replace(content, records=partly)):
        assert [row[0] for row in group.rows] == [DATASETS[0]]  # one dataset is not all
    assert rivals(replace(content, records=[r for r in content.records if r.arm != "hssl"])) == []


def test_few_labels_stand_beside_the_most(folder: Path, page: Page) -> None:
    content, rows = read_content(folder), page.grouped("Few labels against the most")
    gaps = [g for g in label_gaps(content.records) if g.arm in ("hssl", g.baseline)]
    shown = {(f"{g.arm}, {g.budget} minus {g.baseline}, {g.most}", g.datasets): g for g in gaps}
    names = {"mean of 2 datasets": DATASETS}
    assert {(title, names.get(name, (name,))) for title, name in rows if title} == set(shown)
    for (title, name), cells in rows.items():
        if title:
            gap = shown[title, names.get(name, (name,))]
            seeds = [len(s) for s in gap.seeds]
            assert cells == [number(gap.difference, "+.1f"), ends(gap.low, gap.high, min(seeds)), span(seeds)]
    mean = next(g for g in gaps if (g.arm, g.baseline) == ("hssl", "vanilla"))
    assert len(mean.datasets) == 2
    side = "below" if mean.difference < 0 else "above"
    told = f"hssl with 5% of the labels is {number(abs(mean.difference))} Dice points {side} vanilla with 20% of the"
    assert told in page.sections["answer"]
    assert against_most(replace(content, records=[r for r in content.records if r.budget == "5%"])) == []


def test_surfaces_count_missed_labels_and_leave_empty_ones_out(folder: Path) -> None:
    record = run(DATASETS[0], "5%", "hssl", 0)
    values = [(0.9, 2.0), (0.7, 4.0), (0.0, inf), (nan, nan)]
    scores = tuple(replace(s, nsd=n, hd95_mm=h) for s, (n, h) in zip(record.scores, values, strict=False))
    content = replace(read_content(folder), records=(replace(record, scores=scores),))
    assert [g.rows for g in surfaces(content)] == [[("hssl", "53.3", "4.0 mm", "33 %")]]
    missed = tuple(replace(s, nsd=0.0, hd95_mm=inf) for s in scores[:3])
    content = replace(content, records=(replace(record, scores=missed),))
    assert surfaces(content)[0].rows == [("hssl", "0.0", "infinite", "100 %")]


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
    marks, alone = set(), set()
    for dataset_name, budget, arm, (place, baseline) in product(DATASETS, BUDGETS, ARMS, enumerate(st.BASELINES)):
        cells = rows[heading(dataset_name, budget), arm][2 + 4 * place : 6 + 4 * place]
        c = compared.get((dataset_name, budget, arm, baseline))
        if c is None:
            assert cells == ["–", "", "", ""]
            continue
        mark = "" if not c.finding else "▲ " if c.difference > 0 else "▼ "
        p = "<0.001" if c.p_holm < 0.001 else number(c.p_holm, ".3f")
        interval = ends(c.low, c.high, len(c.seeds))
        assert cells == [mark + number(c.difference, "+.1f"), interval, str(len(c.seeds)), p]
        alone.add((len(c.seeds), "†" in interval))
        marks.add(mark)
    assert marks == {"", "▲ ", "▼ "} and alone == {(1, True), (2, False), (3, False)}
    assert len(compared) == 23  # of 24, hssl and scratch share no seed on the second dataset at 20 %


def test_a_baseline_that_was_not_run_has_no_columns(folder: Path, page: Page) -> None:
    content = read_content(folder)
    left = replace(content, records=[r for r in content.records if r.arm != "vanilla"])
    shown = Page(render(left))
    assert len(shown.grouped("Results of every arm")[heading(DATASETS[0], "5%"), "hssl"]) == 2 + 4
    assert len(page.grouped("Results of every arm")[heading(DATASETS[0], "5%"), "hssl"]) == 2 + 4 * 2
    every = shown.grouped("Results averaged over datasets")
    assert {len(cells) for (_, arm), cells in every.items() if arm == "hssl"} == {1 + 4}
    alone = replace(content, records=[r for r in content.records if r.arm == "hssl"])
    assert alone.baselines == list(st.BASELINES)


def test_the_pooled_table_and_the_epochs_show_the_statistics(folder: Path, page: Page) -> None:
    records = read_records(folder)
    rows, ranks = page.grouped("Results averaged over datasets"), st.mean_ranks(records)
    comparisons = st.compare_all(records)
    for o in st.overall(records):
        where = next(title for title, _ in rows if title.startswith(o.budget))
        cells = rows[where, o.arm][1 + 4 * st.BASELINES.index(o.baseline) :][:4]
        counts = [len(seeds) for seeds in o.seeds]
        basis = f"{len(o.datasets)} / {span(counts)}"
        same = [c.verdict for c in comparisons if (c.budget, c.arm, c.baseline) == (o.budget, o.arm, o.baseline)]
        tally = [same.count(verdict) for verdict in ("win", "tie", "loss")]
        assert cells == [
            number(o.difference, "+.1f"), ends(o.low, o.high, min(counts)), basis, " / ".join(map(str, tally))
        ]  # fmt: skip
    titles = {"5%": "5% ranks over 2 datasets, 3 seeds", "20%": "20% ranks over 1 dataset, 3 seeds"}
    for budget, ranking in ranks.items():
        assert all(rows[titles[budget], arm][0] == number(rank, ".2f") for arm, rank in ranking.ranks.items())
        assert f"{len(ranking.datasets)} dataset" in titles[budget]
    reached = page.grouped("Epochs to reach the final Dice of vanilla")
    assert len(reached) == 1 + len(DATASETS) * len(BUDGETS)
    content = read_content(folder)
    for dataset_name, budget, (place, arm) in product(DATASETS, BUDGETS, enumerate(ARMS)):
        one = against(content, dataset_name, budget, "vanilla")
        assert one is not None and reached[dataset_name, budget][0] == str(len(one.seeds))
        reach = one.reach(arm, "vanilla")
        told = f"{reach.epoch} ({100 * reach.share:.0f} %)" if reach else "not reached"
        assert reached[dataset_name, budget][1 + place] == (told if arm in one.by_arm else "–")
    assert reached[DATASETS[0], "5%"] == ["3", "40 (100 %)", "40 (100 %)", "10 (25 %)", "40 (100 %)"]
    assert reached[DATASETS[1], "20%"][:3] == ["2", "40 (100 %)", "–"]  # scratch lacks seeds 0 and 1
    of_scratch = page.grouped("Epochs to reach the final Dice of scratch")
    one = against(content, DATASETS[0], "5%", "scratch")
    reach = one.reach("hssl", "scratch") if one else None
    assert reach is not None and of_scratch[DATASETS[0], "5%"][3].startswith(f"{reach.epoch} (")
    assert (DATASETS[1], "20%") not in of_scratch  # no seed with hssl


def test_curves_levels_and_epochs_stand_on_the_same_seeds(folder: Path) -> None:
    content = read_content(folder)
    higher = replace(run(DATASETS[0], "5%", "hssl", 0), seed=7, epochs=(EpochScore(epoch=1, dice=0.99),))
    lower = replace(run(DATASETS[0], "5%", "vanilla", 0), seed=8, epochs=(EpochScore(epoch=40, dice=0.0),))
    more = replace(content, records=(*content.records, higher, lower))
    for one in (content, more):
        ((curves, baselines),) = drawn(one, DATASETS[0], "5%")  # both baselines share the same seeds with the method
        assert baselines == list(st.BASELINES) and curves.seeds == SEEDS
        assert curves.level("vanilla") == pytest.approx(0.5875) and 40 in curves.by_arm["hssl"]
    few = replace(content, records=[r for r in content.records if r.arm != "vanilla" or r.seed == 1])
    first, second = drawn(few, DATASETS[0], "5%")
    assert (first[0].seeds, first[1]) == ((1,), ["vanilla"]) and set(first[0].by_arm) == set(ARMS)
    assert (second[0].seeds, second[1]) == (SEEDS, ["scratch"]) and set(second[0].by_arm) == {*ARMS} - {"vanilla"}
    notes = [p.note for p in all_panels(few, [], arm_styles(ARMS))["curve_panels"] if p.title == DATASETS[0]]  # type: ignore[attr-defined]
    assert notes == ["5%, 1 seed", "5%, 3 seeds", "20%, 1 seed", "20%, 3 seeds"]
    nothing = replace(content, records=[r for r in content.records if r.arm == EVIL_ARM])
    assert [(c.seeds, b) for c, b in drawn(nothing, DATASETS[0], "5%")] == [(SEEDS, [])]


def test_the_figures_tell_the_statistics(folder: Path, page: Page) -> None:
    told = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes]
    assert len(told) == 3 * len(DATASETS) + 2 * len(DATASETS) * len(BUDGETS)
    records = read_records(folder)
    for s in st.seed_spread(records):
        assert any(f"{s.arm} " in t and f"{s.mean:.1f} at {s.budget}" in t for t in told)
    for c in st.compare_all(records):
        assert any(f"over {c.baseline}" in t and f"{c.difference:.1f} at {c.budget}" in t for t in told)
    assert "over scratch, 1 to 3 shared seeds" in page.sections["budget"]
    assert "20%, vanilla on 2 seeds" in page.sections["patients"]
    assert any("hssl is above vanilla in 12 of 12 patients" in t for t in told)


def test_the_page_has_the_epochs_in_its_answer(page: Page) -> None:
    assert (
        "it reaches the final Dice of vanilla nnU-Net after 25\xa0% of the epochs on 1 of 2 datasets (3 seeds;"
        in (page.sections["answer"])
    )
    assert "without mirroring and in preprocessed voxels" in page.sections["curves"]


def test_numbers_are_written_for_people() -> None:
    signed = [wording.signed(v) for v in (3.21, -0.44, -0.04, 0.04, 0.0, -0.0, nan)]
    assert signed == ["+3.2", "−0.4", "−0.0", "+0.0", "0.0", "0.0", "–"]
    assert wording.interval(-0.03, 6.6) == "−0.0 to 6.6" and wording.interval(0.03, 6.6) == "0.0 to 6.6"
    assert [wording.p_value(v) for v in (0.0004, 0.0406, 1.0)] == ["<0.001", "0.041", "1.000"]
    assert [wording.duration(s) for s in (4.24, 41, 270, 7560)] == ["4.2 s", "41 s", "4.5 min", "2.1 h"]
    assert [wording.span(c, "seed") for c in ([1, 1], [3], [3, 1])] == ["1 seed", "3 seeds", "1 to 3 seeds"]
