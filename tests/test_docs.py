"""The documentation says what is true: commands parse, links lead somewhere, tables are those of the code.

`python tests/test_docs.py` prints docs/reference/plan-values.md anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from hssl_nnunet import plan_schema, plan_values
from hssl_nnunet.cli import app
from hssl_nnunet.paths import plans_dir

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def leaves(group: Any, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command by its words, those of `hssl benchmark` included."""
    found: dict[tuple[str, ...], Any] = {}
    for name, command in group.commands.items():
        found |= leaves(command, (*words, name)) if hasattr(command, "commands") else {(*words, name): command}
    return found


COMMANDS = leaves(typer.main.get_command(app))
PLAN_VALUES = ROOT / "docs" / "reference" / "plan-values.md"
SECTIONS = {
    plan_values.PretrainingPlan: ("`pretraining`", "pretraining.json", ()),
    plan_values.LossPlan: ("`pretraining.loss`", "pretraining.json", ("loss",)),
    plan_values.ViewPlan: ("`pretraining.views`", "pretraining.json", ("views",)),
    plan_values.FinetuningPlan: ("`finetuning`", "finetuning.json", ()),
    plan_schema.DomainPlan: ("one of `domains`", None, ()),
    plan_schema.CorpusBlock: ("the block of a corpus", None, ()),
    plan_schema.TargetBlock: ("the block of a target", None, ()),
}


def command_of(line: str) -> tuple[tuple[str, ...], list[str]]:
    """Words of a command, and its arguments."""
    _, *words = shlex.split(line)
    length = 1 if (words[0],) in COMMANDS else 2
    return tuple(words[:length]), words[length:]


def hssl_lines(page: Path) -> Iterator[str]:
    """Each `hssl` command of a page's shell blocks and of its tables and sentences, where it has arguments."""
    text = page.read_text()
    for block in re.findall(r"```(?:bash|sh|shell)\n(.*?)```", text, re.DOTALL):
        joined = re.sub(r"\\\n\s*", " ", block)
        for part in re.split(r"\n|&&|;", joined):
            if part.strip().startswith("hssl "):
                yield part.strip().partition(" #")[0]
    for line in re.findall(r"`(hssl [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.search(r"\s-|\s\d", line) and "..." not in line and "[" not in line:
            yield line


LINES = [(page.relative_to(ROOT), line) for page in PAGES for line in hssl_lines(page)]


def test_the_pages_show_every_command():
    assert {command_of(line)[0] for _, line in LINES} >= COMMANDS.keys()


@pytest.mark.parametrize("page, line", LINES, ids=lambda value: str(value))
def test_a_command_of_the_documentation_parses(page: Path, line: str):
    if not line.endswith("--help"):
        words, arguments = command_of(line)
        COMMANDS[words].make_context(words[-1], arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        linked = (page.parent / file) if file else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], target


def test_presets_are_those_that_ship():
    table = (ROOT / "docs" / "reference" / "commands.md").read_text()
    for name in plan_schema.known_presets():
        preset = plan_schema.load_preset(name)
        assert f"| `{name}` | `{preset.planner}` | `{preset.plans_name}` |" in table


def test_plan_values_are_those_of_the_schema():
    assert PLAN_VALUES.read_text() == plan_values_page(), (
        "run `python tests/test_docs.py > docs/reference/plan-values.md`"
    )


@pytest.mark.parametrize("name", ["manifest.ImageRow", "weights_file.WeightsMetadata"])
def test_file_tables_name_every_field(name: str):
    from hssl_nnunet.corpus import manifest
    from hssl_nnunet.transfer import weights_file

    module, kind = name.split(".")
    described = (ROOT / "docs" / "reference" / "files.md").read_text()
    fields = dataclasses.fields(getattr({"manifest": manifest, "weights_file": weights_file}[module], kind))
    assert not [f.name for f in fields if f"`{f.name}`" not in described]


def plan_values_page() -> str:
    """docs/reference/plan-values.md, from the docstrings of the plan values and their defaults in `plans/*.json`."""
    parts = [
        "# Plan values\n",
        "The values of the `hssl` block. Defaults are those of `plans/pretraining.json` and `plans/finetuning.json`; a "
        "preset may\nchange them (`plans/preset_*.json`).\n",
    ]
    for kind, (title, file, keys) in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts.append(table(kind, defaults(file, keys)))
    return "\n".join(parts)


def table(kind: type, values: dict[str, Any]) -> str:
    meanings = attributes(kind)
    assert meanings.keys() <= {f.name for f in dataclasses.fields(kind)}
    rows = ["| key | default | meaning |", "|---|---|---|"] if values else ["| key | meaning |", "|---|---|"]
    for name, meaning in meanings.items():
        if isinstance(values.get(name), dict):
            continue
        default = f" `{json.dumps(values[name])}` |" if values else ""
        rows.append(f"| `{name}` |{default} {meaning} |")
    return "\n".join(rows) + "\n"


def attributes(kind: type) -> dict[str, str]:
    """Field -> meaning, from the `Attributes:` of a docstring."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("|", "\\|") for name, text in found}


def defaults(file: str | None, keys: tuple[str, ...]) -> dict[str, Any]:
    values = json.loads((plans_dir() / file).read_text()) if file else {}
    for key in keys:
        values = values[key]
    return values


if __name__ == "__main__":
    print(plan_values_page(), end="")
