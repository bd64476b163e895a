"""A sweep directory: its layout.

sweep.yaml       the sweep as resolved; the same command, or `promptcomp sweep DIR`, continues it
journal.log      Optuna's journal (unless a database is used); optuna-dashboard opens it
runs/            one run directory for each trial, named by its point, seed and identity; a retry continues in it
logs/            what each trial's process printed
leases/          who is at work now: a file for each trainer, and for each worker in leases/workers/
report/          plots, tables and index.html
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SweepDirectory:
    """Paths inside one sweep directory."""

    path: Path

    @property
    def config(self) -> Path:
        """The sweep as resolved."""
        return self.path / "sweep.yaml"

    @property
    def journal(self) -> Path:
        """Optuna's journal file."""
        return self.path / "journal.log"

    @property
    def storage(self) -> Path:
        """The address of a database that is used instead of the journal, without its password."""
        return self.path / "storage.txt"

    @property
    def runs(self) -> Path:
        """Run directories."""
        return self.path / "runs"

    @property
    def controls(self) -> Path:
        """Run directories of the controls."""
        return self.path / "controls"

    @property
    def logs(self) -> Path:
        """Output of the trials' processes."""
        return self.path / "logs"

    @property
    def leases(self) -> Path:
        """Who is at work now."""
        return self.path / "leases"

    @property
    def worker_leases(self) -> Path:
        """The workers that are at work now."""
        return self.leases / "workers"

    @property
    def planning_lock(self) -> Path:
        """Held while a worker plans and claims."""
        return self.leases / "planning.lock"

    @property
    def place(self) -> Path:
        """Identity of this directory: machines that share a database, but no disk, tell their trials apart by it."""
        return self.path / "place.txt"

    @property
    def report(self) -> Path:
        """Plots, tables and the page."""
        return self.path / "report"

    def worker_log(self, number: int) -> Path:
        """What a worker of this machine prints."""
        return self.logs / f"worker-{socket.gethostname()}-{number}.log"

    def lease_of(self, cell: str) -> Path:
        """The lease of one trial's trainer."""
        return self.leases / f"{cell}.json"

    def log_of(self, cell: str) -> Path:
        """Output of one trial's processes, all attempts."""
        return self.logs / f"{cell}.log"
