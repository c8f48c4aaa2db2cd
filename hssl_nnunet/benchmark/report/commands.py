"""What it takes to repeat a benchmark from its page alone: preparation, values file, definitions of the arms."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from hssl_nnunet.benchmark.arms import Arm, known_arms
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.facts import Facts
from hssl_nnunet.benchmark.report.lengths import file_values
from hssl_nnunet.plan_schema import known_presets, load_preset

DEFAULTS = Arm(description="")


def preparation(facts: Facts) -> list[str]:
    """Commands that convert and preprocess every dataset; empty where the plans are of no preset of ours."""
    names = list(dict.fromkeys((*facts.datasets, *facts.settings.get("domains", ()))))
    plans_name = facts.settings.get("plans_name")
    preset = next((name for name in known_presets() if load_preset(name).plans_name == plans_name), None)
    if preset is None or not names:
        return []
    ids = [int(name[7:10]) for name in names]
    options = f"-c {facts.settings['configuration']}" + ("" if preset == "default" else f" --preset {preset}")
    tasks = [f"Task{number:02}_{name.partition('_')[2]}" for number, name in zip(ids, names, strict=True)]
    planned = f"hssl plan_and_preprocess -d {' '.join(map(str, ids))} {options}"
    return [*(f"hssl convert_msd -i {task}" for task in tasks), planned]


def values_file(facts: Facts) -> str:
    """The JSON for `--values`: what differs from the preset for every arm, and the arms that do not ship with hssl."""
    own = {name: _plain(arm) for name, arm in facts.definitions.items() if name not in known_arms()}
    values = {key: facts.settings.get(key) for key in ("pretraining", "finetuning")} | {"arms": own}
    found = {key: value for key, value in values.items() if value}
    return json.dumps(found, indent=2) if found else ""


def definitions(content: Content) -> dict[str, list[str]]:
    """Arm -> its values beside the description that are not the default, as `key: value`.

    Of a weights file also what its pretraining had otherwise than the benchmark's, where the file still lies.
    """
    return {arm: [*_told(_plain(d)), *_of_file(content, d)] for arm, d in content.facts.definitions.items()}


def _told(values: dict[str, Any]) -> list[str]:
    return [f"{key}: {json.dumps(value)}" for key, value in values.items() if key != "description"]


def _of_file(content: Content, arm: Arm) -> list[str]:
    if arm.weights_file is None:
        return []
    values = file_values(content.folder / arm.weights_file)
    if values is None:
        return ["how it was pretrained is not known, the file is not there"]
    base = content.facts.plan_values.get("pretraining", {})
    return [f"pretrained with {json.dumps({k: v for k, v in values.items() if base.get(k) != v})}"]


def plan_values(facts: Facts) -> str:
    """Every value that arms start from, defaults included, one line a stage."""
    return "\n".join(f"{stage}: {json.dumps(values)}" for stage, values in facts.plan_values.items())


def _plain(arm: Arm) -> dict[str, Any]:
    """An arm as it stands in a values file, defaults left out."""
    values = {f.name: getattr(arm, f.name) for f in fields(Arm)}
    return {name: value for name, value in values.items() if value != getattr(DEFAULTS, name)}
