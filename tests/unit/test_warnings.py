"""What a dependency merely warns of fails no test, unless one asks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DEPENDENCY = """
import warnings

def call(category):
    warnings.warn("`old` is deprecated and will be removed. Use `new` instead.", category, stacklevel=2)
"""
CALLER = """
import dependency

def at_our_call_site(category):
    dependency.call(category)
"""
TESTS = """
import pathlib
import types
import pytest
import dependency

promptcomp_part = types.ModuleType("promptcomp.part")
exec(pathlib.Path("caller.py").read_text(), vars(promptcomp_part))

@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, PendingDeprecationWarning, UserWarning])
def test_a_call(category):
    promptcomp_part.at_our_call_site(category)
    dependency.call(category)

def test_what_is_known():
    import warnings
    warnings.warn("Checkpoint directory x exists and is not empty")
"""


@pytest.mark.parametrize(("option", "outcome"), [((), "5 passed"), (("--strict-warnings",), "4 failed, 1 passed")])
def test_a_release_that_warns_at_our_call_site(tmp_path: Path, option: tuple[str, ...], outcome: str) -> None:
    for name, text in (("dependency", DEPENDENCY), ("caller", CALLER), ("test_it", TESTS)):
        (tmp_path / f"{name}.py").write_text(text)
    words = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", REPOSITORY / "pyproject.toml", *option]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "test_it.py"],
        cwd=tmp_path, env={"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome in done.stdout, done.stdout + done.stderr
