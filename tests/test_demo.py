from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hssl_nnunet.corpus.cases import read_raw_dataset
from hssl_nnunet.corpus.convert import convert_msd
from hssl_nnunet.corpus.manifest import read_manifest
from hssl_nnunet.demo import phantoms, run
from hssl_nnunet.demo.journal import Journal
from hssl_nnunet.demo.phantoms import DOMAINS, TARGET, make_case
from hssl_nnunet.demo.picture import mean_dice
from hssl_nnunet.demo.run import run_demo
from hssl_nnunet.errors import HSSLError

ONE_CUBE = (32, 32, 32)
SHRUNKEN = """
import sys
from hssl_nnunet.demo.run import run_demo
steps = dict(num_epochs=2, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1, warmup_epochs=0)
run_demo(sys.argv[1], dict(steps, images_per_chunk=1, probe_every=2), steps)
"""


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda d: d.name)
class TestDomain:
    def test_a_case_is_the_same_every_time_and_unlike_the_next(self, domain):
        (first, *_), _ = make_case(domain, 0)
        (again, *_), _ = make_case(domain, 0)
        (other, *_), _ = make_case(domain, 1)
        a, b, c = map(sitk.GetArrayFromImage, (first, again, other))
        assert np.array_equal(a, b)
        assert a.shape != c.shape or not np.allclose(a, c)

    def test_image_and_mask_share_the_scanners_geometry(self, domain):
        channels, mask = make_case(domain, 0)
        assert len(channels) == len(domain.tables)
        for image in (*channels, mask):
            assert image.GetSpacing()[::-1] == domain.spacing_mm  # ITK counts x first
            assert image.GetSize() == mask.GetSize()
            assert all(abs(n - m) <= 0.1 * m + 0.5 for n, m in zip(image.GetSize()[::-1], domain.shape, strict=True))

    def test_every_label_is_in_every_case(self, domain):
        for index in range(domain.num_training + domain.num_test):
            mask = sitk.GetArrayFromImage(make_case(domain, index)[1])
            assert set(np.unique(mask)) == set(range(len(domain.labels) + 1)), domain.case(index)


def uniform(table_value: float, imaging, spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """The image of a block of one tissue, the same in every patient but for its physics."""
    tissues = np.zeros(ONE_CUBE, np.uint8)
    return imaging(tissues, np.array([table_value]), spacing_mm, np.random.default_rng(0))


def test_air_is_at_minus_1000_hounsfield_units():
    image = uniform(-1000, phantoms.image_ct)
    assert image.mean() == pytest.approx(-1000, abs=1)
    assert image.std() == pytest.approx(20, rel=0.05)


def test_mr_noise_without_signal_has_the_mean_and_spread_of_rayleighs_distribution():
    tissues, table = np.zeros(ONE_CUBE, np.uint8), np.array([0.0, 1000.0])
    image = phantoms.image_mr(tissues, table, (1, 1, 1), np.random.default_rng(0))
    sigma = 0.04 * 1000
    assert image.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.02)
    assert image.std() == pytest.approx(sigma * math.sqrt(2 - math.pi / 2), rel=0.02)


def test_pet_keeps_the_uptake_and_spreads_it_by_millimetres_not_voxels():
    tissues, table = np.zeros(ONE_CUBE, np.uint8), np.array([0.0, 4000.0])
    tissues[16, 16, 16] = 1
    widths, sums = [], []
    for spacing in (2.0, 4.0):
        image = phantoms.image_pet(tissues, table, (spacing,) * 3, np.random.default_rng(0))
        z = (np.arange(32) - 16) * spacing
        widths.append(math.sqrt((image.sum((1, 2)) * z**2).sum() / image.sum()))
        sums.append(image.sum())
    assert sums == pytest.approx([sums[0]] * 2, rel=0.02)
    filtered = [math.hypot(7 / 2.355, 0.6 * s) for s in (2.0, 4.0)]  # point spread, then the filter of 0.6 voxels
    assert widths == pytest.approx(filtered, rel=0.05)


def test_the_converted_task_has_two_channels_and_no_mask_of_a_test_case(tmp_path, nnunet_folders):
    domain = next(d for d in DOMAINS if len(d.tables) == 2)
    phantoms.write_msd(domain, tmp_path / f"Task04_{domain.name}", tmp_path / "truth")
    phantoms.write_msd(TARGET, tmp_path / f"Task02_{TARGET.name}", tmp_path / "truth")
    two_channels = read_raw_dataset(convert_msd(tmp_path / f"Task04_{domain.name}"))
    assert {len(case.images) for case in two_channels.labelled} == {2}
    target = read_raw_dataset(convert_msd(tmp_path / f"Task02_{TARGET.name}"))
    assert (len(target.labelled), len(target.unlabelled)) == (TARGET.num_training, TARGET.num_test)
    truth = {p.name.removesuffix(".nii.gz") for p in (tmp_path / "truth").iterdir()}
    assert truth == {case.name for case in target.unlabelled}


def test_the_domain_without_masks_is_one_for_the_corpus(nnunet_folders):
    domain = next(d for d in DOMAINS if not d.labels)
    phantoms.write_unlabelled(domain, nnunet_folders["nnUNet_raw"] / domain.dataset_name)
    raw = read_raw_dataset(domain.dataset_name)
    assert (len(raw.labelled), len(raw.unlabelled)) == (0, domain.num_training)


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(HSSLError, match="not a folder of `hssl demo`.*--out"):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", ["{}", "[]", '{"seconds": {"one": "long"}}', "half a fi"])
def test_a_damaged_journal_is_named_and_left_alone(tmp_path, content):
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(HSSLError, match=f"(?s){tmp_path / 'demo.json'} .*hssl demo --out DIR"):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["demo.json"]


def test_a_finished_stage_is_not_repeated_and_a_failed_one_is(tmp_path, capsys):
    calls = []

    def fail() -> None:
        calls.append("fail")
        raise RuntimeError

    journal = Journal(tmp_path, {})
    journal.run("one", "hssl one", lambda: calls.append(print("of nnU-Net")))
    with pytest.raises(RuntimeError):
        journal.run("two", "hssl two", fail)
    again = Journal(tmp_path, json.loads((tmp_path / "demo.json").read_text())["seconds"])
    again.run("one", "hssl one", fail)
    assert calls == [None, "fail"]
    shown = capsys.readouterr().out
    assert "$ hssl one" in shown and "of nnU-Net" not in shown
    assert "of nnU-Net" in (tmp_path / "demo.log").read_text()


def test_a_case_without_the_label_does_not_count():
    cases = [{"spleen": 0.5, "pancreas": 1.0}, {"spleen": math.nan, "pancreas": 0.0}]
    assert mean_dice(cases, "spleen") == 0.5
    assert mean_dice(cases, "mean") == 0.5
    assert math.isnan(mean_dice([{"spleen": math.nan}], "spleen"))


def test_what_was_removed_of_a_finished_demo_is_made_again(tmp_path, nnunet_folders, monkeypatch):
    stages = dict.fromkeys(("finetune seeded", "export seeded", "predict seeded"), 1.0)
    journal, demo = Journal(tmp_path, stages), run.Demo(tmp_path, {}, {})
    model = demo.model("seeded") / TARGET.dataset_name / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    prediction, made = demo.predictions("seeded") / "case.nii.gz", []
    prediction.parent.mkdir(parents=True)
    monkeypatch.setattr(run, "_export", lambda *_: (made.append(model), model.mkdir(parents=True)))
    monkeypatch.setattr(run, "_predict", lambda *_: (made.append(prediction), prediction.touch()))
    for _ in range(2):
        run._train_and_predict(demo, journal, "seeded")
    assert made == [model, prediction] and journal.seconds.keys() == stages.keys()


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path):
    out = tmp_path / "demo"
    first = run_shrunken(out)
    assert "scratch" in first and "seeded" in first and "$ hssl pretrain 900" in first
    for name in ("demo.png", "dice.json", "predictions/seeded", "predictions/scratch", "models/seeded"):
        assert (out / name).exists(), name
    assert len(json.loads((out / "dice.json").read_text())["seeded"]) == TARGET.num_test

    preprocessed = out / "nnUNet_preprocessed"
    split = json.loads((preprocessed / TARGET.dataset_name / "splits_final.json").read_text())[0]
    test = {TARGET.case(TARGET.num_training + i) for i in range(TARGET.num_test)}
    seen = {row.case for row in read_manifest(preprocessed / "Dataset900_Phantoms" / "manifest.csv")}
    assert not seen & (test | set(split["val"]))
    assert set(split["train"]) <= seen
    assert run_shrunken(out).count("finished by an earlier run") == first.count("\n$ ")


def run_shrunken(out: Path) -> str:
    """The demo in a process of its own, with one step an epoch."""
    environment = dict(os.environ, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    command = [sys.executable, "-c", SHRUNKEN, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
