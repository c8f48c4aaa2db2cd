"""What the commands share: nnU-Net's flags, several values after one of them, and how a table is shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

DEFAULT_CONFIGURATIONS = ["3d_fullres"]
WIDTH_IN_A_FILE = 160  # rich would cut tables at 80
SEVERAL_LETTERS = re.compile(r"-[a-zA-Z][a-zA-Z_]")  # a flag and its value, as in `-d4` or `-c2d`, does not look so
CLOSE = 0.5  # of `-cont` and `--c`

PLAN_WITH_NNUNET = "plan with nnUNetv2_plan_experiment, which has it, and name the plans with `-p`."
TRAIN_WITH_NNUNET = "type nnUNetv2_train, with the trainers that `hssl paths --export` shows to it."
# what nnU-Net's users type, and what there is instead
NNUNET_FLAGS = {
    "-pl": "choose the planner by `--preset`, or plan with nnUNetv2_plan_experiment and name the plans with `-p`.",
    "-overwrite_plans_name": PLAN_WITH_NNUNET,
    "-gpu_memory_target": f"choose a size by `--preset`, or {PLAN_WITH_NNUNET}",
    "-preprocessor_name": PLAN_WITH_NNUNET,
    "-overwrite_target_spacing": PLAN_WITH_NNUNET,
    "-fpe": "type nnUNetv2_extract_fingerprint, then nnUNetv2_plan_experiment, and name the plans with `-p`.",
    "--clean": "a fingerprint is taken anew where cases have changed; else remove dataset_fingerprint.json.",
    "--no_pp": "type nnUNetv2_extract_fingerprint and nnUNetv2_plan_experiment.",
    "--verbose": "leave it out: problems and notes are told in full without it.",
    "--no_pbar": "leave it out: progress bars are drawn on a terminal alone.",
    "-tr": "`hssl` trains with its own trainers; for another one type nnUNetv2_train.",
    "-pretrained_weights": "weights go into the plans first, with `hssl seed -d TARGET -w FILE`.",
    "--val_best": TRAIN_WITH_NNUNET,
    "--disable_checkpointing": TRAIN_WITH_NNUNET,
}


def replaced_flags(words: Sequence[str]) -> list[str]:
    """What there is instead of those of nnU-Net's flags among the words that our commands do not have."""
    flags = [word.partition("=")[0] for word in words]
    return [f"{flag}: {NNUNET_FLAGS[flag]}" for flag in flags if flag in NNUNET_FLAGS]


def unknown_flag(words: Sequence[str], options: Mapping[str, bool]) -> str | None:
    """The first flag of one dash and several letters that a command lacks: click would take `-cont` for `-c ont`.

    Args:
        words: what was typed.
        options: the command's flags, and whether each is without a value; a word after one that has a value is that.
    """
    for before, word in zip(("", *words), words, strict=False):
        name = word.partition("=")[0]
        if SEVERAL_LETTERS.match(word) and name not in options and options.get(before, True):
            return name
    return None


class ListCommand(TyperCommand):
    """A command whose repeatable options also take several values after one flag, as nnU-Net's do: `-d 4 51 55`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse a flag that the command lacks, repeat the flags, then parse as usual."""
        options = {f: getattr(p, "is_flag", False) for p in self.params for f in p.opts if f.startswith("-")}
        if flag := unknown_flag(args, options):
            close = [] if flag in NNUNET_FLAGS else get_close_matches(flag, options, cutoff=CLOSE)
            hint = f". Did you mean {' or '.join(close)}?" if close else ""
            ctx.fail(f"No such option: {flag}{hint}")
        repeatable = {flag for p in self.params if getattr(p, "multiple", False) for flag in p.opts}
        return super().parse_args(ctx, with_repeated_flags(args, repeatable))


def with_repeated_flags(args: Sequence[str], repeatable: Collection[str]) -> list[str]:
    """Write each of several values after a repeatable flag with a flag of its own: `-d 4 51` -> `-d 4 -d 51`.

    The values of a flag end at the next word that begins with `-`, as in argparse's `nargs="+"`.
    """
    result: list[str] = []
    flag, values = None, 0
    for word in args:
        if word.startswith("-") and word != "-":
            flag, values = (word if word in repeatable else None), 0
        elif flag is not None:
            values += 1
            if values > 1:
                result.append(flag)
        result.append(word)
    return result


Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset id or name.")]
OneDataset = Annotated[str, typer.Option("-d", metavar="DATASET", help="Dataset id or name.")]
Datasets = Annotated[list[str], typer.Option("-d", metavar="DATASET...", help="Dataset ids or names.")]
Configuration = Annotated[str, typer.Option("-c", help="nnU-Net's configuration.")]
Configurations = Annotated[list[str], typer.Option("-c", metavar="CONFIGURATION...", help="nnU-Net's configurations.")]
DefaultPlans = Annotated[str, typer.Option("-p", help="Name of the plans.")]
TrainedPlans = Annotated[
    str | None,
    typer.Option("-p", help="Plans of the model; default: those there is a model of, `nnUNetPlans_HSSL` first."),
]
FoundPlans = Annotated[
    str | None,
    typer.Option("-p", help="Name of the plans; default: the ones with an `hssl` block."),
]
Device = Annotated[str | None, typer.Option("-device", help="cuda, cpu or mps; default: the GPU if there is one.")]
Continue = Annotated[bool, typer.Option("--c", help="Continue from the last checkpoint.")]
NumProcesses = Annotated[int | None, typer.Option("-np", min=1, help="Processes; default: by the machine.")]
NumGpus = Annotated[int, typer.Option("-num_gpus", min=1, help="GPUs that share the training.")]


def show(renderable: Any) -> None:
    """Print a table of rich, as wide as the terminal, or as a file bears."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH_IN_A_FILE)
    console.print(renderable)
