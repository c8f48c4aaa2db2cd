"""Start a training as `nnUNetv2_train` does, in this process: our trainers and defaults set, mistakes caught first."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hssl_nnunet.corpus.manifest import MANIFEST, read_manifest
from hssl_nnunet.device import check_gpus, choose_device, set_threads
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.locks import claimed
from hssl_nnunet.nnunet_training import mistakes_of_processes_told, trainers_found_at_once
from hssl_nnunet.paths import (
    FINAL_CHECKPOINT,
    WEIGHTS_FILE,
    add_trainers_to_environment,
    dataset_name,
    model_folder,
    preprocessed_dir,
    results_dir,
)
from hssl_nnunet.plan_schema import SEEDED_SUFFIX, CorpusBlock, TargetBlock, corpus_block, target_block
from hssl_nnunet.preflight import (
    check_batch,
    check_fold,
    check_weights_file,
    data_folder,
    read_corpus_plans,
    read_target_plans,
)
from hssl_nnunet.ranks import available_cpus, check_shares, joined, run_under_torchrun, under_torchrun
from hssl_nnunet.remedies import DEFAULT_CONFIGURATION, corpus_command, seed_command
from hssl_nnunet.run_folder import final_checkpoint, refuse_to_overwrite, refuse_unfinished, resumable
from hssl_nnunet.which_plans import corpus_plans_name, target_plans_name

if TYPE_CHECKING:
    import torch

PRETRAIN_TRAINER = "nnUNetTrainerHSSLPretrain"
FINETUNE_TRAINER = "nnUNetTrainerHSSLFinetune"
SCRATCH_TRAINER = "nnUNetTrainerHSSLScratch"
VANILLA_TRAINER = "nnUNetTrainerHSSLVanilla"
TRAINERS = (PRETRAIN_TRAINER, FINETUNE_TRAINER, SCRATCH_TRAINER, VANILLA_TRAINER)
SMALL_MACHINE_CORES = 4


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, by the words that `nnUNetv2_train` takes; the dataset's name is whole."""

    dataset: str
    configuration: str
    fold: str
    trainer: str
    plans_name: str

    @property
    def pretrains(self) -> bool:
        """Whether it is a corpus' pretraining."""
        return self.trainer == PRETRAIN_TRAINER

    @property
    def plans(self) -> Path:
        """File of its plans."""
        return preprocessed_dir() / self.dataset / f"{self.plans_name}.json"

    @property
    def folder(self) -> Path:
        """Where its results lie."""
        model = model_folder(results_dir(), self.dataset, self.trainer, self.plans_name, self.configuration)
        return model / f"fold_{self.fold}"

    @property
    def last_file(self) -> str:
        """What it writes last, below its folder: its weights, or nnU-Net's scores of the validation cases."""
        return WEIGHTS_FILE if self.pretrains else "validation/summary.json"


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
    configuration: str = DEFAULT_CONFIGURATION,
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
        continue_training: go on from the last checkpoint; a training that is finished stays as it is.
        num_gpus: GPUs that share the training.

    Returns:
        The folder of the training, where `hssl.safetensors` lies at the end.

    Raises:
        HSSLError: the corpus, its plans or the device is missing, or the folder is in use or holds a training.
    """
    name = dataset_name(corpus, f"Run `{corpus_command(corpus)}` first.")
    training = Training(
        dataset=name,
        configuration=configuration,
        fold="all",
        trainer=PRETRAIN_TRAINER,
        plans_name=plans_name or corpus_plans_name(name),
    )
    return train(training, device_name=device, continue_training=continue_training, num_gpus=num_gpus)


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
    npz: bool = False,
    only_validate: bool = False,
) -> Path:
    """Fine-tune a seeded target: `nnUNetv2_train DATASET CONFIGURATION FOLD -p nnUNetPlans_HSSL -tr ...Finetune`.

    Args:
        dataset: id or name of the target.
        configuration: configuration of its plans.
        fold: 0 to 4 or `all`.
        plans_name: plans that `hssl seed` wrote; None takes `nnUNetPlans_HSSL` or the only `*_HSSL`.
        scratch: train the control instead: the same trainer, schedule, plans and data, without the weights.
        device: `cuda`, `cpu` or `mps`; None takes the GPU when there is one.
        continue_training: go on from the last checkpoint; a training that is finished stays as it is.
        num_gpus: GPUs that share the training.
        npz: keep the probabilities of the validation cases, which `nnUNetv2_find_best_configuration` needs.
        only_validate: predict the validation cases of a finished training once more, and train nothing.

    Returns:
        The folder of the training.

    Raises:
        HSSLError: the target, its plans or the device is missing, or the folder is in use or holds a training; one to
            be validated is not finished.
    """
    name = dataset_name(dataset)
    if str(fold) != "all" and not str(fold).isdecimal():
        raise HSSLError(f"Fold '{fold}' is neither a number (0 to 4) nor 'all'.")
    training = Training(
        dataset=name,
        configuration=configuration,
        fold="all" if str(fold) == "all" else str(int(fold)),  # nnU-Net's folder of fold 01 is fold_1
        trainer=SCRATCH_TRAINER if scratch else FINETUNE_TRAINER,
        plans_name=plans_name or target_plans_name(name, configuration),
    )
    return train(
        training,
        device_name=device,
        continue_training=continue_training,
        num_gpus=num_gpus,
        npz=npz,
        only_validate=only_validate,
    )


def train(
    training: Training,
    *,
    device_name: str | None = None,
    continue_training: bool = False,
    num_gpus: int = 1,
    npz: bool = False,
    only_validate: bool = False,
) -> Path:
    """Train with any of our trainers, as `nnUNetv2_train` does.

    Returns:
        The folder of the training.

    Raises:
        HSSLError: dataset, plans, data or device is missing, or the folder is in use or holds a training; one to be
            continued, finished or not, stands on other images or weights than the plans name now.
    """
    set_environment()
    block = _checked(training)
    device = choose_device(device_name)
    _check_processes(training, block, device, num_gpus)
    folder = training.folder
    if only_validate:
        refuse_unfinished(folder)
    if training.pretrains and num_gpus > 1:  # nnU-Net's own processes wait ten minutes for a probe, no longer
        resume = ["--c"] if continue_training else []
        named = ["-c", training.configuration, "-p", training.plans_name, "-device", device.type]
        run_under_torchrun(num_gpus, ["pretrain", training.dataset, *named, *resume])
        return folder
    set_threads(device)
    with joined(device) as rank:
        if continue_training and not only_validate and _is_finished(training, block):
            if rank == 0:
                print(f"{folder} is already finished (`num_epochs` is {_epochs(block)}): nothing is left to train.")
            return folder
        with claimed(folder) if rank == 0 else nullcontext(), resumable(folder):
            if not (only_validate or continue_training):
                refuse_to_overwrite(folder, training.plans, training.last_file)
            _run(
                training,
                device=device,
                num_gpus=num_gpus,
                continue_training=continue_training and not only_validate,
                export_validation_probabilities=npz,
                only_run_validation=only_validate,
            )
    return folder


def _run(training: Training, **arguments: Any) -> None:
    from nnunetv2.run.run_training import run_training

    with trainers_found_at_once(), mistakes_of_processes_told():
        run_training(
            training.dataset,
            training.configuration,
            training.fold,
            trainer_class_name=training.trainer,
            plans_identifier=training.plans_name,
            **arguments,
        )


def _checked(training: Training) -> CorpusBlock | TargetBlock:
    """The `hssl` block of the plans, when all is there that a training on them needs."""
    dataset, plans_name, configuration = training.dataset, training.plans_name, training.configuration
    path = training.plans
    if training.pretrains:
        block = corpus_block(read_corpus_plans(dataset, plans_name, configuration), path)
        check_weights_file(block.weights, path, seed_command(dataset, None, plans_name))
        return block
    plans = read_target_plans(dataset, plans_name, configuration)
    check_fold(data_folder(path.parent, plans, configuration), training.fold)
    seeded = path.with_stem(plans_name + SEEDED_SUFFIX)
    if "hssl" not in plans and seeded.is_file():
        raise HSSLError(f"{path} are the plans that {seeded.name} was seeded from. Add `-p {seeded.stem}`.")
    return target_block(plans, path)


def _epochs(block: CorpusBlock | TargetBlock) -> int:
    return (block.pretraining if isinstance(block, CorpusBlock) else block.finetuning).num_epochs


def _is_finished(training: Training, block: CorpusBlock | TargetBlock) -> bool:
    """Whether nothing is left to train; one of other images or weights is not what the user asks for."""
    checkpoint = final_checkpoint(training.folder, training.last_file)
    if checkpoint is None or checkpoint["current_epoch"] < _epochs(block):
        return False
    from hssl_nnunet.training.resume import check_images, check_weights

    path = str(training.folder / FINAL_CHECKPOINT)
    if training.pretrains:
        check_images(checkpoint, path, read_manifest(training.plans.parent / MANIFEST))
    if training.trainer in (PRETRAIN_TRAINER, FINETUNE_TRAINER):
        named = training.plans_name, training.configuration
        check_weights(checkpoint, path, block, lambda file: seed_command(training.dataset, file, *named))
    return True


def _check_processes(training: Training, block: CorpusBlock | TargetBlock, device: torch.device, num_gpus: int) -> None:
    """Refuse GPUs or processes that are not there, or that the training has no share for."""
    check_gpus(device, num_gpus)
    if under_torchrun() and not training.pretrains:
        raise HSSLError(
            "torchrun starts `hssl pretrain` alone; several GPUs fine-tune with `hssl finetune -num_gpus N`."
        )
    if under_torchrun() and num_gpus != 1:
        raise HSSLError(f"-num_gpus {num_gpus} under torchrun: its --nproc_per_node says how many processes there are.")
    processes = int(os.environ["WORLD_SIZE"]) if under_torchrun() else num_gpus
    if processes > 1 and isinstance(block, CorpusBlock):
        check_shares(block.pretraining.chunks_per_step, processes, training.plans)
    elif processes > 1:
        check_batch(training.plans, training.configuration, processes)
