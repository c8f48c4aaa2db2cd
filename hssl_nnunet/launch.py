"""Start a training as `nnUNetv2_train` does, in this process: our trainers and defaults set, mistakes caught first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.files import read_json
from hssl_nnunet.locks import claimed
from hssl_nnunet.paths import add_trainers_to_environment, dataset_name, preprocessed_dir, results_dir, trainers_dir
from hssl_nnunet.plan_schema import DEFAULT_PLANS, SEEDED_SUFFIX, corpus_block
from hssl_nnunet.ranks import available_cpus, check_shares, joined, under_torchrun

if TYPE_CHECKING:
    import torch

PRETRAIN_TRAINER = "nnUNetTrainerHSSLPretrain"
FINETUNE_TRAINER = "nnUNetTrainerHSSLFinetune"
SCRATCH_TRAINER = "nnUNetTrainerHSSLScratch"
VANILLA_TRAINER = "nnUNetTrainerHSSLVanilla"
TRAINERS = (PRETRAIN_TRAINER, FINETUNE_TRAINER, SCRATCH_TRAINER, VANILLA_TRAINER)
SMALL_MACHINE_CORES = 4


def set_environment() -> None:
    """Make our trainers visible to nnU-Net, and keep a small machine from drowning in nnU-Net's worker processes.

    nnU-Net starts 8 exporting processes and up to 12 augmenting ones; with four cores or fewer one of each is faster.
    What the user has set stays. nnU-Net reads these variables when it is imported, so call this first.
    """
    add_trainers_to_environment()
    if available_cpus() <= SMALL_MACHINE_CORES:
        os.environ.setdefault("nnUNet_def_n_proc", "1")
        os.environ.setdefault("nnUNet_n_proc_DA", "1")


def pretrain(
    corpus: str | int,
    configuration: str = "3d_fullres",
    *,
    plans_name: str | None = None,
    device: str | None = None,
    continue_training: bool = False,
    num_gpus: int = 1,
) -> Path:
    """Pretrain on a corpus: `nnUNetv2_train CORPUS CONFIGURATION all -tr nnUNetTrainerHSSLPretrain`.

    Args:
        corpus: id or name of the corpus.
        configuration: configuration of the corpus' plans.
        plans_name: plans of the corpus; None takes the only one with an `hssl` block.
        device: `cuda`, `cpu` or `mps`; None takes the GPU when there is one.
        continue_training: go on from the last checkpoint.
        num_gpus: GPUs that share the training.

    Returns:
        The folder of the training, where `hssl.safetensors` lies at the end.

    Raises:
        HSSLError: the corpus, its plans or the device is missing, or the folder is in use or holds a training.
    """
    name = dataset_name(corpus)
    plans_name = plans_name or corpus_plans_name(name)
    return train(name, configuration, "all", PRETRAIN_TRAINER, plans_name, device, continue_training, num_gpus)


def finetune(
    dataset: str | int,
    configuration: str,
    fold: str | int,
    *,
    plans_name: str | None = None,
    scratch: bool = False,
    device: str | None = None,
    continue_training: bool = False,
    num_gpus: int = 1,
) -> Path:
    """Fine-tune a seeded target: `nnUNetv2_train DATASET CONFIGURATION FOLD -p nnUNetPlans_HSSL -tr ...Finetune`.

    Args:
        dataset: id or name of the target.
        configuration: configuration of its plans.
        fold: 0 to 4 or `all`.
        plans_name: plans that `hssl seed` wrote; None takes `nnUNetPlans_HSSL` or the only `*_HSSL`.
        scratch: train the control instead: the same trainer, schedule, plans and data, without the weights.
        device: `cuda`, `cpu` or `mps`; None takes the GPU when there is one.
        continue_training: go on from the last checkpoint.
        num_gpus: GPUs that share the training.

    Returns:
        The folder of the training.

    Raises:
        HSSLError: the target, its plans or the device is missing, or the folder is in use or holds a training.
    """
    name = dataset_name(dataset)
    plans_name = plans_name or target_plans_name(name)
    trainer = SCRATCH_TRAINER if scratch else FINETUNE_TRAINER
    if str(fold) != "all" and not str(fold).isdigit():
        raise HSSLError(f"Fold '{fold}' is neither a number (0 to 4) nor 'all'.")
    return train(name, configuration, str(fold), trainer, plans_name, device, continue_training, num_gpus)


def corpus_plans_name(dataset: str) -> str:
    """Name of the only plans file of a corpus that carries an `hssl` block.

    Raises:
        HSSLError: none or several do.
    """
    folder = preprocessed_dir() / dataset
    found = sorted(p.stem for p in folder.glob("*.json") if _role(read_json(p)) == "corpus")
    return _the_only(found, folder, "plans with an `hssl` block of a corpus", "hssl corpus -d ... -o ...")


def target_plans_name(dataset: str) -> str:
    """`nnUNetPlans_HSSL` when `hssl seed` wrote it for the dataset, else the only plans file that ends in `_HSSL`.

    Raises:
        HSSLError: none or several do.
    """
    folder = preprocessed_dir() / dataset
    found = sorted(p.stem for p in folder.glob(f"*{SEEDED_SUFFIX}.json"))
    default = DEFAULT_PLANS + SEEDED_SUFFIX
    if default in found:
        return default
    return _the_only(found, folder, f"seeded plans (*{SEEDED_SUFFIX}.json)", "hssl seed -d ... -w ...")


def choose_device(name: str | None) -> torch.device:
    """The device called `name` (nnU-Net's `-device`), or CUDA when there is one, else the CPU.

    `mps` is used only when asked for: it lacks operators that some plans need.

    Raises:
        HSSLError: an unknown name, or a device that this machine lacks.
    """
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = name or ("cuda" if present["cuda"] else "cpu")
    if name not in present:
        raise unknown_name("device", name, present)
    if not present[name]:
        raise HSSLError(
            f"-device {name}: this machine has none that torch can use. See `hssl doctor`, or use -device cpu."
        )
    return torch.device(name)


def set_threads(device: torch.device) -> None:
    """Threads as `nnUNetv2_train` sets them: on a CPU all cores it may use (or OMP_NUM_THREADS), one beside a GPU."""
    import torch

    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or available_cpus()))
    elif device.type == "cuda":
        torch.set_num_threads(1)
        if torch.get_num_interop_threads() != 1:  # may be set only once in a process
            torch.set_num_interop_threads(1)


def train(
    dataset: str,
    configuration: str,
    fold: str,
    trainer: str,
    plans_name: str,
    device_name: str | None,
    continue_training: bool,
    num_gpus: int,
) -> Path:
    """Train with any of our trainers, as `nnUNetv2_train` does; the arguments are its own.

    Returns:
        The folder of the training.

    Raises:
        HSSLError: dataset, plans, data or device is missing, or the folder is in use or holds a training.
    """
    set_environment()
    _check_plans(dataset, configuration, plans_name, needs_data=trainer != PRETRAIN_TRAINER)
    device = choose_device(device_name)
    _check_gpus(device, num_gpus)
    _check_torchrun(trainer, num_gpus)
    if trainer == PRETRAIN_TRAINER:
        _check_processes(preprocessed_dir() / dataset / f"{plans_name}.json", num_gpus)
    set_threads(device)
    from nnunetv2.run.run_training import run_training

    folder = results_dir() / dataset / f"{trainer}__{plans_name}__{configuration}" / f"fold_{fold}"
    with joined(device) as rank, claimed(folder) if rank == 0 else nullcontext(), _resumable(folder):
        _refuse_to_overwrite(folder, continue_training)
        with trainers_found_at_once():
            run_training(
                dataset,
                configuration,
                fold,
                trainer_class_name=trainer,
                plans_identifier=plans_name,
                num_gpus=num_gpus,
                continue_training=continue_training,
                device=device,
            )
    return folder


@contextmanager
def trainers_found_at_once() -> Iterator[None]:
    """Let nnU-Net's `run_training` find our trainers by their file.

    Its own search imports every variant of its trainers first, which takes a second and 40 MiB. Processes that it
    starts search as ever.
    """
    from nnunetv2.run import run_training as host

    search = host.recursive_find_trainer_class_by_name

    def found(name: str) -> type[Any]:
        ours = (trainers_dir() / f"{name}.py").is_file()
        return getattr(import_module(f"hssl_nnunet.trainers.{name}"), name) if ours else search(name)  # type: ignore[no-any-return]

    host.recursive_find_trainer_class_by_name = found
    try:
        yield
    finally:
        host.recursive_find_trainer_class_by_name = search


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        saved = any(folder.glob("checkpoint_*.pth"))
        remedy = "Run the same command with --c to resume." if saved else "No checkpoint was written yet."
        print(f"\nStopped. {remedy} ({folder})", file=sys.stderr)
        raise


def _refuse_to_overwrite(folder: Path, continue_training: bool) -> None:
    saved = sorted(p.name for p in folder.glob("checkpoint_*.pth"))
    if saved and not continue_training:
        raise HSSLError(
            f"{folder} already holds a training ({', '.join(saved)}). Add --c to continue it, or move the folder away "
            "to start again."
        )


def _check_plans(dataset: str, configuration: str, plans_name: str, *, needs_data: bool) -> None:
    folder = preprocessed_dir() / dataset
    remedy = "Run `hssl plan_and_preprocess` and `hssl seed`, or `hssl corpus`, first."
    plans: dict[str, Any] = read_json(folder / f"{plans_name}.json", remedy)
    if configuration not in plans["configurations"]:
        raise unknown_name(f"configuration of {folder / plans_name}.json", configuration, plans["configurations"])
    data = folder / plans["configurations"][configuration].get("data_identifier", "")
    if needs_data and not data.is_dir():
        raise HSSLError(
            f"{data} does not exist: this configuration is not preprocessed. Run `hssl plan_and_preprocess`."
        )


def _check_gpus(device: torch.device, num_gpus: int) -> None:
    if num_gpus == 1:
        return
    import torch

    visible = torch.cuda.device_count() if device.type == "cuda" else 0
    if not 1 <= num_gpus <= visible:
        raise HSSLError(f"-num_gpus {num_gpus}, but {visible} GPUs are visible for -device {device.type}.")


def _check_torchrun(trainer: str, num_gpus: int) -> None:
    if not under_torchrun():
        return
    if trainer != PRETRAIN_TRAINER:
        raise HSSLError(
            "torchrun starts `hssl pretrain` alone; several GPUs fine-tune with `hssl finetune -num_gpus N`."
        )
    if num_gpus != 1:
        raise HSSLError(f"-num_gpus {num_gpus} under torchrun: its --nproc_per_node says how many processes there are.")


def _check_processes(plans: Path, num_gpus: int) -> None:
    processes = int(os.environ["WORLD_SIZE"]) if under_torchrun() else num_gpus
    if processes > 1:
        check_shares(corpus_block(read_json(plans), plans).pretraining.chunks_per_step, processes, plans)


def _role(content: Any) -> str | None:
    block = content.get("hssl") if isinstance(content, dict) else None
    return block.get("role") if isinstance(block, dict) else None


def _the_only(found: list[str], folder: Path, what: str, remedy: str) -> str:
    if len(found) == 1:
        return found[0]
    if not found:
        raise HSSLError(f"{folder} holds no {what}. Run `{remedy}` first.")
    raise HSSLError(f"{folder} holds several {what}: {', '.join(found)}. Choose one with -p.")
