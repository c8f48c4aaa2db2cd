"""How the scripts in benchmarks/ call the weights and checkpoints that they compare."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def common() -> ModuleType:
    spec = importlib.util.spec_from_file_location("common_of_the_scripts", SCRIPTS / "common.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_is_called_as_it_is_named_or_as_its_corpus_or_by_its_stem(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_run = Path("results/Dataset900_Limbs/nnUNetTrainerHSSLPretrain__nnUNetPlans__3d_fullres/fold_all/w.safetensors")
    found = common.named_files(["hssl.safetensors", f"ours={of_run}", str(of_run)])
    assert found == {"hssl": Path("hssl.safetensors"), "ours": of_run, "Dataset900_Limbs": of_run}


def test_a_sign_of_equality_in_a_path_is_part_of_it(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").mkdir()
    Path("lr=0.1/w.safetensors").touch()
    assert common.named_files(["lr=0.1/w.safetensors"]) == {"w": Path("lr=0.1/w.safetensors")}
    assert common.named_files(["low=lr=0.1/w.safetensors"]) == {"low": Path("lr=0.1/w.safetensors")}


def test_two_of_one_name_are_refused(common: ModuleType) -> None:
    with pytest.raises(SystemExit, match="a/w.pth and b/w.pth are both called w. Name one as `NAME=PATH`"):
        common.named_files(["a/w.pth", "b/w.pth"])
