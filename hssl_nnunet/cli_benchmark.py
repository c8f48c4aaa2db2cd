"""`hssl benchmark`: run, status, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hssl_nnunet.cli_options import Configuration, Datasets, DefaultPlans, Device, ListCommand, show

benchmark_app = typer.Typer(
    help="Compare with vanilla nnU-Net at few labels: run, status, report.",
    epilog="Example: hssl benchmark run -d 4 -o benchmark",
    no_args_is_help=True,
)
DEFAULT_BUDGETS = ["5%", "10%", "20%", "100%"]
DEFAULT_ARMS = ["vanilla", "scratch", "hssl", "mae"]
BenchmarkFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a benchmark.")]
Domains = Annotated[
    list[str] | None,
    typer.Option("--domains", metavar="DATASET...", help="Datasets to pretrain on; default: those of the first -d."),
]
ExternalWeights = Annotated[
    list[Path] | None, typer.Option("-w", metavar="FILE...", help="Weights files, each an arm of its own.")
]
Budgets = Annotated[
    list[str], typer.Option("--budgets", metavar="BUDGET...", help="Labelled cases: a share, 5%, or a number, 9.")
]
TestFraction = Annotated[
    float, typer.Option("--test_fraction", min=0.01, max=0.99, help="Share of the patients that test.")
]
MinCases = Annotated[int, typer.Option("--min_cases", min=1, help="Labelled cases that a share never undercuts.")]
Tune = Annotated[bool, typer.Option("--tune", help="Score validation cases instead; the test cases stay untouched.")]
Values = Annotated[
    Path | None,
    typer.Option("--values", metavar="FILE", help='JSON: {"pretraining": {}, "finetuning": {}, "arms": {}}.'),
]
Tolerance = Annotated[float, typer.Option("--nsd_tolerance_mm", min=0.0, help="Tolerance of the surface Dice in mm.")]


RUN_EXAMPLE = "Example: hssl benchmark run -d 4 53 --budgets 5% 20% -o benchmark"


@benchmark_app.command("run", cls=ListCommand, epilog=RUN_EXAMPLE)
def run(
    datasets: Datasets,
    output: Annotated[Path, typer.Option("-o", metavar="DIR", help="Folder of the benchmark.")],
    domains: Domains = None,
    weights: ExternalWeights = None,
    budgets: Budgets = DEFAULT_BUDGETS,
    min_cases: MinCases = 1,
    arms: Annotated[
        list[str], typer.Option("--arms", metavar="ARM...", help="Arms; an unknown name lists the known ones.")
    ] = DEFAULT_ARMS,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Repetitions, each with other labelled cases.")] = 3,
    plans_name: DefaultPlans = "nnUNetPlans",
    preset: Annotated[str | None, typer.Option("--preset", help="Plans of a preset, instead of -p.")] = None,
    configuration: Configuration = "3d_fullres",
    test_fraction: TestFraction = 0.3,
    tune: Tune = False,
    nsd_tolerance_mm: Tolerance = 1.0,
    patient_regex: Annotated[
        list[str] | None,
        typer.Option("--patient_regex", metavar="DATASET=REGEX...", help="How a case's name tells the patient."),
    ] = None,
    values: Values = None,
    device: Device = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Jobs at a time.")] = 1,
    part: Annotated[str | None, typer.Option("--shard", metavar="i/n", help="Share of this runner.")] = None,
) -> None:
    """Fine-tune every arm on every budget and seed and score it on a fixed test set; resumes where it stopped."""
    from hssl_nnunet.launch import set_environment

    set_environment()
    from hssl_nnunet.benchmark.run import plan_as_typed, run_benchmark

    plan = plan_as_typed(
        datasets=datasets,
        domains=domains,
        weights=weights,
        budgets=budgets,
        min_cases=min_cases,
        arms=arms,
        seeds=seeds,
        plans_name=plans_name,
        preset=preset,
        configuration=configuration,
        test_fraction=test_fraction,
        tune=tune,
        nsd_tolerance_mm=nsd_tolerance_mm,
        patient_regex=patient_regex,
        values=values,
        device=device,
    )
    raise typer.Exit(run_benchmark(output, plan, jobs, part))


@benchmark_app.command("status", epilog="Example: hssl benchmark status benchmark")
def status(folder: BenchmarkFolder) -> None:
    """Show every job of a benchmark: pending, running, done, failed."""
    from hssl_nnunet.benchmark.run import status_table

    show(status_table(folder))


@benchmark_app.command("report", cls=ListCommand, epilog="Example: hssl benchmark report benchmark")
def report(
    folder: BenchmarkFolder,
    output: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="The page; default: DIR/report.html.")
    ] = None,
) -> None:
    """Write the results as one page that opens from a disk, and its numbers as JSON beside it."""
    from hssl_nnunet.benchmark.report.page import write_report

    print(f"Wrote {write_report(folder, output)}")
