"""A corpus with other groups than the hierarchy's is written once, with them: a kill cannot leave half of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_build import Folders

from hssl_nnunet.benchmark import pretraining
from hssl_nnunet.benchmark.plan import BenchmarkPlan, plan_from_options
from hssl_nnunet.benchmark.splits import DatasetSplit
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.corpus.build import build_corpus
from hssl_nnunet.corpus.manifest import read_manifest
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW, preprocessed_dir
from hssl_nnunet.plan_schema import corpus_block

HIERARCHY = {
    "Dataset002_Heart": ("MR heart", "MR"),
    "Dataset003_Liver": ("CT abdomen", "CT"),
    "Dataset004_Hippocampus": ("MR brain", "MR"),
    "Dataset005_Prostate": ("MR pelvis", "MR"),
}
UNTESTED = DatasetSplit(test=(), patients={}, order={})
TWINS = ("Dataset002_Heart", "Dataset102_Heart")
# an arm's pretraining, killed as soon as the plans of its corpus are written
KILLED = """
import os, signal, sys
from pathlib import Path
from hssl_nnunet.benchmark.pretraining import pretrain_arm
from hssl_nnunet.benchmark.splits import DatasetSplit
from hssl_nnunet.benchmark.workspace import Workspace
from hssl_nnunet.corpus import writing
write = writing.write_json
def write_and_die(path, content):
    write(path, content)
    if path.name == "nnUNetPlans.json":
        os.kill(os.getpid(), signal.SIGKILL)
writing.write_json = write_and_die
workspace = Workspace(Path(sys.argv[1]))
untested = {"Dataset004_Hippocampus": DatasetSplit(test=(), patients={}, order={})}
pretrain_arm(workspace, workspace.plan(), untested, "shuffled_groups", None)
"""


@pytest.fixture
def workspace(nnunet_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A benchmark of four tasks of the decathlon, ready for its jobs, whose folders nnU-Net's variables name."""
    folders = Folders(nnunet_folders[ENV_RAW], nnunet_folders[ENV_PREPROCESSED])
    for number, (name, groups) in enumerate({**HIERARCHY, TWINS[1]: ("MR heart", "MR")}.items()):
        channel = "CT" if groups[-1] == "CT" else "MRI"
        folders.add(name, {"a": 10 * number}, {}, channels=(channel,), n_stages=3, spacing=[1.0, 1.0, 1.0])
    made = Workspace(tmp_path / "bench")
    for name in (*HIERARCHY, TWINS[1]):
        made.link(preprocessed_dir() / name)
    made.write_plan(benchmark_plan())
    for variable, value in made.environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    return made


def benchmark_plan() -> BenchmarkPlan:
    return plan_from_options(
        command="hssl benchmark run",
        datasets=["Dataset004_Hippocampus"],
        domains=list(HIERARCHY),
        configuration="3d_fullres",
        plans_name="nnUNetPlans",
        budgets=["1"],
        min_cases=1,
        arms=["hssl", "shuffled_groups"],
        seeds=1,
        test_fraction=0.3,
        tune=False,
        nsd_tolerance_mm=1.0,
        patient_regex=[],
        values_file=None,
        device="cpu",
    )


def groups_of(corpus: Path) -> dict[str, tuple[str, ...]]:
    """Groups that the plans tell; those of the manifest are the same."""
    path = corpus / "nnUNetPlans.json"
    groups = {d.dataset_name: d.groups for d in corpus_block(json.loads(path.read_text()), path).domains}
    assert {row.dataset_name: row.groups for row in read_manifest(corpus / "manifest.csv")} == groups
    return groups


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_kill_when_the_plans_are_written_leaves_them_shuffled(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(workspace.folder)], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    trained = []
    monkeypatch.setattr(pretraining, "pretrain", lambda corpus, *args, **kwargs: trained.append(corpus))
    for arm in ("shuffled_groups", "hssl"):
        pretraining.pretrain_arm(workspace, workspace.plan(), {"Dataset004_Hippocampus": UNTESTED}, arm, None)
    shuffled, stock = (groups_of(workspace.preprocessed / name) for name in trained)
    assert stock == HIERARCHY
    assert sorted(shuffled.values()) == sorted(stock.values())
    alike = [{name for name, groups in found.items() if groups[1] == "MR"} for found in (stock, shuffled)]
    assert alike[0] != alike[1] and len(alike[0]) == len(alike[1]) == 3


def test_a_wrong_regrouping_is_told_before_anything_is_written(workspace: Workspace) -> None:
    def refused(groups: object) -> dict[str, tuple[str, ...]]:
        raise HSSLError("nothing to shuffle")

    with pytest.raises(HSSLError, match="nothing to shuffle"):
        build_corpus(list(HIERARCHY), 900, "Test", regroup=refused)
    assert not list(workspace.preprocessed.glob("Dataset900*"))


def test_targets_of_one_name_do_not_share_a_corpus(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    monkeypatch.setattr(pretraining, "pretrain", lambda corpus, *args, **kwargs: trained.append(corpus))
    for target in TWINS:
        pretraining.pretrain_arm(workspace, workspace.plan(), {target: UNTESTED}, "hssl", target)
    assert [set(groups_of(workspace.preprocessed / name)) for name in trained] == [{target} for target in TWINS]
