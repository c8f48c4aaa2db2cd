"""A pretraining that goes on from weights: they are its start, and what they have seen it has seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_corpus
import torch

from hssl_nnunet import cli, launch
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.shared_weights import SharedWeights
from hssl_nnunet.networks.topology import Topology
from hssl_nnunet.plan_schema import corpus_block
from hssl_nnunet.transfer.continuing import load_start, seed_corpus, start_from
from hssl_nnunet.transfer.leakage import seen_cases
from hssl_nnunet.transfer.seeding import load_into
from hssl_nnunet.transfer.weights_file import SeenImage, load_weights, read_metadata, save_weights

STEM = "encoder.0.0.convs.0.conv.weight"
LONG_AGO = SeenImage(dataset_name="Dataset777_Old", case="x", channel=0, patient="p", content_hash="hash of old")
ONE_EPOCH = {"num_epochs": 1, "warmup_epochs": 0, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}


@pytest.fixture
def weights(corpus: Path, tmp_path: Path) -> Path:
    """Weights of the tiny corpus' networks, other than those a run draws, that have seen an image of long ago."""
    trainer = tiny_corpus.pretrainer(corpus, {**ONE_EPOCH, "seed": 77})
    trainer.run_training()
    file = Path(trainer.output_folder) / "hssl.safetensors"
    tensors, metadata = load_weights(file)
    path = tmp_path / "earlier.safetensors"
    save_weights(path, tensors, {}, replace(metadata, images=(*metadata.images[:2], LONG_AGO)))
    for left in Path(trainer.output_folder).iterdir():
        left.unlink() if left.is_file() else None
    return path


def plans_file(corpus: Path) -> Path:
    return corpus / f"{tiny_corpus.PLANS_NAME}.json"


def of_domain(domain: int) -> SharedWeights:
    torch.manual_seed(5)
    return SharedWeights([Topology.from_architecture(tiny_corpus.ARCHITECTURES[domain], "")])


def test_training_begins_at_the_weights_and_names_all_that_they_have_seen(corpus: Path, weights: Path) -> None:
    seed_corpus(tiny_corpus.CORPUS, weights, tiny_corpus.PLANS_NAME)
    trainer = tiny_corpus.pretrainer(corpus, ONE_EPOCH)
    trainer.initialize()
    earlier, before = load_weights(weights)
    shared = trainer.model.shared.tensors()
    assert shared.keys() == earlier.keys()
    assert all(torch.equal(shared[role], earlier[role]) for role in shared)
    assert {p.data_ptr() for p in trainer.model.shared.parameters()} <= {
        p.data_ptr() for group in trainer.optimizer.param_groups for p in group["params"]
    }
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert "hash of old" not in (folder / "debug.json").read_text()  # of 10^5 images it would be 40 MiB
    after = read_metadata(folder / "hssl.safetensors")
    assert set(after.images) == {*before.images, *after.images} and len(after.images) == len(set(after.images))
    assert LONG_AGO in after.images and len(after.images) == 3 * tiny_corpus.IMAGES + 1
    assert after.origin.startswith("earlier.safetensors, sha256 ") and str(weights.parent) not in after.origin


def test_images_that_nobody_knows_stay_unknown(corpus: Path, weights: Path) -> None:
    tensors, metadata = load_weights(weights)
    elsewhere = replace(metadata.domains[0], dataset_name="Dataset777_Old")
    imported = replace(metadata, images=None, origin="a checkpoint", domains=(elsewhere, metadata.domains[1]))
    save_weights(weights, tensors, {}, imported)
    seed_corpus(tiny_corpus.CORPUS, weights, tiny_corpus.PLANS_NAME)
    trainer = tiny_corpus.pretrainer(corpus, ONE_EPOCH)
    trainer.run_training()
    after = read_metadata(Path(trainer.output_folder) / "hssl.safetensors")
    assert after.images is None and after.origin.endswith(", imported from a checkpoint")
    assert after.domains == (*trainer.corpus.domains, elsewhere)
    assert seen_cases(after, "Dataset777_Old", ["x"], {}) == ["x"]  # it may be any of that dataset's


@pytest.mark.parametrize("domain", [tiny_corpus.CUBE, tiny_corpus.SLAB, tiny_corpus.SCAN])
def test_a_target_takes_by_way_of_its_own_corpus_what_it_takes_directly(weights: Path, domain: int) -> None:
    tensors, _ = load_weights(weights)
    topology = Topology.from_architecture(tiny_corpus.ARCHITECTURES[domain], "")
    direct, by_way = (topology.build(1, 2) for _ in range(2))
    by_way.load_state_dict(direct.state_dict())
    shared = of_domain(domain)
    entries = start_from(shared, tensors)
    load_into(direct, tensors, topology)
    load_into(by_way, {role: t.detach() for role, t in shared.tensors().items()}, topology)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(by_way.state_dict()[name], tensor), name
    if domain == tiny_corpus.SLAB:
        assert torch.equal(shared.tensors()[STEM], tensors[STEM].sum(2, keepdim=True))
    assert {e.status for e in entries} == ({"exact", "adapted"} if domain == tiny_corpus.SLAB else {"exact"})


def test_what_the_weights_lack_stays_as_it_was_drawn(weights: Path) -> None:
    tensors, _ = load_weights(weights)
    shallow = {role: t for role, t in tensors.items() if role.startswith(("encoder.0.", "encoder.1."))}
    shared, drawn = of_domain(tiny_corpus.CUBE), of_domain(tiny_corpus.CUBE).tensors()
    fresh = {e.role for e in start_from(shared, shallow) if e.status == "fresh"}
    assert fresh == tensors.keys() - shallow.keys()
    for role, tensor in shared.tensors().items():
        assert torch.equal(tensor, drawn[role] if role in fresh else tensors[role]), role


def test_files_that_are_not_those_of_the_plans(corpus: Path, weights: Path) -> None:
    seed_corpus(tiny_corpus.CORPUS, weights, tiny_corpus.PLANS_NAME)
    path = plans_file(corpus)
    block = corpus_block(json.loads(path.read_text()), path)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    seeding = f"hssl seed -d {tiny_corpus.CORPUS} -w {weights} -p {tiny_corpus.PLANS_NAME}"
    with pytest.raises(HSSLError, match=rf"has sha256 .*expect .*Put the file back, or run `{seeding}` again"):
        load_start(of_domain(tiny_corpus.CUBE), block, path)
    weights.unlink()
    with pytest.raises(HSSLError, match=rf"{weights}, which {path} names, does not exist.*hssl seed -d"):
        launch.pretrain(tiny_corpus.CORPUS, device="cpu")


def test_weights_of_another_network(corpus: Path, weights: Path) -> None:
    tensors, metadata = load_weights(weights)
    save_weights(weights, tensors, {}, replace(metadata, family="ResidualEncoderUNet"))
    before = plans_file(corpus).read_bytes()
    with pytest.raises(HSSLError, match="weights of a ResidualEncoderUNet, the domains of .* plan a PlainConvUNet"):
        seed_corpus(tiny_corpus.CORPUS, weights, tiny_corpus.PLANS_NAME)
    assert plans_file(corpus).read_bytes() == before


def test_a_run_goes_on_with_the_weights_it_began_with(corpus: Path, weights: Path) -> None:
    trainer = tiny_corpus.pretrainer(corpus, {**ONE_EPOCH, "num_epochs": 2})
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer.on_train_start()
    trainer.save_checkpoint(str(path))
    seed_corpus(tiny_corpus.CORPUS, weights, tiny_corpus.PLANS_NAME)
    resumed = tiny_corpus.pretrainer(corpus, {**ONE_EPOCH, "num_epochs": 2})
    with pytest.raises(HSSLError, match="begun with no weights, the plans name weights of .* set `weights` .* null"):
        resumed.load_checkpoint(str(path))


def test_seeding_a_corpus_from_the_command_line(
    corpus: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["seed", "-d", "900", "-w", str(weights)])
    said = capsys.readouterr().out
    assert end.value.code == 0 and STEM in said and "Next: hssl pretrain Dataset900_Tiny" in said
    block = json.loads(plans_file(corpus).read_text())["hssl"]
    assert block["weights"] == str(weights) and len(block["weights_sha256"]) == 64
    with pytest.raises(SystemExit):
        cli.main(["seed", "-d", "900", "-w", str(weights), "--pth", "x.pth"])
    assert "is a corpus" in capsys.readouterr().err


def test_a_corpus_is_seeded_in_its_own_configuration_alone(
    corpus: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plans_file(corpus).read_text()
    with pytest.raises(SystemExit) as end:
        cli.main(["seed", "-d", "900", "-w", str(weights), "-c", "2d", "3d_fullres"])
    said = capsys.readouterr().err
    assert end.value.code == 1 and "has 3d_fullres alone, got -c 2d. Leave -c out: `hssl seed -d Dataset900" in said
    assert plans_file(corpus).read_text() == before
    with pytest.raises(SystemExit) as end:
        cli.main(["seed", "-d", "900", "-w", str(weights), "-c", "3d_fullres"])
    assert end.value.code == 0
