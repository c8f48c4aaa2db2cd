from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

import hssl_nnunet
from hssl_nnunet import cli, paths
from hssl_nnunet.cli_options import with_repeated_flags
from hssl_nnunet.errors import HSSLError

GROUP = typer.main.get_command(cli.app)
BENCHMARK = GROUP.commands["benchmark"]
COMMANDS = sorted(GROUP.commands)
HELPS = [(name,) for name in COMMANDS]
HELPS += [(group, name) for group in ("benchmark", "slurm") for name in sorted(GROUP.commands[group].commands)]
RUN = [sys.executable, "-c", "from hssl_nnunet.cli import main; main()"]


def parsed(line: str) -> dict[str, object]:
    """What a command receives for a command line, without running it."""
    name, *args = shlex.split(line)
    group = GROUP
    if name in ("benchmark", "slurm"):
        group, (name, *args) = GROUP.commands[name], args
    return group.commands[name].make_context(name, args).params


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    return stopped.value.code, " ".join(capsys.readouterr().err.split())


def test_the_commands_are_those_of_the_manual():
    assert sorted(BENCHMARK.commands) == ["report", "run", "status"]
    known = "convert_msd plan_and_preprocess corpus pretrain seed finetune export import inspect doctor paths demo"
    assert COMMANDS == sorted([*known.split(), "benchmark", "slurm"])


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_ends_in_an_example_that_parses(words: tuple[str, ...]):
    result = CliRunner().invoke(cli.app, [*words, "--help"])
    last = result.stdout.strip().splitlines()[-1].strip()
    assert result.exit_code == 0
    assert last.startswith("Example: ")
    if words != ("paths",):
        assert parsed(last.removeprefix("Example: hssl ")) is not None


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"hssl_nnunet {hssl_nnunet.__version__}"


@pytest.mark.parametrize(
    "given, expected",
    [
        ("-d 4 51 55", "-d 4 -d 51 -d 55"),
        ("-d 4", "-d 4"),
        ("-d 4 -d 51 52 -o 900", "-d 4 -d 51 -d 52 -o 900"),
        ("-o 900 -d 4 51", "-o 900 -d 4 -d 51"),
        ("-d 4 51 -c 2d 3d_fullres -np 2", "-d 4 -d 51 -c 2d -c 3d_fullres -np 2"),
        ("x y -o 1 2", "x y -o 1 2"),
        ("-d", "-d"),
        ("", ""),
    ],
)
def test_repeated_flags(given: str, expected: str):
    assert with_repeated_flags(given.split(), {"-d", "-c"}) == expected.split()


def test_several_datasets_after_one_flag():
    params = parsed("plan_and_preprocess -d 4 Dataset051_Sarcoma 55 -c 2d 3d_fullres --preset cpu -np 3")
    assert params["datasets"] == ["4", "Dataset051_Sarcoma", "55"]
    assert params["configurations"] == ["2d", "3d_fullres"]
    assert (params["preset"], params["num_processes"]) == ("cpu", [3])
    params = parsed("plan_and_preprocess -d 4 --verify_dataset_integrity -c 2d 3d_fullres -npfp 2")
    assert params["configurations"] == ["2d", "3d_fullres"]
    assert params["fingerprint_processes"] == 2 and not params["num_processes"]
    assert parsed("plan_and_preprocess -d 4 -c 2d 3d_fullres -np 8 4")["num_processes"] == [8, 4]
    params = parsed("plan_and_preprocess -d 4 -p MyResEnc")
    assert (params["preset"], params["plans_name"]) == (None, "MyResEnc")


def test_a_preset_and_plans_exclude_each_other(capsys: pytest.CaptureFixture[str], nnunet_folders):
    code, said = failure(capsys, *"plan_and_preprocess -d 4 -p MyResEnc --preset cpu".split())
    assert code == 1 and "--preset cpu and -p MyResEnc" in said


def test_processes_are_one_number_or_one_for_each_configuration(capsys: pytest.CaptureFixture[str], nnunet_folders):
    code, said = failure(capsys, *"plan_and_preprocess -d 4 -c 2d 3d_fullres 3d_lowres -np 8 4".split())
    assert code == 1 and "Got 2 numbers of processes, -np 8 4, for 3 configuration(s)" in said


def test_a_command_for_one_dataset_refuses_two(capsys: pytest.CaptureFixture[str]):
    code, said = failure(capsys, "seed", "-d", "4", "51", "-w", "hssl.safetensors")
    assert code == 2
    assert "51" in said


def test_flags_are_spelled_as_nnunet_spells_them():
    params = parsed("finetune 4 3d_fullres 0 -p nnUNetPlans_HSSL -device cpu --c -num_gpus 2 --scratch --npz --val")
    assert params == {
        "dataset": "4",
        "configuration": "3d_fullres",
        "fold": "0",
        "plans_name": "nnUNetPlans_HSSL",
        "scratch": True,
        "device": "cpu",
        "continue_training": True,
        "num_gpus": 2,
        "npz": True,
        "only_validate": True,
    }
    assert parsed("export -d 4 -o out -tr nnUNetTrainerHSSLScratch -f 0 1 all")["folds"] == ["0", "1", "all"]


@pytest.mark.parametrize(
    "typed, instead",
    [
        ("plan_and_preprocess -d 4 -pl nnUNetPlannerResEncM", "-pl: choose the planner by `--preset`"),
        ("corpus -d 4 -o 900 -pl X", "-pl: choose the planner"),
        ("plan_and_preprocess -d 4 -overwrite_plans_name X", "-overwrite_plans_name: plan with nnUNetv2_plan_exper"),
        ("corpus -d 4 -o 900 -overwrite_plans_name X", "-overwrite_plans_name: plan with nnUNetv2_plan_experiment"),
        ("plan_and_preprocess -d 4 -gpu_memory_target=24", "-gpu_memory_target: choose a size by `--preset`, or plan"),
        ("plan_and_preprocess -d 4 -preprocessor_name X", "-preprocessor_name: plan with nnUNetv2_plan_experiment"),
        ("plan_and_preprocess -d 4 -preprocessor_name=X", "-preprocessor_name: plan with nnUNetv2_plan_experiment"),
        ("plan_and_preprocess -overwrite_target_spacing 1 1 1 -d 4", "-overwrite_target_spacing: plan with nnUNetv2_"),
        ("plan_and_preprocess -d 4 -fpe X", "-fpe: type nnUNetv2_extract_fingerprint"),
        ("plan_and_preprocess -d 4 --clean -c 2d", "--clean: a fingerprint is taken anew where cases have changed"),
        ("plan_and_preprocess -d 4 --no_pp", "--no_pp: type nnUNetv2_extract_fingerprint and nnUNetv2_plan_exper"),
        ("plan_and_preprocess -d 4 --verbose", "--verbose: leave it out"),
        ("plan_and_preprocess -d 4 --no_pbar", "--no_pbar: leave it out"),
        ("finetune 4 3d_fullres 0 -tr nnUNetTrainer", "-tr: `hssl` trains with its own trainers"),
        ("finetune 4 3d_fullres 0 -pretrained_weights f", "-pretrained_weights: weights go into the plans"),
        ("finetune 4 3d_fullres 0 -pretrained_weights=f", "-pretrained_weights: weights go into the plans"),
        ("pretrain 900 -pretrained_weights=f", "-pretrained_weights: weights go into the plans"),
    ],
)
def test_a_flag_of_nnunets_own_commands_is_told_what_replaces_it(capsys, typed: str, instead: str):
    code, said = failure(capsys, *typed.split())
    assert code == 2 and instead in said


@pytest.mark.parametrize(
    "typed, told",
    [
        ("finetune 4 3d_fullres 0 -cont", "No such option: -cont. Did you mean --c?"),
        ("finetune 4 3d_fullres 0 -gpus 2", "No such option: -gpus. Did you mean -num_gpus"),
        ("finetune 4 3d_fullres 0 -plans=X", "No such option: -plans. Did you mean -p?"),
        ("corpus -d 4 -overwrite -o 900", "No such option: -overwrite. Did you mean --overwrite?"),
        ("import file.pth -out rival.safetensors", "No such option: -out. Did you mean -o?"),
        ("convert_msd -i folder -xyzzy", "No such option: -xyzzy"),
        ("benchmark report folder -output page.html", "No such option: -output"),
    ],
)
def test_an_unknown_flag_of_one_dash_is_not_taken_for_one_of_a_letter(capsys, typed: str, told: str):
    code, said = failure(capsys, *typed.split())
    assert code == 2 and told in " ".join(said.replace("│", "").split())


def test_what_looks_like_a_flag_after_an_option_is_its_value():
    assert parsed("slurm chain 900 -t 4 --sbatch '-pgpu -A us'")["sbatch"] == "-pgpu -A us"
    assert parsed("export -d4 -o out -c2d -f 0 1")["configuration"] == "2d"


def test_corpus_says_how_to_go_on_after_a_repair(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    found = SimpleNamespace(
        notes=["a note"],
        folder="there",
        problems=["Dataset004_Toy a: upside down"],
        exit_code=3,
        repair_command="hssl plan_and_preprocess -d 4 --preset cpu",
    )
    monkeypatch.setattr("hssl_nnunet.corpus.build.build_corpus", lambda *_, **__: found)
    monkeypatch.setattr("hssl_nnunet.corpus.build.corpus_table", lambda _: "")
    code, said = failure(capsys, *"corpus -d 4 -o 900".split())
    assert code == 3
    assert "1 problem(s); repair the files, run `hssl plan_and_preprocess -d 4 --preset cpu`, then this command" in said
    assert "again with --overwrite: Dataset004_Toy a: upside down" in said


def test_a_users_mistake_is_one_message_and_exit_code_1(capsys: pytest.CaptureFixture[str], nnunet_folders):
    code, said = failure(capsys, "pretrain", "900")
    assert code == 1
    assert said.startswith("Error: Dataset '900' was not found")
    assert "Traceback" not in said


def test_brackets_in_a_message_survive(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "app", raises(HSSLError("got shape [3, 4] in case[0]")))
    assert failure(capsys) == (1, "Error: got shape [3, 4] in case[0]")


def test_anything_unexpected_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "app", raises(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main([])


def test_a_full_disk_is_said_to_be_full(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "app", raises(OSError(errno.ENOSPC, "No space left on device")))
    code, said = failure(capsys)
    assert code == 1
    assert "The disk is full" in said


def test_a_quota_and_a_folder_that_may_not_be_entered_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cli, "app", raises(OSError(errno.EDQUOT, "Disk quota exceeded")))
    assert "The disk is full: [Errno" in failure(capsys)[1]
    monkeypatch.setattr(cli, "app", raises(PermissionError(errno.EACCES, "Permission denied", "/data")))
    code, said = failure(capsys)
    assert code == 1 and "Permission denied: '/data'. Ask for the right to it" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a Linux device")
def test_torchs_own_error_on_a_full_disk_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.save({"weights": torch.zeros(1_000_000)}, "/dev/full")
    assert cli._disk_is_full(raised.value)
    assert not cli._disk_is_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("before", ["", "/some/other trainers"])
def test_the_export_line_appends_to_what_a_shell_holds(before: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "it's a $HOME"
    monkeypatch.setattr(cli, "trainers_dir", lambda: folder)
    script = f'nnUNet_extTrainer={shlex.quote(before)}; {cli.export_line()}; printf %s "$nnUNet_extTrainer"'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout.split(os.pathsep) == [*filter(None, [before]), str(folder)]


def test_paths_prints_only_the_line_for_the_shell():
    done = subprocess.run([*RUN, "paths", "--export"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [cli.export_line()]
    assert str(paths.trainers_dir()) in done.stdout


def raises(error: BaseException):
    def app(**_: object) -> None:
        raise error

    return app
