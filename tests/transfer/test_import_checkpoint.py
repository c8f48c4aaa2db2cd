"""Checkpoints of nnU-Net and nnssl become weights files, tensor by tensor, and nothing in them runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny_target as tiny
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from hssl_nnunet import cli
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.transfer.import_checkpoint import _architecture, import_checkpoint
from hssl_nnunet.transfer.inspect_weights import render_inspection
from hssl_nnunet.transfer.leakage import leakage_notes, seen_cases
from hssl_nnunet.transfer.seeding import load_into, seed_target, target_network
from hssl_nnunet.transfer.weights_file import load_weights, read_metadata


def random_network(plans: dict, configuration: str = "3d_fullres", channels: int = tiny.CHANNELS) -> nn.Module:
    network, _ = target_network(plans, tiny.dataset_json(channels), configuration)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def nnunet_checkpoint(
    path: Path, plans: dict, configuration: str = "3d_fullres", channels: int = tiny.CHANNELS
) -> nn.Module:
    """Written by nnU-Net's own trainer; its network."""
    settings = {**plans, "continue_training": False}
    trainer = nnUNetTrainer(settings, configuration, 0, tiny.dataset_json(channels), torch.device("cpu"))
    trainer.network, trainer.was_initialized = random_network(plans, configuration, channels), True
    trainer.optimizer, _ = trainer.configure_optimizers()
    trainer.logger.log("train_losses", 1.5, 0)
    trainer.save_checkpoint(str(path))
    return trainer.network


def nnssl_content(family: str, channels: int = 1, **changes: Any) -> tuple[dict[str, Any], nn.Module]:
    """As nnssl publishes a checkpoint, by its file format alone; and its network."""
    described = tiny.architecture(family, **tiny.SOURCE)
    network = Topology.from_architecture(described).build(channels, deep_supervision=True)
    configuration = {"data_identifier": "nnsslPlans_onemmiso", "spacing": None, "patch_size": [16, 16, 16]}
    adaptation = {
        "architecture_plans": {
            "arch_class_name": family,
            "arch_kwargs": described["arch_kwargs"],
            "arch_kwargs_requiring_import": described["_kw_requires_import"],
        },
        "pretrain_plan": {
            "dataset_name": "Dataset745_OpenMind",
            "plans_name": "nnsslPlans",
            "configurations": {"onemmiso": configuration},
        },
        "pretrain_num_input_channels": channels,
    }
    citations = [{"type": "Architecture", "name": "net", "apa_citations": ["Someone (2025)."]}]
    content = {"network_weights": network.state_dict(), "nnssl_adaptation_plan": adaptation, "citations": citations}
    return content | changes, network


def features(network: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return network.encoder(image)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_network_of_the_same_plan_gets_the_checkpoint_back(
    preprocessed: Path, tmp_path: Path, family: str, configuration: str
) -> None:
    plans = tiny.plans(family)
    source = nnunet_checkpoint(tmp_path / "c.pth", plans, configuration)
    done = import_checkpoint(tmp_path / "c.pth", tmp_path / "w.safetensors")
    network, topology = target_network(plans, tiny.dataset_json(), configuration)
    load_into(network, load_weights(tmp_path / "w.safetensors")[0], topology)
    told, segmentation = dict(source.named_parameters()), 0
    for name, parameter in network.named_parameters():
        if ".seg_layers." in name:
            segmentation += 1
        else:
            torch.testing.assert_close(parameter, told[name], rtol=0, atol=0)
    assert segmentation and not done.absent
    assert all(".seg_layers." in name for name in done.ignored)
    assert len(done.taken) == len(told) - segmentation


@pytest.mark.parametrize("channels", [1, 3])
def test_a_stem_of_other_channels_answers_alike_to_one_image_in_all_of_them(
    preprocessed: Path, tmp_path: Path, channels: int
) -> None:
    source = nnunet_checkpoint(tmp_path / "c.pth", tiny.plans(tiny.PLAIN))
    import_checkpoint(tmp_path / "c.pth", tmp_path / "w.safetensors")
    network, topology = target_network(tiny.plans(tiny.PLAIN, channels), tiny.dataset_json(channels), "3d_fullres")
    entries = load_into(network, load_weights(tmp_path / "w.safetensors")[0], topology)
    how = {entry.how for entry in entries}
    assert f"stem's 2 channels added up, repeated {channels} times and divided by {channels}" in how
    image = torch.randn(1, 1, *tiny.PATCH)
    of_source = features(source, image.expand(-1, tiny.CHANNELS, -1, -1, -1))
    for own, theirs in zip(features(network, image.expand(-1, channels, -1, -1, -1)), of_source, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-4)


def test_of_the_second_stage_of_a_cascade_the_kernels_of_images_are_taken(preprocessed: Path, tmp_path: Path) -> None:
    configuration = "3d_cascade_fullres"
    stage, labels = tiny.plans(tiny.PLAIN), 2
    plans = {**stage, "configurations": {**stage["configurations"]}}
    source = nnunet_checkpoint(tmp_path / "c.pth", plans, "3d_fullres", tiny.CHANNELS + labels)
    content = torch.load(tmp_path / "c.pth", weights_only=False)  # our own file
    content["init_args"] |= {"configuration": configuration, "dataset_json": tiny.dataset_json()}
    torch.save(content, tmp_path / "c.pth")
    import_checkpoint(tmp_path / "c.pth", tmp_path / "w.safetensors")
    stem = load_weights(tmp_path / "w.safetensors")[0]["encoder.0.0.convs.0.conv.weight"]
    whole = dict(source.named_parameters())["encoder.stages.0.0.convs.0.conv.weight"]
    assert whole.shape[1] == tiny.CHANNELS + labels
    torch.testing.assert_close(stem, whole[:, : tiny.CHANNELS])


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("spelling", ["conv", "all_modules.0"])
def test_an_encoder_of_nnssl_seeds_a_deeper_target(
    preprocessed: Path, tmp_path: Path, family: str, spelling: str
) -> None:
    other = "all_modules.0" if spelling == "conv" else "conv"
    content, source = nnssl_content(family)
    kept = {k: v for k, v in content["network_weights"].items() if k.startswith("encoder.") and f".{other}." not in k}
    content["network_weights"] = {**kept, "projector.0.weight": torch.ones(2, 2)}
    torch.save(content, tmp_path / "c.pth")
    done = import_checkpoint(tmp_path / "c.pth", tmp_path / "w.safetensors")
    assert done.ignored == ("projector.0.weight",)
    assert done.absent and all(name.startswith("decoder.") for name in done.absent)
    metadata = read_metadata(tmp_path / "w.safetensors")
    assert (metadata.citation, metadata.images, metadata.pretraining) == ("Someone (2025).", None, None)
    tiny.write_target(preprocessed, family)
    report = seed_target(tiny.DATASET, tmp_path / "w.safetensors", tiny.PLANS[family])["3d_fullres"]
    by_role = {entry.role: entry for entry in report.entries}
    second = "encoder.1.0.convs.0.conv.weight" if family == tiny.PLAIN else "encoder.1.blocks.0.conv1.conv.weight"
    assert by_role[second].status == "exact"  # 3x3x3 in both
    assert all(e.status == "fresh" for e in report.entries if e.part == "decoder")
    parameter = dict(source.named_parameters())[second.replace("encoder.1", "encoder.stages.1")]
    torch.testing.assert_close(load_weights(tmp_path / "w.safetensors")[0][second], parameter.detach())


def test_a_target_of_the_other_family_is_told_which_preset_to_plan_with(preprocessed: Path, tmp_path: Path) -> None:
    torch.save(nnssl_content(tiny.RESIDUAL)[0], tmp_path / "c.pth")
    import_checkpoint(tmp_path / "c.pth", tmp_path / "w.safetensors")
    tiny.write_target(preprocessed)
    with pytest.raises(HSSLError, match="--preset resenc_l`.*-p nnUNetResEncUNetLPlans"):
        seed_target(tiny.DATASET, tmp_path / "w.safetensors", tiny.PLANS[tiny.PLAIN])


def test_the_preset_of_nnssl_has_the_tensors_of_its_published_checkpoint() -> None:
    described = {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    network = Topology.from_architecture(_architecture(described)).build(1, device="meta", deep_supervision=True)
    names = list(network.state_dict())  # 956: counted in OpenMind's ResEnc-L file
    counts = {start: sum(name.startswith(start) for name in names) for start in ("encoder.", "decoder.encoder.")}
    assert (len(names), counts) == (956, {"encoder.": 448, "decoder.encoder.": 448})


def changed(**changes: Any) -> dict[str, Any]:
    return nnssl_content(tiny.PLAIN)[0] | changes


def adapted(**changes: Any) -> dict[str, Any]:
    content, _ = nnssl_content(tiny.PLAIN)
    return content | {"nnssl_adaptation_plan": content["nnssl_adaptation_plan"] | changes}


def without(name: str) -> dict[str, Any]:
    content, _ = nnssl_content(tiny.PLAIN)
    lacking = {k: v for k, v in content["network_weights"].items() if name not in k}
    return content | {"network_weights": lacking}


PRIMUS = {"arch_class_name": "PrimusM", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
TRANSFORMER = {"arch_class_name": "a.b.Primus", "arch_kwargs": {"n": 1}, "arch_kwargs_requiring_import": None}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weights": {}}, "c.pth holds no `network_weights`"),
        ([1], "c.pth holds no `network_weights`"),
        ({"network_weights": {}}, "does not say which network .* `init_args` with `plans`.*-pretrained_weights"),
        (adapted(architecture_plans=PRIMUS), "network PrimusM is no U-Net of nnU-Net's. Known: ResEncL"),
        (adapted(architecture_plans=TRANSFORMER), "plan a Primus; pretraining knows PlainConvUNet"),
        (adapted(pretrain_plan={}), "does not describe its network .*KeyError\\('configurations'\\)"),
        (
            adapted(architecture_plans={**PRIMUS, "arch_class_name": "PlainConvUNet", "arch_kwargs": {"a": 1}}),
            "KeyError",
        ),
        ({"network_weights": {}, "init_args": None}, "does not describe its network .*TypeError"),
        (adapted(pretrain_num_input_channels=2), "has shape .4, 1, 3, 3, 3., the network it describes has .4, 2, 3"),
        (
            without("encoder.stages.1.0.convs.0"),
            "lacks 4 tensors of the encoder .* first encoder.stages.1.0.convs.0",
        ),
    ],
)
def test_what_cannot_be_imported_is_told(tmp_path: Path, content: Any, said: str) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(HSSLError, match=said):
        import_checkpoint(tmp_path / "c.pth", tmp_path / "w.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pth"]


@pytest.mark.parametrize(
    ("output", "there", "said"),
    [
        ("c.pth", "c.pth", "-o .*c.pth: a weights file ends in `.safetensors`"),
        ("w.json", "w.safetensors", "-o .*w.json: a weights file ends in `.safetensors`"),
        ("w.safetensors", "w.safetensors", "w.safetensors is there already, and is not replaced"),
        ("dataset.safetensors", "dataset.json", "dataset.json is there already, and is not replaced"),
    ],
)
def test_no_file_is_replaced(tmp_path: Path, output: str, there: str, said: str) -> None:
    torch.save(changed(), tmp_path / "c.pth")
    (tmp_path / there).write_bytes(before := b"the user's" if there != "c.pth" else (tmp_path / there).read_bytes())
    with pytest.raises(HSSLError, match=said):
        import_checkpoint(tmp_path / "c.pth", tmp_path / output)
    assert (tmp_path / there).read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"c.pth", there}


def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    with pytest.raises(HSSLError, match="The checkpoint .*nofile.pth does not exist. Name a file"):
        import_checkpoint(tmp_path / "nofile.pth", output)
    with pytest.raises(HSSLError, match="The checkpoint .* is a folder. Name a file"):
        import_checkpoint(tmp_path, output)
    weights = tiny.write_weights(tmp_path / "hssl.safetensors")
    with pytest.raises(HSSLError, match=f"is a weights file already.*`hssl seed -d DATASET -w {weights}`"):
        import_checkpoint(weights, output)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(HSSLError, match="foreign.safetensors is a safetensors file without an `hssl` header"):
        import_checkpoint(tmp_path / "foreign.safetensors", output)
    assert not output.exists()


def test_a_pretraining_is_pointed_to_its_weights(tmp_path: Path) -> None:
    path, weights = tmp_path / "checkpoint_final.pth", tmp_path / "hssl.safetensors"
    plans = {**tiny.plans(tiny.PLAIN), "hssl": {"role": "corpus"}}
    torch.save({"network_weights": {}, "init_args": {"plans": plans}}, path)
    with pytest.raises(HSSLError, match="pretraining of ours, .*when it ends: run `hssl pretrain CORPUS --c`"):
        import_checkpoint(path, tmp_path / "w.safetensors")
    tiny.write_weights(weights)
    with pytest.raises(HSSLError, match=f"pretraining of ours, .*run `hssl seed -d DATASET -w {weights}`"):
        import_checkpoint(path, tmp_path / "w.safetensors")


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_nothing_in_a_checkpoint_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(changed(extra=Bomb()), "c.pth")
    with pytest.raises(HSSLError, match="c.pth is damaged or no nnU-Net checkpoint"):
        import_checkpoint("c.pth", "w.safetensors")
    assert not Path("exploded").exists()


def test_all_cases_of_its_own_dataset_count_as_seen(preprocessed: Path, tmp_path: Path) -> None:
    nnunet_checkpoint(tmp_path / "c.pth", tiny.plans(tiny.PLAIN))
    import_checkpoint(tmp_path / "c.pth", tmp_path / "w.safetensors")
    metadata, folder = read_metadata(tmp_path / "w.safetensors"), tiny.write_target(preprocessed)
    assert seen_cases(metadata, tiny.DATASET, ["b", "a"], {}) == ["a", "b"]
    assert seen_cases(metadata, "Dataset005_Other", ["b", "a"], {}) == []
    assert "of this very dataset, possibly of all its 4 validation" in leakage_notes(metadata, tiny.DATASET, folder)[0]
    assert "is not known: c.pth, nnUNetTrainer" in leakage_notes(metadata, "Dataset005_Other", folder)[0]


def test_the_command_and_what_inspect_shows_of_it(
    preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = nnunet_checkpoint(tmp_path / "c.pth", tiny.plans(tiny.PLAIN))
    count = sum(".seg_layers." not in name for name, _ in network.named_parameters())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["import", str(tmp_path / "c.pth"), "-o", str(tmp_path / "w.safetensors")])
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and f"Took {count} parameters, without 0 of the decoder" in said
    Console(width=200).print(render_inspection(tmp_path / "w.safetensors"))
    shown = capsys.readouterr().out
    assert "images seen   │ not known" in shown and "c.pth, nnUNetTrainer, sha256" in shown
