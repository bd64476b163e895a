"""A run in a process of its own: a trial of a sweep, or one of the runs of `fit --with-controls`.

It is found, waited for, continued or begun, and watched to its end; how it ended is its exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptcomp.config import ConfigError, dump
from promptcomp.errors import Exit, is_full
from promptcomp.experiment import Experiment
from promptcomp.files import last_line, open_append, take_lock, write_atomic
from promptcomp.lease import STORAGE_VARIABLE, is_live, lease_of, write_lease
from promptcomp.run.forking import Forked, can_fork, fork_module
from promptcomp.run.run_directory import RUN_DIRECTORY_VARIABLE, clear_unstarted
from promptcomp.stopping import Stop

FIT = (sys.executable, "-m", "promptcomp", "fit")
End = Literal["interrupted", "preempted", "disk", "failed", "memory", "nan", "config"]
"""Why a run has no results: interrupted, preempted, disk: it can be continued; memory: out of memory; nan: a loss that
is not finite; config: a mistake of the user's."""
_ENDS: Mapping[int, End] = {
    Exit.NO_SPACE: "disk", Exit.OUT_OF_MEMORY: "memory", Exit.NOT_FINITE: "nan", Exit.MISTAKE: "config",
}  # fmt: skip
_LOOK_EVERY = 0.25  # seconds between two looks at a process, at most
_PATIENCE = 120.0  # seconds that a stopped trial has for its checkpoint
_OWN = (STORAGE_VARIABLE, RUN_DIRECTORY_VARIABLE, "MASTER_ADDR", "MASTER_PORT")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")


@dataclass(frozen=True, slots=True)
class WantedRun:
    """A run that is to be finished by a process of its own."""

    experiment: Experiment
    config: Path
    """File that its process reads the configuration of a new run from."""
    lease: Path
    """Where its process says that it works on it."""
    find: Callable[[], tuple[Path | None, Path | None]]
    """A finished run of it; the directory where one is to be made or continued (None: it makes one itself)."""
    log: Path | None = None
    """What it prints; None: on standard error as it goes, its standard output is dropped."""
    devices: tuple[str, ...] = ()
    """What CUDA_VISIBLE_DEVICES is to be; empty: as it is here."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What has become of a run."""

    how: Literal["done", "pruned"] | End
    line: str = ""
    """For people; empty where the process has said it where they read."""
    code: int = Exit.FINISHED
    """The exit code; negative: the signal that has killed it."""
    origin: Literal["reused", "resumed", "made"] = "made"
    run: Path | None = None
    """The finished run."""


def attend(
    wanted: WantedRun,
    stop: Stop,
    say: Callable[[str], None],
    *,
    command: Sequence[str] = FIT,
    fork: bool = False,
    is_hopeless: Callable[[], bool] = lambda: False,
    patience: float = _PATIENCE,
) -> Ended:
    """Have a run finished: found, waited for, continued or made.

    Args:
        wanted: the run.
        stop: whether to have it save its state and end; a second signal ends it at once.
        say: is told what is done.
        command: begins a run.
        fork: this process has computed nothing, so it may be forked.
        is_hopeless: asked again and again; the run is ended when it says so.
        patience: seconds that it has to end once it is asked to.
    """
    while True:
        finished, run = wanted.find()
        if finished is not None:
            say(f"reusing {finished}")
            return Ended("done", origin="reused", run=finished)
        if stop.is_set():
            return Ended("interrupted", "stopped", stop.code)
        if is_live(wanted.lease) or (run is not None and is_busy(run)):
            say("another process has it; waiting for that one")
            while not stop.is_set() and (is_live(wanted.lease) or (run is not None and is_busy(run))):
                time.sleep(_LOOK_EVERY)
            continue
        begun = run is not None and (run / "config.yaml").is_file()
        say(f"{'continuing' if begun else 'new run'} {run or ''}".rstrip())
        try:
            words = fit_words(wanted.experiment, run, wanted.config, command)
            child = Child(wanted, words, fork)
        except (ConfigError, OSError) as error:
            full = not isinstance(error, ConfigError) or is_full(error)
            return Ended("disk" if full else "config", str(error), Exit.NO_SPACE if full else Exit.MISTAKE)
        pruned = child.watch(stop, is_hopeless, patience)
        code = child.process.returncode or 0
        child.kill()  # ranks that are left over when the first one was killed
        wanted.lease.unlink(missing_ok=True)
        finished, run = wanted.find()
        origin: Literal["resumed", "made"] = "resumed" if begun else "made"
        if finished is None and pruned:
            return Ended("pruned", "stopped as hopeless", code)
        if finished is not None and code == Exit.FINISHED:
            return Ended("done", origin=origin, run=finished)
        if code != Exit.MISTAKE or run is None or not is_busy(run):  # else somebody was faster
            kind, line = child.end_of(code, stop.is_set())
            return Ended(kind, line, stop.code if kind == "interrupted" and stop.is_set() else code, origin)


def fit_words(experiment: Experiment, run: Path | None, config: Path, command: Sequence[str] = FIT) -> list[str]:
    """The command that continues the run in a directory, or begins it there.

    Args:
        experiment: what is to run.
        run: its directory; what a killed process has left there before there was a run is removed. None: a new one,
            which the run makes under its output_dir.
        config: file that the configuration of a new run is written to.
        command: what is started.

    Raises:
        ConfigError: the directory holds something else.
        OSError: the disk is full.
    """
    if run is not None and (run / "config.yaml").is_file():
        return [*command, "--resume", str(run)]
    if run is not None:
        clear_unstarted(run)
        with contextlib.suppress(OSError):
            run.rmdir()
        if run.is_dir():
            raise ConfigError(f"{run} holds files but no run; move it away")
    config.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config, dump(experiment))
    return [*command, "--config", str(config), *(() if run is None else ("--run-dir", str(run)))]


def is_busy(run: Path) -> bool:
    """Whether a process works in a run directory (one whose worker has died, perhaps)."""
    config = run / "config.yaml"
    if not config.is_file():
        return False
    try:
        with open_append(config) as file:
            return not take_lock(file)
    except ConfigError:  # nobody can write it: the run itself says why
        return False


class Child:
    """A running `promptcomp fit`, in a session of its own: Ctrl-C comes to who has started it, and is passed on once.

    Args:
        wanted: the run.
        words: the command.
        fork: this process has computed nothing, so it may be forked.

    Raises:
        ConfigError: its log is none.
        OSError: the disk is full.
    """

    def __init__(self, wanted: WantedRun, words: Sequence[str], fork: bool) -> None:
        self._log, self._log_start = wanted.log, 0
        env = environment(os.environ, wanted)
        words = [*words, "--lease", str(wanted.lease.resolve())]
        with contextlib.ExitStack() as stack:
            if wanted.log is None:
                error: Any = None
                output: Any = stack.enter_context(open(os.devnull, "ab"))
                words = [*words, "--json"]
            else:
                error = output = stack.enter_context(open_append(wanted.log))
                self._log_start = output.seek(0, os.SEEK_END)
            self.process: subprocess.Popen[bytes] | Forked
            if fork and can_fork(wanted.experiment):
                self.process = fork_module(words[2:], env, output.fileno(), 2 if error is None else error.fileno())
            else:
                self.process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=output, stderr=error, env=env, start_new_session=True
                )
        write_lease(wanted.lease, lease_of(self.process.pid))  # until it has read its modules and keeps it itself
        self._killed_for_memory = _killed_for_memory()

    def watch(self, stop: Stop, is_hopeless: Callable[[], bool], patience: float) -> bool:
        """Wait for its end; pass on the wish to stop. Returns whether it was ended as hopeless."""
        pruned, asked_at, pause = False, None, 0.02
        while self.process.poll() is None:
            if asked_at is None and not stop.is_set():
                pruned = is_hopeless()
            if asked_at is None and (pruned or stop.is_set()):
                with contextlib.suppress(ProcessLookupError):
                    self.process.send_signal(signal.SIGTERM)  # it saves its state and ends
                asked_at = time.monotonic()
            if asked_at is not None and (stop.count > 1 or time.monotonic() - asked_at > patience):
                self.kill()
            time.sleep(pause)
            pause = min(1.5 * pause, _LOOK_EVERY)
        return pruned

    def kill(self) -> None:
        """End it and whatever it has started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end_of(self, code: int, stopped: bool) -> tuple[End, str]:
        """Why it has ended without results, and one line for people.

        Args:
            code: its exit code, negative for a signal.
            stopped: it was asked to stop.
        """
        if code == Exit.PREEMPTED:
            return "preempted", "preempted"
        if code == Exit.INTERRUPTED or (stopped and code != Exit.NO_SPACE):
            return "interrupted", "stopped"
        line = "" if self._log is None else last_line(self._log, self._log_start)
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            if _killed_for_memory() != self._killed_for_memory or self._killed_for_memory < 0:
                return "memory", f"killed, most likely for lack of memory (exit code {code})"
            return "failed", f"killed (exit code {code})"
        return (_ENDS[code], line) if code in _ENDS else ("failed", f"exit code {code}: {line}")


def environment(outer: Mapping[str, str], wanted: WantedRun) -> dict[str, str]:
    """The environment of a run's process.

    It knows nothing of the job or launcher around this one (Lightning would take its own processes for that job's
    tasks), and nothing of a sweep's database.
    """
    env = {
        name: value
        for name, value in outer.items()
        if name not in (*_OWN, *_RANKS) and not name.startswith(("SLURM_", "TORCHELASTIC_", "PMI_", "OMPI_"))
    }
    if wanted.devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(wanted.devices)
    if wanted.experiment.trainer.devices not in ("auto", 1):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    return env


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for want of memory; -1 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return -1
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), -1)
