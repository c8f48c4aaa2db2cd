"""The pretraining run inside nnU-Net's loop: learning, resuming, terms that are switched off, padding, precision."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_corpus
import torch
from no_waiting import no_waiting
from safetensors import safe_open
from tiny_corpus import batch_of_all_domains, started
from torch import nn

from hssl_nnunet import launch
from hssl_nnunet.data.crops import RawChunk
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.losses.hierarchical import hierarchical_loss
from hssl_nnunet.networks import hssl_network
from hssl_nnunet.networks.hssl_network import HSSLNetwork
from hssl_nnunet.networks.projection import project
from hssl_nnunet.paths import trainers_dir
from hssl_nnunet.training import monitor, pretrainer
from hssl_nnunet.training.pretrainer import HSSLPretrainer
from hssl_nnunet.training.probes import FEWEST_FOR_RANK
from hssl_nnunet.transfer.checkpoints import load_checkpoint
from hssl_nnunet.transfer.weights_file import load_weights

TERMS = ("image", "task", "group", "reconstruction", "voxel")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the second that each picture takes."""
    monkeypatch.setattr(pretrainer, "plot_curves", lambda *args: None)
    for name in ("plot_embeddings", "plot_reconstructions"):
        monkeypatch.setattr(monitor.pictures, name, lambda *args: None)


def only(*names: str) -> dict[str, Any]:
    """A plan whose loss has these terms alone."""
    return {"loss": {name: float(name in names) for name in TERMS}}


def values(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in terms.items()}


# ---------------------------------------------------------------- a whole run


def recorded(trainer: HSSLPretrainer) -> list[tuple[int, tuple[int, ...], int]]:
    """The list that will hold every chunk that the trainer learns from."""
    seen: list[tuple[int, tuple[int, ...], int]] = []
    step = trainer.train_step

    def recording(batch: list[RawChunk]) -> dict[str, torch.Tensor]:
        seen.extend((raw.domain, raw.rows, raw.seed) for raw in batch)
        return step(batch)

    trainer.train_step = recording  # type: ignore[method-assign]
    return seen


def stop_before(trainer: HSSLPretrainer, epoch: int) -> None:
    start = trainer.on_epoch_start

    def stopping() -> None:
        if trainer.current_epoch == epoch:
            raise KeyboardInterrupt
        start()

    trainer.on_epoch_start = stopping  # type: ignore[method-assign]


QUEUED = {"loss": {"queue_per_domain": 6}}
VOXELS = {"loss": {"voxel": 0.5}}


@pytest.mark.parametrize("overrides", [{"num_workers": 2}, {"optimizer": "sgd", "precision": "bf16"}, QUEUED, VOXELS])
def test_a_resumed_run_is_the_uninterrupted_one(corpus: Path, no_pictures: None, overrides: dict) -> None:
    whole = tiny_corpus.pretrainer(corpus, overrides)
    chunks = recorded(whole)
    whole.run_training()
    shutil.rmtree(whole.output_folder)

    interrupted = tiny_corpus.pretrainer(corpus, overrides)
    seen = recorded(interrupted)
    stop_before(interrupted, 2)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run_training()
    torch.manual_seed(99)  # as another process would be
    resumed = tiny_corpus.pretrainer(corpus, overrides)
    seen_after = recorded(resumed)
    resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()

    assert seen + seen_after == chunks and len(set(chunks)) == len(chunks) == 4 * 3 * 2
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    logs = [t.logger.local_logger.my_fantastic_logging for t in (whole, resumed)]
    assert logs[0].keys() == logs[1].keys() and len(logs[0]["lrs"]) == 4
    for key in logs[0].keys() - {"epoch_start_timestamps", "epoch_end_timestamps"}:
        np.testing.assert_equal(logs[1][key], logs[0][key], key)  # nan equals nan
    assert resumed._best_ema == whole._best_ema == min(logs[0]["val_losses"])


def test_a_run_leaves_weights_metadata_and_pictures(corpus: Path) -> None:
    trainer = tiny_corpus.pretrainer(corpus, {"num_epochs": 2, "warmup_epochs": 0})
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    tensors, metadata = load_weights(folder / "hssl.safetensors")
    shared = trainer.model.shared.tensors()
    assert tensors.keys() == shared.keys()
    assert all(torch.equal(tensors[role], shared[role].detach()) for role in shared)
    assert {image.content_hash for image in metadata.images} == {
        f"hash of {domain} {index}" for domain in range(3) for index in range(tiny_corpus.IMAGES)
    }
    assert metadata.domains == tiny_corpus.corpus_block().domains
    assert metadata.pretraining == trainer.plan and metadata.epochs_done == 2 and metadata.seed == trainer.plan.seed
    assert metadata.curves["train_losses"] == [float(x) for x in trainer.logger.get_value("train_losses", None)]
    assert {"val_image", "val_losses", "domain_accuracy", "domain_floor"} <= metadata.curves.keys()
    probed = metadata.curves["probed_images"]
    assert np.isnan(probed[0]) and 0 < probed[1] < FEWEST_FOR_RANK  # probe_every 2
    assert np.isnan(metadata.curves["effective_rank"]).all()
    told = "".join(path.read_text() for path in folder.glob("training_log_*.txt"))
    assert f"probed_images {probed[1]:.4f}" in told and told.count("effective_rank is not told of fewer than 10") == 1
    names = {path.name for path in folder.iterdir()}
    pictures = {"progress.png", "embeddings.png", "reconstructions.png"}
    assert pictures | {"checkpoint_final.pth", "checkpoint_best.pth", "hssl.json", "debug.json"} <= names
    assert "checkpoint_latest.pth" not in names and not [name for name in names if name.endswith(".tmp")]


def test_the_loss_falls_on_images_it_is_shown(corpus: Path) -> None:
    trainer = started(corpus, {"initial_lr": 3e-3})
    losses = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(60)]
    first, last = losses[:10], losses[-10:]
    means = {name: [float(np.mean([x[name] for x in part])) for part in (first, last)] for name in losses[0]}
    assert means["total"][1] < 0.8 * means["total"][0]
    assert all(after < before for before, after in means.values())


def test_a_batch_can_be_learned_by_heart(corpus: Path) -> None:
    trainer = started(corpus, {"initial_lr": 5e-3})
    batch = batch_of_all_domains(trainer)
    first = values(trainer.terms(batch))
    for _ in range(60):
        trainer.train_step(batch)
    last = values(trainer.terms(batch))
    assert last["task"] < 0.3 * first["task"] and last["group"] < 0.3 * first["group"]
    assert last["image"] < 0.7 * first["image"] and last["reconstruction"] < 0.8 * first["reconstruction"]


@pytest.mark.parametrize("changes", [{"optimizer": "adamw"}, {"optimizer": "sgd"}, QUEUED, VOXELS])
def test_a_step_never_looks_at_a_number(corpus: Path, changes: dict[str, Any]) -> None:
    trainer = started(corpus, changes)
    batch = batch_of_all_domains(trainer)
    chunks = {raw.seed: trainer.preparer.chunk(raw) for raw in batch}
    trainer.preparer.chunk = lambda raw: chunks[raw.seed]  # type: ignore[method-assign]  # what is drawn is on the CPU
    for _ in range(2):
        with no_waiting():
            trainer.train_step(batch)


def test_gradients_are_clipped(corpus: Path) -> None:
    # one step of SGD at rate 1 moves by the momentum-corrected gradient: (1 + 0.99) times its norm
    clip = {"gradient_clip": 0.01, "optimizer": "sgd", "initial_lr": 1.0, "weight_decay": 0.0}
    trainer = started(corpus, clip)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train_step(next(trainer.dataloader_train))
    moved = torch.stack([(p - b).norm() for p, b in zip(trainer.model.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(1.99 * 0.01, rel=1e-3)


def test_negatives_of_earlier_steps_are_those_of_training(corpus: Path, tmp_path: Path) -> None:
    trainer, without = started(corpus, QUEUED), started(corpus)
    without.model.load_state_dict(trainer.model.state_dict(), strict=False)
    batches = [batch_of_all_domains(trainer) for _ in range(2)]
    held_out = [values(t.validation_step(batches[0])) for t in (trainer, without)]
    assert held_out[0] == pytest.approx(held_out[1])
    queue = trainer.model.queue
    assert queue is not None and (queue.image == -1).all()  # a look at held-out images leaves nothing
    steps = [values(t.train_step(batches[0])) for t in (trainer, without)]
    assert steps[0] == pytest.approx(steps[1])
    assert set(queue.image.flatten().tolist()) - {-1} == {row for raw in batches[0] for row in raw.rows}
    assert trainer.validation_step(batches[1])["image"] > without.validation_step(batches[1])["image"]
    trainer.save_weights(tmp_path / "hssl.safetensors")
    with safe_open(tmp_path / "hssl.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "queue" in name]  # noqa: SIM118  not a dict
    assert started(corpus, {"loss": {**QUEUED["loss"], "image": 0.0}}).model.queue is None


def test_validation_sees_held_out_patients_only(corpus: Path) -> None:
    trainer = started(corpus)
    loaders = trainer.dataloader_train, trainer.dataloader_val
    training, held_out = ({trainer.rows[i].patient for i in loader.chosen} for loader in loaders)
    assert training.isdisjoint(held_out) and len(training) + len(held_out) == 3 * tiny_corpus.IMAGES
    assert {trainer.rows[i].domain for i in loaders[1].chosen} == {0, 1, 2}
    # a chunk names the manifest's rows: an image held out is never mistaken for one in the queue
    for loader in loaders:
        drawn = {(raw.domain, row) for step in range(9) for raw in loader.read(step) for row in raw.rows}
        assert {row for _, row in drawn} <= set(loader.chosen)
        assert all(trainer.rows[row].domain == domain for domain, row in drawn)


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({}, {"loss": {"voxel": 0.0}}, "loss.voxel was 0.5, is 0.0"),
        ({}, {"embedding_width": 4}, "embedding_width was 8, is 4"),
        ({}, {"optimizer": "sgd"}, "optimizer was adamw, is sgd"),
    ],
)
def test_another_network_or_optimiser_than_the_checkpoints_is_refused(
    corpus: Path, tmp_path: Path, then: dict, now: dict, told: str
) -> None:
    trainer = started(corpus, then)
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    with pytest.raises(HSSLError, match=told):
        tiny_corpus.pretrainer(corpus, now).load_checkpoint(str(tmp_path / "checkpoint.pth"))


def test_another_corpus_than_the_checkpoints_is_refused(corpus: Path, tmp_path: Path) -> None:
    """Else the weights file would not name an image that it has seen."""
    trainer = started(corpus)
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    manifest = (corpus / "manifest.csv").read_text().splitlines(keepends=True)
    (corpus / "manifest.csv").write_text("".join(line for line in manifest if "case_3" not in line))
    with pytest.raises(HSSLError, match="other images than the corpus' manifest.csv names now: 15"):
        tiny_corpus.pretrainer(corpus).load_checkpoint(str(tmp_path / "checkpoint.pth"))


def test_values_that_were_edited_hold_from_the_checkpoint_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = started(corpus)
    trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed, said = tiny_corpus.pretrainer(corpus, {"weight_decay": 0.5, "num_epochs": 9}), []
    monkeypatch.setattr(resumed, "print_to_log_file", lambda *args, **kwargs: said.append(args[0]))
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.5]
    assert any("num_epochs was 4, is 9" in line and "weight_decay" in line for line in said)


def test_the_best_checkpoint_is_never_one_of_a_broken_epoch(
    corpus: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = started(corpus)
    saved: list[int] = []
    monkeypatch.setattr(trainer, "save_checkpoint", lambda path: saved.append(trainer.current_epoch))
    monkeypatch.setattr(trainer, "save_every", 100)
    for loss in (float("nan"), 2.0, 3.0, float("nan"), 1.0):
        trainer.on_epoch_start()
        trainer.logger.log("train_losses", loss, trainer.current_epoch)
        trainer.logger.log("val_losses", loss, trainer.current_epoch)
        trainer.on_epoch_end()
    assert saved == [1, 4] and trainer._best_ema == 1.0
    assert "val_losses nan" in Path(trainer.log_file).read_text()


def test_where_nobody_is_held_out_the_log_says_so(corpus: Path) -> None:
    trainer = started(corpus, {"held_out_fraction": 0.0})
    assert "WARNING: nobody is held out" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({"mask_block_voxel": 2}, []),
        ({"mask_block_voxel": 4, "mask_ratio": 0.1}, ["Scan"]),  # its crops are four blocks, the others' eight and more
        ({"mask_block_voxel": 8}, ["Cube", "Slab", "Scan"]),
        ({"mask_block_voxel": 8, "reconstruction": 0}, []),
    ],
)
def test_domains_of_which_no_block_is_hidden_are_told(corpus: Path, loss: dict, told: list[str]) -> None:
    trainer = started(corpus, {"loss": loss})
    warnings = re.findall(r"WARNING: Dataset\d+_(\w+): crops of", Path(trainer.log_file).read_text())
    assert warnings == told
    for chunk in map(trainer.preparer.chunk, next(trainer.dataloader_train)):
        name = tiny_corpus.NAMES[chunk.domain].split("_")[1]
        assert bool(chunk.hidden.any()) == ("reconstruction" not in loss and name not in told)


def test_a_cpus_process_keeps_its_memory(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(pretrainer, "keep_freed_memory", lambda: calls.append("kept"))
    tiny_corpus.pretrainer(corpus)
    assert calls == ["kept"]


def test_plans_without_our_block_are_refused(corpus: Path) -> None:
    plans_file = corpus / f"{tiny_corpus.PLANS_NAME}.json"
    plans_file.write_text(plans_file.read_text().replace('"role": "corpus"', '"role": "target"'))
    with pytest.raises(HSSLError, match="hssl corpus"):
        tiny_corpus.pretrainer(corpus)


# ---------------------------------------------------------------- terms of weight 0


def refuse_decoding(model: HSSLNetwork) -> None:
    def refuse(module: nn.Module, inputs: Any) -> None:
        raise AssertionError("the decoder ran")

    for domain in model.domains:
        domain.decoder.register_forward_pre_hook(refuse)


def test_without_reconstruction_the_decoder_rests(corpus: Path) -> None:
    trainer = started(corpus, only("image", "task", "group"))
    assert not [e.name for d in trainer.model.domains for e in d.entries if e.part == "decoder"]
    refuse_decoding(trainer.model)
    decoder = {r: p.detach().clone() for r, p in trainer.model.shared.tensors().items() if r.startswith("decoder.")}
    encoder = {r: p.detach().clone() for r, p in trainer.model.shared.tensors().items() if r.startswith("encoder.")}
    batch = batch_of_all_domains(trainer)
    assert not any(trainer.preparer.chunk(raw).hidden.any() for raw in batch)
    terms = trainer.train_step(batch)
    assert terms.keys() == {"image", "task", "group", "total"}
    after = trainer.model.shared.tensors()
    assert decoder and all(torch.equal(after[role], before) for role, before in decoder.items())
    trainer.save_weights(Path(trainer.output_folder) / "hssl.safetensors")
    kept, _ = load_weights(Path(trainer.output_folder) / "hssl.safetensors")  # and no target takes it for pretrained
    assert kept.keys() == encoder.keys()
    assert all(not torch.equal(after[role], before) for role, before in encoder.items() if before.ndim > 1)


def test_reconstruction_alone_has_no_embedding_and_one_view(corpus: Path, no_pictures: None) -> None:
    trainer = started(corpus, {**only("reconstruction"), "num_epochs": 1, "warmup_epochs": 0})
    assert {name.partition(".")[0] for name, _ in trainer.model.named_parameters()} == {"shared"}
    batch = next(trainer.dataloader_train)
    assert [trainer.preparer.chunk(raw).views.shape[0] for raw in batch] == [1, 1]
    assert trainer.train_step(batch).keys() == {"reconstruction", "total"}
    trainer.run_training()  # probes have nothing to look at
    assert np.isnan(trainer.logger.get_value("domain_accuracy", -1))


@pytest.mark.parametrize("name", TERMS)
def test_each_term_trains_alone(corpus: Path, name: str) -> None:
    trainer = started(corpus, only(name))
    terms = trainer.train_step(batch_of_all_domains(trainer))
    assert terms.keys() == {name, "total"} and terms["total"] == terms[name] > 0
    stem = trainer.model.shared.tensors()["encoder.0.0.convs.0.conv.weight"]
    assert stem.grad is not None and stem.grad.abs().max() > 0


# ---------------------------------------------------------------- padding


def test_what_lies_in_the_padding_is_neither_reconstructed_nor_standardised_with(corpus: Path) -> None:
    trainer = started(corpus)
    chunk = trainer.preparer.chunk(batch_of_all_domains(trainer)[tiny_corpus.SCAN])
    padding = ~chunk.valid[0]
    assert padding.any() and (padding & chunk.hidden).any()

    def terms(target: torch.Tensor) -> dict[str, float]:
        outputs = trainer.model([replace(chunk, target=target)])
        n = target.shape[0]
        labels = hssl_labels(n)
        return values(hierarchical_loss(outputs, labels, trainer.plan.loss))

    expected = terms(chunk.target)
    assert terms(chunk.target.masked_fill(padding, 1e6)) == expected
    assert terms(chunk.target.masked_fill(~padding, 0.3))["reconstruction"] != expected["reconstruction"]


def hssl_labels(n: int) -> Any:
    from hssl_nnunet.losses.hierarchical import Labels

    return Labels(torch.arange(n), torch.full((n,), tiny_corpus.SCAN), torch.zeros(2, n, dtype=torch.int64))


# ---------------------------------------------------------------- precision, compilation


def test_bf16_gives_the_terms_of_fp32(corpus: Path) -> None:
    full, half = started(corpus, {"precision": "fp32"}), started(corpus, {"precision": "bf16"})
    half.model.load_state_dict(full.model.state_dict())
    batch = batch_of_all_domains(full)
    expected, got = full.terms(batch), half.terms(batch)
    assert {value.dtype for value in got.values()} == {torch.float32}
    assert values(got) == pytest.approx(values(expected), rel=0.03)
    assert values(got) != values(expected)


@pytest.mark.parametrize("checkpointing", ["chunk", "image"])
def test_dropped_activations_train_alike_in_bf16(corpus: Path, checkpointing: str) -> None:
    def trained(form: str) -> tuple[dict[str, float], list[torch.Tensor]]:
        trainer = started(corpus, {"precision": "bf16", "checkpointing": form})
        terms = [trainer.train_step(batch_of_all_domains(trainer)) for _ in range(2)][-1]
        return values(terms), [p.grad for p in trainer.model.parameters()]

    (terms, gradients), (others, others_gradients) = trained("none"), trained(checkpointing)
    # one image at a time the sums of a kernel's gradient are rounded to bf16 in another order
    assert others == pytest.approx(terms, rel=0.02)
    for one, other in zip(gradients, others_gradients, strict=True):
        # 3e-3: a bias before an instance norm has no gradient but rounding
        assert torch.linalg.vector_norm(one - other) <= 0.1 * torch.linalg.vector_norm(one) + 3e-3


def test_volumes_are_kept_within_the_budget_of_the_plan(corpus: Path) -> None:
    trainers = [started(corpus, {"cache_gib": gib}) for gib in (0.0, 1.0)]
    batches = [next(trainer.get_dataloaders()[0]) for trainer in trainers]
    assert trainers[0].cache.used == 0 < trainers[1].cache.used
    assert all(torch.equal(a.source, b.source) for a, b in zip(*batches, strict=True))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`torch.compile` without code generation, and the counter of the graphs that it captures."""
    from torch._dynamo.utils import counters

    compile_ = torch.compile
    monkeypatch.setattr(
        hssl_network.torch, "compile", lambda model, **options: compile_(model, backend="eager", **options)
    )
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "chunk", "image"])
def test_compiled_domains_answer_and_learn_alike(corpus: Path, captured: Any, checkpointing: str) -> None:
    trainer = started(corpus)
    plan = replace(trainer.plan, checkpointing=checkpointing)
    compiled = HSSLNetwork(replace(trainer.corpus, pretraining=plan), compiled=True)
    compiled.load_state_dict(trainer.model.state_dict())
    batch = batch_of_all_domains(trainer)
    chunks, labels = [trainer.preparer.chunk(raw) for raw in batch], trainer.preparer.labels(batch)
    for _ in range(2):
        losses = [hierarchical_loss(m(chunks), labels, trainer.plan.loss) for m in (trainer.model, compiled)]
        assert values(losses[1]) == pytest.approx(values(losses[0]), rel=1e-5)
        for loss in losses:
            loss["total"].backward()
        for (name, p), q in zip(trainer.model.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, msg=name)
        with torch.no_grad():
            compiled(chunks)
    assert captured["unique_graphs"] >= 3


def test_kernels_lie_in_memory_as_the_images_do(corpus: Path) -> None:
    trainer = started(corpus)
    trainer.train_step(batch_of_all_domains(trainer))
    for domain in trainer.model.domains:
        for name, tensor in project(trainer.model.shared.tensors(), domain.entries).items():
            assert tensor.ndim < 5 or tensor.is_contiguous(memory_format=torch.channels_last_3d), name


def test_a_step_leaves_no_tensor_in_the_skeletons(corpus: Path) -> None:
    trainer = started(corpus)
    trainer.train_step(batch_of_all_domains(trainer))
    assert all(p.is_meta for domain in trainer.model.domains for p in domain.skeleton.parameters())


@pytest.mark.slow
def test_each_domain_is_compiled_once_with_and_once_without_gradient(
    corpus: Path, captured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        monkeypatch.setattr(torch._dynamo.config, limit, 4)  # fewer graphs than the domains need
    trainer = started(corpus)
    model = HSSLNetwork(trainer.corpus, compiled=True)
    chunks = [trainer.preparer.chunk(raw) for raw in batch_of_all_domains(trainer)]
    for _ in range(3):
        model(chunks)
        with torch.no_grad():
            model(chunks)
    assert captured["unique_graphs"] == 2 * 3 * 2  # the network, and its embedding


@pytest.mark.slow
def test_nnunets_own_command_finds_and_runs_the_trainer(nnunet_folders: dict[str, Path]) -> None:
    short = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "warmup_epochs": 0}
    tiny_corpus.write_corpus(nnunet_folders["nnUNet_preprocessed"], **short)
    command = [str(Path(sys.executable).parent / "nnUNetv2_train"), "900", "3d_fullres", "all"]
    command += ["-tr", "nnUNetTrainerHSSLPretrain", "-p", tiny_corpus.PLANS_NAME, "-device", "cpu"]
    environment = os.environ | {"nnUNet_extTrainer": str(trainers_dir())}
    subprocess.run(command, env=environment, timeout=200, check=True, capture_output=True)
    trainer = f"nnUNetTrainerHSSLPretrain__{tiny_corpus.PLANS_NAME}__3d_fullres"
    folder = nnunet_folders["nnUNet_results"] / tiny_corpus.CORPUS / trainer / "fold_all"
    assert (folder / "hssl.safetensors").is_file()
    assert load_checkpoint(folder / "checkpoint_final.pth")["trainer_name"] == "nnUNetTrainerHSSLPretrain"


@pytest.mark.parametrize("kind", ["recompile", "cache_size"])  # the names of torch 2.6 are the latter
def test_both_limits_of_the_compiler_are_raised_whatever_they_are_called(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (f"{kind}_limit", f"accumulated_{kind}_limit")
    config = SimpleNamespace(**dict.fromkeys(names, 8))
    monkeypatch.setattr(torch._dynamo, "config", config)
    hssl_network._allow_graphs(400)
    hssl_network._allow_graphs(40)  # what another network has asked for stays
    assert vars(config) == dict.fromkeys(names, 400)


def test_processes_that_cannot_share_a_step_are_refused_before_they_join(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = tiny_corpus.corpus_block().pretraining.chunks_per_step
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", str(chunks + 1))
    with pytest.raises(HSSLError, match=f"{chunks} chunks .* among {chunks + 1} processes. In .*json, set"):
        launch.pretrain(900, device="cpu")
