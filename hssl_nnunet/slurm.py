"""Our own commands as SLURM jobs: arrays, several nodes, requeueing with resume, chains of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError, unknown_name
from hssl_nnunet.launch import FINETUNE_TRAINER, PRETRAIN_TRAINER, SCRATCH_TRAINER, Training
from hssl_nnunet.nnunet_plans import read_plans
from hssl_nnunet.paths import WEIGHTS_FILE, dataset_name, preprocessed_dir
from hssl_nnunet.plan_schema import SEEDED_SUFFIX, CorpusBlock, DomainPlan, corpus_block, target_block
from hssl_nnunet.preflight import (
    check_batch,
    check_fold,
    check_weights_file,
    data_folder,
    read_corpus_plans,
    read_target_plans,
)
from hssl_nnunet.ranks import check_shares
from hssl_nnunet.remedies import corpus_command, preprocess_command, seed_command
from hssl_nnunet.slurm_scripts import Allocation, Script
from hssl_nnunet.which_plans import corpus_plans_name, target_plans_name

# checking and fingerprinting begin anew each time: a time limit that is too short for them would requeue for ever
MOST_REQUEUES_OF_PREPROCESSING = 5


def pretraining(corpus: str, arguments: Sequence[str], folder: Path, allocation: Allocation) -> Script:
    """`hssl pretrain ARGUMENTS`, which name the corpus; after a requeue it goes on from its last checkpoint.

    Args:
        corpus: id or name of the corpus.
        arguments: of `hssl pretrain`.
        folder: where it saves its checkpoints.
        allocation: what it runs on.
    """
    command = ("hssl", "pretrain", *arguments, *_resuming(arguments))
    return Script(name=f"pretrain_{corpus}", commands=(command,), allocation=allocation, folders=(folder,))


def finetuning(arguments: Sequence[str], allocation: Allocation) -> Script:
    """`hssl finetune DATASET CONFIGURATION FOLD... OPTIONS`: an array with one fold a task.

    Raises:
        HSSLError: no fold is named.
    """
    named = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    (dataset, configuration), folds = arguments[:2], arguments[2:named]
    if not folds:
        raise HSSLError(
            "Name at least one fold, and options last: hssl slurm finetune DATASET CONFIGURATION FOLD... OPTIONS"
        )
    options = (*arguments[named:], *_resuming(arguments))
    commands = tuple(("hssl", "finetune", dataset, configuration, fold, *options) for fold in folds)
    kind = "scratch" if "--scratch" in arguments else "finetune"
    return Script(name=f"{kind}_{dataset}", commands=commands, allocation=allocation)


def preprocessing(arguments: Sequence[str], allocation: Allocation) -> Script:
    """`hssl plan_and_preprocess -d DATASET... OPTIONS`: an array with one dataset a task.

    Raises:
        HSSLError: no dataset is named.
    """
    datasets: list[str] = []
    rest: list[str] = []
    flag = ""
    for word in arguments:
        flag = word if word.startswith("-") else flag
        if flag != "-d":
            rest.append(word)
        elif word != "-d":
            datasets.append(word)
    if not datasets:
        raise HSSLError("Name at least one dataset: hssl slurm preprocess -d DATASET...")
    commands = tuple(("hssl", "plan_and_preprocess", "-d", dataset, *rest) for dataset in datasets)
    most = MOST_REQUEUES_OF_PREPROCESSING
    return Script(name="preprocess", commands=commands, allocation=allocation, most_requeues=most)


def benchmarking(arguments: Sequence[str], parts: int, folder: Path, allocation: Allocation) -> Script:
    """`hssl benchmark run ARGUMENTS` as an array that shares the jobs; what a requeue interrupts goes on.

    Args:
        arguments: of `hssl benchmark run`.
        parts: tasks of the array.
        folder: the benchmark's.
        allocation: what each task runs on.
    """
    shards = (f"{part}/{parts}" for part in range(1, parts + 1))
    commands = tuple(("hssl", "benchmark", "run", *arguments, "--shard", shard) for shard in shards)
    return Script(name="benchmark", commands=commands, allocation=allocation, folders=(folder,) * parts)


def chain(
    corpus: str,
    targets: Sequence[str],
    folds: Sequence[str],
    configuration: str,
    plans_name: str,
    *,
    pretraining_on: Allocation,
    seeding_on: Allocation,
    finetuning_on: Allocation,
) -> list[Script]:
    """Pretrain, then seed every target, then fine-tune each fold of each: three jobs, each after the one before.

    Args:
        corpus: id or name of the corpus.
        targets: ids or names of the targets.
        folds: folds of each target.
        configuration: nnU-Net's configuration, of corpus and targets.
        plans_name: the targets' plans, seeded or not.
        pretraining_on: what the pretraining runs on.
        seeding_on: what the seeding of each target runs on; it computes on a CPU.
        finetuning_on: what each fold of each target runs on.

    Raises:
        HSSLError: a job would end at its start: the corpus or a target, or plans of theirs, a configuration or images
            are missing, a target is the corpus or has another network, a fold is wrong, or the processes of the
            pretraining cannot share its steps.
    """
    name, names = _corpus_name(corpus), [dataset_name(target) for target in targets]
    if name in names:
        raise HSSLError(f"{name} is the corpus, and has no masks to train with. Name datasets with masks with `-t`.")
    plans_name = plans_name.removesuffix(SEEDED_SUFFIX)
    block = check_pretraining(corpus, None, configuration, pretraining_on.nodes * pretraining_on.processes)
    for target in names:
        _check_target(target, plans_name, configuration, folds, block.domains[0])
    folder = pretraining_folder(corpus, None, configuration)
    first = pretraining(corpus, [corpus, "-c", configuration], folder, pretraining_on)
    weights = str(folder / WEIGHTS_FILE)
    seeds = tuple(("hssl", "seed", "-d", n, "-w", weights, "-p", plans_name, "-c", configuration) for n in names)
    seeding = Script(name=f"seed_{corpus}", commands=seeds, allocation=seeding_on, after=(first.name,))
    seeded = plans_name + SEEDED_SUFFIX
    tuning = [finetuning([n, configuration, *folds, "-p", seeded], finetuning_on).commands for n in names]
    last = Script(
        name=f"finetune_{corpus}",
        commands=sum(tuning, ()),
        allocation=finetuning_on,
        after=(seeding.name,),
        folders=tuple(_finetuning(n, seeded, configuration, fold).folder for n in names for fold in folds),
    )
    return [first, seeding, last]


def pretraining_folder(corpus: str, plans_name: str | None, configuration: str) -> Path:
    """Where a pretraining saves its checkpoints and its weights; arguments as of `check_pretraining`."""
    name = _corpus_name(corpus)
    return Training(
        dataset=name,
        configuration=configuration,
        fold="all",
        trainer=PRETRAIN_TRAINER,
        plans_name=plans_name or corpus_plans_name(name),
    ).folder


def check_pretraining(corpus: str, plans_name: str | None, configuration: str, processes: int) -> CorpusBlock:
    """Refuse a pretraining that would end at its start, before it waits in a queue.

    Args:
        corpus: id or name of the corpus.
        plans_name: its plans; None = the only ones with an `hssl` block.
        configuration: one of the plans'.
        processes: over all machines.

    Returns:
        The `hssl` block of the plans.

    Raises:
        HSSLError: the corpus, its plans, the configuration or its weights are missing, or the processes cannot share
            its steps.
    """
    name = _corpus_name(corpus)
    plans_name = plans_name or corpus_plans_name(name)
    path = preprocessed_dir() / name / f"{plans_name}.json"
    block = corpus_block(read_corpus_plans(name, plans_name, configuration), path)
    check_weights_file(block.weights, path, seed_command(name, None, plans_name))
    if processes > 1:
        check_shares(block.pretraining.chunks_per_step, processes, path)
    return block


def check_finetuning(
    dataset: str, plans_name: str | None, configuration: str, fold: str, scratch: bool, num_gpus: int
) -> Path:
    """Refuse the training of a fold that would end at its start, before it waits in a queue.

    Args:
        dataset: id or name of the target.
        plans_name: plans that `hssl seed` wrote; None = `nnUNetPlans_HSSL` or the only `*_HSSL`.
        configuration: one of the plans'.
        fold: 0 to 4 or `all`.
        scratch: without the weights.
        num_gpus: GPUs that share it.

    Returns:
        Where it saves its checkpoints.

    Raises:
        HSSLError: the target, its seeded plans, the configuration, its images or its weights are missing, the fold is
            wrong, or there are more GPUs than images in a batch.
    """
    name = dataset_name(dataset)
    plans_name = plans_name or target_plans_name(name, configuration)
    plans = read_target_plans(name, plans_name, configuration)
    path = preprocessed_dir() / name / f"{plans_name}.json"
    _check_fold(data_folder(path.parent, plans, configuration), fold)
    weights = target_block(plans, path).weights
    if not scratch:
        check_weights_file(weights, path, seed_command(name, None, plans_name, configuration))
    if num_gpus > 1:
        check_batch(path, configuration, num_gpus)
    return _finetuning(name, plans_name, configuration, fold, SCRATCH_TRAINER if scratch else FINETUNE_TRAINER).folder


def check_planned(dataset: str, plans_name: str, configuration: str) -> None:
    """Refuse a dataset without the plans that a benchmark starts from.

    Args:
        dataset: name of the dataset.
        plans_name: name of the plans.
        configuration: nnU-Net's configuration.

    Raises:
        HSSLError: the plans or the configuration is missing.
    """
    path = preprocessed_dir() / dataset / f"{plans_name}.json"
    plans = read_plans(path, f"Run `{preprocess_command(dataset, plans_name, configuration)}` first.")
    if configuration not in plans["configurations"]:
        raise unknown_name(f"configuration of {path}", configuration, plans["configurations"])


def _check_target(name: str, plans_name: str, configuration: str, folds: Sequence[str], domain: DomainPlan) -> None:
    """Refuse a target whose seeding or training would end at its start, once a corpus of such domains is pretrained."""
    plans = read_target_plans(name, plans_name, configuration)
    chosen = plans["configurations"][configuration]
    learned, own = _network(domain.architecture), _network(chosen.get("architecture", domain.architecture))
    if learned != own:
        remedy = preprocess_command(name, domain.plans_name, configuration)
        raise HSSLError(
            f"{plans_name} of {name} plan a {own}, the corpus is pretrained with a {learned}. Run `{remedy}`, and add "
            f"`-p {domain.plans_name}`."
        )
    for fold in folds:
        _check_fold(data_folder(preprocessed_dir() / name, plans, configuration), fold)


def _finetuning(name: str, plans_name: str, configuration: str, fold: str, trainer: str = FINETUNE_TRAINER) -> Training:
    fold = fold if fold == "all" else str(int(fold))  # as `hssl finetune` takes 01
    return Training(dataset=name, configuration=configuration, fold=fold, trainer=trainer, plans_name=plans_name)


def _corpus_name(corpus: str) -> str:
    return dataset_name(corpus, f"Run `{corpus_command(corpus)}` first.")


def _network(architecture: Mapping[str, Any]) -> str:
    return str(architecture.get("network_class_name")).rpartition(".")[2]


def _check_fold(data: Path, fold: str) -> None:
    if fold != "all" and not fold.isdecimal():
        raise HSSLError(f"Fold '{fold}' is neither a number (0 to 4) nor 'all'.")
    check_fold(data, fold)


def _resuming(arguments: Sequence[str]) -> tuple[str, ...]:
    return () if "--c" in arguments else ("--c",)
