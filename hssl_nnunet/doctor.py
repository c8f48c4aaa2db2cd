"""`hssl doctor`: what this machine has, and for each thing that is missing the command that repairs it."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.markup import escape

from hssl_nnunet.launch import TRAINERS
from hssl_nnunet.paths import (
    ENV_PREPROCESSED,
    ENV_RAW,
    ENV_RESULTS,
    ENV_TRAINERS,
    add_trainers_to_environment,
    trainers_dir,
)
from hssl_nnunet.ranks import available_cpus
from hssl_nnunet.versions import versions

if TYPE_CHECKING:
    import torch

GIB = 1024**3
LITTLE_DISK_BYTES = 20 * GIB
LITTLE_SHARED_MEMORY_BYTES = 1 * GIB
HOST_SERIES = "2.8."
NOT_INSTALLED = "not installed"  # as `versions` says
SHARED_MEMORY = Path("/dev/shm")
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        status: `ok`, `warning` (works, but not well or not everywhere) or `failed`.
        name: what was looked at.
        found: what was found.
        remedy: what to do about it; empty when `ok`.
    """

    status: Literal["ok", "warning", "failed"]
    name: str
    found: str
    remedy: str = ""


def run_doctor(console: Console | None = None) -> int:
    """Print every check.

    Returns:
        0 when none failed, else 1.
    """
    console = console or Console()
    failed = 0
    for check in checks():
        failed += check.status == "failed"
        colour = COLOURS[check.status]
        console.print(f"[{colour}]{check.status:<8}[/] {escape(f'{check.name}: {check.found}')}", soft_wrap=True)
        if check.remedy:
            console.print(f"         -> {escape(check.remedy)}", soft_wrap=True)
    return int(failed > 0)


def checks() -> Iterator[Check]:
    """All checks, cheapest first."""
    yield from packages()
    yield from folders()
    yield shell_variable()
    yield augmentation_workers()
    yield process_count()
    yield threads()
    yield from shared_memory()
    yield from devices()
    yield from trainer_lookup()


def packages() -> Iterator[Check]:
    """Versions of Python, of this package and of those it stands on."""
    for name, version in versions().items():
        yield package(name, version)


def package(name: str, version: str) -> Check:
    """An installed package; nnU-Net's must be of the series that this package was written for."""
    if version == NOT_INSTALLED:
        remedy = "pip install -e . (in its checkout)" if name == "hssl_nnunet" else f"pip install {name}"
        return Check("failed", name, version, remedy)
    if name == "nnunetv2" and not version.startswith(HOST_SERIES):
        return Check("failed", name, f"{version}, expected {HOST_SERIES}*", 'pip install "nnunetv2>=2.8,<2.9"')
    return Check("ok", name, version)


def folders() -> Iterator[Check]:
    """nnU-Net's three folders: set, existing, writable (the raw one for converting alone), with room."""
    for variable in (ENV_RAW, ENV_PREPROCESSED, ENV_RESULTS):
        yield folder(variable)


def folder(variable: str) -> Check:
    """The folder that one of nnU-Net's variables names."""
    value = os.environ.get(variable)
    if not value:
        return Check("failed", variable, "not set", f"export {variable}=/path/to/{variable}")
    path, remedy = Path(value), f"export {variable}=/path/to/{variable}: name a folder."
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:  # a folder above it may not be entered
        return Check("failed", variable, f"{value}: {error.strerror}", remedy)
    if exists and not is_folder:
        return Check("failed", variable, f"{value} is a file, expected a folder", remedy)
    if not is_folder:
        return Check("failed", variable, f"{value} does not exist", f"mkdir -p {shlex.quote(value)}")
    if not os.access(value, os.W_OK):
        return _not_writable(variable, value)
    free = shutil.disk_usage(value).free
    found = f"{value}, {free / GIB:.0f} GiB free"
    if not path.is_absolute():
        remedy = f"export {variable}={shlex.quote(str(path.resolve()))}"
        return Check("warning", variable, f"{value} is found from this folder alone", remedy)
    if free < LITTLE_DISK_BYTES:
        return Check("warning", variable, found, "Free some space: preprocessed data are larger than the raw images.")
    return Check("ok", variable, found)


def _not_writable(variable: str, value: str) -> Check:
    remedy = f"chmod u+w {shlex.quote(value)}, or name another folder"
    if variable != ENV_RAW:
        return Check("failed", variable, f"{value} is not writable", remedy)
    found = f"{value} is not writable: enough to read raw data, not for `hssl convert_msd`"
    return Check("warning", variable, found, f"To convert: {remedy}.")


def shell_variable() -> Check:
    """Whether the shell that calls us also shows our trainers to nnU-Net's own commands."""
    listed = os.environ.get(ENV_TRAINERS, "").split(os.pathsep)
    if str(trainers_dir()) in listed:
        return Check("ok", ENV_TRAINERS, str(trainers_dir()))
    remedy = 'eval "$(hssl paths --export)" (only to type nnUNetv2_* commands by hand; `hssl` sets it by itself)'
    return Check("warning", ENV_TRAINERS, "does not list our trainers in this shell", remedy)


def augmentation_workers() -> Check:
    """nnU-Net's planner stops when there are to be no augmenting processes."""
    variable = "nnUNet_n_proc_DA"
    if os.environ.get(variable) == "0":
        remedy = f"export {variable}=1: with 0 nnU-Net's planner stops (set_num_threads expects a positive integer)."
        return Check("warning", variable, "0", remedy)
    return number(variable, "nnU-Net's default")


def process_count() -> Check:
    """Processes that nnU-Net preprocesses and exports with."""
    return number("nnUNet_def_n_proc", "nnU-Net's default")


def threads() -> Check:
    """OpenMP takes a list too (`2,1`), but what nnU-Net imports does not."""
    return number("OMP_NUM_THREADS", "all processors")


def number(variable: str, default: str) -> Check:
    """A variable that is a number from 1, if it is set; `default` is what holds where it is not."""
    value = os.environ.get(variable)
    if value is None:
        return Check("ok", variable, f"not set ({default})")
    if value.strip().isdecimal() and int(value) > 0:
        return Check("ok", variable, value)
    remedy = f"unset {variable} ({default}), or export {variable}={available_cpus()}"
    return Check("failed", variable, f"'{value}', expected a number from 1", remedy)


def shared_memory() -> Iterator[Check]:
    """Size of the memory through which worker processes hand over batches; containers often have 64 MiB."""
    if not SHARED_MEMORY.is_dir():
        return
    total = shutil.disk_usage(SHARED_MEMORY).total
    found = f"{total / GIB:.2f} GiB"
    if total < LITTLE_SHARED_MEMORY_BYTES:
        yield Check("warning", "shared memory", found, "Start the container with --shm-size=8g.")
    else:
        yield Check("ok", "shared memory", found)


def devices() -> Iterator[Check]:
    """Devices that torch can use, each with the precision in which it trains."""
    try:
        import torch
    except ImportError as error:
        yield Check("failed", "devices", f"torch cannot be imported ({error})", "pip install torch")
        return
    yield Check("ok", "cpu", f"{available_cpus()} processors, {_precision(torch.device('cpu'))}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / GIB:.0f} GiB"
        yield Check("ok", f"cuda:{index}", f"{properties.name}, {memory}, {_precision(torch.device('cuda', index))}")
    if torch.backends.mps.is_available():
        yield Check("ok", "mps", "present, used only with -device mps")
    elif not torch.cuda.is_available():
        yield Check(
            "warning", "gpu", "none that torch can use", "Plan with `--preset cpu`, or install a torch for your GPU."
        )


def trainer_lookup() -> Iterator[Check]:
    """Our trainers, looked up by nnU-Net's own finder as a training would."""
    wrong = [check.name for check in (augmentation_workers(), process_count(), threads()) if check.status == "failed"]
    if wrong:
        remedy = f"Set {' and '.join(wrong)} right first: nnU-Net reads it as a number when it is imported."
        yield Check("failed", "trainers", "not looked for", remedy)
        return
    with _restored_environment():
        add_trainers_to_environment()
        for name in TRAINERS:
            yield look_up(name)


def look_up(trainer: str) -> Check:
    """One trainer through nnU-Net's finder, which imports every file of every folder it searches."""
    remedy = (
        f"A file that cannot be imported in one of the folders of {ENV_TRAINERS} "
        f"({os.environ.get(ENV_TRAINERS)}) hides the rest: remove it, or install "
        "hssl_nnunet again: `pip install -e .` in its checkout."
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # the finder prints every file
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its other parts
            from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

            found = recursive_find_trainer_class_by_name(trainer)
    except Exception as error:  # whatever a neighbouring file raises on import is the finding
        return Check("failed", trainer, f"nnU-Net cannot find it ({type(error).__name__}: {error})", remedy)
    return Check("ok", trainer, f"found by nnU-Net in {found.__module__}")


@contextlib.contextmanager
def _restored_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _precision(device: torch.device) -> str:
    from hssl_nnunet.training.precision import describe

    return describe(device, compiled=True).removeprefix(f"{device.type}: ")
