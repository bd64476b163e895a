"""Shared by all tests: an option that turns warnings into errors, and where the optional reference material is."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

# Before torch is imported, for this process and those that tests start: tiny models are fastest on one thread, and sums
# are then taken in the same order everywhere, so that runs can be compared bit by bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The command line is made of its functions once, not anew in every call of the program in this process.
typer.main.get_command = functools.cache(typer.main.get_command)

# What is remembered of models is remembered for these tests alone, and by the processes that they start.
_cache = tempfile.TemporaryDirectory(prefix="promptcomp-tests-")
os.environ["PROMPTCOMP_CACHE"] = _cache.name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-warnings", action="store_true", help="warnings are errors (for the versions in constraints.txt)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The first filter, so that those of pyproject.toml and of single tests come on top of it."""
    if config.getoption("--strict-warnings"):
        config.getini("filterwarnings").insert(0, "error")


def _shared() -> Path | None:
    """The folder with golden numbers and real data, if this checkout has it beside it."""
    named = os.environ.get("PROMPTCOMP_SHARED")
    candidates = [Path(named)] if named else [Path(__file__).resolve().parents[2] / "shared"]
    return next((path for path in candidates if path.is_dir()), None)


SIGNALS = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
SIGNALS[signal.SIGINT] = signal.default_int_handler
"""A shell ignores Ctrl-C for what it starts in the background, and processes that tests start would inherit that."""


@pytest.fixture(autouse=True, scope="session")
def _no_bars() -> None:
    """What transformers draws while a test makes a model is no part of what the program prints."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """The program ignores late signals when it ends; a test that calls its entry point must not pass that on, nor may a
    fixture of a module, which comes before this one."""
    _restore_signals()
    yield
    _restore_signals()


def _restore_signals() -> None:
    for number, handler in SIGNALS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers made by running the papers' original code; tests that need them skip where they are absent."""
    shared = _shared()
    if shared is None or not (shared / "golden").is_dir():
        pytest.skip("the golden folder is not beside this checkout (set PROMPTCOMP_SHARED)")
    return shared / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data in the original file formats; tests that need them skip where they are absent."""
    shared = _shared()
    if shared is None or not (shared / "data").is_dir():
        pytest.skip("the data folder is not beside this checkout (set PROMPTCOMP_SHARED)")
    return shared / "data"
