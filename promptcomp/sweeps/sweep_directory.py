"""A sweep directory: its layout.

sweep.yaml       the sweep as resolved; the same command, or `promptcomp sweep DIR`, continues it
journal.log      Optuna's journal (unless a database is used); optuna-dashboard opens it
storage.txt      the address of a database that is used instead of the journal, without its password
place.txt        identity of this directory: machines that share a database, but no disk, tell their trials apart by it
runs/            one run directory for each trial, named by its point, seed and identity; a retry continues in it
controls/        run directories of the controls
logs/            what each trial's processes printed, all attempts, and each worker of this machine
leases/          who is at work now: a file for each trainer, and for each worker in leases/workers/
report/          plots, tables and index.html
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from promptcomp.run.run_directory import Inside


@dataclass(frozen=True)
class SweepDirectory:
    """Paths inside one sweep directory; the module says what they hold."""

    path: Path

    config = Inside("sweep.yaml")
    journal = Inside("journal.log")
    storage = Inside("storage.txt")
    place = Inside("place.txt")
    runs = Inside("runs")
    controls = Inside("controls")
    logs = Inside("logs")
    leases = Inside("leases")
    worker_leases = Inside("leases/workers")
    planning_lock = Inside("leases/planning.lock")
    report = Inside("report")

    def worker_log(self, number: int) -> Path:
        """What a worker of this machine prints."""
        return self.logs / f"worker-{socket.gethostname()}-{number}.log"

    def lease_of(self, cell: str) -> Path:
        """The lease of one trial's trainer."""
        return self.leases / f"{cell}.json"

    def log_of(self, cell: str) -> Path:
        """Output of one trial's processes, all attempts."""
        return self.logs / f"{cell}.log"
