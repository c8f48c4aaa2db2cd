"""What a person has put into a corpus outlives `--overwrite`, and is named."""

import json
from dataclasses import replace

import pytest
from test_build import BRAIN, HIPPOCAMPUS, SARCOMA, build, folders

from hssl_nnunet.corpus import writing
from hssl_nnunet.corpus.build import build_corpus
from hssl_nnunet.corpus.manifest import read_manifest
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.plan_schema import corpus_block, load_preset, pretraining_plan

__all__ = ["folders"]  # a fixture


def edit(path, change):
    content = json.loads(path.read_text())
    change(content["hssl"])
    path.write_text(json.dumps(content))


def test_edited_plan_values_stay_and_are_named(folders):
    path = build().folder / "nnUNetPlans.json"
    stock = json.loads(path.read_text())["hssl"]["pretraining"]

    def change(block):
        block["pretraining"]["loss"]["tau"] = 0.31
        block["pretraining"]["num_epochs"] = 77

    edit(path, change)
    for _ in range(2):  # what was kept once is kept again
        report = build(overwrite=True)
        assert (report.block.pretraining.loss.tau, report.block.pretraining.num_epochs) == (0.31, 77)
        assert report.block.pretraining.warmup_epochs == stock["warmup_epochs"]
        (note,) = [n for n in report.notes if "kept the values" in n]
        assert f"pretraining.loss.tau was {stock['loss']['tau']}, is 0.31" in note and "num_epochs" in note
        assert "warmup_epochs" not in note and f"remove {path}" in note
    assert build(overwrite=True, pretraining_overrides={"num_epochs": 88}).block.pretraining.loss.tau != 0.31
    path.unlink()
    report = build(overwrite=True)
    assert report.block.pretraining.loss.tau == stock["loss"]["tau"]
    assert not any("kept" in n for n in report.notes)
    edit(path, lambda block: block["pretraining"].update(tow=1))
    with pytest.raises(HSSLError, match=r"(?s)tow.*Repair it, or remove it"):
        build(overwrite=True)


def test_edited_values_move_to_the_plans_of_another_preset(folders):
    edit(build().folder / "nnUNetPlans.json", lambda block: block["pretraining"]["loss"].update(tau=0.31))
    for name in (HIPPOCAMPUS, SARCOMA, BRAIN):
        folders.write_plans(name, "nnUNetCPUPlans")
    preset = pretraining_plan(load_preset("cpu"))
    pretraining = build(overwrite=True, plans_name="nnUNetCPUPlans").block.pretraining
    assert pretraining == replace(preset, loss=replace(preset.loss, tau=0.31))


def test_groups_by_hand_stay_and_are_named(folders, tmp_path):
    path = build().folder / "nnUNetPlans.json"
    derived = corpus_block(json.loads(path.read_text()), path).domains
    edit(path, lambda block: block["domains"][1].update(groups=["limb", "MR"]))
    for _ in range(2):
        report = build(overwrite=True)
        assert [d.groups for d in report.block.domains] == [derived[0].groups, ("limb", "MR"), derived[2].groups]
        (note,) = [n for n in report.notes if "given by hand" in n]
        assert f"{SARCOMA}: limb, MR (derived: {', '.join(derived[1].groups)})" in note and f"remove {path}" in note
        assert HIPPOCAMPUS not in note
        assert {r.groups for r in read_manifest(path.with_name("manifest.csv")) if r.domain == 1} == {("limb", "MR")}
    file = tmp_path / "groups.json"
    file.write_text(json.dumps({"groups": {"4": ["head"], "52": ["arm"], "55": ["head"]}}))
    report = build(overwrite=True, hierarchy_file=file)
    assert [d.groups for d in report.block.domains] == [("head",), ("arm",), ("head",)]
    assert not any("by hand" in n for n in report.notes)
    assert [d.groups for d in build(overwrite=True).block.domains] == [("head",), ("arm",), ("head",)]
    folders.add("Dataset056_Late", {}, {"late": 40}, n_stages=3, spacing=[1.0, 1.0, 1.0])
    with pytest.raises(HSSLError, match=f"given by hand, for {HIPPOCAMPUS}.*--hierarchy FILE"):
        build_corpus([4, 52, 55, 56], 900, "Test", overwrite=True)
    path.unlink()
    assert build(overwrite=True).block.domains[1].groups == derived[1].groups


def test_weights_that_the_pretraining_goes_on_from_stay_and_are_named(folders):
    path = build().folder / "nnUNetPlans.json"
    named = {"weights": "/earlier.safetensors", "weights_sha256": "ab" * 32}
    edit(path, lambda block: block.update(named))
    for _ in range(2):
        report = build(overwrite=True)
        assert (report.block.weights, report.block.weights_sha256) == tuple(named.values())
        assert any("kept the weights" in n and "/earlier.safetensors" in n for n in report.notes)
    path.unlink()
    assert build(overwrite=True).block.weights is None


def test_what_was_edited_outlives_a_kill_while_the_corpus_is_replaced(folders, monkeypatch):
    path = build().folder / "nnUNetPlans.json"
    edit(path, lambda block: block["pretraining"].update(num_epochs=77))

    def killed(*_):
        assert not path.exists()  # no command takes the folder for a corpus
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writing, "write_manifest", killed)
        build(overwrite=True)
    assert build(overwrite=True).block.pretraining.num_epochs == 77
    assert sorted(p.name for p in path.parent.glob("nnUNetPlans*")) == ["nnUNetPlans.json"]
