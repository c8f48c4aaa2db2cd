"""`hssl benchmark report`: from a benchmark's folder to one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hssl_nnunet
from hssl_nnunet.benchmark import statistics as st
from hssl_nnunet.benchmark.report import commands, costs, gallery, labels, rivals, tables, training, wording
from hssl_nnunet.benchmark.report.audit import audits
from hssl_nnunet.benchmark.report.cases import FIRST_COLOUR, SECOND_COLOUR, TRUTH_COLOUR
from hssl_nnunet.benchmark.report.content import Content, not_run, read_content
from hssl_nnunet.benchmark.report.drawing import arm_styles
from hssl_nnunet.benchmark.report.lengths import unequal
from hssl_nnunet.benchmark.report.numbers import numbers
from hssl_nnunet.benchmark.report.panels import all_panels
from hssl_nnunet.benchmark.report.surfaces import surfaces
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json, written_whole

PAGE_FILE = "report.html"
TEMPLATE = "template.html.j2"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a benchmark: one file that opens from a disk, without a network; its numbers beside it as JSON.

    Args:
        folder: the benchmark's folder.
        output: the file to write; None takes `report.html` in the folder.

    Returns:
        The file.

    Raises:
        HSSLError: no run has ended, a file has the wrong form, records that cannot be compared, a page not called
            .html, a .json beside it that no report wrote, or jinja2 is missing.
    """
    path = output or folder / PAGE_FILE
    _check_output(path)
    content = read_content(folder)
    text = render(content)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(path.with_suffix(".json"), numbers(content))
    return path


def _check_output(path: Path) -> None:
    """Refuse an output that would replace what is no report, such as the benchmark's own plan or splits."""
    if path.suffix != ".html":
        raise HSSLError(f"-o {path}: the page is HTML, its numbers go to a .json file beside it. Name a .html file.")
    beside = path.with_suffix(".json")
    there = read_json(beside, "Name another .html file with -o.") if beside.is_file() else {"asked": [], "runs": []}
    if not (isinstance(there, dict) and {"asked", "runs"} <= there.keys()):
        raise HSSLError(
            f"-o {path}: the page's numbers would replace {beside}, which no report wrote. Name another .html file."
        )


def render(content: Content) -> str:
    """The page as HTML; whatever comes from a file is escaped.

    Raises:
        HSSLError: see `write_report`.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise HSSLError(f'{error}. The report needs it: run `pip install "hssl_nnunet[benchmark]"`.') from error
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text: str = environment.get_template(TEMPLATE).render(_values(content))
    return text


def _values(content: Content) -> dict[str, Any]:
    """Every value of the template."""
    comparisons, overall = st.compare_all(content.records), st.overall(content.records)
    styles = arm_styles(content.arms)
    return {
        "content": content,
        "plan": content.plan,
        "styles": styles,
        "method": wording.METHOD,
        "baselines": content.baselines,
        "margin": st.MARGIN,
        "version": hssl_nnunet.__version__,
        "answers": wording.answers(overall, comparisons, content.budgets(), training.headline(content)),
        "against_most": labels.against_most(content),
        "label_answers": labels.sentences(content),
        "tallies": [t for b in st.BASELINES if (t := wording.tally(comparisons, b))],
        "unequal": unequal(content),
        "results": tables.results(content, comparisons),
        "pooled": tables.pooled(content, overall, comparisons),
        "rivals": rivals.rivals(content),
        "missing": not_run(content),
        "reaches": {b: rows for b in st.BASELINES if (rows := training.reaches(content, b))},
        "surfaces": surfaces(content),
        "costs": costs.costs(content),
        "devices": tables.devices(content),
        "pretrainings": costs.pretrainings(content),
        "learned_columns": list(costs.LEARNED),
        "learned": costs.learned(content),
        "galleries": gallery.galleries(content),
        "contours": {"truth": TRUTH_COLOUR, "method": FIRST_COLOUR, "baseline": SECOND_COLOUR},
        "embeddings": gallery.embeddings(content),
        "transfers": tables.transfers(content),
        "audits": audits(content),
        "environment": tables.environment({**content.plan.about, **commands.settings(content.plan)}),
        "definitions": commands.definitions(content),
        "plan_values": commands.plan_values(content.plan),
        "preparation": commands.preparation(content.plan),
        "values_file": commands.values_file(content.plan),
        **all_panels(content, comparisons, styles),
    }
