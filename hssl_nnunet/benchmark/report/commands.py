"""What it takes to repeat a benchmark from its page alone: preparation, values file, definitions of the arms."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from hssl_nnunet.benchmark.arms import Arm, known_arms
from hssl_nnunet.benchmark.plan import BenchmarkPlan
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.lengths import file_values
from hssl_nnunet.plan_schema import known_presets, load_preset
from hssl_nnunet.typed_json import to_json

# values of the plan that are told with the environment, where they say something
SETTINGS = (
    "configuration",
    "plans_name",
    "device",
    "domains",
    "test_fraction",
    "tune",
    "min_cases",
    "patient_regex",
    "nsd_tolerance_mm",
    "finetuning",
)


def settings(plan: BenchmarkPlan) -> dict[str, Any]:
    """Values of the benchmark that hold for every arm."""
    values = to_json(plan)
    return {key: values[key] for key in SETTINGS if values[key]} | {"pretraining": values["pretraining"]}


def preparation(plan: BenchmarkPlan) -> list[str]:
    """Commands that convert and preprocess every dataset; empty where the plans are of no preset of ours."""
    preset = next((name for name in known_presets() if load_preset(name).plans_name == plan.plans_name), None)
    if preset is None:
        return []
    names = list(dict.fromkeys((*plan.datasets, *plan.domains)))
    ids = [int(name[7:10]) for name in names]
    options = f"-c {plan.configuration}" + ("" if preset == "default" else f" --preset {preset}")
    tasks = [f"Task{number:02}_{name.partition('_')[2]}" for number, name in zip(ids, names, strict=True)]
    planned = f"hssl plan_and_preprocess -d {' '.join(map(str, ids))} {options}"
    return [*(f"hssl convert_msd -i {task}" for task in tasks), planned]


def values_file(plan: BenchmarkPlan) -> str:
    """The JSON for `--values`: what differs from the preset for every arm, and the arms that do not ship with hssl."""
    shipped = known_arms()
    own = {name: _plain(arm) for name, arm in plan.arms.items() if name not in shipped}
    values = {"pretraining": plan.pretraining, "finetuning": plan.finetuning, "arms": own}
    found = {key: value for key, value in values.items() if value}
    return json.dumps(found, indent=2) if found else ""


def definitions(content: Content) -> dict[str, list[str]]:
    """Arm -> its values beside the description that are not the default, as `key: value`.

    Of a weights file also what its pretraining had otherwise than the benchmark's, where the file still lies.
    """
    return {name: [*_told(_plain(arm)), *_of_file(content, arm)] for name, arm in content.plan.arms.items()}


def _told(values: dict[str, Any]) -> list[str]:
    return [f"{key}: {json.dumps(value)}" for key, value in values.items() if key != "description"]


def _of_file(content: Content, arm: Arm) -> list[str]:
    if arm.weights_file is None:
        return []
    values = file_values(content.folder / arm.weights_file)
    if values is None:
        return ["how it was pretrained is not known, the file is not there"]
    base = content.plan.plan_values.get("pretraining", {})
    return [f"pretrained with {json.dumps({k: v for k, v in values.items() if base.get(k) != v})}"]


def plan_values(plan: BenchmarkPlan) -> str:
    """Every value that arms start from, defaults included, one line a stage."""
    return "\n".join(f"{stage}: {json.dumps(values)}" for stage, values in plan.plan_values.items())


def _plain(arm: Arm) -> dict[str, Any]:
    """An arm as it stands in a values file, defaults left out."""
    values: dict[str, Any] = TypeAdapter(Arm).dump_python(arm, exclude_defaults=True)
    return values
