"""A worker: takes trials one by one, runs each as a child process, tells Optuna how it ended."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import optuna

from promptcomp.config import ConfigError
from promptcomp.errors import Exit, is_full
from promptcomp.files import locked, write_atomic
from promptcomp.lease import Keeper
from promptcomp.run.configured import files_of, find
from promptcomp.run.trial_process import FIT, Ended, WantedRun, attend
from promptcomp.stopping import Stop
from promptcomp.sweeps.attempts import draw_point, is_hopeless, notes_of
from promptcomp.sweeps.outcomes import abandoned, adopt, cell_of, is_ours, report, take_back
from promptcomp.sweeps.planning import UNCOUNTED, Trial, groups, is_double, missing, points_of, used_up
from promptcomp.sweeps.space import PlannedTrial, devices_of, distributions, planned_controls, point_id
from promptcomp.sweeps.storage import PARENT_VARIABLE, exclusive, patiently
from promptcomp.sweeps.study import Sweep, open_sweep
from promptcomp.sweeps.sweep_config import Budget, Scalar
from promptcomp.sweeps.sweep_directory import SweepDirectory


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
    place.check()
    name = f"{socket.gethostname()}-{os.getpid()}"
    stop = Stop(parent=int(os.environ.get(PARENT_VARIABLE, 0)))
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
class Claim:
    """A trial that a worker has taken."""

    trial: Trial
    cell: PlannedTrial
    seen: int = 0
    """Values of its dev metric that the pruner was asked about."""
    size: int = -1
    """Bytes of its metrics.csv at that time."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The loop."""

    sweep: Sweep
    keeper: Keeper
    """This worker's lease."""
    devices: tuple[str, ...]
    """Its CUDA devices."""
    stop: Stop
    command: Sequence[str]
    """Begins a run."""
    fork: bool
    """Runs may be forks of this process."""

    def run(self) -> int:
        """Until nothing is left, a budget is used up, the disk is full or a signal comes. Returns the exit code."""
        pause = 0.2
        while not self.stop.is_set():
            if self._is_disk_full():
                return Exit.NO_SPACE
            try:
                claim = patiently(self._claim, say, self.stop.is_set, _DATABASE_WAIT)
            except InterruptedError:
                break
            except (OSError, ConfigError) as error:  # the last bytes may have gone since we looked, or a user's share
                if is_full(error):
                    reason = getattr(error, "strerror", None) or error
                    say(f"{reason}: no further trial is started; free space and start again")
                    return Exit.NO_SPACE
                raise
            if claim is None:
                time.sleep(pause)
                pause = min(pause * 1.5, 3.0)
            elif isinstance(claim, str):
                say(claim)
                return 0
            else:
                code = self._attend(claim)
                if code is not None:
                    return code
                pause = 0.2
        return self.stop.code

    def _claim(self) -> Claim | str | None:
        """The next trial; None: others run, and one of them may fail or die; a text: why there is none any more.

        Under the planning lock dead workers' trials are taken back, what is left is computed, and its first is begun.

        Raises:
            InterruptedError: stopped while waiting for the lock.
        """
        sweep = self.sweep
        with exclusive(sweep.directory, sweep.address, self.stop.is_set):
            sweep.reload()
            for record in abandoned(sweep):
                take_back(sweep, record, say)
            over = used_up(sweep.config, sweep.records(), sweep.started, datetime.now(UTC))
            if over:
                return f"the budget of {over} is used up"
            claim = self._claim_trial() or self._claim_control()
            if claim is None and not any(is_ours(sweep, each) for each in sweep.records()):
                return "nothing is left to do"
            return claim

    def _claim_trial(self) -> Claim | None:
        study, config = self.sweep.trials, self.sweep.config
        limit = config.budget.trials
        while True:  # again where all that was planned or drawn is refused
            records = study.records()
            points = points_of(config, records)
            planned = missing(config, points, records)
            claim = self._first(planned)
            if claim is not None:
                return claim
            if planned:
                continue
            if config.sampler == "grid" or len(points) >= (config.points or 0):
                return None
            if limit is not None and len(groups(records)) >= limit:
                return None
            drawn = draw_point(study, config, distributions(config), set(points))
            if drawn is None:
                study.set_attribute("exhausted", len(points) * config.seeds)
                return None
            number, params = drawn
            first = Trial(number=number, point=point_id(params), params=params, seed=config.first_seed)
            cell = self._cell(first)
            if cell is None:
                study.fail(number, "void")
                continue
            study.note(number, **notes_of(first), started=datetime.now(UTC).isoformat(), **self._notes(cell))
            self.keeper.note(cell.cell)
            return Claim(first, cell)

    def _claim_control(self) -> Claim | None:
        sweep = self.sweep
        config = sweep.config.model_copy(update={"dropping": None, "budget": Budget()})
        found = planned_controls(config, sweep.directory, sweep.base)
        points: dict[str, Mapping[str, Scalar]] = {each.point: {} for each in found}
        return self._first(missing(config, points, sweep.controls.records()) if points else [])

    def _first(self, planned: Iterable[Trial]) -> Claim | None:
        """Begin the first of the attempts that nobody else has begun (where no lock works on this disk)."""
        for each in planned:
            cell, study = self._cell(each), self.sweep.study_of(each)
            if cell is None:
                continue
            space = {} if each.is_control else distributions(self.sweep.config)
            self.keeper.note(cell.cell)
            number = study.begin(each, space, **self._notes(cell))
            records = study.records()
            if not is_double(next(record for record in records if record.number == number), records):
                return Claim(replace(each, number=number), cell)
            study.fail(number, "void")
            self.keeper.note("")
        return None

    def _cell(self, trial: Trial) -> PlannedTrial | None:
        """The cell of a trial that is to be begun; None where its values contradict each other: it is then recorded as
        if its run had ended with a user's mistake.

        Raises:
            ConfigError: a mistake in the sweep's experiment, whatever the point.
        """
        base = self.sweep.base
        try:
            cell = cell_of(self.sweep, trial, base)
            assert cell is not None
            self.sweep.check_files(files_of(cell.experiment))
        except ConfigError as error:
            study, line = self.sweep.study_of(trial), str(error).splitlines()[-1].strip()
            name, worker = f"{trial.point}-s{trial.seed}", self.keeper.lease.name
            write_atomic(self.sweep.directory.log_of(name), f"error: {error}\n")
            study.fail(study.begin(trial, {}, cell=name, worker=worker, place=self.sweep.place), "config", line)
            say(f"{name}: {_consequence(Ended('config', line), trial, self.sweep.config.retries)}")
            return None
        return cell

    def _notes(self, cell: PlannedTrial) -> dict[str, object]:
        return {
            "cell": cell.cell,
            "worker": self.keeper.lease.name,
            "place": self.sweep.place,
            "run": os.path.relpath(cell.run, self.sweep.directory.path),  # the directory can be moved
            "devices": self._devices_of(cell),
        }

    def _devices_of(self, cell: PlannedTrial) -> int:
        """Devices of a trial; one that takes what there is has its worker's, or those of its cluster's job."""
        trainer, visible = cell.experiment.trainer, os.environ.get("CUDA_VISIBLE_DEVICES", "")
        takes_all = trainer.devices == "auto" and trainer.accelerator in ("auto", "gpu")
        names = [name for name in visible.split(",") if name not in ("", "-1")]
        return len(self.devices or names) or 1 if takes_all else devices_of(cell.experiment)

    def _is_disk_full(self) -> bool:
        free = shutil.disk_usage(self.sweep.directory.path).free
        if free < _FREE:
            say(f"the disk has {free // 2**20} MiB left: no further trial is started; free space and start again")
        return free < _FREE

    def _attend(self, claim: Claim) -> int | None:
        """See to one trial. Returns an exit code when this worker has to end."""
        began = time.monotonic()
        ended = self._carry_out(claim)
        end: str = ended.how
        spent = (time.monotonic() - began) * self._devices_of(claim.cell)
        try:
            patiently(lambda: self._tell(claim, ended, spent), say, lambda: self.stop.count > 1, _DATABASE_WAIT)
        except OSError as error:  # the journal cannot be written: the next worker finds the trial and takes it up
            say(f"{claim.cell.cell}: its end cannot be recorded: {error.strerror or error}")
            end = "disk"
        self.keeper.note("")
        if end == "disk":
            say("the disk is full: no further trial is started; free space and start again, nothing is lost")
            return Exit.NO_SPACE
        if end == "preempted":
            return Exit.PREEMPTED
        return self.stop.code if self.stop.is_set() else None

    def _carry_out(self, claim: Claim) -> Ended:
        """Have a trial's run finished."""
        cell, place = claim.cell, self.sweep.directory
        wanted = WantedRun(
            cell.experiment,
            place.logs / f"{cell.cell}.yaml",
            place.lease_of(cell.cell),
            lambda: (finished_run(cell), cell.run),
            place.log_of(cell.cell),
            self.devices,
        )
        return attend(
            wanted,
            self.stop,
            lambda text: say(f"{cell.cell}, attempt {claim.trial.attempt}: {text}"),
            command=self.command,
            fork=self.fork,
            is_hopeless=lambda: not claim.trial.is_control and self._is_hopeless(claim),
        )

    def _is_hopeless(self, claim: Claim) -> bool:
        """Whether the pruner would stop a trial, asked when there is a new dev value."""
        try:
            size = (claim.cell.run / "metrics.csv").stat().st_size
        except OSError:
            return False
        if size == claim.size:
            return False
        claim.size = size
        sweep, config = self.sweep, self.sweep.config
        try:
            metric, found = report(sweep, claim.trial, claim.cell.run)
            if metric is None or not found or len(found) == claim.seen or max(found) < config.pruning.warmup_steps:
                return False
            claim.seen = len(found)
            trainer = claim.cell.experiment.trainer
            return is_hopeless(sweep.trials, config, claim.trial, trainer, metric)
        except (optuna.exceptions.StorageInternalError, OSError) as error:  # a storage that is away stops no trial
            say(f"{claim.cell.cell}: the pruner failed ({type(error).__name__})")
            return False

    def _tell(self, claim: Claim, ended: Ended, spent: float) -> None:
        """Record in the storage how a trial ended."""
        study, trial, cell = self.sweep.study_of(claim.trial), claim.trial, claim.cell
        if ended.run is not None:
            problem = adopt(self.sweep, trial, ended.run, spent)
            say(f"{cell.cell}: {'finished' if problem is None else problem}")
            return
        if ended.how == "pruned":
            report(self.sweep, trial, cell.run)
            study.prune(trial.number, spent)
        elif ended.how != "done":
            study.fail(trial.number, ended.how, ended.line, spent)
        say(f"{cell.cell}, attempt {trial.attempt}: {_consequence(ended, trial, self.sweep.config.retries)}")


def finished_run(cell: PlannedTrial) -> Path | None:
    """A finished run of the same configuration: its own, or a copy of it beside it."""
    identity = cell.run.name.rpartition("-")[2]
    copies = (other for other in sorted(cell.run.parent.glob(f"*{identity}*")) if other != cell.run)
    return next((run for run in (cell.run, *copies) if find(cell.experiment, run)[0] == "finished"), None)


def _consequence(ended: Ended, trial: Trial, retries: int) -> str:
    line = ended.line
    if ended.how == "pruned":
        return line
    if ended.how in UNCOUNTED:
        return f"{line}; it will be continued"
    if ended.how == "config":
        return f"{line}; it is tried again when the sweep is next started"
    if ended.how == "nan":
        return f"{line}; the same would happen again, so it is not tried again"
    if trial.attempt > retries:
        return f"{line}; no attempt is left"
    return f"{line}; " + ("tried once more at most" if ended.how == "memory" else "it will be tried again")
