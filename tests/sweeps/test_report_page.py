"""The report's page in a real browser, headless and without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from promptcomp.sweeps.views.html_report import write_report
from tests.sweep_states import nasty, several_objectives

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SORT = """<script>
document.querySelector("#points-table th:nth-child(2) button").click();
document.querySelector("#parallel-plot .hit").dispatchEvent(new MouseEvent("mouseenter"));
</script>"""


class _Page(HTMLParser):
    """Addresses that a page names, and its rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")
        ]
        if tag == "tr":
            self.rows.append([])
        self.in_cell = tag == "td"

    def handle_data(self, data: str) -> None:
        if self.in_cell and self.rows:
            self.rows[-1].append(data)

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = False


def _load(page: Path, profile: Path) -> tuple[str, str]:
    """The page after its scripts, and what the browser logged."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser found ({', '.join(BROWSERS)}): apt-get install chromium")
    words = [browser, "--headless", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    words += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        [*words, "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def _console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


def _external(page: _Page) -> list[str]:
    return [address for address in page.addresses if not address.startswith(("#", "data:"))]


def test_page_sorts_and_draws(tmp_path: Path) -> None:
    path = write_report(several_objectives(tmp_path / "sweep"))
    text = path.read_text(encoding="utf-8")
    assert not _external(_Page(text))
    assert not re.search(r"url\((?!#)|@import", text)
    tried = tmp_path / "tried.html"
    tried.write_text(text.replace("</body>", f"{SORT}</body>"), encoding="utf-8")
    document, log = _load(tried, tmp_path / "profile")
    assert not _console(log)
    page = _Page(document)
    table = document[document.index('id="points-table"') : document.index("</table>")]
    slots = [int(row[1] if row[0] == "Pareto front" else row[0]) for row in _Page(table).rows if row]
    assert slots == sorted(slots)
    assert slots[0] < slots[-1]
    assert 'aria-sort="ascending"' in document
    assert len(re.findall(r'class="hit"', document)) == 12
    assert len(re.findall(r'class="line[^"]* lit"', document)) == 1, "the line under the pointer is marked"
    assert re.search(r'id="parallel-text"[^>]*>num_slots=', document)
    assert page.tags.count("figure") >= 8


def test_page_shows_markup_as_text(tmp_path: Path) -> None:
    path = write_report(nasty(tmp_path / "sweep"))
    document, log = _load(path, tmp_path / "profile")
    assert not _console(log)
    page = _Page(document)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    cells = [cell for row in page.rows for cell in row]
    assert "<script>alert(1)</script>" in "".join(cells)
    assert "ValueError: &lt;b&gt;x&lt;/b&gt; [red]y" in document
