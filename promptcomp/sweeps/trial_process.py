"""One trial's process: `promptcomp fit` in a session of its own, and what its end means."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from promptcomp.config import ConfigError
from promptcomp.errors import Exit
from promptcomp.files import locked, open_append
from promptcomp.lease import lease_of, write_lease
from promptcomp.run.child import FIT, Forked, can_fork, fit_words, fork_fit
from promptcomp.run.run_directory import RUN_DIRECTORY_VARIABLE
from promptcomp.sweeps.planning import Kind
from promptcomp.sweeps.space import PlannedTrial
from promptcomp.sweeps.storage import STORAGE_VARIABLE
from promptcomp.sweeps.sweep_directory import SweepDirectory, last_line

_OWN = (STORAGE_VARIABLE, RUN_DIRECTORY_VARIABLE, "MASTER_ADDR", "MASTER_PORT")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
_KINDS: Mapping[int, Kind] = {Exit.NO_SPACE: "disk", Exit.OUT_OF_MEMORY: "memory", Exit.NOT_FINITE: "nan"}

End = Literal["done", "busy"] | Kind


@dataclass(slots=True)
class Child:
    """A running `promptcomp fit`."""

    process: subprocess.Popen[bytes] | Forked
    cell: PlannedTrial
    log: Path
    log_start: int
    """Bytes of the log that earlier attempts wrote."""
    killed_for_memory: int
    """The kernel's count of processes killed for want of memory, before this one."""

    def ask_to_stop(self) -> None:
        """Have it save its state and end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and whatever it has started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def start(
    directory: SweepDirectory,
    cell: PlannedTrial,
    devices: Sequence[str],
    command: Sequence[str] = FIT,
    fork: bool = False,
) -> Child:
    """Begin or continue a trial's run.

    Args:
        directory: the sweep's.
        cell: the trial.
        devices: what CUDA_VISIBLE_DEVICES is to be; empty: as it is here.
        command: what is started.
        fork: this process has computed nothing, so it may be forked.

    Raises:
        ConfigError: the run directory holds something else.
        OSError: the disk is full.
    """
    words = fit_words(cell.experiment, cell.run, directory.logs / f"{cell.cell}.yaml", command)
    log, lease = directory.log_of(cell.cell), directory.lease_of(cell.cell)
    words += ["--lease", str(lease.resolve())]
    with open_append(log) as file:
        log_start = file.seek(0, os.SEEK_END)
        env = environment(os.environ, cell, devices)
        process: subprocess.Popen[bytes] | Forked
        if fork and can_fork(cell.experiment, devices):
            process = fork_fit(words[2:], env, file.fileno())
        else:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C comes to the sweep alone, which passes it on once
            )
    write_lease(lease, lease_of(process.pid))  # until the trainer has read its modules and keeps it itself
    return Child(process, cell, log, log_start, _killed_for_memory())


def environment(outer: Mapping[str, str], cell: PlannedTrial, devices: Sequence[str]) -> dict[str, str]:
    """The environment of a trial's process.

    It knows nothing of the job or launcher around the sweep (Lightning would take its own processes for that job's
    tasks), and nothing of the database.
    """
    env = {
        name: value
        for name, value in outer.items()
        if name not in (*_OWN, *_RANKS) and not name.startswith(("SLURM_", "TORCHELASTIC_", "PMI_", "OMPI_"))
    }
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    if cell.experiment.trainer.devices not in ("auto", 1):
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_busy(run: Path) -> bool:
    """Whether a process works in a run directory (one whose worker has died, perhaps)."""
    config = run / "config.yaml"
    if not config.is_file():
        return False
    try:
        with locked(config):
            return False
    except ConfigError:
        return True


def end_of(child: Child, code: int, *, stopped: bool, finished: bool) -> tuple[End, str]:
    """What the end of a trial's process means.

    Args:
        child: the process.
        code: its exit code, negative for a signal.
        stopped: it was asked to stop.
        finished: its run has results.

    Returns:
        done, busy (another process works in its directory), or why there is no result; and one line for people.
    """
    if code == Exit.FINISHED and finished:
        return "done", ""
    if code == Exit.PREEMPTED:
        return "preempted", "preempted"
    if stopped and code != Exit.NO_SPACE:
        return "interrupted", "stopped"
    line = last_line(child.log, child.log_start)
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        if _killed_for_memory() != child.killed_for_memory or child.killed_for_memory < 0:
            return "memory", f"killed, most likely for want of memory (exit code {code})"
        return "failed", f"killed (exit code {code})"
    if code == Exit.MISTAKE:
        return ("busy", line) if is_busy(child.cell.run) else ("config", line)
    return (_KINDS[code], line) if code in _KINDS else ("failed", f"exit code {code}: {line}")


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for want of memory; -1 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return -1
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), -1)
