"""An exported model predicts under stock nnU-Net, in a process that cannot import this package."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_target as tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import ENV_RESULTS
from hssl_nnunet.transfer.checkpoints import CHECKPOINT_TYPES, load_checkpoint
from hssl_nnunet.transfer.export import export_model, prediction_commands, trained_plans_name
from hssl_nnunet.transfer.seeding import target_network

TRAINER = "nnUNetTrainerHSSLFinetune"
PLANS = "nnUNetCPUPlans_HSSL"
STOCK_NAME = f"nnUNetTrainer__{PLANS}__3d_fullres"


class nnUNetTrainerHSSLFinetune(nnUNetTrainer):  # noqa: N801
    """Only for its name, which nnU-Net writes into the checkpoint."""


def seeded_plans(role: str = "target") -> dict:
    block = {"role": role, "weights": "/home/someone/private/hssl.safetensors", "weights_sha256": "0" * 64}
    return tiny.plans(tiny.PLAIN) | {"plans_name": PLANS, "hssl": block}


def tiny_network() -> nn.Module:
    network, _ = target_network(seeded_plans(), tiny.dataset_json(), "3d_fullres")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that every label occurs in a prediction
    return network


def write_checkpoint(
    path: Path, network: nn.Module, spacing: float = 1.0, tumour: str = "lesion", **block: str
) -> None:
    """A checkpoint as nnU-Net's own trainer saves it, after one step and with a log."""
    plans = seeded_plans() | {"continue_training": False}
    plans["hssl"] |= block
    plans["configurations"]["3d_fullres"]["spacing"] = [spacing] * 3
    dataset = tiny.dataset_json() | {"labels": {"background": 0, "organ": 1, tumour: 2}}
    trainer = nnUNetTrainerHSSLFinetune(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.network, trainer.was_initialized = network, True
    trainer.optimizer, _ = trainer.configure_optimizers()
    sum(p.sum() for p in network.parameters()).backward()
    trainer.optimizer.step()
    trainer._best_ema = np.float64(0.5)
    for key, value in {"train_losses": np.float32(1.5), "dice_per_class_or_region": [np.float64(0.1)]}.items():
        trainer.logger.log(key, value, 0)
    trainer.inference_allowed_mirroring_axes = (0, 1)
    trainer.save_checkpoint(str(path))


@pytest.fixture
def model(results: Path) -> Path:
    """A results folder of one fine-tuned model with folds 0 and 1; fold 1 never finished."""
    folder = results / tiny.DATASET / f"{TRAINER}__{PLANS}__3d_fullres"
    for fold in ("fold_0", "fold_1"):
        (folder / fold / "validation").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(seeded_plans()))
    (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    (folder / "dataset_fingerprint.json").write_text("{}")
    (folder / "fold_0" / "progress.png").write_bytes(b"png")
    (folder / "fold_0" / "validation" / "summary.json").write_text("{}")
    (folder / "fold_0" / "validation" / "case_0.nii.gz").write_bytes(b"a patient's segmentation")
    for folds in ("0", "0_1"):
        (folder / f"crossval_results_folds_{folds}").mkdir()
        for name in ("postprocessing.json", "plans.json", "case_0.nii.gz"):  # the last two are nobody else's business
            (folder / f"crossval_results_folds_{folds}" / name).write_text("{}")
    torch.manual_seed(0)
    write_checkpoint(folder / "fold_0" / "checkpoint_final.pth", tiny_network())
    write_checkpoint(folder / "fold_1" / "checkpoint_best.pth", tiny_network())
    return folder


def export(output: Path, folds: tuple | None = None, **changes: str) -> Path:
    named = {"configuration": "3d_fullres", "plans_name": PLANS, "trainer": TRAINER} | changes
    return export_model(4, folds=folds, output=output, **named)


PREDICT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hssl_nnunet":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
archive, model, image, output = sys.argv[1:]

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

install_model_from_zip_file(archive)
# no Gaussian: it underflows in nnU-Net's half precision in the corners of so small a patch
predictor = nnUNetPredictor(
    use_mirroring=False, use_gaussian=False, device=torch.device("cpu"), perform_everything_on_device=False
)
predictor.initialize_from_trained_model_folder(model, None, "checkpoint_final.pth")
assert predictor.allowed_mirroring_axes == (0, 1), predictor.allowed_mirroring_axes
segmentation = predictor.predict_single_npy_array(np.load(image), {"spacing": [1.0, 1.0, 1.0]})
np.save(output, segmentation)
assert "hssl_nnunet" not in sys.modules
"""


@pytest.mark.slow
def test_stock_nnunet_predicts_from_the_zip_without_this_package(model: Path, tmp_path: Path) -> None:
    archive = export(tmp_path / "model.zip")
    image = np.random.default_rng(0).normal(5, 3, size=(tiny.CHANNELS, *tiny.PATCH)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    elsewhere = tmp_path / "other_machine"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    environment["nnUNet_results"] = str(elsewhere)
    installed = elsewhere / tiny.DATASET / STOCK_NAME
    command = [sys.executable, "-c", PREDICT, archive, installed, tmp_path / "image.npy", tmp_path / "out.npy"]
    run = subprocess.run(list(map(str, command)), env=environment, cwd=elsewhere, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

    # one patch at the planned spacing: prediction is one pass over the normalised image
    network, _ = target_network(seeded_plans(), tiny.dataset_json(), "3d_fullres")
    network.load_state_dict(load_checkpoint(model / "fold_0" / "checkpoint_final.pth")["network_weights"])
    axes = (1, 2, 3)
    normalised = (image - image.mean(axes, keepdims=True)) / image.std(axes, keepdims=True)
    with torch.no_grad():
        expected = network(torch.from_numpy(normalised)[None])[0].argmax(1)[0].numpy()
    assert set(np.unique(expected)) == {0, 1, 2}
    assert np.mean(np.load(tmp_path / "out.npy") == expected) > 0.99  # nnU-Net keeps its logits in half precision


def test_folder_holds_what_stock_nnunet_reads_and_no_more(model: Path, tmp_path: Path) -> None:
    folder = export(tmp_path / "out")
    assert folder == tmp_path / "out" / tiny.DATASET / STOCK_NAME
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "plans.json",
        "dataset.json",
        "dataset_fingerprint.json",
        "crossval_results_folds_0/postprocessing.json",
        "fold_0/checkpoint_final.pth",
        "fold_0/progress.png",
        "fold_0/validation/summary.json",
    }
    assert [p.name for p in (tmp_path / "out").iterdir()] == [tiny.DATASET]  # nothing temporary is left


def test_checkpoint_is_stock_and_small(model: Path, tmp_path: Path) -> None:
    source = load_checkpoint(model / "fold_0" / "checkpoint_final.pth")
    content = torch.load(export(tmp_path) / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert source["trainer_name"] == TRAINER and content["trainer_name"] == "nnUNetTrainer"
    assert content["init_args"]["configuration"] == "3d_fullres"
    assert source.keys() - content.keys() >= {"optimizer_state", "grad_scaler_state", "logging"}
    weights = content["network_weights"]
    assert weights.keys() == source["network_weights"].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in source["network_weights"].items())


def test_provenance_stays_but_no_private_path(model: Path, tmp_path: Path) -> None:
    folder = export(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert plans["hssl"]["weights"] == "hssl.safetensors" and plans["hssl"]["weights_sha256"] == "0" * 64
    assert content["init_args"]["plans"] == plans


def test_the_block_is_the_one_that_each_fold_was_trained_with(model: Path, tmp_path: Path) -> None:
    write_checkpoint(model / "fold_1" / "checkpoint_final.pth", tiny_network(), weights_sha256="1" * 64)
    later = seeded_plans()
    later["hssl"] |= {"weights": "/elsewhere/later.safetensors", "weights_sha256": "2" * 64}
    (model / "plans.json").write_text(json.dumps(later))  # seeded again, and another fold begun
    with pytest.raises(HSSLError, match="fold_0: 000000000000, fold_1: 111111111111.*`-f`"):
        export(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    folder = export(tmp_path / "out", folds=(0, 1))
    hashes = [
        torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True)["init_args"]["plans"]["hssl"]
        for fold in range(2)
    ]
    assert [(block["weights"], block["weights_sha256"]) for block in hashes] == [
        ("hssl.safetensors", "0" * 64),
        ("hssl.safetensors", "1" * 64),
    ]
    assert json.loads((folder / "plans.json").read_text())["hssl"] == hashes[0]


def test_a_fold_is_exported_with_the_plans_and_labels_it_was_trained_with(model: Path, tmp_path: Path) -> None:
    later, dataset = seeded_plans(), tiny.dataset_json() | {"labels": {"background": 0, "lesion": 1, "organ": 2}}
    later["configurations"]["3d_fullres"] |= {
        "spacing": [2.0] * 3,
        "architecture": tiny.architecture(tiny.PLAIN, **tiny.SOURCE),
    }
    (model / "plans.json").write_text(json.dumps(later))  # planned again, and fold 1 begun
    (model / "dataset.json").write_text(json.dumps(dataset))
    folder = export(tmp_path)
    plans, labels = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    assert plans["configurations"] == seeded_plans()["configurations"] and labels == tiny.dataset_json()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spacing": 2.0}, r"spacing was \[1.0, 1.0, 1.0\], is \[2.0, 2.0, 2.0\]"),
        ({"tumour": "cyst"}, "the model.labels.lesion was 2, is None; the model.labels.cyst was None, is 2"),
    ],
)
@pytest.mark.parametrize("folds", [None, (0, 1)])
def test_folds_that_were_trained_otherwise_are_not_one_model(
    model: Path, tmp_path: Path, folds: tuple | None, changes: dict, said: str
) -> None:
    write_checkpoint(model / "fold_1" / "checkpoint_final.pth", tiny_network(), **changes)
    with pytest.raises(HSSLError, match=f"fold_1 was trained otherwise than fold_0 beside it.*: {said}. Name .*`-f`"):
        export(tmp_path / "out", folds)
    assert not list((tmp_path / "out").iterdir())


def test_the_control_is_exported_beside_the_model(model: Path, tmp_path: Path) -> None:
    control = "nnUNetTrainerHSSLScratch"
    shutil.copytree(model, model.with_name(f"{control}__{PLANS}__3d_fullres"))
    first, second = export(tmp_path), export(tmp_path, trainer=control)
    assert second.parent == first.parent and second.name == f"nnUNetTrainer__{PLANS}_Scratch__3d_fullres"
    assert json.loads((second / "plans.json").read_text())["plans_name"] == f"{PLANS}_Scratch"
    assert f" -p {PLANS}_Scratch " in prediction_commands(second)[-1]


@pytest.mark.parametrize("output", ["out", "model.ZIP", "my model.zip"])
def test_the_commands_that_predict_name_the_exported_folds(model: Path, tmp_path: Path, output: str) -> None:
    exported = export(tmp_path / output)
    *install, predict = prediction_commands(exported)
    words = shlex.split(predict)
    if output == "out":
        assert not install and words.pop(0) == f"nnUNet_results={tmp_path / 'out'}"
    else:
        assert zipfile.is_zipfile(exported)
        (line,) = install
        assert shlex.split(line) == ["nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / output)]
    assert words[0] == "nnUNetv2_predict" and words[-4:] == ["-i", "INPUT", "-o", "OUTPUT"]
    device = [] if torch.cuda.is_available() else ["-device", "cpu"]
    assert words[1:-4] == [*f"-d {tiny.DATASET} -tr nnUNetTrainer -p {PLANS} -c 3d_fullres -f 0".split(), *device]


def trained(model: Path) -> None:
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_latest.pth").touch()


def test_the_plans_of_a_model_are_found_without_the_preprocessed_folder(nnunet_folders: dict[str, Path]) -> None:
    base = nnunet_folders[ENV_RESULTS] / tiny.DATASET
    base.mkdir()
    assert trained_plans_name(4, TRAINER, "3d_fullres") is None
    (base / f"{TRAINER}__Broken_HSSL__3d_fullres" / "fold_0").mkdir(parents=True)  # ended at its start
    trained(base / f"{TRAINER}__{PLANS}__3d_fullres")
    trained(base / f"{TRAINER}__nnUNetPlans_HSSL__2d")
    assert trained_plans_name(4, TRAINER, "3d_fullres") == PLANS
    trained(base / f"{TRAINER}__Own__Plans_HSSL__3d_fullres")
    with pytest.raises(HSSLError, match=f"models of several plans: Own__Plans_HSSL, {PLANS}. Choose one with -p"):
        trained_plans_name(4, TRAINER, "3d_fullres")
    trained(base / f"{TRAINER}__nnUNetPlans_HSSL__3d_fullres")
    assert trained_plans_name(4, TRAINER, "3d_fullres") == "nnUNetPlans_HSSL"


def test_another_checkpoint_is_named_to_prediction(model: Path, tmp_path: Path) -> None:
    exported = export(tmp_path, folds=(1,), checkpoint="checkpoint_best.pth")
    (command,) = prediction_commands(exported, "checkpoint_best.pth")
    assert " -f 1 -chk checkpoint_best.pth " in command


def test_zip_has_the_layout_that_nnunet_installs(model: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(export(tmp_path / "model.zip", folds=(0,))) as archive:
        names = archive.namelist()
    assert f"{tiny.DATASET}/{STOCK_NAME}/fold_0/checkpoint_final.pth" in names
    assert {"/".join(name.split("/")[:2]) for name in names} == {f"{tiny.DATASET}/{STOCK_NAME}"}


def test_another_checkpoint_and_fold(model: Path, tmp_path: Path) -> None:
    folder = export(tmp_path, folds=(1,), checkpoint="checkpoint_best.pth")
    assert [p.parent.name for p in folder.rglob("*.pth")] == ["fold_1"]


# ---- mistakes


def test_model_that_is_not_there(model: Path, tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match=f"There: {TRAINER}__{PLANS}__.* 3d_fullres 0 -p {PLANS} --scratch`"):
        export(tmp_path, trainer="nnUNetTrainerHSSLScratch")


@pytest.mark.parametrize("folds", [(0, 1), (1,), ("all",)])
def test_fold_that_is_not_there(model: Path, tmp_path: Path, folds: tuple) -> None:
    with pytest.raises(HSSLError, match="no checkpoint_final.pth in fold_.*fold_0/checkpoint_final.pth, fold_1"):
        export(tmp_path, folds=folds)


def test_no_fold_at_all(model: Path, tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match="in any fold.*fold_0/checkpoint_final.pth"):
        export(tmp_path, checkpoint="checkpoint_latest.pth")


def test_weights_that_no_training_has_written(model: Path, tmp_path: Path) -> None:
    torch.save({"network_weights": tiny_network().state_dict()}, model / "fold_0" / "seeded.pth")
    with pytest.raises(HSSLError, match="fold_0/seeded.pth lacks `init_args`, hence is no checkpoint.*`-chk`"):
        export(tmp_path / "out", checkpoint="seeded.pth")


def test_pretraining_run(model: Path, tmp_path: Path) -> None:
    write_checkpoint(model / "fold_0" / "checkpoint_final.pth", tiny_network(), role="corpus")
    with pytest.raises(HSSLError, match="is of a pretraining run.*hssl seed -d TARGET -w .*fold_0/hssl.safetensors"):
        export(tmp_path)


@pytest.mark.parametrize("output", ["out", "model.zip"])
def test_second_run_on_the_same_output(model: Path, tmp_path: Path, output: str) -> None:
    export(tmp_path / output)
    with pytest.raises(HSSLError, match="exists already.*-o"):
        export(tmp_path / output)


@pytest.mark.parametrize("output", ["file", "file/model.zip", "file/deeper"])
def test_an_output_in_the_place_of_a_file(model: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HSSLError, match=f"Cannot write {tmp_path / output}.*`-o`"):
        export(tmp_path / output)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("output", ["out", "model.zip"])
def test_an_output_that_may_not_be_written(model: Path, tmp_path: Path, output: str) -> None:
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
    with pytest.raises(HSSLError, match=f"Cannot write {folder / output}.*Permission denied.*`-o`"):
        export(folder / output)


def test_network_that_stock_nnunet_does_not_build(model: Path, tmp_path: Path) -> None:
    network = tiny_network()
    network.extra = nn.Linear(1, 1)
    write_checkpoint(model / "fold_0" / "checkpoint_final.pth", network)
    with pytest.raises(HSSLError, match="first difference at extra"):
        export(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_checkpoint_with_code_in_it(model: Path, tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "logging": Bomb()}, model / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(HSSLError, match=r"damaged or no nnU-Net checkpoint: it holds _pytest\.") as told:
        export(tmp_path / "out")
    assert "weights_only" not in str(told.value) and "safe_globals" not in str(told.value)  # torch's advice


@pytest.mark.parametrize("content", [b"", b'{"labels": 1}', b". /opt/env.sh\nexport A=1\n"])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(HSSLError, match=r"a.pth is damaged or no nnU-Net checkpoint: torch has not written it[^\n]*$"):
        load_checkpoint(tmp_path / "a.pth")


def test_truncated_checkpoint(model: Path, tmp_path: Path) -> None:
    path = model / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(HSSLError, match=rf"{path} is damaged .*: [^.]*central directory\. Restore it"):
        export(tmp_path / "out")


def test_random_states_can_be_read(tmp_path: Path) -> None:
    states = {"numpy": np.random.default_rng(0).bit_generator.state, "legacy": np.random.RandomState(0).get_state()}
    torch.save(states, tmp_path / "states.pth")
    read = load_checkpoint(tmp_path / "states.pth")
    assert np.array_equal(read["legacy"][1], states["legacy"][1]) and read["numpy"] == states["numpy"]


def test_allow_list_stays_within_numpy() -> None:
    modules = {(kind[0] if isinstance(kind, tuple) else kind).__module__.split(".")[0] for kind in CHECKPOINT_TYPES}
    assert modules == {"numpy"}
