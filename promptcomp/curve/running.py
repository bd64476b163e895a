"""The runs of a curve as child processes, a few at a time. Finished ones are kept, interrupted ones are continued."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from promptcomp.curve.plan import Point
from promptcomp.files import open_append
from promptcomp.run.child import fit_words
from promptcomp.run.finding import find
from promptcomp.stopping import called_at_stop

Start = Callable[[Point, Path], "subprocess.Popen[bytes]"]
"""Begins (or continues) the run of a point in a directory."""
How = Literal["kept", "made", "continued"]
_LOOK_EVERY = 0.2  # seconds
_PATIENCE = 60.0
"""Seconds that a stopped run has for its checkpoint."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a point."""

    point: Point
    run: Path
    how: How
    problem: str | None = None
    """Why there is no result."""


class Interrupted(RuntimeError):
    """A person stopped the curve; the runs have written their checkpoints."""


@dataclass(slots=True)
class _Running:
    point: Point
    run: Path
    how: How
    process: subprocess.Popen[bytes]


class Runner:
    """Runs points in child processes, each `promptcomp fit` in its own directory.

    Args:
        folder: the curve's; runs are in runs/, what they print in logs/.
        workers: most processes at a time.
        start: begins a run; None: `promptcomp fit` with this Python.
        tell: is told of every point that is begun, kept, finished or failed.
    """

    def __init__(
        self, folder: Path, workers: int, tell: Callable[[str], None] = lambda _: None, start: Start | None = None
    ) -> None:
        self._folder, self._workers, self._tell = folder, workers, tell
        self._start = start or self._fit
        self._running: list[_Running] = []
        self._stop = False

    def run(self, points: Sequence[Point]) -> list[Done]:
        """Have every point run; failures are reported, the others go on.

        Raises:
            Interrupted: a person stopped it (SIGINT or SIGTERM).
            ConfigError: a directory cannot be made.
        """
        done: list[Done] = []
        waiting = iter(points)
        with called_at_stop(self._on_signal):
            try:
                while True:
                    done += self._collect()
                    while not self._stop and len(self._running) < self._workers:
                        point = next(waiting, None)
                        if point is None:
                            break
                        kept = self._begin(point)
                        if kept is not None:
                            done.append(kept)
                    if self._stop or not self._running:
                        break
                    time.sleep(_LOOK_EVERY)
            finally:
                self._end_all()
        if self._stop:
            raise Interrupted(f"stopped; {sum(d.problem is None for d in done)} of {len(points)} points are finished")
        order = {id(point): number for number, point in enumerate(points)}
        return sorted(done, key=lambda d: order[id(d.point)])

    def _begin(self, point: Point) -> Done | None:
        run = self._folder / "runs" / point.folder
        state, _ = find(point.experiment, run)
        if state == "finished":
            self._tell(f"{point.title}: kept {run}")
            return Done(point, run, "kept")
        how: How = "made" if state == "missing" else "continued"
        self._tell(f"{point.title}: {'new run' if how == 'made' else 'continuing'} {run}")
        self._running.append(_Running(point, run, how, self._start(point, run)))
        return None

    def _fit(self, point: Point, run: Path) -> subprocess.Popen[bytes]:
        words = fit_words(point.experiment, run, self._folder / "configs" / f"{point.folder}.yaml")
        log = self.log_of(point)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open_append(log) as file:  # a session of its own: Ctrl-C comes to this process, which passes it on once
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        env = dict(os.environ)
        if self._workers > 1:  # several torch processes that each take all cores get in each other's way
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self._workers)))
        return env

    def log_of(self, point: Point) -> Path:
        """What the run of a point has printed."""
        return self._folder / "logs" / f"{point.folder}.log"

    def _collect(self) -> list[Done]:
        ended = [running for running in self._running if running.process.poll() is not None]
        self._running = [running for running in self._running if running.process.poll() is None]
        return [self._outcome(running) for running in ended]

    def _outcome(self, running: _Running) -> Done:
        code, point = running.process.returncode, running.point
        state, _ = find(point.experiment, running.run)
        problem = None
        if code or state != "finished":
            problem = f"exit code {code}: {_last_line(self.log_of(point))}"
            self._tell(f"{point.title}: failed, {problem}")
        else:
            self._tell(f"{point.title}: finished")
        return Done(point, running.run, running.how, problem)

    def _on_signal(self) -> None:
        if self._stop:
            for running in self._running:
                running.process.kill()
        self._stop = True

    def _end_all(self) -> None:
        """Ask what still runs to save its state and stop."""
        for running in self._running:
            running.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _PATIENCE
        while any(running.process.poll() is None for running in self._running) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
        for running in self._running:
            if running.process.poll() is None:
                running.process.kill()
            running.process.wait()
        self._running = []


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return f"no log in {log}"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
    return f"{last} (see {log})"
