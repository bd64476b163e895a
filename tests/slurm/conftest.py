"""A real SLURM for these tests, and the program run in this process against it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import promptcomp
from promptcomp.cli import main
from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two virtual nodes; the environment of this process talks to them."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own folders are too deep for a socket's name
    lab = Cluster(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, lab.environment[name])
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):  # --slurm sets them
            patch.setenv(name, "1")
        patch.setenv("PYTHONPATH", str(Path(promptcomp.__file__).parents[1]))
        try:
            lab.start()
            yield lab
        finally:
            lab.stop()
            shutil.rmtree(folder, ignore_errors=True)


Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def program(cluster: Cluster) -> Call:
    """Run the program with --json and return what it prints."""

    def call(*words: str) -> dict[str, Any]:
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setattr(sys, "argv", ["promptcomp", *words, "--json"])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code, f"{words}: {stop.value.code}"
        return json.loads(out.getvalue())

    return call


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 150) -> None:
    """Wait, without keeping a core busy."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not after {seconds} s"
        time.sleep(0.3)
