"""`hssl slurm`: our commands as SLURM scripts; what follows the options below is the command's own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hssl_nnunet import slurm, slurm_scripts
from hssl_nnunet.cli_options import ListCommand
from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.slurm_scripts import Allocation, Script

slurm_app = typer.Typer(
    help="Write sbatch scripts, and submit them with --submit.",
    epilog='Example: hssl slurm pretrain --sbatch "--gres=gpu:4 --time=24:00:00" --processes 4 --submit 900',
    no_args_is_help=True,
)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Sbatch = Annotated[
    str,
    typer.Option("--sbatch", metavar="OPTIONS", help='Options of sbatch, as one word: "--partition=gpu --mem=64G".'),
]
Folder = Annotated[Path, typer.Option("--scripts", metavar="DIR", help="Folder of scripts and logs.")]
Submit = Annotated[bool, typer.Option("--submit", help="Submit them as well.")]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Machines.")]
Processes = Annotated[int, typer.Option("--processes", min=1, help="Processes on each, one a GPU.")]
DEVICES = ("cpu", "cuda", "mps")
NODES_OF_SBATCH = re.compile(r"(?:^| )(?:--nodes[= ]|-N ?)(\S+)")
TASKS_OF_SBATCH = re.compile(r"(?:^| )(?:--ntasks(?:-per-node)?[= ]|-n ?\d)")
DEFAULT_FOLDER = Path("slurm")
DEFAULT_FOLDS = ["0", "1", "2", "3", "4"]


@slurm_app.command("pretrain", context_settings=PASSED_ON, epilog="Example: hssl slurm pretrain --submit 900")
def pretrain(
    ctx: typer.Context,
    sbatch: Sbatch = "",
    nodes: Nodes = 1,
    processes: Processes = 1,
    folder: Folder = DEFAULT_FOLDER,
    submit: Submit = False,
) -> None:
    """Run hssl pretrain, through torchrun where there are several processes; queued again before the time limit."""
    typed = _checked(ctx, "pretrain", ctx.args)
    if nodes * processes > 1 and typed["num_gpus"] > 1:
        raise HSSLError(
            f"-num_gpus {typed['num_gpus']} beside --nodes {nodes} --processes {processes}: leave -num_gpus out, each "
            "process takes a GPU of its own."
        )
    named = typed["dataset"], typed["plans_name"], typed["configuration"]
    slurm.check_pretraining(*named, nodes * processes * typed["num_gpus"])
    results = slurm.pretraining_folder(*named)
    script = slurm.pretraining(typed["dataset"], ctx.args, results, _allocation(sbatch, nodes, processes))
    _finish([script], folder, submit)


@slurm_app.command("finetune", context_settings=PASSED_ON, epilog="Example: hssl slurm finetune 4 3d_fullres 0 1 2 3 4")
def finetune(ctx: typer.Context, sbatch: Sbatch = "", folder: Folder = DEFAULT_FOLDER, submit: Submit = False) -> None:
    """Run hssl finetune, one fold a task of an array."""
    script = slurm.finetuning(_at_least(ctx, 3, "DATASET CONFIGURATION FOLD..."), _allocation(sbatch))
    names = ("dataset", "plans_name", "configuration", "fold", "scratch", "num_gpus")
    tasks = [_checked(ctx, "finetune", words[2:]) for words in script.commands]
    results = tuple(slurm.check_finetuning(*(typed[name] for name in names)) for typed in tasks)
    _finish([replace(script, folders=results)], folder, submit)


@slurm_app.command(
    "preprocess", context_settings=PASSED_ON, epilog="Example: hssl slurm preprocess -d 4 51 55 --preset default"
)
def preprocess(
    ctx: typer.Context, sbatch: Sbatch = "", folder: Folder = DEFAULT_FOLDER, submit: Submit = False
) -> None:
    """Run hssl plan_and_preprocess, one dataset a task of an array."""
    from hssl_nnunet.corpus.preprocess import check_request

    typed = _checked(ctx, "plan_and_preprocess", ctx.args)
    asked = ("datasets", "configurations", "preset", "plans_name", "num_processes")
    check_request(*(typed[name] for name in asked))
    _finish([slurm.preprocessing(ctx.args, _allocation(sbatch))], folder, submit)


@slurm_app.command(
    "benchmark", context_settings=PASSED_ON, epilog="Example: hssl slurm benchmark --parts 8 -d 4 53 -o benchmark"
)
def benchmark(
    ctx: typer.Context,
    parts: Annotated[int, typer.Option("--parts", min=1, help="Tasks that share the jobs.")] = 8,
    sbatch: Sbatch = "",
    folder: Folder = DEFAULT_FOLDER,
    submit: Submit = False,
) -> None:
    """Run hssl benchmark run, its jobs shared by the tasks of an array."""
    typed = _checked(ctx, "benchmark run", ctx.args)
    _check_benchmark(typed)
    results = Path(typed["output"]).resolve()
    _finish([slurm.benchmarking(ctx.args, parts, results, _allocation(sbatch))], folder, submit)


@slurm_app.command(
    "chain", cls=ListCommand, epilog='Example: hssl slurm chain 900 -t 4 53 --sbatch "--gres=gpu:1" --submit'
)
def chain(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="Id or name of the corpus.", show_default=False)],
    targets: Annotated[list[str], typer.Option("-t", metavar="DATASET...", help="Targets.", show_default=False)],
    folds: Annotated[list[str], typer.Option("-f", metavar="FOLD...", help="Folds.")] = DEFAULT_FOLDS,
    configuration: Annotated[str, typer.Option("-c", help="nnU-Net's configuration.")] = "3d_fullres",
    plans_name: Annotated[str, typer.Option("-p", help="Plans of the targets.")] = "nnUNetPlans",
    sbatch: Annotated[
        str,
        typer.Option("--sbatch", metavar="OPTIONS", help="Options of sbatch, as one word, of all three jobs."),
    ] = "",
    pretrain_sbatch: Annotated[
        str, typer.Option("--pretrain-sbatch", metavar="OPTIONS", help="More of them, of the pretraining: its GPUs.")
    ] = "",
    finetune_sbatch: Annotated[
        str, typer.Option("--finetune-sbatch", metavar="OPTIONS", help="More of them, of each fold: one GPU.")
    ] = "",
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines of the pretraining.")] = 1,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Its processes on each, one a GPU.")] = 1,
    folder: Folder = DEFAULT_FOLDER,
    submit: Submit = False,
) -> None:
    """Pretrain, seed every target, fine-tune its folds: three jobs, each after the one before."""
    scripts = slurm.chain(
        corpus,
        targets,
        folds,
        configuration,
        plans_name,
        pretraining_on=_allocation(f"{sbatch} {pretrain_sbatch}", nodes, processes),
        seeding_on=_allocation(sbatch),
        finetuning_on=_allocation(f"{sbatch} {finetune_sbatch}"),
    )
    _finish(scripts, folder, submit)


def _allocation(sbatch: str, nodes: int = 1, processes: int = 1) -> Allocation:
    try:
        options = shlex.split(sbatch)
    except ValueError as error:  # a quote that is not closed
        raise typer.BadParameter(f"options of sbatch {sbatch!r}: {error}. Close it, or leave it out.") from None
    _check_machines(options, nodes)
    return Allocation(options=tuple(options), nodes=nodes, processes=processes)


def _check_machines(options: Sequence[str], nodes: int) -> None:
    """Refuse machines that would stand idle, and tasks that would each start all processes of a machine."""
    given = shlex.join(options)
    machines, tasks = NODES_OF_SBATCH.search(given), TASKS_OF_SBATCH.search(given)
    if machines and machines[1] != str(nodes):
        raise typer.BadParameter(
            f"options of sbatch '{given}' ask for {machines[1]} nodes, the script would use {nodes}: leave that out. "
            "`hssl slurm pretrain` and `chain` have an option --nodes of their own."
        )
    if tasks and nodes > 1:
        raise typer.BadParameter(
            f"options of sbatch '{given}' set the number of tasks: leave that out. A node has one task, which "
            "starts as many processes as --processes says."
        )


def _checked(ctx: typer.Context, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What the command makes of the arguments, if it accepts them: a wrong one must not wait in a queue to be found."""
    command: Any = ctx.find_root().command
    for word in name.split():
        command = command.commands[word]
    parameters: dict[str, Any] = command.make_context(name, list(arguments), parent=ctx.find_root()).params
    device = parameters.get("device")
    if device is not None and device not in DEVICES:  # the machine of the queue may have what this one lacks
        raise unknown_name("device", device, DEVICES)
    return parameters


def _check_benchmark(typed: dict[str, Any]) -> None:
    """Refuse a benchmark that `hssl benchmark run` would refuse before its first job."""
    from hssl_nnunet.benchmark.run import plan_as_typed
    from hssl_nnunet.benchmark.workspace import Workspace

    folder = Path(typed["output"])
    plan = plan_as_typed(**{name: typed[name] for name in typed.keys() - {"output", "jobs", "part"}})
    Workspace(folder).check_plan(plan)
    for name in dict.fromkeys((*plan.datasets, *plan.domains)):
        slurm.check_planned(name, plan.plans_name, plan.configuration)


def _at_least(ctx: typer.Context, count: int, what: str) -> list[str]:
    if len(ctx.args) < count:
        raise typer.BadParameter(f"expected {what}, got '{shlex.join(ctx.args)}'")
    return list(ctx.args)


def _finish(scripts: Sequence[Script], folder: Path, submit: bool) -> None:
    paths = slurm_scripts.write_scripts(scripts, folder)
    for path in paths:
        print(f"Wrote {path}")
    if submit:
        for name, job in slurm_scripts.submit(scripts, paths).items():
            print(f"Submitted {name}: job {job}")
    else:
        next_step = ["sbatch", str(paths[0])] if len(paths) == 1 else ["bash", str(folder / "submit.sh")]
        print(f"Next: {shlex.join(next_step)}")
