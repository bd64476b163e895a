"""A worker: takes trials one by one, runs each as a child process, tells Optuna what became of it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import optuna

from promptcomp.config import ConfigError
from promptcomp.errors import Exit, is_full
from promptcomp.files import locked
from promptcomp.lease import Keeper
from promptcomp.run.child import FIT
from promptcomp.run.configured import find
from promptcomp.stopping import is_preemption
from promptcomp.sweeps.claims import Claim, Desk, adopt, devices_of, report
from promptcomp.sweeps.planning import UNCOUNTED, Kind, TrialRecord
from promptcomp.sweeps.queue import bracket_of, comparable_part, pruner_of, should_prune
from promptcomp.sweeps.storage import PARENT_VARIABLE, patiently
from promptcomp.sweeps.study import Sweep, open_sweep
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.trial_process import Child, End, end_of, is_busy, start


class Stop:
    """Whether this worker should end, and how. Signals only set it."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.count = 0
        self._parent = int(os.environ.get(PARENT_VARIABLE, "0"))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Catch the signals that end a worker."""
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            before[number] = signal.signal(number, self._caught)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number
        self.count += 1

    def is_set(self) -> bool:
        """Whether to end: a signal has come, or the parent is gone."""
        if self.received is None and self._parent and os.getppid() != self._parent:
            self.received = signal.SIGTERM
        return self.received is not None

    @property
    def code(self) -> int:
        """Exit code."""
        return Exit.PREEMPTED if is_preemption(self.received) else Exit.INTERRUPTED


@contextlib.contextmanager
def devices_held(directory: SweepDirectory, devices: Sequence[str], stop: Stop) -> Iterator[bool]:
    """Hold this machine's devices against other workers of the same sweep (a second `promptcomp sweep`)."""
    with contextlib.ExitStack() as stack:
        directory.leases.mkdir(parents=True, exist_ok=True)
        try:
            for device in devices:
                path = directory.leases / f"device-{socket.gethostname()}-{device.replace('/', '_')}.lock"
                waiting = f"device {device} belongs to another worker of this sweep; waiting for it"
                stack.enter_context(locked(path, functools.partial(say, waiting), stop.is_set))
        except InterruptedError:
            yield False
        else:
            yield True


def say(text: str) -> None:
    """One line of the worker's log, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


_LOOK_EVERY = 0.25  # seconds between two looks at a child
_PATIENCE = 120.0  # seconds that a stopped child has for its checkpoint
_DATABASE_WAIT = 600.0  # seconds that a database may be away
_FREE = 16 * 2**20  # bytes; with less on the disk no trial is begun


def work(
    directory: SweepDirectory | Path,
    worker: int = 0,
    devices: Sequence[str] = (),
    command: Sequence[str] = FIT,
    fork: bool = False,
) -> int:
    """Work on a sweep until nothing is left to do.

    Args:
        directory: the sweep's.
        worker: this worker's number, for people.
        devices: CUDA devices of this worker; empty: as the environment has it.
        command: begins a run.
        fork: this process is a worker and nothing else: runs on one device may be forks of it.

    Returns:
        0 when nothing is left (or a budget is used up), 74 on a full disk, 75 when preempted, 130 when stopped.

    Raises:
        ConfigError: no sweep, or a storage that cannot be used.
    """
    place = directory if isinstance(directory, SweepDirectory) else SweepDirectory(directory)
    name = f"{socket.gethostname()}-{os.getpid()}"
    stop = Stop()
    with stop.installed(), devices_held(place, devices, stop) as held:
        if not held:
            return stop.code
        sweep = patiently(lambda: open_sweep(place), say, stop.is_set, _DATABASE_WAIT)
        with Keeper(place.worker_leases / f"{name}.json") as keeper:
            try:
                return Worker(sweep, keeper, tuple(devices), stop, command, fork).run()
            finally:
                sweep.close()


@dataclass(slots=True)
class _Pruning:
    """What is known of a running trial's dev metric."""

    seen: int = 0
    size: int = -1


class Worker:
    """The loop.

    Args:
        sweep: what to work on.
        keeper: this worker's lease.
        devices: its CUDA devices.
        stop: whether to end.
        command: begins a run.
        fork: runs may be forks of this process.
    """

    def __init__(
        self, sweep: Sweep, keeper: Keeper, devices: tuple[str, ...], stop: Stop, command: Sequence[str], fork: bool
    ) -> None:
        self.sweep, self.keeper, self.devices, self.stop = sweep, keeper, devices, stop
        self.command, self.fork = command, fork
        self.desk = Desk(sweep, keeper, say)

    def run(self) -> int:
        """Until nothing is left, a budget is used up, the disk is full or a signal comes. Returns the exit code."""
        pause = 0.2
        while not self.stop.is_set():
            if self._is_disk_full():
                return Exit.NO_SPACE
            try:
                claim = patiently(lambda: self.desk.claim(self.stop.is_set), say, self.stop.is_set, _DATABASE_WAIT)
            except InterruptedError:
                break
            except (OSError, ConfigError):  # the last bytes may have gone since we looked
                if self._is_disk_full():
                    return Exit.NO_SPACE
                raise
            if isinstance(claim, Claim):
                code = self._attend(claim)
                if code is not None:
                    return code
                pause = 0.2
            elif claim.why == "wait":  # others run: one of them may fail or die
                time.sleep(pause)
                pause = min(pause * 1.5, 3.0)
            else:
                say(f"the budget of {claim.detail} is used up" if claim.why == "budget" else "nothing is left to do")
                return 0
        return self.stop.code

    def _is_disk_full(self) -> bool:
        free = shutil.disk_usage(self.sweep.directory.path).free
        if free < _FREE:
            say(f"the disk has {free // 2**20} MiB left: no further trial is begun; free space and start again")
        return free < _FREE

    def _attend(self, claim: Claim) -> int | None:
        """See to one trial. Returns an exit code when this worker has to end."""
        began = time.monotonic()
        end, line = self._carry_out(claim)
        spent = (time.monotonic() - began) * devices_of(claim.cell)
        try:
            patiently(lambda: self._tell(claim, end, line, spent), say, lambda: self.stop.count > 1, _DATABASE_WAIT)
        except OSError as error:  # the journal cannot be written: the next worker finds the trial and takes it up
            say(f"{claim.cell.cell}: cannot tell what became of it: {error.strerror or error}")
            end = "disk"
        self.keeper.note("")
        if end == "disk":
            say("the disk is full: no further trial is begun; free space and start again, nothing is lost")
            return Exit.NO_SPACE
        if end == "preempted":
            return Exit.PREEMPTED
        return self.stop.code if self.stop.is_set() else None

    def _carry_out(self, claim: Claim) -> tuple[End | str, str]:
        """Have a trial's run finished: found, waited for, continued or made."""
        cell = claim.cell
        what = f"{cell.cell}, attempt {claim.attempt}"
        while True:
            found = self._finished_run(claim)
            if found is not None:
                say(f"{what}: reusing {found}")
                return "done", str(found)
            if is_busy(cell.run):
                say(f"{what}: a trainer without a worker has it; waiting for that one")
                if not self._wait_until_free(cell.run):
                    return "interrupted", "stopped while another trainer had it"
                continue
            say(f"{what}: {'continuing' if (cell.run / 'config.yaml').is_file() else 'new run'} {cell.run}")
            try:
                child = start(self.sweep.directory, cell, self.devices, self.command, self.fork)
            except ConfigError as error:
                return "disk" if is_full(error) else "config", str(error)
            except OSError as error:
                return "disk", f"cannot be begun: {error.strerror or error}"
            pruned = self._watch(claim, child)
            code = child.process.returncode or 0
            child.kill()  # ranks that are left over when the first one was killed
            self.sweep.directory.lease_of(cell.cell).unlink(missing_ok=True)
            finished = find(cell.experiment, cell.run)[0] == "finished"
            if pruned and not finished:
                return "pruned", "stopped as hopeless"
            end, line = end_of(child, code, stopped=self.stop.is_set(), finished=finished)
            if end != "busy":
                return end, str(cell.run) if end == "done" else line

    def _finished_run(self, claim: Claim) -> Path | None:
        """A finished run of the same configuration: its own, or a copy of it under its output_dir."""
        own = claim.cell.run
        identity = own.name.rpartition("-")[2]
        for run in (own, *(other for other in sorted(own.parent.glob(f"*{identity}*")) if other != own)):
            if find(claim.cell.experiment, run)[0] == "finished":
                return run
        return None

    def _wait_until_free(self, run: Path) -> bool:
        while is_busy(run):
            if self.stop.is_set():
                return False
            time.sleep(1.0)
        return True

    def _watch(self, claim: Claim, child: Child) -> bool:
        """Wait for a child; report its dev metric; pass on the wish to stop. Returns whether it was pruned."""
        progress, pruned, asked_at, pause = _Pruning(), False, None, 0.02
        while child.process.poll() is None:
            if asked_at is None and not claim.queue.is_control and not self.stop.is_set():
                pruned = self._is_hopeless(claim, progress)
            if asked_at is None and (pruned or self.stop.is_set()):
                child.ask_to_stop()
                asked_at = time.monotonic()
            if asked_at is not None and (self.stop.count > 1 or time.monotonic() - asked_at > _PATIENCE):
                child.kill()
            time.sleep(pause)
            pause = min(1.5 * pause, _LOOK_EVERY)
        return pruned

    def _is_hopeless(self, claim: Claim, progress: _Pruning) -> bool:
        """Whether the pruner would stop a trial, asked when there is a new dev value."""
        try:
            size = (claim.cell.run / "metrics.csv").stat().st_size
        except OSError:
            return False
        if size == progress.size:
            return False
        progress.size = size
        sweep, config = self.sweep, self.sweep.config
        try:
            metric, found = report(sweep, claim.queue, claim.number, claim.cell.run)
            if metric is None or len(found) == progress.seen or max(found) < config.pruning.warmup_steps:
                return False
            progress.seen = len(found)
            trainer = claim.cell.experiment.trainer
            bracket = bracket_of(config, claim.number, trainer.eval_every, trainer.max_steps)
            pruner = pruner_of(config, trainer.eval_every, bracket)
            if pruner is None:
                return False
            own = comparable_part(config, claim.cell.params, metric)

            def is_comparable(record: TrialRecord) -> bool:
                same = comparable_part(config, record.params, metric) == own and record.state != "fail"
                return same and bracket == bracket_of(config, record.number, trainer.eval_every, trainer.max_steps)

            return should_prune(claim.queue, claim.number, pruner, is_comparable)
        except (optuna.exceptions.StorageInternalError, OSError) as error:  # a storage that is away stops no trial
            say(f"{claim.cell.cell}: the pruner could not be asked ({type(error).__name__})")
            return False

    def _tell(self, claim: Claim, end: End | str, line: str, spent: float) -> None:
        """Tell the storage what became of a trial."""
        queue, number, cell = claim.queue, claim.number, claim.cell
        if end == "done":
            problem = adopt(self.sweep, queue, number, Path(line), spent)
            say(f"{cell.cell}: {'finished' if problem is None else problem}")
            return
        if end == "pruned":
            report(self.sweep, queue, number, cell.run)
            queue.prune(number, spent)
        else:
            kind: Kind = end  # type: ignore[assignment]
            queue.fail(number, kind, line, spent)
        say(f"{cell.cell}, attempt {claim.attempt}: {_consequence(end, line, claim, self.sweep.config.retries)}")


def _consequence(end: str, line: str, claim: Claim, retries: int) -> str:
    if end == "pruned":
        return line
    if end in UNCOUNTED:
        return f"{line}; it goes back into the queue"
    if end in ("config", "nan"):
        return f"{line}; the same would happen again, so it is not tried again"
    if claim.attempt > retries:
        return f"{line}; no attempt is left"
    return f"{line}; " + ("tried once more at most" if end == "memory" else "it will be tried again")
