"""Our own commands as SLURM jobs: arrays, several nodes, requeueing with resume, chains of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.launch import PRETRAIN_TRAINER, corpus_plans_name
from hssl_nnunet.paths import dataset_name, preprocessed_dir, results_dir
from hssl_nnunet.plan_schema import corpus_block
from hssl_nnunet.ranks import check_shares
from hssl_nnunet.slurm_scripts import Allocation, Script

# checking and fingerprinting begin anew each time: a time limit that is too short for them would requeue for ever
MOST_REQUEUES_OF_PREPROCESSING = 5


def pretraining(corpus: str, arguments: Sequence[str], allocation: Allocation) -> Script:
    """`hssl pretrain ARGUMENTS`, which name the corpus; after a requeue it goes on from its last checkpoint."""
    command = ("hssl", "pretrain", *arguments, *_resuming(arguments))
    return Script(name=f"pretrain_{corpus}", commands=(command,), allocation=allocation)


def finetuning(arguments: Sequence[str], allocation: Allocation) -> Script:
    """`hssl finetune DATASET CONFIGURATION FOLD... OPTIONS`: an array with one fold a task.

    Raises:
        HSSLError: no fold is named.
    """
    named = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    (dataset, configuration), folds = arguments[:2], arguments[2:named]
    if not folds:
        raise HSSLError("Name at least one fold: hssl slurm finetune DATASET CONFIGURATION FOLD...")
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


def benchmarking(arguments: Sequence[str], parts: int, allocation: Allocation) -> Script:
    """`hssl benchmark run ARGUMENTS` as an array that shares the jobs; what a requeue interrupts goes on."""
    shards = (f"{part}/{parts}" for part in range(1, parts + 1))
    commands = tuple(("hssl", "benchmark", "run", *arguments, "--shard", shard) for shard in shards)
    return Script(name="benchmark", commands=commands, allocation=allocation)


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
        plans_name: the targets' plans.
        pretraining_on: what the pretraining runs on.
        seeding_on: what the seeding of each target runs on; it computes on a CPU.
        finetuning_on: what each fold of each target runs on.

    Raises:
        HSSLError: the corpus or a target does not exist.
    """
    name, names = dataset_name(corpus), [dataset_name(target) for target in targets]
    run = f"{PRETRAIN_TRAINER}__{corpus_plans_name(name)}__{configuration}"
    weights = str(results_dir() / name / run / "fold_all" / "hssl.safetensors")
    first = pretraining(corpus, [corpus, "-c", configuration], pretraining_on)
    seeds = tuple(("hssl", "seed", "-d", n, "-w", weights, "-p", plans_name, "-c", configuration) for n in names)
    seeding = Script(name=f"seed_{corpus}", commands=seeds, allocation=seeding_on, after=(first.name,))
    tuning = [finetuning([n, configuration, *folds, "-p", f"{plans_name}_HSSL"], finetuning_on).commands for n in names]
    last = Script(name=f"finetune_{corpus}", commands=sum(tuning, ()), allocation=finetuning_on, after=(seeding.name,))
    return [first, seeding, last]


def check_processes(corpus: str, plans_name: str | None, processes: int) -> None:
    """Refuse a pretraining whose processes cannot share its steps, before it waits in a queue.

    Args:
        corpus: id or name of the corpus.
        plans_name: its plans; None = the only ones with an `hssl` block.
        processes: over all machines.

    Raises:
        HSSLError: they cannot, or the corpus or its plans are missing.
    """
    if processes > 1:
        name = dataset_name(corpus)
        path = preprocessed_dir() / name / f"{plans_name or corpus_plans_name(name)}.json"
        check_shares(corpus_block(read_json(path), path).pretraining.chunks_per_step, processes, path)


def _resuming(arguments: Sequence[str]) -> tuple[str, ...]:
    return () if "--c" in arguments else ("--c",)
