"""Two datasets whose voxels nobody reads: a benchmark is prepared on them, and nothing is trained."""

from __future__ import annotations

import json
from typing import Any

from tiny_benchmark import typed_plan

from hssl_nnunet.benchmark.plan import BenchmarkPlan
from hssl_nnunet.benchmark.workspace import Workspace

LARGE, SMALL = "Dataset001_Large", "Dataset002_Small"
PATIENTS = {LARGE: 20, SMALL: 6}


def plan(**changes: Any) -> BenchmarkPlan:
    return typed_plan(**{"datasets": [LARGE], "domains": [LARGE, SMALL], "budgets": ["12"], **changes})


def nnunet_folds(workspace: Workspace, name: str) -> list[dict[str, list[str]]]:
    return json.loads((workspace.preprocessed / name / "splits_final.json").read_text())
