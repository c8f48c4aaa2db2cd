"""Fine-tuning inside nnU-Net's loop: start, control, schedule, precision, resuming."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tiny_corpus
import torch
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer
from no_waiting import no_waiting
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hssl_nnunet.corpus.preprocess import plan_and_preprocess
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW, ENV_RESULTS, raw_dir
from hssl_nnunet.training import finetuner, full_validation
from hssl_nnunet.training.finetuner import HSSLFinetuner
from hssl_nnunet.training.precision import compute_dtype
from hssl_nnunet.training.vanilla import HSSLVanilla
from hssl_nnunet.transfer.checkpoints import load_checkpoint
from hssl_nnunet.transfer.seeding import seed_target
from hssl_nnunet.transfer.selection import selected_state
from hssl_nnunet.transfer.weights_file import file_sha256, load_weights

TARGET = "Dataset007_Target"
SEEDED = "nnUNetCPUPlans_HSSL"
QUICK = {
    "num_epochs": 3,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "save_every": 1,
    "warmup_epochs": 1,
    "decoder_epochs": 1,
    "precision": "fp32",
    "seed": 5,
}
PEAK = 0.02


class Scratch(HSSLFinetuner):
    seeded = False


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target's preprocessed folder; in threads, with 1/1000 of nnU-Net's intensity samples."""
    base = tmp_path_factory.mktemp("target")
    sample = DatasetFingerprintExtractor.collect_foreground_intensities

    def few(*args: Any, num_samples: int) -> Any:
        return sample(*args, num_samples=num_samples // 1000)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetFingerprintExtractor, "collect_foreground_intensities", staticmethod(few))
        patch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
        for variable in (ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS):
            (base / variable).mkdir()
            patch.setenv(variable, str(base / variable))
        write_raw()
        plan_and_preprocess([7], preset="cpu", num_processes=1)
    return base / ENV_PREPROCESSED / TARGET


def write_raw() -> None:
    """Five images of two labels, each a bright block."""
    folder = raw_dir() / TARGET
    for index in range(5):
        voxels = np.random.default_rng(index).normal(size=(20, 18, 22)).astype(np.float32)
        mask = np.zeros(voxels.shape, dtype=np.uint8)
        mask[4:9, 4:12, 3:10], mask[11:16, 6:14, 10:18] = 1, 2
        for sub, name, array in (("imagesTr", f"c{index}_0000", voxels + 2 * mask), ("labelsTr", f"c{index}", mask)):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / sub / f"{name}.nii.gz"))
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def weights(corpus: Path) -> Path:
    """A weights file of the tiny corpus, as a pretraining of no step would write it."""
    trainer = tiny_corpus.pretrainer(corpus)
    trainer.initialize()
    path = Path(trainer.output_folder) / "hssl.safetensors"
    trainer.save_weights(path)
    return path


@pytest.fixture
def target(
    weights: Path, preprocessed: Path, nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., HSSLFinetuner]:
    """Makes a trainer on a preprocessed target of three levels whose plans were seeded with `weights`."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # augmentation in this process
    folder = nnunet_folders[ENV_PREPROCESSED] / TARGET
    shutil.copytree(preprocessed, folder)
    narrow = json.loads((folder / "nnUNetCPUPlans.json").read_text())
    entry = narrow["configurations"]["3d_fullres"]
    entry["architecture"] = tiny_corpus.ARCHITECTURES[tiny_corpus.CUBE]
    entry["patch_size"], entry["batch_size"] = [16, 16, 16], 2
    (folder / "nnUNetCPUPlans.json").write_text(json.dumps(narrow))

    def make(kind: type[HSSLFinetuner] = HSSLFinetuner, device: str = "cpu", **overrides: Any) -> HSSLFinetuner:
        seed_target(7, weights, "nnUNetCPUPlans", finetuning_overrides={**QUICK, **overrides})
        plans = json.loads((folder / f"{SEEDED}.json").read_text())
        dataset_json = json.loads((folder / "dataset.json").read_text())
        return kind({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device(device))

    return make


def process(rank: int, environment: dict[str, str], folder: str, meeting: str) -> None:
    """One of two ranks that train a target together on the CPU, where nnU-Net's own wrapper asks for a GPU."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    formats, scored, mean_dice = [], [], full_validation.mean_dice

    def counted(*masks: Any) -> float:
        scored.append(mean_dice(*masks))
        return scored[-1]

    def wrapped(network: nn.Module, device_ids: list[int]) -> DistributedDataParallel:
        kernels = [p for p in network.parameters() if p.ndim == 5]
        formats.extend(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)
        return DistributedDataParallel(network)

    nnUNetTrainer.DDP, full_validation.mean_dice = wrapped, counted
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}/meeting", rank=rank, world_size=2)
    plans, dataset_json = (json.loads((Path(folder) / f"{n}.json").read_text()) for n in (SEEDED, "dataset"))
    trainer = HSSLFinetuner({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer.on_train_start()
    start, batch = parameters(trainer), next(trainer.dataloader_train)["data"].clone()
    trainer.run_training()
    told = {"start": start, "batch": batch, "end": parameters(trainer), "channels_last": formats, "scored": scored}
    torch.save(told, f"{meeting}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_start_and_stay_equal_on_batches_of_their_own(
    target: Any, weights: Path, nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    trainer = target(head_init="fitted", seed=None, full_validation_every=1)  # each rank draws a seed of its own
    environment = {name: os.environ[name] for name in (*nnunet_folders, "nnUNet_n_proc_DA")}
    folder = nnunet_folders[ENV_PREPROCESSED] / TARGET
    split = {"train": ["c0", "c1", "c2"], "val": ["c3", "c4"]}
    (folder / "splits_final.json").write_text(json.dumps([split]))
    torch.multiprocessing.spawn(process, (environment, str(folder), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first["batch"]) == len(second["batch"]) == 1  # the plan's two images, shared
    assert not torch.equal(first["batch"], second["batch"])
    assert first["channels_last"] and all(first["channels_last"])  # already when DDP laid out its buckets
    for when in ("start", "end"):
        torch.testing.assert_close(first[when], second[when], rtol=0, atol=0)
    trainer.initialize()
    expected = projected(trainer, weights)
    assert all(torch.equal(first["start"][name], tensor) for name, tensor in expected.items())
    assert not all(torch.equal(first["end"][name], tensor) for name, tensor in expected.items())
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    looks = full_validation.read_full_validations(Path(trainer.output_folder))
    assert len(first["scored"]) == len(second["scored"]) == len(looks) == QUICK["num_epochs"]  # a case each
    assert [look.dice for look in looks] == pytest.approx(np.mean([first["scored"], second["scored"]], axis=0))


def parameters(trainer: HSSLFinetuner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.stock_network().named_parameters()}


def projected(trainer: HSSLFinetuner, weights: Path) -> dict[str, torch.Tensor]:
    network = trainer.stock_network()
    topology = Topology.from_architecture(tiny_corpus.ARCHITECTURES[tiny_corpus.CUBE])
    return selected_state(load_weights(weights)[0], network, topology)[0]


def test_a_network_that_the_plan_describes_wrongly_is_told(target: Any) -> None:
    trainer = target()
    keywords = trainer.configuration_manager.configuration["architecture"]["arch_kwargs"]
    keywords["strides"] = keywords["strides"][1:]
    with pytest.raises(HSSLError, match=rf"`strides` .* 3d_fullres of /\S+/{SEEDED}\.json has 2 entries, expected 3"):
        trainer.initialize()


def test_training_starts_from_the_projected_weights(target: Any, weights: Path) -> None:
    trainer = target()
    trainer.on_train_start()
    expected, got = projected(trainer, weights), parameters(trainer)
    assert set(got) - set(expected) == {n for n in got if "seg_layers" in n}
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    report = json.loads((Path(trainer.output_folder) / "transfer.json").read_text())
    taken = {entry["name"] for entry in report["entries"] if entry["status"] != "fresh"}
    assert taken == set(expected)


def test_the_control_differs_in_its_weights_alone(target: Any, weights: Path) -> None:
    trainers = [target(kind, scratch_lr=PEAK, initial_lr=PEAK, head_init="stock") for kind in (HSSLFinetuner, Scratch)]
    for trainer in trainers:
        trainer.on_train_start()
    seeded, scratch = trainers
    assert seeded.plans_manager.plans == scratch.plans_manager.plans
    assert type(seeded.optimizer) is type(scratch.optimizer)
    for epoch in range(3):
        seeded.lr_scheduler.step(epoch)
        scratch.lr_scheduler.step(epoch)
        rates = [[group["lr"] for group in t.optimizer.param_groups] for t in trainers]
        assert rates[0] == rates[1]
    expected, starts = projected(seeded, weights), [parameters(t) for t in trainers]
    kernels = [name for name in expected if name.endswith("conv.weight") or "transpconvs" in name and "weight" in name]
    assert kernels and not any(torch.equal(starts[1][name], expected[name]) for name in kernels)
    heads = [name for name in starts[0] if "seg_layers" in name]
    assert heads and all(torch.equal(starts[0][name], starts[1][name]) for name in heads)
    assert not (Path(scratch.output_folder) / "transfer.json").exists()


@pytest.mark.parametrize("kind", [HSSLFinetuner, Scratch, HSSLVanilla])
def test_predictions_are_mirrored_as_planned_and_training_always(target: Any, kind: Any) -> None:
    for planned, axes in ((True, (0, 1, 2)), (False, None)):
        trainer = target(kind, use_mirroring=planned)
        *_, mirrored_in_training = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert (trainer.inference_allowed_mirroring_axes, mirrored_in_training) == (axes, (0, 1, 2))


def test_a_cpus_process_keeps_its_memory_and_stock_nnunets_does_not(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(finetuner, "keep_freed_memory", lambda: calls.append("kept"))
    target(HSSLVanilla)
    assert calls == []
    target()
    assert calls == ["kept"]


def test_seeded_and_scratch_have_peaks_of_their_own(target: Any) -> None:
    seeded, scratch = target(initial_lr=1e-3, scratch_lr=1e-2), target(Scratch, initial_lr=1e-3, scratch_lr=1e-2)
    assert (seeded.initial_lr, scratch.initial_lr) == (1e-3, 1e-2)


def test_a_fitted_start_predicts_every_class_before_the_first_step(target: Any) -> None:
    trainer = target(head_init="fitted")
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    with torch.no_grad():
        logits = trainer.network(batch["data"])
    for level, mask in zip(logits, batch["target"], strict=True):
        found = level.argmax(1, keepdim=True)
        assert all((found[mask == label] == label).any() for label in mask.unique().tolist())


@pytest.mark.parametrize("kind", [HSSLFinetuner, Scratch])
def test_a_fitted_start_changes_the_segmentation_layers_alone(target: Any, weights: Path, kind: Any) -> None:
    trainer = target(kind, head_init="fitted")
    trainer.initialize()
    if trainer.seeded:
        trainer.load_pretrained()
    before = parameters(trainer)
    trainer.on_train_start()
    after = parameters(trainer)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if "seg_layers" in name
    }


def test_a_stock_start_is_nnunets_own(target: Any) -> None:
    trainer = target(Scratch, head_init="stock")
    trainer.initialize()
    before = parameters(trainer)
    trainer.on_train_start()
    assert all(torch.equal(before[name], tensor) for name, tensor in parameters(trainer).items())


def test_the_seed_fixes_the_fresh_layers(target: Any) -> None:
    starts = []
    for seed in (5, 5, 6):
        trainer = target(Scratch, seed=seed)
        trainer.initialize()
        starts.append(trainer.stock_network().encoder.stages[0][0].convs[0].conv.weight.detach().clone())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_sawtooth_moves_the_encoder_in_its_second_phase_only(target: Any) -> None:
    trainer = target(schedule="sawtooth", optimizer="adamw", head_init="stock")
    trainer.on_train_start()
    moved = []
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        before = parameters(trainer)
        trainer.train_step(next(trainer.dataloader_train))
        after = parameters(trainer)
        moved.append({name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])})
    assert moved == [{"decoder"}, {"decoder", "encoder"}]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_steps_give_a_finite_loss_in_every_precision(target: Any, precision: str) -> None:
    trainer = target(precision=precision, head_init="stock")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    types = set()
    handle = trainer.network.register_forward_hook(lambda module, inputs, output: types.add(output[0].dtype))
    with no_waiting():
        losses = [trainer.train_step(dict(batch))["loss"] for _ in range(2)]
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        result = trainer.validation_step(next(trainer.dataloader_val))
    handle.remove()
    assert all(loss.dtype == torch.float32 and not loss.requires_grad and loss.isfinite() for loss in losses)
    assert result["loss"].dtype == np.float32 and np.isfinite(result["loss"])
    assert losses[1] != losses[0] and result["tp_hard"].shape == (2,)
    assert types == {compute_dtype(precision, torch.device("cpu"))}


def test_the_loss_is_computed_in_float32_even_inside_autocast(target: Any) -> None:
    trainer = target()
    trainer.initialize()
    logits = [torch.randn(2, 3, n, n, n).bfloat16() for n in (8, 4)]
    masks = [torch.randint(3, (2, 1, n, n, n)).float() for n in (8, 4)]
    expected = trainer.loss.loss([level.float() for level in logits], masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = trainer.loss(logits, masks)
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_a_resumed_run_keeps_what_it_learned(target: Any, weights: Path) -> None:
    trainer = target(num_epochs=1, warmup_epochs=0, initial_lr=0.05)
    trainer.run_training()
    learned = parameters(trainer)
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    block = load_checkpoint(path)["init_args"]["plans"]["hssl"]
    assert block["weights_sha256"] == file_sha256(weights) and block["weights"] == str(weights)
    resumed = target(num_epochs=3, initial_lr=0.05)
    resumed.load_checkpoint(str(path))
    weights.unlink()  # nothing of it is needed any more
    resumed.on_train_start()
    assert resumed.current_epoch == 1
    assert all(torch.equal(tensor, learned[name]) for name, tensor in parameters(resumed).items())
    resumed.on_train_epoch_start()
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)  # the peak, after one epoch of warm-up


def test_another_file_under_the_same_name_is_refused(target: Any, weights: Path, corpus: Path) -> None:
    trainer = target()
    other = tiny_corpus.pretrainer(corpus, {"seed": 4})
    other.initialize()
    other.save_weights(weights)
    with pytest.raises(HSSLError, match=f"`hssl seed -d {TARGET} -w {weights} -p nnUNetCPUPlans` again"):
        trainer.on_train_start()


def test_weights_that_are_gone_are_put_back_or_replaced_by_seeding(target: Any, weights: Path) -> None:
    trainer = target()
    weights.unlink()
    message = f"{weights}, the weights file .* does not exist.*`hssl seed -d {TARGET} .* -p nnUNetCPUPlans`"
    with pytest.raises(HSSLError, match=message):
        trainer.on_train_start()


def test_a_run_goes_on_only_with_the_weights_it_began_with(target: Any, weights: Path, corpus: Path) -> None:
    paths = {}
    for kind in (HSSLFinetuner, Scratch):
        trainer = target(kind)
        trainer.initialize()
        paths[kind] = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
        trainer.save_checkpoint(paths[kind])
    began_with = file_sha256(weights)
    other = tiny_corpus.pretrainer(corpus, {"seed": 4})
    other.initialize()
    other.save_weights(weights)
    message = (
        f"sha256 {began_with[:12]}.*name weights of sha256 {file_sha256(weights)[:12]}.*"
        f"put the file back that {weights} was.*-p nnUNetCPUPlans.*move the folder away"
    )
    with pytest.raises(HSSLError, match=message):
        target().load_checkpoint(paths[HSSLFinetuner])
    target(Scratch).load_checkpoint(paths[Scratch])  # the control has none of them
    checkpoint = load_checkpoint(paths[HSSLFinetuner])
    assert checkpoint["current_epoch"] == 1
    target(num_epochs=1, warmup_epochs=0).load_checkpoint(paths[HSSLFinetuner])  # at its end: to be validated alone


def test_a_resumed_run_takes_edited_values_says_so_and_refuses_another_optimiser(
    target: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = target(num_epochs=1, warmup_epochs=0, weight_decay=0.1, optimizer="adamw")
    trainer.run_training()
    path = str(Path(trainer.output_folder) / "checkpoint_final.pth")
    resumed = target(num_epochs=2, warmup_epochs=0, weight_decay=0.3, optimizer="adamw")
    capsys.readouterr()
    resumed.load_checkpoint(path)
    assert re.search(r"goes on with other values: .*num_epochs .*weight_decay", capsys.readouterr().out)
    assert {group["weight_decay"] for group in resumed.optimizer.param_groups} == {0.3}
    state = next(iter(resumed.optimizer.state.values()))
    assert state["step"] > 0 and state["exp_avg"].any()  # it goes on from where it was
    with pytest.raises(HSSLError, match=r"another network or optimiser.*optimizer"):
        target(num_epochs=2, warmup_epochs=0, optimizer="sgd").load_checkpoint(path)
    validated = target(num_epochs=1, warmup_epochs=0, optimizer="sgd")
    validated.load_checkpoint(path)  # no step is left that would need the optimiser
    weights = load_checkpoint(path)["network_weights"]
    assert all(torch.equal(t, weights[name]) for name, t in validated.stock_network().state_dict().items())


def test_stock_plans_are_refused(target: Any, nnunet_folders: dict[str, Path]) -> None:
    folder = nnunet_folders[ENV_PREPROCESSED] / TARGET
    plans = json.loads((folder / "nnUNetCPUPlans.json").read_text())
    dataset_json = json.loads((folder / "dataset.json").read_text())
    with pytest.raises(HSSLError, match="hssl seed"):
        HSSLFinetuner({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu"))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_starts_and_steps_as_the_cpu_does(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    trainers = [target(device=device, head_init="fitted", optimizer="sgd") for device in ("cpu", "cuda")]
    for trainer in trainers:
        trainer.on_train_start()
    batch, losses = next(trainers[0].dataloader_train), []
    start = {name: tensor.clone() for name, tensor in trainers[0].stock_network().state_dict().items()}
    for trainer in trainers:  # of one start, so that the step alone is compared
        trainer.stock_network().load_state_dict(start)
        losses.append([float(trainer.train_step(dict(batch))["loss"]) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("compiled", ["f", "t"])
def test_a_gpu_trains_validates_and_resumes_in_its_own_precision(
    target: Any, monkeypatch: pytest.MonkeyPatch, compiled: str
) -> None:
    monkeypatch.setenv("nnUNet_compile", compiled)
    trainer = target(device="cuda", precision="auto", full_validation_every=1)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    assert (folder / "validation" / "summary.json").is_file()
    assert len(json.loads((folder / "full_validation.json").read_text())) == QUICK["num_epochs"]
    again = target(device="cuda", precision="auto")
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    torch.testing.assert_close(parameters(again), parameters(trainer), rtol=0, atol=0)
    logged = trainer.logger.local_logger.my_fantastic_logging["train_losses"]
    assert np.isfinite(logged).all()
