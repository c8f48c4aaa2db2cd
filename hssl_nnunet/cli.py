"""The command `hssl`: each subcommand is a thin layer over one function of the library.

Nothing heavy is imported before a command runs, so that `hssl --help` answers at once.
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from hssl_nnunet import __version__
from hssl_nnunet.cli_benchmark import benchmark_app
from hssl_nnunet.cli_options import (
    DEFAULT_CONFIGURATIONS,
    Configuration,
    Configurations,
    Continue,
    Dataset,
    Datasets,
    Device,
    FoundPlans,
    ListCommand,
    NumGpus,
    NumProcesses,
    replaced_flags,
    show,
)
from hssl_nnunet.cli_slurm import slurm_app
from hssl_nnunet.cli_transfer import export, import_, inspect, seed
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW, ENV_RESULTS, ENV_TRAINERS, plans_dir, trainers_dir

USAGE_ERROR = 2  # typer's exit code
NO_SPACE, NOT_ALLOWED = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)

app = typer.Typer(
    help="Hierarchical self-supervised pretraining for nnU-Net v2: many domains, one set of weights, any plan.",
    epilog="Example: hssl demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def hssl(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Set up logging; print the version when asked."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("hssl_nnunet").setLevel(logging.INFO)
    if version:
        print(f"hssl_nnunet {__version__}")
        raise typer.Exit


@app.command("convert_msd", cls=ListCommand, epilog="Example: hssl convert_msd -i Task04_Hippocampus/")
def convert_msd(
    source: Annotated[Path, typer.Option("-i", metavar="FOLDER", help="An MSD folder, TaskXX_Name.")],
    dataset_id: Annotated[
        int | None, typer.Option("-d", min=1, max=999, help="Id of the dataset; default: XX.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset of the same name.")] = False,
) -> None:
    """Convert an MSD task to nnU-Net's raw form; imagesTs is kept as unlabelled images."""
    from hssl_nnunet.corpus.convert import convert_msd as convert

    print(f"Wrote {convert(source, dataset_id, overwrite=overwrite)}")


@app.command("plan_and_preprocess", cls=ListCommand, epilog="Example: hssl plan_and_preprocess -d 4 51 55 --preset cpu")
def plan_and_preprocess(
    datasets: Datasets,
    configurations: Configurations = DEFAULT_CONFIGURATIONS,
    preset: Annotated[
        str | None, typer.Option(help="default (also when none is named), resenc_m, resenc_l, resenc_xl or cpu.")
    ] = None,
    plans_name: Annotated[
        str | None,
        typer.Option("-p", help="Plans that are there, used as they are instead of a preset."),
    ] = None,
    num_processes: Annotated[
        list[int] | None,
        typer.Option(
            "-np", min=1, metavar="N...", help="Processes, one number or one for each -c; default: by the machine."
        ),
    ] = None,
    fingerprint_processes: Annotated[
        int | None,
        typer.Option("-npfp", min=1, help="Processes of check and fingerprint; default: as -np."),
    ] = None,
    verify_dataset_integrity: Annotated[
        bool, typer.Option("--verify_dataset_integrity", help="Accepted as nnU-Net's; the check is always made.")
    ] = False,
) -> None:
    """Plan and preprocess labelled datasets as stock nnU-Net does, and images without masks beside them."""
    from hssl_nnunet.launch import set_environment

    set_environment()
    from hssl_nnunet.corpus.preprocess import plan_and_preprocess as run

    report = run(datasets, configurations, preset, num_processes, plans_name, fingerprint_processes)
    for line in report.lines:
        print(line)
    _exit_with(report.problems, report.exit_code, "repair the files and run the command again")


@app.command(cls=ListCommand, epilog="Example: hssl corpus -d 4 51 52 -o 900 -n Limbs")
def corpus(
    datasets: Datasets,
    output: Annotated[int, typer.Option("-o", min=1, max=999, help="Id of the corpus.")],
    name: Annotated[str, typer.Option("-n", help="Name of the corpus.")] = "Corpus",
    plans_name: Annotated[
        str | None, typer.Option("-p", help="Name of the plans; default: those that all have.")
    ] = None,
    configuration: Configuration = "3d_fullres",
    hierarchy: Annotated[
        Path | None, typer.Option("--hierarchy", metavar="FILE", help="JSON with the groups of every dataset.")
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option("--exclude", metavar="FILE", help="Lines: CASE, DATASET:CASE, patient:NAME or hash:HASH."),
    ] = None,
    patient_regex: Annotated[
        list[str] | None,
        typer.Option(
            "--patient_regex",
            metavar="DATASET=REGEX...",
            help="How a case's name tells the patient; DATASET=unique: its patients are in no other dataset.",
        ),
    ] = None,
    num_processes: NumProcesses = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a corpus of the same name.")] = False,
) -> None:
    """Join preprocessed datasets into a corpus: fingerprint, hierarchy, manifest and plans. Copies no voxel."""
    from hssl_nnunet.launch import set_environment

    set_environment()
    from hssl_nnunet.corpus.build import build_corpus, corpus_table
    from hssl_nnunet.corpus.parallel import default_processes

    report = build_corpus(
        datasets,
        output,
        name,
        plans_name=plans_name,
        configuration=configuration,
        hierarchy_file=hierarchy,
        exclude_file=exclude,
        patient_regex=patient_regex or (),
        num_processes=num_processes or default_processes(),
        overwrite=overwrite,
    )
    show(corpus_table(report))
    for note in report.notes:
        print(f"Note: {note}")
    print(f"Wrote {report.folder}")
    if not report.problems:
        print(f"Next: hssl pretrain {output}")
    again = f"repair the files, run `{report.repair_command}`, then this command again with --overwrite"
    _exit_with(report.problems, report.exit_code, again)


@app.command(cls=ListCommand, epilog="Example: hssl pretrain 900")
def pretrain(
    dataset: Annotated[str, typer.Argument(metavar="CORPUS", help="Id or name of the corpus.")],
    configuration: Configuration = "3d_fullres",
    plans_name: FoundPlans = None,
    device: Device = None,
    continue_training: Continue = False,
    num_gpus: NumGpus = 1,
) -> None:
    """Pretrain on a corpus: nnUNetv2_train with nnUNetTrainerHSSLPretrain."""
    from hssl_nnunet.launch import pretrain as run

    folder = run(
        dataset,
        configuration,
        plans_name=plans_name,
        device=device,
        continue_training=continue_training,
        num_gpus=num_gpus,
    )
    print(f"Weights: {folder / 'hssl.safetensors'}")


app.command(cls=ListCommand, epilog="Example: hssl seed -d 4 -w hssl.safetensors")(seed)


@app.command(cls=ListCommand, epilog="Example: hssl finetune 4 3d_fullres 0")
def finetune(
    dataset: Dataset,
    configuration: Annotated[str, typer.Argument(help="nnU-Net's configuration.")],
    fold: Annotated[str, typer.Argument(help="0 to 4, or all.")],
    plans_name: FoundPlans = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="The control: the same run without the weights.")] = False,
    device: Device = None,
    continue_training: Continue = False,
    num_gpus: NumGpus = 1,
    npz: Annotated[bool, typer.Option("--npz", help="Keep the probabilities of the validation.")] = False,
    only_validate: Annotated[bool, typer.Option("--val", help="Validate a finished training again, no more.")] = False,
) -> None:
    """Fine-tune a seeded target: nnUNetv2_train with nnUNetTrainerHSSLFinetune."""
    from hssl_nnunet.launch import finetune as run

    folder = run(
        dataset,
        configuration,
        fold,
        plans_name=plans_name,
        scratch=scratch,
        device=device,
        continue_training=continue_training,
        num_gpus=num_gpus,
        npz=npz,
        only_validate=only_validate,
    )
    print(f"Model: {folder}")


app.command(cls=ListCommand, epilog="Example: hssl export -d 4 -o hippocampus.zip")(export)
app.command("import", cls=ListCommand, epilog="Example: hssl import checkpoint_final.pth -o rival.safetensors")(import_)
app.command(epilog="Example: hssl inspect hssl.safetensors")(inspect)


@app.command(epilog="Example: hssl doctor")
def doctor() -> None:
    """Check this machine: versions, devices, nnU-Net's folders, trainer lookup, disk; with remedies."""
    from hssl_nnunet.doctor import run_doctor

    raise typer.Exit(run_doctor())


@app.command(epilog='Example: eval "$(hssl paths --export)"')
def paths(
    export: Annotated[bool, typer.Option("--export", help="Print the line for the shell, and nothing else.")] = False,
) -> None:
    """Show the folders in use, or the line that shows our trainers to nnU-Net's own commands."""
    nnunets = {variable: os.environ.get(variable, "not set") for variable in (ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS)}
    rows = {"trainers": trainers_dir(), "presets": plans_dir(), **nnunets}
    print(export_line() if export else "\n".join(f"{label:<20} {value!s}" for label, value in rows.items()))


def export_line() -> str:
    """The shell line that appends our trainers folder to whatever `nnUNet_extTrainer` holds."""
    return f'export {ENV_TRAINERS}="${{{ENV_TRAINERS}:+${ENV_TRAINERS}:}}"{shlex.quote(str(trainers_dir()))}'


@app.command(epilog="Example: hssl demo --out my_demo")
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything is written.")] = Path("hssl_demo"),
) -> None:
    """Run the whole of it on generated phantoms, and show a table and a picture."""
    from hssl_nnunet.demo.run import run_demo

    run_demo(out)


app.add_typer(benchmark_app, name="benchmark")
app.add_typer(slurm_app, name="slurm")


def _exit_with(problems: Sequence[object], code: int, repair: str) -> None:
    if problems:
        print(f"\n{len(problems)} problem(s); {repair}:", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    raise typer.Exit(code)


def main(args: Sequence[str] | None = None) -> None:
    """Run `hssl`; a user's mistake, a full disk or a closed folder become one message, the unexpected a traceback."""
    try:
        app(args=args, prog_name="hssl")
    except SystemExit as end:
        for told in replaced_flags(sys.argv[1:] if args is None else args) if end.code == USAGE_ERROR else ():
            print(told, file=sys.stderr)
        raise
    except HSSLError as error:
        _fail(str(error))
    except (OSError, RuntimeError) as error:
        if _disk_is_full(error):
            _fail(f"The disk is full: {error}. Free some space (`hssl doctor` shows the folders), then run it again.")
        if getattr(error, "errno", None) not in NOT_ALLOWED:
            raise
        _fail(f"{error}. Ask for the right to it, or name another folder (`hssl doctor` shows those in use).")


def _disk_is_full(error: Exception) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    # torch.save hides the errno; these are what its own writer says of a short write
    hidden = ("PytorchStreamWriter failed writing", "inline_container.cc", "unexpected pos")
    said = str(error)
    return getattr(error, "errno", None) in NO_SPACE or hidden[0] in said or all(h in said for h in hidden[1:])


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"[red]Error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(1)
