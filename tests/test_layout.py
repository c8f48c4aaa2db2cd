"""The tree, the layers and the sizes that the design asks for."""

from __future__ import annotations

import ast
import configparser
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hssl_nnunet.launch import TRAINERS
from hssl_nnunet.paths import add_trainers_to_environment
from hssl_nnunet.plan_schema import finetuning_plan, known_presets, load_preset, pretraining_plan

ROOT = Path(__file__).resolve().parent.parent
TRAINER_FILES = sorted(p for p in (ROOT / "trainers").glob("*.py") if p.name != "__init__.py")
SOURCES = sorted([*(ROOT / "hssl_nnunet").rglob("*.py"), *(ROOT / "trainers").glob("*.py")])
MAPPED = {"hssl_nnunet.plans": "plans", "hssl_nnunet.trainers": "trainers"}
MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_FILE = 60, 500

# An import goes to a lower rank, or stays inside its own part.
RANKS = {
    "errors": 0,
    "paths": 1,
    "files": 1,
    "locks": 2,
    "versions": 1,
    "typed_json": 1,
    "plan_values": 2,
    "plan_schema": 3,
    "ranks": 2,
    "nnunet_plans": 2,
    "nnunet_training": 2,
    "remedies": 4,
    "device": 4,
    "preflight": 5,
    "which_plans": 5,
    "losses": 4,
    "networks": 5,
    "corpus": 5,
    "transfer": 6,
    "data": 6,
    "training": 7,
    "benchmark": 9,
    "launch": 8,
    "run_folder": 7,
    "trainers": 8,
    "doctor": 9,
    "demo": 9,
    "slurm_scripts": 8,
    "slurm": 9,
    "cli_options": 9,
    "cli_benchmark": 10,
    "cli_slurm": 10,
    "cli_transfer": 10,
    "cli": 11,
}


def test_setup_cfg_lists_the_packages_of_the_tree():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "hssl_nnunet").rglob("__init__.py")}
    assert sorted(listed) == sorted([*(".".join(f.parts) for f in folders), *MAPPED])
    for package, folder in MAPPED.items():
        assert (ROOT / folder / "__init__.py").is_file(), package


def test_every_trainer_has_its_file():
    assert [p.stem for p in TRAINER_FILES] == sorted(TRAINERS)


@pytest.mark.parametrize("path", TRAINER_FILES, ids=lambda p: p.stem)
def test_a_trainer_file_holds_one_class_of_its_name_and_imports(path: Path):
    body = ast.parse(path.read_text()).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    docstrings = [node for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    assert [c.name for c in classes] == [path.stem]
    assert len(classes) + len(imports) + len(docstrings) == len(body)
    assert all(node.level == 0 for node in imports if isinstance(node, ast.ImportFrom)), "relative imports fail there"


@pytest.mark.parametrize("name", TRAINERS)
def test_nnunet_finds_the_trainer_and_what_it_stands_on_pickles(name: str, unset):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    unset("nnUNet_extTrainer")
    add_trainers_to_environment()
    found = recursive_find_trainer_class_by_name(name)
    assert found.__name__ == name
    # nnU-Net drops the trainer's own module after the search, hence all behaviour must live in an importable base
    base = next(c for c in found.__mro__ if c.__module__.startswith("hssl_nnunet."))
    assert pickle.loads(pickle.dumps(base)) is base


def test_nnunet_finds_no_trainer_of_ours_without_the_variable(unset):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    unset("nnUNet_extTrainer")
    with pytest.raises(RuntimeError, match=TRAINERS[0]):
        recursive_find_trainer_class_by_name(TRAINERS[0])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path: Path):
    part = _part(path)
    wrong = [target for target in _imported_parts(path) if target != part and RANKS[target] >= RANKS.get(part, 99)]
    assert not wrong, f"{part} imports {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_and_files_stay_small(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert not {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FUNCTION}


def test_the_command_line_loads_without_torch_and_nnunet():
    code = (
        "import sys, hssl_nnunet.cli; print([m for m in ('torch', 'nnunetv2', 'numpy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", known_presets())
def test_a_preset_gives_whole_plans_and_names_a_planner_of_nnunet(name: str):
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    preset = load_preset(name)
    pretraining_plan(preset), finetuning_plan(preset)
    folder = Path(nnunetv2.__path__[0]) / "experiment_planning" / "experiment_planners"
    found = recursive_find_python_class(
        str(folder), preset.planner, "nnunetv2.experiment_planning.experiment_planners", nnunetv2.__path__[0]
    )
    assert found is not None


def test_presets_write_plans_of_different_names():
    assert known_presets() == ["cpu", "default", "demo", "resenc_l", "resenc_m", "resenc_xl"]
    names = [load_preset(name).plans_name for name in known_presets()]
    assert len(set(names)) == len(names)


def _part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    inside = relative.parts[1:] if relative.parts[0] == "hssl_nnunet" else relative.parts
    return inside[0].removesuffix(".py")


def _imported_parts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "hssl_nnunet" and rest and rest[0] != "__version__":
                yield rest[0]
