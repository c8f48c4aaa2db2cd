"""The page of a benchmark: its numbers are the statistics', it needs nothing but itself, a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from io import BytesIO
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.arms import Arm
from hssl_nnunet.benchmark.job import Run
from hssl_nnunet.benchmark.jobs import JobState, JobTable
from hssl_nnunet.benchmark.records import CaseScore, EpochScore, RunRecord, read_records, record_path, write_record
from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.cases import Slice, choose, draw_slice, read_slice
from hssl_nnunet.benchmark.report.content import not_run, read_content
from hssl_nnunet.benchmark.report.drawing import CSS_COLOURS, arm_styles
from hssl_nnunet.benchmark.report.gallery import case_dice, embeddings
from hssl_nnunet.benchmark.report.page import write_report
from hssl_nnunet.benchmark.report.surfaces import surfaces
from hssl_nnunet.benchmark.report.tables import environment, pretrainings
from hssl_nnunet.benchmark.workspace import BenchmarkPlan, Workspace
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.projection import Entry
from hssl_nnunet.transfer.report import TransferReport

EVIL_DATASET = "Dataset009_<img src=x onerror=boom>"
EVIL_ARM = "<script>\"$x'&amp;"
DATASETS = ("Dataset004_Hippocampus", EVIL_DATASET)
BUDGETS = {"5%": 3, "20%": 9}  # budget -> labelled cases
ARMS = ("vanilla", "scratch", "hssl", EVIL_ARM)
SEEDS = (0, 1, 2)
PATIENTS = 12
GAPS = {(EVIL_DATASET, "20%", "hssl", 2), (EVIL_DATASET, "20%", "scratch", 0), (EVIL_DATASET, "20%", "scratch", 1)}
SECTIONS = (
    "answer budget patients surfaces curves cost cases embedding transfer leakage environment commands not-run".split()
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """What a page holds: its tags, its text by section, and its tables by their `aria-label`."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._section, self._table, self._in_cell = "", "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag == "section":
            self._section = found["id"]
        elif tag == "table":
            self._table = found["aria-label"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._in_cell:
            self.tables[self._table][-1][-1] += data

    def grouped(self, label: str) -> dict[tuple[str, str], list[str]]:
        """(heading of the group, first cell) -> the other cells."""
        rows, heading = {}, ""
        for row in self.tables[label]:
            if len(row) == 1:
                heading = row[0].strip()
            else:
                rows[heading, row[0]] = row[1:]
        return rows


def run(dataset_name: str, budget: str, arm: str, seed: int, **changes: Any) -> RunRecord:
    """A record; hssl is better on the first dataset and worse on the second, scores differ by patient and seed."""
    rng = np.random.default_rng([seed, DATASETS.index(dataset_name), len(budget), ARMS.index(arm)])
    gain = {"hssl": 0.08 if dataset_name == DATASETS[0] else -0.05, EVIL_ARM: 0.01}.get(arm, 0.0)
    patients = np.random.default_rng(7).normal(0.6, 0.08, PATIENTS)
    scores = tuple(
        CaseScore(
            case=f"case_{index:02}_{phase}",
            patient=f"patient_{index:02}",
            label=label,
            dice=nan if (index, label) == (3, "tail") else float(value + gain + rng.normal(0, 0.02)),
            nsd=0.5,
            hd95_mm=2.0,
        )
        for index, value in enumerate(patients)
        for phase in range(1 + index % 2)
        for label in ("head", "tail")
    )
    values: dict[str, Any] = {
        "training_cases": tuple(f"training_{seed}_{i}" for i in range(BUDGETS[budget])),
        "num_epochs": 40,
        "num_iterations_per_epoch": 10,
        "train_s": 100.0 + 10 * seed,
        "peak_gib": 1.5 + seed,
        "weights_sha256": None,
        "epochs": tuple(EpochScore(epoch=e, dice=0.6 + gain - 0.5 / e) for e in (1, 10, 20, 40)),
        "scores": scores,
    }
    return RunRecord(dataset_name=dataset_name, budget=budget, arm=arm, seed=seed, **{**values, **changes})


FACTS = {
    "command": "hssl benchmark run -d 4 9 <all>",
    "commands": ["hssl pretrain 900", "hssl finetune 4 3d_fullres 0"],
    "about": {"versions": {"torch": "2.<b>6"}, "cpu": "two cores", "flags": ["bf16", "channels_last"]},
    "datasets": DATASETS,
    "budgets": list(BUDGETS),
    "arms": ARMS,
    "seeds": SEEDS,
    "pretraining": {"hssl": {"seconds": 7200, "weights": "hssl.safetensors", "sha256": "abc123", "more": 1}},
    "leakage": [{"arm": "hssl", "dataset": d, "overlap": o} for d, o in zip(DATASETS, ([], ["<i>seen"]), strict=True)],
    "transfer": {DATASETS[0]: {"hssl": {"exact": 41, "adapted": 22, "fresh": 3}}},
    "unknown": "ignored",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark with everything, some runs missing, and two test cases without a prediction."""
    path = tmp_path_factory.mktemp("benchmark")
    for key in product(DATASETS, BUDGETS, ARMS, SEEDS):
        if key not in GAPS:
            write_record(path, run(*key))
    (path / "benchmark.json").write_text(json.dumps(FACTS))
    failed = Run(dataset_name=EVIL_DATASET, budget="20%", arm="scratch", seed=0)
    JobTable(path).write(failed.name, JobState(state="failed", error="killed"))
    cases = sorted(case_dice(run(DATASETS[0], "5%", "hssl", 0)))
    (path / "cases.json").write_text(
        json.dumps({DATASETS[0]: {c: {"image": "image.nii.gz", "truth": "truth.nii.gz"} for c in cases}})
    )
    image, truth, first, second = volumes()
    sitk.WriteImage(image, str(path / "image.nii.gz"))
    sitk.WriteImage(truth, str(path / "truth.nii.gz"))
    worst = chosen(path)[0].case
    for arm, mask in (("hssl", first), ("vanilla", second)):
        predictions = record_path(path, DATASETS[0], "5%", arm, 0).parent / "predictions"
        predictions.mkdir()
        for case in cases:
            if case != worst:
                sitk.WriteImage(mask, str(predictions / f"{case}.nii.gz"))
    (path / "embeddings").mkdir()
    (path / "embeddings" / "hssl.png").write_bytes(draw_slice(plain_slice(), prediction=1))
    (path / "embeddings" / "broken.png").write_text("no picture")
    return path


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    output = write_report(folder)
    assert output == folder / "report.html"
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def volumes() -> tuple[sitk.Image, sitk.Image, sitk.Image, sitk.Image]:
    """Image, truth and two predictions, (z, y, x) = (6, 24, 20), 3 mm apart along y: the slices shown are coronal."""
    masks = np.zeros((3, 6, 24, 20), np.uint8)
    masks[0, 1:5, 8:12, 5:9] = 1
    masks[0, 1:5, 10, 5:15] = 2  # y = 10 shows most
    masks[1] = np.roll(masks[0], 1, axis=2)
    masks[2] = np.roll(masks[0], 3, axis=2)
    arrays = [np.random.default_rng(0).normal(size=masks[0].shape).astype(np.float32), *masks]
    images = [sitk.GetImageFromArray(a) for a in arrays]
    for image in images:
        image.SetSpacing((1.0, 3.0, 1.0))
    return images[0], images[1], images[2], images[3]


def plain_slice() -> Slice:
    """Truth, first and second prediction are three squares side by side on a dark image."""
    masks = np.zeros((3, 40, 60), np.uint8)
    for mask, left in zip(masks, (5, 25, 45), strict=True):
        mask[15:25, left : left + 10] = 1
    image = np.zeros((40, 60))
    image[0, 0] = 1
    return Slice(image=image, masks=(masks[0], masks[1], masks[2]), aspect=1.0, where="axial slice 1 of 1")


def chosen(folder: Path) -> list[Any]:
    records = {r.arm: r for r in read_records(folder) if (r.dataset_name, r.budget, r.seed) == (DATASETS[0], "5%", 0)}
    return choose(case_dice(records["hssl"]), case_dice(records["vanilla"]))


def number(value: float, form: str = ".1f") -> str:
    """A number as the page writes it."""
    shown = format(value, form)
    return re.sub(r"^[+-](0\.0+)$", r"\1", shown).replace("-", "−")


def ends(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def heading(dataset_name: str, budget: str) -> str:
    return f"{dataset_name}, {budget} {BUDGETS[budget]} labelled cases, {PATIENTS} test patients"


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


def test_the_page_has_its_sections_in_order_and_every_text_alternative(page: Page) -> None:
    assert [a["id"] for tag, a in page.tags if tag == "section"] == SECTIONS
    assert [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)][:2] == ["h1", "h2"]
    assert ("html", {"lang": "en"}) in page.tags
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert set(targets) <= set(ids) and set(SECTIONS) <= set(targets)
    assert all(a["alt"] for tag, a in page.tags if tag == "img")
    assert all(a.get("role") == "img" or "aria-hidden" in a for tag, a in page.tags if tag == "svg")
    assert page.sections["answer"].index(wording.METHOD) < page.sections["answer"].index("Mean Dice")


def test_the_page_needs_nothing_but_itself(text: str, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not [sentinel for sentinel in CSS_COLOURS if sentinel in text]


def test_what_comes_from_files_is_escaped(page: Page) -> None:
    names = [name for _, attributes in page.tags for name in attributes]
    assert not [name for name in names if name.startswith("on")]
    assert not [a for tag, a in page.tags if tag == "img" and a["src"] == "x"]
    for section, shown in {
        "answer": EVIL_DATASET,
        "cost": EVIL_ARM,
        "leakage": "<i>seen",
        "environment": "2.<b>6",
        "commands": "hssl benchmark run -d 4 9 <all>",
        "not-run": EVIL_DATASET,
    }.items():
        assert shown in page.sections[section]


def test_cost_transfer_audit_environment_and_commands(page: Page) -> None:
    cost = page.grouped("Time and memory of every arm")
    assert cost[DATASETS[0], "hssl"] == ["6", "1.8 min", "275 ms", "3.5 GiB"]
    assert cost[EVIL_DATASET, "hssl"] == ["5", "1.8 min", "270 ms", "3.5 GiB"]
    assert page.tables["Pretraining"][1] == ["hssl", "2.0 h", "hssl.safetensors", "abc123"]
    assert page.grouped("Tensors transferred")[DATASETS[0], "hssl"] == ["41", "22", "3"]
    audit = page.tables["Leakage audit"]
    assert audit[1:] == [["hssl", DATASETS[0], "none"], ["hssl", EVIL_DATASET, "<i>seen"]]
    assert f"the pretraining of hssl has seen test cases of {EVIL_DATASET}" in page.sections["answer"]
    assert f"seen test cases of {DATASETS[0]}" not in page.sections["answer"]
    rows = [["versions: torch", "2.<b>6"], ["cpu", "two cores"], ["flags", "bf16, channels_last"]]
    assert page.tables["Environment"] == rows
    assert "hssl pretrain 900\nhssl finetune 4 3d_fullres 0" in page.sections["commands"]


def test_what_was_not_run_is_listed_exactly(folder: Path, page: Page) -> None:
    listed = {
        (r.dataset_name, r.budget, r.arm, seed) for r in not_run(read_content(folder)) for seed in r.seeds
    }  # fmt: skip
    assert listed == GAPS
    assert page.tables["Runs that were not run"][1:] == [
        [EVIL_DATASET, "20%", "scratch", "0", "failed: killed"],
        [EVIL_DATASET, "20%", "scratch", "1", "pending"],
        [EVIL_DATASET, "20%", "hssl", "2", "refused: its pretraining has seen test cases"],
    ]
    assert "3 more asked for and not run" in page.sections[""]
    assert "does not name" not in page.sections["not-run"]


def test_the_cases_are_shown_or_said_to_be_missing(folder: Path, page: Page) -> None:
    worst, median, best = (c.case for c in chosen(folder))
    shown = page.sections["cases"]
    assert f"runs/{DATASETS[0]}/5%/hssl/seed_0/predictions/{worst}.nii.gz is missing" in shown
    assert str(folder) not in shown
    alts = [a["alt"] for tag, a in page.tags if tag == "img" and "contours" in a["alt"]]
    wanted = [(case, arm) for case in (median, best) for arm in ("hssl", "vanilla")]
    assert [(a.split(",")[0], a.split("of ")[-1].split(",")[0]) for a in alts] == wanted
    assert all("coronal slice 11 of 24" in a for a in alts)
    assert shown.count("cases.json does not name this case") == 3  # of the other dataset
    assert sum(a["alt"].startswith("Embedding") for tag, a in page.tags if tag == "img") == 1  # the broken one is not


@pytest.mark.parametrize("seed", range(20))
def test_worst_median_and_best_agree_with_a_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 9))
    first, second = (
        {f"c{i}": float(rng.integers(0, 4)) / 4 for i in rng.permutation(count + 2)[: count + 1]} for _ in range(2)
    )
    first[next(iter(first))] = nan
    shared = [c for c in sorted(first) if c in second and first[c] == first[c]]
    by_difference: list[str] = []
    while left := [c for c in shared if c not in by_difference]:  # selection sort; equals by name
        by_difference.append(min(left, key=lambda c: first[c] - second[c]))
    highest = max((first[c] - second[c] for c in shared), default=nan)
    best = next((c for c in shared if first[c] - second[c] == highest), None)
    found = {c.rank: c.case for c in choose(first, second)}
    if not shared:
        assert not found
        return
    assert found["worst"] == by_difference[0]
    assert found.get("best", by_difference[0]) == best
    median = by_difference[(len(shared) - 1) // 2]
    assert found.get("median", median) == median
    assert len(set(found.values())) == len(found)


def test_few_cases_are_each_named_once() -> None:
    assert choose({}, {"a": 1.0}) == []
    assert [(c.rank, c.case) for c in choose({"a": 0.5}, {"a": 0.5})] == [("worst", "a")]
    pairs = choose({"a": 0.5, "b": 0.9}, {"a": 0.5, "b": 0.5})
    assert [(c.rank, c.case, c.first, c.second) for c in pairs] == [("worst", "a", 0.5, 0.5), ("best", "b", 0.9, 0.5)]


def test_a_slice_is_cut_where_the_truth_is_and_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.nii.gz" for name in ("image", "truth", "first", "second")]
    for image, path in zip(volumes(), paths, strict=True):
        sitk.WriteImage(image, str(path))
    shown = read_slice(*paths)
    assert shown.where == "coronal slice 11 of 24" and shown.aspect == 1.0
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(paths[1])))[:, 10]
    assert sorted(shown.masks[0][shown.masks[0] > 0]) == sorted(truth[truth > 0])
    assert shown.masks[0].shape == shown.image.shape == shown.masks[2].shape
    sitk.WriteImage(volumes()[0][:, :20, :], str(paths[3]))
    with pytest.raises(ValueError, match=r"truth.nii.gz differ in shape"):
        read_slice(*paths)
    paths[2].write_text("no image")
    with pytest.raises(ValueError, match=r"first.nii.gz cannot be read"):
        read_slice(*paths)
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"first.nii.gz is missing"):
        read_slice(*paths)


@pytest.mark.parametrize("prediction, columns", [(1, (25, 35)), (2, (45, 55))])
def test_a_picture_outlines_the_truth_and_the_prediction_that_was_asked_for(
    prediction: int, columns: tuple[int, int]
) -> None:
    pixels = imread(BytesIO(draw_slice(plain_slice(), prediction=prediction)))[..., :3]
    voxel = pixels.shape[1] / 60
    painted = np.flatnonzero((pixels.max(-1) - pixels.min(-1) > 0.2).any(0)) / voxel
    low, high = columns
    assert (painted < 16).any() and ((painted > low - 1) & (painted < high + 1)).any()  # truth, prediction
    assert ((painted < 16) | ((painted > low - 1) & (painted < high + 1))).all()  # and nothing else


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


def test_arms_are_told_apart_without_colour() -> None:
    arms = [*ARMS, *(f"arm{i}" for i in range(12))]
    styles = arm_styles(arms)
    assert list(styles) == arms
    assert len({(s.marker, s.dashes) for s in styles.values()}) == len(arms)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """One run of two arms each, without curves, and no file beside the records."""
    for arm in ("vanilla", "hssl"):
        write_record(tmp_path, run(DATASETS[0], "5%", arm, 0, epochs=()))
    return tmp_path


def test_parts_that_are_missing_are_said_to_be(bare: Path, tmp_path: Path) -> None:
    output = write_report(bare, tmp_path / "elsewhere" / "page.html")
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    assert [a["id"] for tag, a in page.tags if tag == "section"] == SECTIONS
    for section in ("embedding", "transfer", "leakage", "environment", "commands"):
        assert "Not available" in page.sections[section]
    assert "1 seed, too few to establish one" in page.sections["answer"]
    assert "has not been compared with scratch" in page.sections["answer"]
    assert "No run has recorded its Dice" in page.sections["curves"]
    assert page.sections["cases"].count("cases.json does not name this case") == 3
    assert "does not name the datasets, budgets, arms, seeds" in page.sections["not-run"]
    assert "±" not in page.grouped("Results of every arm")[heading(DATASETS[0], "5%"), "hssl"][0]
    assert write_report(bare).read_text(encoding="utf-8") == text  # the same page, byte for byte


def test_a_benchmark_without_the_method_or_a_baseline_has_a_page(tmp_path: Path) -> None:
    write_record(tmp_path, run(DATASETS[0], "20%", EVIL_ARM, 1))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "there is no answer" in page.sections["answer"]
    assert "No dataset has hssl and a baseline" in page.sections["patients"]


def test_what_the_runner_leaves_is_found(tmp_path: Path) -> None:
    target, sha256 = DATASETS[0], "ab" * 32
    arms = {
        "vanilla": Arm(description="stock"),
        "hssl": Arm(description="the whole loss", pretrained_on="all"),
        "single_domain": Arm(description="its own images", pretrained_on="target"),
    }
    plan = BenchmarkPlan(
        command="hssl benchmark run",
        datasets=(target,),
        domains=(target, "Dataset053_SarcomaPET"),
        configuration="3d_fullres",
        plans_name="nnUNetPlans",
        budgets=("5%",),
        arms=arms,
        seeds=(0,),
        test_fraction=0.3,
        patient_regex=(),
        nsd_tolerance_mm=1.0,
        min_cases=1,
        pretraining={"num_epochs": 7, "loss": {"image": 0.5}},
        finetuning={},
        device=None,
        about={"versions": {"torch": "2.6"}},
    )
    Workspace(tmp_path).write_plan(plan)
    (tmp_path / "leakage.json").write_text(json.dumps({"single_domain": [f"{target}:case_1", f"{target}:case_2"]}))
    for name in ("pretrain/hssl", f"pretrain/single_domain/{target}"):
        JobTable(tmp_path).write(name, JobState(state="done", seconds=7200))
    told = {
        "seconds": 5400.0,
        "weights": "hssl.safetensors",
        "sha256": sha256,
    }  # its epochs, however often it was stopped
    (JobTable(tmp_path).folder("pretrain/hssl") / "pretraining.json").write_text(json.dumps(told))
    JobTable(tmp_path).write("pretrain/mae", JobState(state="failed"))
    write_record(tmp_path, run(target, "5%", "hssl", 0, weights_sha256=sha256))
    statuses: tuple[Any, ...] = ("exact", "exact", "adapted", "fresh", "exact")
    entries = tuple(
        Entry(name=f"{i}", role=f"{('encoder', 'decoder')[i % 2]}.{i}", shape=(2, 3), status=status)
        for i, status in enumerate(statuses)
    )
    fold = tmp_path / "nnUNet_results" / target / "nnUNetTrainerX__nnUNetPlans_hssl_s0__3d_fullres" / "fold_0"
    drawn = tmp_path / "nnUNet_results" / "Dataset900_Benchmark_hssl" / "T__nnUNetPlans__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    drawn.mkdir(parents=True)
    report = TransferReport(dataset=target, configuration="3d_fullres", entries=entries)
    (fold / "transfer.json").write_text(json.dumps(report.to_json()))
    (drawn / "embeddings.png").write_bytes(draw_slice(plain_slice(), prediction=1))

    content = read_content(tmp_path)
    assert content.facts.descriptions == {name: arm.description for name, arm in arms.items()}
    assert pretrainings(content) == [
        ("hssl", "90.0 min", "hssl.safetensors", sha256),
        (f"single_domain, {target}", "2.0 h", "–", "–"),
    ]
    assert content.facts.transfer == {target: {"hssl": {"exact": 3, "adapted": 1, "fresh": 1}}}
    assert [p.title for p in embeddings(content)] == ["hssl"]
    audits = {a.arm: (a.dataset, a.overlap, a.otherwise[:7]) for a in content.facts.leakage}
    assert audits["vanilla"] == ("every target", (), "nothing")
    assert audits["hssl"] == ("every target", (), "none: i")
    assert audits["single_domain"][:2] == (target, ("case_1", "case_2"))
    assert {(r.arm, r.why.partition(":")[0]) for r in not_run(content)} == {
        ("vanilla", "pending"),
        ("single_domain", "refused"),
    }
    told = dict(environment({**content.facts.about, **content.facts.settings}))
    assert told["pretraining: num_epochs"] == "7" and told["pretraining: loss: image"] == "0.5"
    assert told["domains"] == f"{target}, Dataset053_SarcomaPET" and "device" not in told
    assert told["versions: torch"] == "2.6"


def test_an_empty_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match="hssl benchmark run -o"):
        write_report(tmp_path)


def test_a_wrong_file_is_named(bare: Path) -> None:
    for wrong, key in (('{"seeds": ["one"]}', "seeds.0"), ('{"pretraining": [1]}', "pretraining"), ("[]", "")):
        (bare / "benchmark.json").write_text(wrong)
        with pytest.raises(HSSLError, match=rf"benchmark.json is not a valid Facts:\n  {key}"):
            write_report(bare)


def test_a_missing_jinja2_names_its_remedy(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(HSSLError, match=r'pip install "hssl_nnunet\[benchmark\]"'):
        write_report(bare)
    assert not (bare / "report.html").exists()


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def schemes(text: str) -> Iterator[dict[str, str]]:
    """Colours of the light and of the dark page."""
    for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        yield dict(re.findall(r"--(\w+): (#\w{6})", block))


def test_text_and_arms_stand_out_in_light_and_dark(text: str) -> None:
    light, dark = schemes(text)
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for name in ("ink", "muted", "gain", "loss"):
            assert min(contrast(scheme[name], scheme[ground]) for ground in ("paper", "wash")) >= 4.5
        for arm in ("scratch", "hssl"):
            assert contrast(arm_styles(ARMS)[arm].colour, scheme["paper"]) >= 3


CONTROL = '<img src="data:image/png;base64,AAAA"><p style="width:900px">A page with every mistake.</p>'
PROBE = """<!doctype html><iframe id="phone" width="375" height="800" srcdoc="{page}"></iframe>
<iframe id="control" width="375" height="800" srcdoc="{control}"></iframe>
<p id="found"></p><script>onload = () => {{
  const look = (id) => {{ const d = document.getElementById(id).contentDocument;
    return [d.images.length, [...d.images].filter(i => !i.naturalWidth).length, d.documentElement.scrollWidth,
            [...d.querySelectorAll("figure svg")].filter(s => s.getBoundingClientRect().height < 100).length]; }};
  document.getElementById("found").textContent = JSON.stringify([look("phone"), look("control")]);
  console.error("the probe ran"); }}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_the_page_on_a_phone(text: str, tmp_path: Path) -> None:
    (tmp_path / "probe.html").write_text(PROBE.format(page=escape(text), control=escape(CONTROL)), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = "--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --dump-dom"
    command = [str(CHROMIUM), *flags.split(), *more.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, (tmp_path / "probe.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<p id="found">(.*?)</p>', done.stdout)
    assert found, done.stderr[-2000:]
    (images, broken, width, flat), control = json.loads(found[1])
    assert (images, broken, flat) == (5, 0, 0)
    assert width <= 375
    assert control[:2] == [1, 1] and control[2] >= 900  # what the probe would see on a bad page
    said = re.findall(r":CONSOLE[:(].*", done.stderr)
    assert len(said) == 1 and "the probe ran" in said[0], said
