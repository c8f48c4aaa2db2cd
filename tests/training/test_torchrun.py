"""`torchrun hssl pretrain` in real processes: any number of ranks trains as one, and resumes a lost run as another."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_corpus
import torch

from hssl_nnunet import launch, ranks
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.transfer.weights_file import load_weights

BIN = Path(sys.executable).parent
# not AdamW: a bias before an instance norm has no gradient but rounding, which AdamW would blow up to a whole step
PLAN = {"num_epochs": 2, "chunks_per_step": 4, "probe_every": 2, "optimizer": "sgd", "initial_lr": 0.02}
RUN = f"nnUNetTrainerHSSLPretrain__{tiny_corpus.PLANS_NAME}__3d_fullres"


@pytest.fixture
def folder(nnunet_folders: dict[str, Path]) -> Path:
    """Results of the pretraining of a corpus that is written."""
    tiny_corpus.write_corpus(nnunet_folders["nnUNet_preprocessed"], **PLAN)
    return nnunet_folders["nnUNet_results"] / tiny_corpus.CORPUS / RUN / "fold_all"


def change_plan(nnunet_folders: dict[str, Path], **values: object) -> None:
    path = nnunet_folders["nnUNet_preprocessed"] / tiny_corpus.CORPUS / f"{tiny_corpus.PLANS_NAME}.json"
    plans = json.loads(path.read_text())
    plans["hssl"]["pretraining"].update(values)
    path.write_text(json.dumps(plans))


def command(processes: int, *more: str, torchrun: tuple[str, ...] = ("--standalone",)) -> list[str]:
    hssl = [str(BIN / "hssl"), "pretrain", "900", "-device", "cpu", *more]
    if processes == 1:
        return hssl
    return [str(BIN / "torchrun"), *torchrun, f"--nproc_per_node={processes}", *hssl]


def run(processes: int, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(processes, *more), env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def trained(processes: int, *more: str) -> str:
    """What a run printed that ended well; all of it where it did not: torchrun's own words come last, and are long."""
    done = run(processes, *more)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def start(words: list[str]) -> subprocess.Popen[str]:
    """A process whose output is read later."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_a_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not (folder / "checkpoint_latest.pth").is_file():
        assert process.poll() is None, f"no checkpoint was written\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, "no checkpoint was written in time"
        time.sleep(0.1)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Weights and loss curves; the folder is moved out of the way."""
    tensors, metadata = load_weights(folder / "hssl.safetensors")
    shutil.move(folder, folder.with_name(f"done_{time.monotonic_ns()}"))
    return tensors, {k: v for k, v in metadata.curves.items() if k.startswith(("train_", "val_"))}


def process_of_rank(rank: int, parent: int) -> int:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
            of = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended, or is another user's
            continue
        if of == parent and f"RANK={rank}".encode() in variables:
            return int(path.parent.name)
    raise LookupError(f"no process of rank {rank}")


def assert_same(one: tuple, other: tuple) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-5)
    assert one[1].keys() == other[1].keys()
    for key, values in one[1].items():
        assert other[1][key] == pytest.approx(values, rel=1e-4), key


@pytest.mark.slow
def test_two_and_four_ranks_train_as_one_process(folder: Path, nnunet_folders: dict[str, Path]) -> None:
    results = []
    for processes, checkpointing in ((1, "none"), (2, "image"), (4, "chunk")):
        change_plan(nnunet_folders, checkpointing=checkpointing)  # the same gradient, through DDP too
        said = trained(processes)
        assert said.count("Epoch time") <= 2 * PLAN["num_epochs"]  # rank 0 alone speaks
        results.append(outcome(folder))
    for other in results[1:]:
        assert_same(results[0], other)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the rank's process in Linux' /proc")
def test_a_lost_rank_leaves_a_checkpoint_from_which_another_number_goes_on(
    folder: Path, nnunet_folders: dict[str, Path]
) -> None:
    change_plan(nnunet_folders, num_epochs=8, save_every=1, probe_every=8)
    trained(1)
    whole = outcome(folder)
    said = lose_rank_1_of_2(folder)
    assert "Rank 0 of 2 has lost another process" in said and "--c" in said, said
    assert "Signal 9 (SIGKILL)" in said, said  # torchrun's own word on which rank it was
    assert not (folder / "hssl.safetensors").exists()
    refused = run(4)
    assert refused.returncode != 0 and "Add --c to continue it" in refused.stderr, refused.stderr
    assert trained(4, "--c").count("Epoch time") < 2 * 8  # it did not begin again
    assert_same(whole, outcome(folder))


def lose_rank_1_of_2(folder: Path) -> str:
    """Start two ranks, kill one when a checkpoint is there; what was printed."""
    process = start(command(2))
    try:
        wait_for_a_checkpoint(folder, process)
        os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    return said


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with addresses of their own, joined by a virtual cable."""
    names = [f"hssl{os.getpid()}{end}" for end in "ab"]
    if not (shutil.which("ip") and hasattr(os, "geteuid") and os.geteuid() == 0):
        pytest.skip("network namespaces need root and iproute2")
    made = subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    try:
        subprocess.run(["ip", "netns", "add", names[1]], check=True)
        ends = ["ve0", "netns", names[0], "type", "veth", "peer", "name", "ve0", "netns", names[1]]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for index, name in enumerate(names, start=1):
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "addr", "add", f"10.77.0.{index}/24", "dev", "ve0"], check=True)
            for device in ("ve0", "lo"):
                subprocess.run([*inside, "link", "set", device, "up"], check=True)
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_hosts_train_as_one_process(folder: Path, hosts: tuple[str, str]) -> None:
    trained(1)
    alone = outcome(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "ve0", "TP_SOCKET_IFNAME": "ve0"}
    address = ("--nnodes=2", "--master_addr=10.77.0.1", "--master_port=29477")
    processes = []
    for rank, host in enumerate(hosts):
        typed = command(2, torchrun=(*address, f"--node_rank={rank}"))
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *typed],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-4000:]
    assert "Epoch time" in said[0] and "Epoch time" not in said[1]  # rank 0 alone speaks
    assert_same(alone, outcome(folder))


def test_gpus_of_one_machine_are_processes_of_torchrun(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here on the CPU, where two processes stand for two GPUs."""
    monkeypatch.setattr(launch, "check_gpus", lambda *args: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch.pretrain("900", device="cpu", num_gpus=2) == folder
    assert load_weights(folder / "hssl.safetensors")[0]
    with pytest.raises(HSSLError, match="hssl pretrain Dataset900_Tiny .* on 2 processes ended with exit code"):
        launch.pretrain("900", device="cpu", num_gpus=2)
    assert f"{folder} is finished" in capfd.readouterr().err  # each process has said why


TWO_GPUS = """
from hssl_nnunet import launch, ranks
ranks.SECONDS_AFTER_CTRL_C = 0.5
launch.check_gpus = lambda *args: None
launch.pretrain("900", device="cpu", num_gpus=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_the_command_ends_its_processes(
    number: signal.Signals, folder: Path, nnunet_folders: dict[str, Path]
) -> None:
    change_plan(nnunet_folders, num_epochs=1000, save_every=1, probe_every=1000)
    process = start([sys.executable, "-c", TWO_GPUS])
    try:
        wait_for_a_checkpoint(folder, process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=200)  # until all that hold its output have ended
    finally:
        for rank in processes_in(folder):
            os.kill(rank, signal.SIGKILL)
    assert process.returncode != 0 and "start the same `torchrun` command with --c" in said, said


def processes_in(folder: Path) -> list[int]:
    """Processes, but this one, whose results lie in the folder of those of `folder`."""
    own = f"nnUNet_results={folder.parents[2]}".encode()
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if path.parent.name != str(os.getpid()) and own in _environment(path)
    ]


def _environment(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_ranks_that_do_not_find_the_same_checkpoint_are_refused(
    nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines of which each has results of its own."""
    tiny_corpus.write_corpus(nnunet_folders["nnUNet_preprocessed"], **PLAN)
    results = nnunet_folders["nnUNet_results"]
    monkeypatch.setenv("nnUNet_results", str(results / "0"))
    trained(1)
    change_plan(nnunet_folders, num_epochs=4)
    monkeypatch.setenv("nnUNet_results", str(results))
    script = f'nnUNet_results="$nnUNet_results/$RANK" exec {shlex.join(command(1, "--c"))}'
    torchrun = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", "--no-python"]
    process = start([*torchrun, "sh", "-c", script])
    try:
        said, _ = process.communicate(timeout=200)
    finally:
        process.terminate()
    assert process.returncode != 0 and "Rank 0 begins at epoch 2, rank 1 at epoch 0" in said, said


def test_torchrun_starts_pretraining_alone(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv(ranks.VARIABLE, "run")
    monkeypatch.setattr(launch, "check_gpus", lambda *args: None)
    named = {"dataset": tiny_corpus.CORPUS, "configuration": "3d_fullres", "fold": "all", "plans_name": "any"}
    for trainer, processes, told in (
        (launch.PRETRAIN_TRAINER, 2, "-num_gpus 2 under torchrun.*nproc_per_node"),
        (launch.FINETUNE_TRAINER, 1, "hssl pretrain. alone.*-num_gpus"),
    ):
        training = launch.Training(trainer=trainer, **named)
        with pytest.raises(HSSLError, match=told):
            launch._check_processes(training, tiny_corpus.corpus_block(), torch.device("cpu"), processes)


def test_ranks_take_the_gpu_of_their_place_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert ranks.own_device(cuda) == cuda
    monkeypatch.setenv(ranks.VARIABLE, "run")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("RANK", "11")
    assert (ranks.own_device(cuda), ranks.own_device(cpu)) == (torch.device("cuda", 3), cpu)
