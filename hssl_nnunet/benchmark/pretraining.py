"""The weights of an arm: pretrained once, at equal updates, without a test patient in any domain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hssl_nnunet.benchmark.data import measured
from hssl_nnunet.benchmark.leakage import names_of
from hssl_nnunet.benchmark.plan import BenchmarkPlan, patterns_of, regexes_of
from hssl_nnunet.benchmark.shuffled_groups import shuffled_groups
from hssl_nnunet.benchmark.splits import DatasetSplit
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.corpus.build import build_corpus
from hssl_nnunet.corpus.cases import read_raw_dataset
from hssl_nnunet.corpus.parallel import default_processes
from hssl_nnunet.corpus.patients import patient_of
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import written_whole
from hssl_nnunet.launch import PRETRAIN_TRAINER, pretrain
from hssl_nnunet.paths import WEIGHTS_FILE, model_folder, raw_dir
from hssl_nnunet.transfer.continuing import seed_corpus
from hssl_nnunet.typed_json import merged

EXCLUDED_FILE = "test_cases.txt"
FIRST_CORPUS_ID = 900
CLAIMS_FOLDER = "corpus_ids"


def corpus_name(arm: str, target: str | None) -> str:
    """Name of a pretraining's corpus, without `DatasetNNN_`.

    The target's id is in it, for two targets may have one name: `Benchmark_single_domain_004_Hippocampus`.
    """
    return f"Benchmark_{arm}" if target is None else f"Benchmark_{arm}_{target.removeprefix('Dataset')}"


def pretrain_arm(
    workspace: Workspace,
    plan: BenchmarkPlan,
    splits: Mapping[str, DatasetSplit],
    name: str,
    target: str | None,
    start: Path | None = None,
) -> Path:
    """Build an arm's corpus and pretrain on it; what an earlier, killed run has done is not done again.

    nnU-Net's environment variables must name the workspace's folders.

    Args:
        workspace: the benchmark's folder.
        plan: its plan.
        splits: dataset name -> split; no test patient of any of them is pretrained on.
        name: the arm.
        target: the only domain, for an arm that is pretrained on the target alone; None = all.
        start: the weights file that it goes on from; None = it begins from nothing.

    Returns:
        The weights file.
    """
    corpus = _corpus(workspace, plan, splits, name, target)
    model = model_folder(workspace.results, corpus, PRETRAIN_TRAINER, plan.plans_name, plan.configuration)
    folder = model / "fold_all"
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        begun = any(folder.glob("checkpoint_*.pth"))
        if start is not None and not begun:
            seed_corpus(corpus, start, plan.plans_name)
        pretrain(
            corpus,
            plan.configuration,
            plans_name=plan.plans_name,
            device=plan.device,
            continue_training=begun,
        )
    return weights


def _corpus(
    workspace: Workspace, plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit], name: str, target: str | None
) -> str:
    short = corpus_name(name, target)
    found = sorted(workspace.preprocessed.glob(f"Dataset???_{short}/{plan.plans_name}.json"))
    if found:
        return found[0].parent.name
    arm = plan.arms[name]
    domains, tested = (plan.domains, splits) if target is None else ((target,), {target: splits[target]})
    excluded = workspace.folder / (EXCLUDED_FILE if target is None else f"{target}_{EXCLUDED_FILE}")
    report = build_corpus(
        domains,
        free_id(workspace),
        short,
        plans_name=plan.plans_name,
        configuration=plan.configuration,
        exclude_file=_written(excluded, excluded_cases(plan, tested, domains)),
        exclude_contents=_contents_kept_out(plan, tested),
        patient_regex=regexes_of(plan, domains),
        num_processes=default_processes(),
        pretraining_overrides=merged(dict(plan.pretraining), arm.pretraining),
        regroup=shuffled_groups if arm.groups == "shuffled" else None,
    )
    return report.dataset_name


def free_id(workspace: Workspace) -> int:
    """A dataset id that nothing has; claimed by a file, for jobs build their corpora side by side.

    Raises:
        HSSLError: every id is taken.
    """
    taken = {p.name[7:10] for base in (raw_dir(), workspace.preprocessed) for p in base.glob("Dataset???_*")}
    claims = workspace.folder / CLAIMS_FOLDER
    claims.mkdir(exist_ok=True)
    for number in range(FIRST_CORPUS_ID, 0, -1):
        if f"{number:03d}" not in taken:
            try:
                (claims / f"{number:03d}").open("x").close()
            except FileExistsError:
                continue
            return number
    raise HSSLError(f"Every dataset id below {FIRST_CORPUS_ID} is taken, in {raw_dir()} or {claims}. Free one.")


def _written(path: Path, lines: list[str]) -> Path | None:
    """The file that takes cases out of an arm's corpus; None where none is to go."""
    if not lines:
        return None
    with written_whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path


def _contents_kept_out(plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit]) -> set[str]:
    """Content hashes of the test cases: a domain that is no target may show a copy under another name."""
    contents = {name: data.contents for name, data in measured(plan, splits).items()}
    return {h for name, split in splits.items() for case in split.kept_out for h in contents[name].get(case, ())}


def excluded_cases(plan: BenchmarkPlan, splits: Mapping[str, DatasetSplit], domains: tuple[str, ...]) -> list[str]:
    """Cases of the domains that show a patient who tests any of these targets, or is left untouched; `Dataset:case`.

    By patient and over all domains, for one person may be in several; the target itself need not be a domain.
    """
    patterns = patterns_of(plan)
    kept_out = [(split, name, case) for name, split in splits.items() for case in split.kept_out]
    test = {patient for where in kept_out for patient in names_of(*where, patterns)}
    return [
        f"{name}:{case.name}"
        for name in domains
        for dataset in [read_raw_dataset(name)]
        for case in (*dataset.labelled, *dataset.unlabelled)
        if patient_of(case.name, name, patterns) in test
    ]
