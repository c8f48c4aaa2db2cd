"""Seeding writes plans that stock nnU-Net trains, weights that stock nnU-Net loads, and leaves nothing out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tiny_target as tiny
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from hssl_nnunet.cli_transfer import seed
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.plan_schema import target_block
from hssl_nnunet.transfer.seeding import load_into, plans_to_seed, seed_target, seeded_plans_file
from hssl_nnunet.transfer.selection import selected_state
from hssl_nnunet.transfer.weights_file import read_metadata


def stock_network(family: str, configuration: str = "3d_fullres", channels: int = tiny.CHANNELS) -> nn.Module:
    """The network as nnU-Net's own trainer builds it."""
    architecture = tiny.plans(family)["configurations"][configuration]["architecture"]
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        channels,
        3,
        deep_supervision=True,
    )


def target_topology(family: str) -> Topology:
    return Topology.from_architecture(tiny.plans(family)["configurations"]["3d_fullres"]["architecture"])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tiny.write_weights(tmp_path / "hssl.safetensors")


@pytest.fixture
def target(preprocessed: Path) -> Path:
    return tiny.write_target(preprocessed)


# ---- into a network


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_name_of_a_parameter_gets_the_copy(family: str) -> None:
    network, tensors = stock_network(family), tiny.shared_tensors(family)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state, _ = selected_state(tensors, network, target_topology(family))

    entries = load_into(network, tensors, target_topology(family))

    after = dict(network.named_parameters(remove_duplicate=False))
    assert len(after) > len(entries)  # nnU-Net does register parameters twice
    status = {entry.name: entry.status for entry in entries}
    by_storage = {p.data_ptr(): name for name, p in network.named_parameters()}
    for name, parameter in after.items():
        first_name = by_storage[parameter.data_ptr()]
        expected = before[name] if status[first_name] == "fresh" else state[first_name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_segmentation_layers_are_never_touched(family: str) -> None:
    network, tensors = stock_network(family, channels=1), tiny.shared_tensors(family)
    tensors |= {"decoder.0.segmentation.weight": torch.zeros(3, 4, 1, 1, 1)}  # fits the target's layer
    before = {n: p.clone() for n, p in network.named_parameters() if "seg_layers" in n}
    load_into(network, tensors, target_topology(family))
    assert before and all(torch.equal(network.get_parameter(name), p) for name, p in before.items())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_flat_multi_channel_stem_sees_equal_channels_as_the_cubic_stem_sees_one(family: str) -> None:
    tensors, network = tiny.shared_tensors(family), stock_network(family)
    load_into(network, tensors, target_topology(family))
    source = tiny.source_topology(family).build()
    load_into(source, tensors, tiny.source_topology(family))
    convs = [next(m for m in n.modules() if isinstance(m, nn.Conv3d)) for n in (network, source)]
    assert [c.weight.shape[1:] for c in convs] == [(2, 1, 3, 3), (1, 3, 3, 3)]

    constant_in_depth = torch.randn(1, 1, 1, 12, 12).expand(-1, -1, 7, -1, -1)
    flat, cubic = convs[0](constant_in_depth.expand(-1, 2, -1, -1, -1)), convs[1](constant_in_depth)
    torch.testing.assert_close(flat[:, :, 3], cubic[:, :, 3], rtol=1e-5, atol=1e-5)  # away from the padding


# ---- into plans


def test_seeded_plans_differ_only_in_name_and_block(target: Path, weights: Path) -> None:
    seed_target("4", weights, tiny.PLANS[tiny.PLAIN])
    path = target / "nnUNetCPUPlans_HSSL.json"
    seeded = json.loads(path.read_text())
    block = target_block(seeded, path)
    assert Path(block.weights) == weights.resolve()
    assert block.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert block.finetuning.num_epochs == 20  # the cpu preset's, found by the plans' name
    assert seeded.pop("plans_name") == "nnUNetCPUPlans_HSSL" and seeded.pop("hssl")
    own = json.loads((target / "nnUNetCPUPlans.json").read_text())
    assert own.pop("plans_name") and seeded == own


def test_a_relative_weights_path_is_stored_absolute(
    target: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    seed_target(4, weights.name, tiny.PLANS[tiny.PLAIN])
    seeded = json.loads((target / "nnUNetCPUPlans_HSSL.json").read_text())
    assert seeded["hssl"]["weights"] == str(weights.resolve())


def test_finetuning_values_can_be_overridden(target: Path, weights: Path) -> None:
    seed_target(4, weights, tiny.PLANS[tiny.PLAIN], finetuning_overrides={"num_epochs": 3})
    seeded = json.loads((target / "nnUNetCPUPlans_HSSL.json").read_text())
    assert seeded["hssl"]["finetuning"]["num_epochs"] == 3


def test_seeding_from_seeded_plans_is_seeding_anew(target: Path, weights: Path) -> None:
    seed_target(4, weights, "nnUNetCPUPlans")
    first = (target / "nnUNetCPUPlans_HSSL.json").read_text()
    seed_target(4, weights, "nnUNetCPUPlans_HSSL")
    assert (target / "nnUNetCPUPlans_HSSL.json").read_text() == first
    assert len(list(target.glob("*Plans*.json"))) == 2


def edit(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    content["hssl"]["finetuning"] |= values
    path.write_text(json.dumps(content))


def test_seeding_again_keeps_edited_values_and_names_them(target: Path, weights: Path, tmp_path: Path) -> None:
    path = target / "nnUNetCPUPlans_HSSL.json"
    first = seed_target(4, weights, "nnUNetCPUPlans")["3d_fullres"]
    assert not [note for note in first.notes if "kept" in note]
    edit(path, num_epochs=3, schedule="stock")
    other = tiny.write_weights(tmp_path / "other.safetensors", images=(tiny.seen("b"),))
    (note,) = [n for n in seed_target(4, other, "nnUNetCPUPlans")["3d_fullres"].notes if "kept" in n]
    assert note.endswith('not the preset\'s: num_epochs 3 (preset: 20), schedule "stock" (preset: "warmup").')
    block = target_block(json.loads(path.read_text()), path)
    assert (block.finetuning.num_epochs, block.finetuning.schedule) == (3, "stock")
    assert Path(block.weights) == other.resolve()
    assert block.weights_sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    # what a caller asks for in full is what the plans get
    seed_target(4, other, "nnUNetCPUPlans", finetuning_overrides={"num_epochs": 7})
    finetuning = target_block(json.loads(path.read_text()), path).finetuning
    assert (finetuning.num_epochs, finetuning.schedule) == (7, "warmup")


def test_what_seeding_again_does_not_keep_is_named(target: Path, weights: Path, tmp_path: Path) -> None:
    path = target / "nnUNetCPUPlans_HSSL.json"
    notes = seed_target(4, weights, "nnUNetCPUPlans")["3d_fullres"].notes
    assert seed_target(4, weights, "nnUNetCPUPlans")["3d_fullres"].notes == notes  # all of it stays
    content = json.loads(path.read_text())
    content["configurations"]["3d_fullres"]["batch_size"] = 77
    path.write_text(json.dumps(content))
    other = tiny.write_weights(tmp_path / "other.safetensors", images=(tiny.seen("b"),))
    *_, first, second = seed_target(4, other, "nnUNetCPUPlans")["3d_fullres"].notes
    assert content["hssl"]["weights_sha256"][:12] in first and "another model" in first
    assert "plans.configurations.3d_fullres.batch_size was 77, is 2." in second


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"finetuning": {"learning_rate": 1.0}}, "learning_rate"),
        ({"finetuning": [1]}, "finetuning: .*dictionary"),
        ("mine", "all of it: "),
    ],
)
def test_seeded_plans_that_are_wrong_are_not_replaced(target: Path, weights: Path, block: object, said: str) -> None:
    path = target / "nnUNetCPUPlans_HSSL.json"
    seed_target(4, weights, "nnUNetCPUPlans")
    before = json.dumps(json.loads(path.read_text()) | {"hssl": block})
    path.write_text(before)
    with pytest.raises(HSSLError, match=f"(?s)_HSSL.json.*{said}.*Repair it, or remove it"):
        seed_target(4, weights, "nnUNetCPUPlans")
    assert path.read_text() == before


def test_the_command_names_what_it_wrote_and_what_comes_next(
    target: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pth = tmp_path / "seeded.pth"
    seed("4", weights, "nnUNetCPUPlans", ["3d_fullres"], pth)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        f"Wrote {target / 'nnUNetCPUPlans_HSSL.json'}",
        f"Wrote {pth}",
        "Next: hssl finetune 4 3d_fullres 0 -p nnUNetCPUPlans_HSSL",
    ]
    assert pth.is_file() and seeded_plans_file(4, "nnUNetCPUPlans_HSSL").is_file()


def test_two_configurations(target: Path, weights: Path) -> None:
    reports = seed_target(4, weights, tiny.PLANS[tiny.PLAIN], ["2d", "3d_fullres"])
    assert reports.keys() == {"2d", "3d_fullres"}
    flat = reports["2d"]
    assert {len(e.shape) for e in flat.entries if e.status == "adapted"} == {4}  # 3D kernels summed to 2D


def test_overlap_with_pretraining_is_noted(target: Path, tmp_path: Path) -> None:
    weights = tiny.write_weights(tmp_path / "w.safetensors", images=(tiny.seen("case_2", tiny.DATASET),))
    report = seed_target(4, weights, tiny.PLANS[tiny.PLAIN])["3d_fullres"]
    assert any("1 of 4 validation cases" in note and "case_2" in note for note in report.notes)


# ---- into a .pth file


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stock_nnunet_loads_the_pth_file(preprocessed: Path, tmp_path: Path, family: str) -> None:
    tiny.write_target(preprocessed, family)
    weights, pth = tiny.write_weights(tmp_path / "w.safetensors", family), tmp_path / "out" / "seeded.pth"
    report = seed_target(4, weights, tiny.PLANS[family], pth=pth)["3d_fullres"]
    network = stock_network(family)
    heads = {n: p.clone() for n, p in network.named_parameters() if "seg_layers" in n}

    load_pretrained_weights(network, str(pth))

    state, _ = selected_state(tiny.shared_tensors(family), network, target_topology(family))
    transferred = [entry for entry in report.entries if entry.status != "fresh"]
    assert {e.part for e in transferred} == {"encoder", "decoder"}
    for entry in transferred:
        torch.testing.assert_close(network.get_parameter(entry.name).detach(), state[entry.name], rtol=0, atol=0)
    assert all(torch.equal(network.get_parameter(name), p) for name, p in heads.items())


def test_pth_holds_cpu_tensors_and_nothing_else(target: Path, weights: Path, tmp_path: Path) -> None:
    seed_target(4, weights, tiny.PLANS[tiny.PLAIN], pth=tmp_path / "seeded.pth")
    content = torch.load(tmp_path / "seeded.pth", weights_only=True)
    assert content.keys() == {"network_weights"}
    assert {tensor.device.type for tensor in content["network_weights"].values()} == {"cpu"}
    assert content["network_weights"].keys() == stock_network(tiny.PLAIN).state_dict().keys()


# ---- mistakes; none leaves a file behind


def test_weights_of_the_other_family(target: Path, tmp_path: Path) -> None:
    weights = tiny.write_weights(tmp_path / "w.safetensors", tiny.RESIDUAL)
    message = "pretrained with a ResidualEncoderUNet.*plans a PlainConvUNet.*hssl plan_and_preprocess"
    with pytest.raises(HSSLError, match=f"{message}.*--preset resenc_m.*-w {weights} -p nnUNetResEncUNetMPlans"):
        seed_target(4, weights, tiny.PLANS[tiny.PLAIN])
    assert not list(target.glob("*_HSSL.json"))


@pytest.mark.parametrize("option", ["pth", "nnssl"])
def test_weights_are_not_replaced_by_what_is_made_of_them(target: Path, weights: Path, option: str) -> None:
    before = weights.read_bytes()
    with pytest.raises(HSSLError, match="files of their own beside the weights"):
        seed_target(4, weights, tiny.PLANS[tiny.PLAIN], ["3d_fullres"], **{option: weights})
    assert weights.read_bytes() == before and not list(target.glob("*_HSSL.json"))


@pytest.mark.parametrize("option", ["pth", "nnssl"])
def test_a_file_that_is_there_is_not_replaced(target: Path, weights: Path, tmp_path: Path, option: str) -> None:
    file = tmp_path / "checkpoint_final.pth"
    file.write_text("hours of training")
    with pytest.raises(HSSLError, match=f"{file} exists already.*--{option}"):
        seed_target(4, weights, tiny.PLANS[tiny.PLAIN], ["3d_fullres"], **{option: file})
    assert file.read_text() == "hours of training" and not list(target.glob("*_HSSL.json"))


def test_one_pth_for_two_configurations(target: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(HSSLError, match="holds one network.*-c 2d"):
        seed_target(4, weights, tiny.PLANS[tiny.PLAIN], ["2d", "3d_fullres"], pth=tmp_path / "seeded.pth")
    assert not (tmp_path / "seeded.pth").exists() and not list(target.glob("*_HSSL.json"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "3d_lowres",
            "Unknown configuration of .*CPUPlans.json '3d_lowres'. Known: 2d, 3d_cascade_fullres, 3d_fullres",
        ),
        ("3d_cascade_fullres", "which no pretraining has seen.*`nnUNetv2_train Dataset004_Tiny 3d_cascade_fullres 0`"),
        ("larger", "which no pretraining has seen.*`nnUNetv2_train Dataset004_Tiny larger 0`"),
        ("typo", "Unknown `inherits_from` of typo in .*CPUPlans.json '3d_full'"),
        ("loop", "`inherits_from` in .*CPUPlans.json goes round in a circle: loop"),
        ("bare", "bare of .*CPUPlans.json has no `data_identifier`"),
    ],
)
def test_configuration_that_cannot_be_seeded(target: Path, weights: Path, name: str, said: str) -> None:
    path = target / "nnUNetCPUPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"] |= {
        "larger": {"inherits_from": "3d_cascade_fullres", "batch_size": 4},
        "typo": {"inherits_from": "3d_full"},
        "loop": {"inherits_from": "loop"},
        "bare": {"batch_size": 2},
    }
    path.write_text(json.dumps(plans))
    with pytest.raises(HSSLError, match=said):
        seed_target(4, weights, "nnUNetCPUPlans", (name,))
    seed_target(4, weights, "nnUNetCPUPlans")  # the others do not matter to it


def test_without_a_name_the_plans_are_nnunets_own_or_those_of_the_weights(target: Path, weights: Path) -> None:
    own = read_metadata(weights).domains[0].plans_name
    assert own != "nnUNetPlans"
    (target / "nnUNetPlans.json").unlink(missing_ok=True)
    (target / f"{own}.json").touch()
    assert plans_to_seed(4, weights) == own
    (target / "nnUNetPlans.json").touch()
    assert plans_to_seed(4, weights) == "nnUNetPlans"
    for name in ("nnUNetPlans", own):
        (target / f"{name}.json").unlink()
    assert plans_to_seed(4, weights) == "nnUNetPlans"  # whose lack is told, with the plans that are there


def test_plans_that_are_not_there(target: Path, weights: Path) -> None:
    with pytest.raises(HSSLError, match="nnUNetPlans.json does not exist. Plans there: nnUNetCPUPlans."):
        seed_target(4, weights)
    with pytest.raises(HSSLError, match="Nope.json .*or run `nnUNetv2_.* -pl PLANNER -overwrite_plans_name Nope`"):
        seed_target(4, weights, "Nope")  # no preset makes them, and `-p Nope` would want them there


def test_dataset_that_is_not_preprocessed(preprocessed: Path, weights: Path) -> None:
    (preprocessed.parent / "nnUNet_raw" / tiny.DATASET).mkdir()
    with pytest.raises(HSSLError, match="does not exist. Run `hssl plan_and_preprocess"):
        seed_target(4, weights)


def test_dataset_without_labels(target: Path, weights: Path) -> None:
    (target / "dataset.json").write_text(json.dumps(tiny.dataset_json() | {"labels": {}}))
    with pytest.raises(HSSLError, match="no labels to segment"):
        seed_target(4, weights, tiny.PLANS[tiny.PLAIN])


def test_a_dataset_json_that_lacks_its_labels(target: Path, weights: Path) -> None:
    (target / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    with pytest.raises(HSSLError, match=f"(?s)labels: Field required.*`hssl plan_and_preprocess -d {tiny.DATASET}`"):
        seed_target(4, weights, tiny.PLANS[tiny.PLAIN])


def test_plans_copied_from_others(target: Path, weights: Path) -> None:
    seed_target(4, weights, "nnUNetCPUPlans")
    seeded = (target / "nnUNetCPUPlans_HSSL.json").read_text()
    (target / "Mine.json").write_text((target / "nnUNetCPUPlans.json").read_text())
    with pytest.raises(HSSLError, match='Mine.json calls itself `nnUNetCPUPlans`.*Set `"plans_name": "Mine"` in it'):
        seed_target(4, weights, "Mine")
    assert (target / "nnUNetCPUPlans_HSSL.json").read_text() == seeded and not (target / "Mine_HSSL.json").exists()


def test_a_corpus_is_no_target(target: Path, weights: Path) -> None:
    path = target / "nnUNetCPUPlans.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hssl": {"role": "corpus"}}))
    with pytest.raises(HSSLError, match="are the plans of a corpus.*Seed a dataset that has masks"):
        seed_target(4, weights, "nnUNetCPUPlans")
    assert not list(target.glob("*_HSSL.json"))


def test_a_configuration_that_is_not_preprocessed(target: Path, weights: Path) -> None:
    data = target / "nnUNetCPUPlans_3d_fullres"
    data.rmdir()
    command = f"Run `hssl plan_and_preprocess -d {tiny.DATASET} --preset cpu"
    with pytest.raises(HSSLError, match=f"{data} does not exist: this configuration is not preprocessed. {command}"):
        seed_target(4, weights, "nnUNetCPUPlans")
    assert not list(target.glob("*_HSSL.json"))


def test_images_without_a_single_mask(target: Path, weights: Path) -> None:
    data = target / "nnUNetCPUPlans_3d_fullres"
    data.rename(target / "nnUNetCPUPlans_3d_fullres_unlabelled")
    with pytest.raises(HSSLError, match="_3d_fullres does not exist"):  # it has masks, not preprocessed ones
        seed_target(4, weights, "nnUNetCPUPlans")
    for mask in (target / "gt_segmentations").iterdir():
        mask.unlink()
    with pytest.raises(HSSLError, match=f"{tiny.DATASET} has no masks.*`labelsTr` and run `hssl plan_and_preprocess"):
        seed_target(4, weights, "nnUNetCPUPlans")
    assert not list(target.glob("*_HSSL.json"))


def test_unknown_finetuning_value(target: Path, weights: Path) -> None:
    with pytest.raises(HSSLError, match="learning_rate"):
        seed_target(4, weights, tiny.PLANS[tiny.PLAIN], finetuning_overrides={"learning_rate": 1.0})
    assert not list(target.glob("*_HSSL.json"))
