"""What becomes of pretrained weights: `hssl seed`, `export`, `import` and `inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hssl_nnunet.cli_options import (
    DEFAULT_CONFIGURATIONS,
    Configuration,
    OneDataset,
    TrainedPlans,
    show,
)
from hssl_nnunet.corpus.manifest import MANIFEST
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import dataset_name, preprocessed_dir
from hssl_nnunet.remedies import DEFAULT_CONFIGURATION, finetune_command


def seed(
    dataset: OneDataset,
    weights: Annotated[Path, typer.Option("-w", metavar="FILE", help="Weights of a pretraining.")],
    plans_name: Annotated[
        str | None,
        typer.Option("-p", help="Plans of the target; default: nnUNetPlans, else the weights'."),
    ] = None,
    configurations: Annotated[
        list[str] | None,
        typer.Option("-c", metavar="CONFIGURATION...", help="nnU-Net's configurations; default: 3d_fullres."),
    ] = None,
    pth: Annotated[
        Path | None, typer.Option("--pth", metavar="OUT", help="Also write a file for stock -pretrained_weights.")
    ] = None,
    nnssl: Annotated[
        Path | None,
        typer.Option("--nnssl", metavar="OUT", help="Also write nnssl's format, for nnU-Net's PretrainedTrainer."),
    ] = None,
) -> None:
    """Report what a target takes from pretrained weights, tensor by tensor, and write its seeded plans.

    Seeding again keeps the fine-tuning values of seeded plans that are there, and names those that differ from the
    preset's; remove that file to get the preset's back. Of a corpus: its pretraining goes on from these weights.
    """
    name = dataset_name(dataset)
    if (preprocessed_dir() / name / MANIFEST).is_file():
        _seed_corpus(name, weights, plans_name, configurations or (), pth or nnssl)
        return
    from hssl_nnunet.transfer.report import render
    from hssl_nnunet.transfer.seeding import plans_to_seed, seed_target, seeded_plans_file

    plans_name = plans_name or plans_to_seed(dataset, weights)
    reports = seed_target(dataset, weights, plans_name, configurations or DEFAULT_CONFIGURATIONS, pth, nnssl)
    for report in reports.values():
        show(render(report, full=True))
    plans = seeded_plans_file(dataset, plans_name)
    for path in filter(None, (plans, pth, nnssl)):
        print(f"Wrote {path}")
    for configuration in reports:
        print(f"Next: {finetune_command(dataset, configuration, plans.stem)}")


def _seed_corpus(
    corpus: str, weights: Path, plans_name: str | None, configurations: Sequence[str], written: Path | None
) -> None:
    from hssl_nnunet.transfer.continuing import seed_corpus
    from hssl_nnunet.transfer.report import render
    from hssl_nnunet.which_plans import corpus_plans_name

    if written is not None:
        raise HSSLError(f"{corpus} is a corpus: {written} would start no training of stock nnU-Net. Name a target.")
    plans_name = plans_name or corpus_plans_name(corpus)
    show(render(seed_corpus(corpus, weights, plans_name, configurations), full=True))
    print(f"Wrote the weights into {preprocessed_dir() / corpus / plans_name}.json")
    print(f"Next: hssl pretrain {corpus}")


def export(
    dataset: OneDataset,
    output: Annotated[Path, typer.Option("-o", metavar="OUT", help="A folder, or a .zip.")],
    configuration: Configuration = DEFAULT_CONFIGURATION,
    plans_name: TrainedPlans = None,
    trainer: Annotated[str, typer.Option("-tr", help="Trainer that trained the model.")] = "nnUNetTrainerHSSLFinetune",
    folds: Annotated[list[str] | None, typer.Option("-f", metavar="FOLD...", help="Folds; default: all.")] = None,
    checkpoint: Annotated[str, typer.Option("-chk", help="Checkpoint of each fold.")] = "checkpoint_final.pth",
) -> None:
    """Write a fine-tuned model that stock nnUNetv2_predict runs on a machine without this package."""
    from hssl_nnunet.transfer.export import export_model, prediction_commands, trained_plans_name
    from hssl_nnunet.which_plans import target_plans_name

    plans_name = plans_name or trained_plans_name(dataset, trainer, configuration)
    plans_name = plans_name or target_plans_name(dataset_name(dataset), configuration)
    exported = export_model(dataset, configuration, plans_name, trainer, folds, output, checkpoint)
    print(f"Wrote {exported}")
    for command in prediction_commands(exported, checkpoint):
        print(f"Next: {command}")


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="Of nnU-Net, or of nnssl.")],
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The weights file.")],
) -> None:
    """Make a weights file of another checkpoint, to seed any target with, or to compare with in a benchmark."""
    from hssl_nnunet.transfer.import_checkpoint import import_checkpoint

    done = import_checkpoint(checkpoint, output)
    print(f"Took {len(done.taken)} parameters, without {len(done.absent)} of the decoder that are not there.")
    if done.ignored:
        print(f"Left out {len(done.ignored)} tensors that no target takes, such as {done.ignored[0]}.")
    print(f"Wrote {output}")


def inspect(file: Annotated[Path, typer.Argument(help="A weights file.")]) -> None:
    """Show what a weights file holds: domains, hierarchy, images seen, loss curves, versions, citation."""
    from hssl_nnunet.transfer.inspect_weights import render_inspection

    show(render_inspection(file))
