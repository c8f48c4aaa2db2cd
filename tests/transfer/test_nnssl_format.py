"""The seeded network in nnssl's format: it comes back as it was, and the loaders of nnU-Net that read it take it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import tiny_target as tiny
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from hssl_nnunet import cli
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.transfer.import_checkpoint import import_checkpoint
from hssl_nnunet.transfer.seeding import load_into, seed_target, target_network
from hssl_nnunet.transfer.weights_file import load_weights


def seeded(preprocessed: Path, folder: Path, family: str) -> tuple[Path, Path]:
    """The weights file, and what `hssl seed --nnssl` makes of it for the tiny target."""
    tiny.write_target(preprocessed, family)
    weights, out = tiny.write_weights(folder / "w.safetensors", family), folder / "out" / "checkpoint_final.pth"
    seed_target(4, weights, tiny.PLANS[family], nnssl=out)
    return weights, out


def expected(weights: Path, family: str) -> tuple[nn.Module, list[str]]:
    """The target's network with the weights, by our own seeding; and the parameters that stem from them."""
    network, topology = target_network(tiny.plans(family), tiny.dataset_json(), "3d_fullres")
    entries = load_into(network, load_weights(weights)[0], topology)
    return network, [entry.name for entry in entries if entry.status != "fresh"]


def assert_equal(network: nn.Module, other: nn.Module, names: list[str]) -> None:
    assert names
    for name in names:
        torch.testing.assert_close(network.get_parameter(name), other.get_parameter(name), rtol=0, atol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_comes_back_as_it_went(preprocessed: Path, tmp_path: Path, family: str) -> None:
    weights, out = seeded(preprocessed, tmp_path, family)
    done = import_checkpoint(out, tmp_path / "back.safetensors")
    assert not done.absent and not done.ignored
    network, names = expected(weights, family)
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}
    assert_equal(expected(tmp_path / "back.safetensors", family)[0], network, names)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_its_keys_name_encoder_stem_and_first_kernel(preprocessed: Path, tmp_path: Path, family: str) -> None:
    _, out = seeded(preprocessed, tmp_path, family)
    content = torch.load(out, weights_only=True)
    plan, tensors = content["nnssl_adaptation_plan"], content["network_weights"]
    network, _ = expected(tmp_path / "w.safetensors", family)
    for key in ("key_to_encoder", "key_to_stem"):
        part = network.get_submodule(plan[key]).state_dict()
        assert part and {f"{plan[key]}.{name}" for name in part} <= tensors.keys()
    first = {tuple(tensors[f"{key}.weight"].shape) for key in plan["keys_to_in_proj"]}
    kernel = tiny.TARGET["kernels"][0]
    assert first == {(4, tiny.CHANNELS, *kernel)} and plan["pretrain_num_input_channels"] == tiny.CHANNELS
    assert plan["architecture_kwargs"]["kernel_sizes"] == tiny.TARGET["kernels"]
    assert plan["recommended_downstream_patchsize"] == list(tiny.PATCH)
    assert not [name for name in tensors if "seg_layers" in name]


@pytest.mark.parametrize("loader", ["PretrainedTrainer", "DynamicPretrainedTrainer"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nnunets_loader_takes_the_whole_encoder(preprocessed: Path, tmp_path: Path, family: str, loader: str) -> None:
    module = f"nnunetv2.training.nnUNetTrainer.pretraining.{loader[0].lower()}{loader[1:]}"
    try:
        trainer = getattr(importlib.import_module(module), loader)
    except ModuleNotFoundError:
        pytest.skip(f"this release of nnU-Net has no {loader}")
    weights, out = seeded(preprocessed, tmp_path, family)
    fresh, _ = target_network(tiny.plans(family), tiny.dataset_json(), "3d_fullres")
    loaded = load_with(trainer, fresh, out)
    network, names = expected(weights, family)
    assert_equal(loaded, network, [name for name in names if name.startswith("encoder.")])


def load_with(trainer: Any, network: nn.Module, checkpoint: Path) -> nn.Module:
    """As nnU-Net calls its loader, with what `nnUNetv2_plan_like_dynamic` reads from the checkpoint."""
    plan = torch.load(checkpoint, weights_only=True)["nnssl_adaptation_plan"]
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    own = PlansManager(tiny.plans(tiny.PLAIN)).get_configuration("3d_fullres")
    told = {
        "pretrained_weights_path": str(checkpoint),
        "pt_input_channels": plan["pretrain_num_input_channels"],
        "downstream_input_channels": tiny.CHANNELS,
        "pt_input_patchsize": configuration["patch_size"],
        "downstream_input_patchsize": own.patch_size,
        "pt_key_to_encoder": plan["key_to_encoder"],
        "pt_key_to_stem": plan["key_to_stem"],
        "pt_keys_to_in_proj": tuple(plan["keys_to_in_proj"]),
        "pt_key_to_lpe": plan["key_to_lpe"],
    }
    if hasattr(trainer, "load_pretrained_weights_dynamic"):
        depth = {"target_kernel_sizes": tiny.TARGET["kernels"], "target_n_stages": len(tiny.TARGET["kernels"])}
        return trainer.load_pretrained_weights_dynamic(network, **told, **depth)[0]
    return trainer.load_pretrained_weights(network, **told)[0]


def test_only_for_the_configuration_that_nnunet_reads(preprocessed: Path, tmp_path: Path) -> None:
    target = tiny.write_target(preprocessed)
    weights, out = tiny.write_weights(tmp_path / "w.safetensors"), tmp_path / "nnssl.pth"
    with pytest.raises(HSSLError, match="3d_fullres alone, got the configurations 2d. Add `-c 3d_fullres`"):
        seed_target(4, weights, tiny.PLANS[tiny.PLAIN], configurations=("2d",), nnssl=out)
    assert not out.exists() and not list(target.glob("*_HSSL.json"))


def test_the_command_writes_it(preprocessed: Path, tmp_path: Path) -> None:
    tiny.write_target(preprocessed)
    weights, out = tiny.write_weights(tmp_path / "w.safetensors"), tmp_path / "nnssl.pth"
    command = ["seed", "-d", "4", "-w", str(weights), "-p", tiny.PLANS[tiny.PLAIN], "--nnssl", str(out)]
    with pytest.raises(SystemExit, match="0"):
        cli.main(command)
    assert torch.load(out, weights_only=True)["nnssl_adaptation_plan"]["key_to_encoder"] == "encoder.stages"
