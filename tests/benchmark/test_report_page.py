"""The page of a benchmark: it needs nothing but itself, escapes what it shows, everyone and a browser can read it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from tiny_benchmark import ARMS, EVIL_ARM, EVIL_DATASET, SECTIONS, Page

from hssl_nnunet.benchmark.report import wording
from hssl_nnunet.benchmark.report.drawing import CSS_COLOURS, arm_styles

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# the page in a frame as wide as a phone, or as A4 less its margins, beside a page with every mistake
PROBE = """<!doctype html><iframe id="page" width="{width}" height="800" srcdoc="{page}"></iframe>
<iframe id="control" width="{width}" height="800" srcdoc="{control}"></iframe>
<p id="found"></p><script>onload = () => {{
  const look = (id) => {{ const d = document.getElementById(id).contentDocument;
    const css = (e) => d.defaultView.getComputedStyle(e);
    const all = (what) => [...d.querySelectorAll(what)];
    return {{ images: d.images.length, broken: [...d.images].filter(i => !i.naturalWidth).length,
      width: d.documentElement.scrollWidth,
      widest: Math.max(...all("body *").map(e => e.getBoundingClientRect().right)),
      flat: all("figure svg").filter(s => s.getBoundingClientRect().height < 100).length,
      hidden: all("section").filter(s => s.getBoundingClientRect().height < 20).map(s => s.id),
      cut: all(".scroll").filter(s => s.scrollWidth > s.clientWidth + 1).map(s => s.getAttribute("aria-label")),
      embedding: all(".wide img").map(e => css(e).filter), paper: css(d.body).backgroundColor,
      inks: all("p, td, th, li, dd, code, h1, h2, a, figcaption").map(e => css(e).color) }}; }};
  document.getElementById("found").textContent = JSON.stringify([look("page"), look("control")]);
  console.error("the probe ran"); }}</script>"""
CONTROL = """<img src="data:image/png;base64,AAAA"><section id="gone" style="display:none">A section.</section>
<p style="width:900px;color:#222">A page with every mistake.</p>"""


def probed(text: str, folder: Path, width: int, *flags: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a browser sees of the page and of the control; it complains about nothing."""
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(page=escape(text), control=escape(CONTROL), width=width), encoding="utf-8")
    common = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = "--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --dump-dom"
    command = [str(CHROMIUM), *common.split(), *more.split(), f"--user-data-dir={folder / 'profile'}", *flags]
    done = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<p id="found">(.*?)</p>', done.stdout)
    assert found, done.stderr[-2000:]
    said = re.findall(r":CONSOLE[:(].*", done.stderr)
    assert len(said) == 1 and "the probe ran" in said[0], said
    page, control = json.loads(unescape(found[1]))
    return page, control


def test_the_page_has_its_sections_in_order_and_every_text_alternative(page: Page) -> None:
    assert [a["id"] for tag, a in page.tags if tag == "section"] == SECTIONS
    assert [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)][:2] == ["h1", "h2"]
    assert ("html", {"lang": "en"}) in page.tags
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert set(targets) <= set(ids) and set(SECTIONS) <= set(targets)
    assert all(a["alt"] for tag, a in page.tags if tag == "img")
    assert all(a.get("role") == "img" or "aria-hidden" in a for tag, a in page.tags if tag == "svg")
    assert page.sections["answer"].index(wording.METHOD) < page.sections["answer"].index("Mean Dice")


def test_the_page_needs_nothing_but_itself(text: str, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not [sentinel for sentinel in CSS_COLOURS if sentinel in text]


def test_what_comes_from_files_is_escaped(page: Page) -> None:
    names = [name for _, attributes in page.tags for name in attributes]
    assert not [name for name in names if name.startswith("on")]
    assert not [a for tag, a in page.tags if tag == "img" and a["src"] == "x"]
    for section, shown in {
        "answer": EVIL_DATASET,
        "cost": EVIL_ARM,
        "leakage": "<i>seen",
        "environment": "2.<b>6",
        "commands": "hssl benchmark run -d 4 9 <all>",
        "not-run": EVIL_DATASET,
    }.items():
        assert shown in page.sections[section]


def test_arms_are_told_apart_without_colour() -> None:
    arms = [*ARMS, *(f"arm{i}" for i in range(12))]
    styles = arm_styles(arms)
    assert list(styles) == arms
    assert len({(s.marker, s.dashes) for s in styles.values()}) == len(arms)


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def schemes(text: str) -> Iterator[dict[str, str]]:
    """Colours of the light and of the dark page."""
    for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        yield dict(re.findall(r"--(\w+): (#\w{6})", block))


def test_text_and_arms_stand_out_in_light_and_dark(text: str) -> None:
    light, dark = schemes(text)
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for name in ("ink", "muted", "gain", "loss"):
            assert min(contrast(scheme[name], scheme[ground]) for ground in ("paper", "wash")) >= 4.5
        for arm in ("scratch", "hssl"):
            assert contrast(arm_styles(ARMS)[arm].colour, scheme["paper"]) >= 3


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@needs_browser
def test_a_browser_shows_the_page_on_a_phone(text: str, tmp_path: Path) -> None:
    page, control = probed(text, tmp_path, 375)
    assert (page["images"], page["broken"], page["flat"], page["hidden"]) == (5, 0, 0, [])
    assert page["width"] <= 375
    # what the probe would see on a bad page
    assert (control["images"], control["broken"], control["hidden"]) == (1, 1, ["gone"]) and control["width"] >= 900


def hexadecimal(rgb: str) -> str:
    """`#rrggbb` of a computed `rgb(r, g, b)`."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", rgb)[:3])


@needs_browser
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_a_browser_shows_readable_text_in_both_schemes(text: str, tmp_path: Path, scheme: int, dark: bool) -> None:
    page, control = probed(text, tmp_path, 1200, f"--blink-settings=preferredColorScheme={scheme}")
    paper = hexadecimal(page["paper"])
    assert (luminance(paper) < 0.05) == dark
    assert [look.startswith("invert") for look in page["embedding"]] == [dark]  # its white is no glare
    assert len(page["inks"]) > 200 and min(contrast(hexadecimal(ink), paper) for ink in set(page["inks"])) >= 4.5
    dimmest = min(contrast(hexadecimal(ink), paper) for ink in control["inks"])
    assert (dimmest < 4.5) == dark  # dark ink on dark paper would be seen


@needs_browser
def test_no_table_is_cut_on_a_laptop(text: str, tmp_path: Path) -> None:
    corpus = "Dataset900_Benchmark_single_domain_004_Hippocampus"
    long = f"nnUNet_results/{corpus}/nnUNetTrainerHSSLPretrain__nnUNetPlans__3d_fullres/fold_all/hssl.safetensors"
    realistic = text.replace(">hssl.safetensors<", f">{long}<").replace(">abc123<", f">{'c0ffee42' * 8}<")
    assert realistic.count(long) == 1
    page, _ = probed(realistic, tmp_path, 1280)
    assert page["cut"] == [] and page["width"] <= 1280


def as_printed(text: str) -> str:
    """The page with its rules for print in force and those for a screen not; no flag of the browser does that."""
    assert text.count("@media print {") == 1 and text.count("@media screen and") == 2 == text.count("@media screen")
    return text.replace("@media print {", "@media all {").replace("@media screen and", "@media speech and")


@needs_browser
def test_a_browser_prints_every_section_within_the_page(text: str, tmp_path: Path) -> None:
    page, control = probed(as_printed(text), tmp_path, 718, "--blink-settings=preferredColorScheme=0")
    assert hexadecimal(page["paper"]) == "#ffffff"  # a dark screen does not print dark
    assert (page["hidden"], page["broken"], page["flat"]) == ([], 0, 0)
    assert page["widest"] <= 718
    assert control["widest"] > 718 and control["hidden"] == ["gone"]
