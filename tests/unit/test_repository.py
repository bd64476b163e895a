"""What a visitor meets first: links that lead somewhere, a current picture, one version, files that forges read."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

import promptcomp
from promptcomp.lightning_modules import METHODS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_a_page_and_a_heading(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        assert not anchor or anchor in _anchors(there), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_have_a_cell_for_every_column(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for table in re.findall(r"(?:^ {0,3}\|.*\n)+", text, flags=re.MULTILINE):
        lines = table.splitlines()
        assert re.fullmatch(r" *(\| *-+ *)+\|", (*lines, "", "")[1]), table
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, table


def test_the_readme_is_short_and_its_picture_is_that_of_the_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    picture = runpy.run_path(str(ROOT / "benchmarks" / "picture.py"))
    found = json.loads(picture["DATA"].read_text(encoding="utf-8"))
    assert picture["PICTURE"].read_text(encoding="utf-8") == picture["draw"](found)


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_a_table_of_results_is_that_of_its_figures(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = found["rows"]
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in r) for r in (rows[0], *map(dict.values, rows))]
    table = "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
    assert f"{table}\n" in (ROOT / found["section"].partition("#")[0]).read_text(encoding="utf-8")


def test_the_drawings_are_those_of_their_script() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "drawings.py"))
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    for name, drawing in script["DRAWINGS"].items():
        assert (script["FOLDER"] / f"{name}.svg").read_text(encoding="utf-8") == script["draw"](drawing)
        assert f"![{drawing.text}](images/methods/{name}.svg)" in page


def test_the_version_has_one_home() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert f"\n## {promptcomp.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_files_of_the_forge_can_be_read() -> None:
    for path in (*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path
    assert "promptcomp doctor --json" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cited = {reference["url"].rpartition("/")[2] for reference in citation["references"]}
    papers = " ".join(METHODS[name].paper for name in ("mend", "gist", "step_by_step"))
    assert len(cited) == 3
    assert all(number in papers for number in cited)
