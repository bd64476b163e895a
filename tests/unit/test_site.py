"""The site is built as it is published: every page in its place, every link to a page and a heading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra `docs`")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Page(HTMLParser):
    """What a reader cannot do without: texts of pictures, one first heading, text in lists."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.without_text: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        found = dict(attrs)
        if tag == "img" and not found.get("alt"):
            self.without_text.append(str(found.get("src")))


def test_pages_have_one_title_and_words_for_pictures(site: Path) -> None:
    pages = {file: _Page(file.read_text(encoding="utf-8")) for file in site.rglob("index.html")}
    assert len(pages) > 30
    for file, page in pages.items():
        assert not page.without_text, file
        assert page.count["h1"] == 1, file


def test_the_reference_is_that_of_this_version(site: Path) -> None:
    commands = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    assert "promptcomp checkpoint consolidate" in commands
    assert "--with-controls" in commands
    assert "num_demonstrations" in (site / "reference" / "keys" / "index.html").read_text(encoding="utf-8")
    assert "load_compressor" in (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert "SmolLM2-135M-Instruct" in (site / "reference" / "recorded" / "index.html").read_text(encoding="utf-8")


def test_a_list_below_a_paragraph_and_in_a_list_is_one(site: Path) -> None:
    page = (site / "reference" / "contributing" / "index.html").read_text(encoding="utf-8")
    assert page.count("<ul>") >= 2
    assert "  * <code>NAME" not in page


def test_tutorials_are_notebooks_too(site: Path) -> None:
    books = [json.loads(file.read_text(encoding="utf-8")) for file in (site / "tutorials").glob("*.ipynb")]
    assert len(books) == 4
    for book in books:
        assert {cell["cell_type"] for cell in book["cells"]} == {"code", "markdown"}
