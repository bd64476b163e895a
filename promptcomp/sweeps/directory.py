"""A sweep directory: its layout.

sweep.yaml       the sweep as resolved; the same command, or `promptcomp sweep DIR`, continues it
journal.log      Optuna's journal (unless a database is used); optuna-dashboard opens it
runs/            one run directory for each trial, named by its point, seed and identity; a retry continues in it
logs/            what each trial's process printed
report/          plots, tables and index.html
"""

from __future__ import annotations

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
    def report(self) -> Path:
        """Plots, tables and the page."""
        return self.path / "report"

    def log_of(self, cell: str) -> Path:
        """Output of one trial's processes, all attempts."""
        return self.logs / f"{cell}.log"
