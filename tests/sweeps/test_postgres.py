"""A sweep in a real PostgreSQL server that is restarted half-way."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptcomp.cli import main
from promptcomp.config import ConfigError
from promptcomp.sweeps.repair import examine
from promptcomp.sweeps.study import begin, read_state
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.sweep_file import sweep_of
from tests.forks import Fork
from tests.sweeps.helpers import assert_exactly_once, starts
from tests.sweeps.postgres import Server, binaries

pytest.importorskip("psycopg", reason="the extra postgres is not installed")
pytestmark = pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server is installed (package postgresql)")


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server; outside of pytest's folders, which the user postgres may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="promptcomp-postgres-"))
    folder.chmod(0o755)
    made = Server(folder / "server")
    yield made
    made.stop()
    shutil.rmtree(folder)


def test_two_workers_and_a_restart(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "pass-word")
    folder = tmp_path / "sweep"
    env = {"FAKE_SECONDS": "0.05", "FAKE_STEPS": "6"}
    with Fork("tests.sweeps.fleet", str(folder), "4", "1", server.url, env=env) as fleet:
        deadline = time.monotonic() + 90
        while len(starts(folder)) < 4 and time.monotonic() < deadline and fleet.poll() is None:
            time.sleep(0.1)
        server.restart(1.5)
        printed = "".join(fleet.communicate(150))
    assert fleet.returncode == 0, printed
    state = read_state(SweepDirectory(folder))
    assert_exactly_once(state, 12)
    assert state.workers == 0
    examine(SweepDirectory(folder), repair=True)
    assert examine(SweepDirectory(folder)) == []
    assert (folder / "storage.txt").read_text() == f"{server.url.replace('postgresql', 'postgresql+psycopg')}\n"
    assert not (folder / "journal.log").exists()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert all(b"pass-word" not in path.read_bytes() for path in files)


@pytest.mark.parametrize("form", ["user", "query"])
def test_a_password_in_the_address_is_written_nowhere(
    tmp_path: Path, server: Server, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.url.replace("tester@", "tester:pass-word@") if form == "user" else f"{server.url}?password=pass-word"
    folder = SweepDirectory(tmp_path / "sweep")
    config = sweep_of("mend", ["method.num_slots=1,2"])
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "storage.txt").write_text(url)  # as earlier versions left it
    sweep = begin(config, folder, url, 1)
    sweep.close()
    with pytest.raises(ConfigError) as other:
        begin(config, folder, url.replace("/sweeps", "/others"), 1)
    server.stop()
    with pytest.raises(ConfigError) as away:
        read_state(folder, url)
    server.start()
    monkeypatch.setattr(
        sys, "argv", ["promptcomp", "sweep", str(folder.path), "--storage", url.replace("pass-word", "pass-wordy")]
    )
    with pytest.raises(SystemExit):
        main()
    said = f"{other.value} {away.value} {capsys.readouterr()}"
    assert "pass-word" not in said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(b"pass-word" not in path.read_bytes() for path in written)
    assert (folder.path / "storage.txt").read_text() == f"{server.url.replace('postgresql', 'postgresql+psycopg')}\n"
    assert read_state(folder, url).planned == len(config.space["method.num_slots"].values) * config.seeds  # type: ignore[union-attr]
