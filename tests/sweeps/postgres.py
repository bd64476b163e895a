"""A PostgreSQL server of our own, on loopback, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path


def binaries() -> Path | None:
    """Folder of initdb and pg_ctl (Debian keeps them off the PATH)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    on_path = shutil.which("pg_ctl")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """A server with one database, `sweeps`, for the user `tester`.

    Args:
        folder: where its data is.
    """

    def __init__(self, folder: Path) -> None:
        where = binaries()
        assert where is not None
        self.bin, self.folder, self.data = where, folder, folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        folder.mkdir(parents=True)
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(folder, "postgres", "postgres")
        (folder / "password").write_text("pass-word\n")
        self._run(
            "initdb", "-D", self.data, "-U", "tester", "-A", "scram-sha-256", "--pwfile", folder / "password", "-N"
        )
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "tester", "-w", "sweeps")

    @property
    def url(self) -> str:
        """Address without the password."""
        return f"postgresql://tester@127.0.0.1:{self.port}/sweeps"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k '' -F -c shared_buffers=8MB"
        self._run("pg_ctl", "-D", self.data, "-l", self.folder / "log", "-o", options, "-w", "start")

    def stop(self) -> None:
        """Stop it at once, whoever is connected."""
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")

    def restart(self, pause: float) -> None:
        """Away for some seconds."""
        self.stop()
        time.sleep(pause)
        self.start()

    def _run(self, program: str, *words: object) -> None:
        line = [str(self.bin / program), *(str(word) for word in words)]
        if os.geteuid() == 0:
            line = ["runuser", "-u", "postgres", "--", *line]
        env = {**os.environ, "PGPASSWORD": "pass-word", "LC_ALL": "C.UTF-8"}
        log = (self.folder / "commands.log").open("ab")  # a pipe would stay open as long as the server runs
        with log:
            subprocess.run(line, check=True, stdout=log, stderr=log, env=env, cwd="/", timeout=60)
