"""The notebooks of docs/tutorials, run from their first block to the last, each in a directory of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.forks import fork_workers

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    fork_workers(monkeypatch)
    text, names = page.read_text(encoding="utf-8"), {"__name__": page.stem}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    assert len(blocks) > 1
    for block in blocks:  # with the lines of the page, so that a mistake is found there
        code = "\n" * text.count("\n", 0, block.start(1)) + block[1]
        exec(compile(code, str(page), "exec"), names)  # noqa: S102  # our own page
    for file in tmp_path.glob("mean_pool_package/*.py"):  # what the contract tests check is what the page shows
        assert file.read_text() == (ROOT / "tests" / "extension" / file.name).read_text()
