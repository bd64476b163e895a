"""A sweep under fire: parents, workers and trainers are killed (kill -9) at random moments, until it is finished.

Everything is forked from this process, which has read torch once. Run as `python -m tests.sweeps.fleet DIR KILLS SEED`;
prints what it does.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from promptcomp.lease import is_live, read_lease
from promptcomp.sweeps.running import run_sweep
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.worker import work
from tests.sweeps.helpers import FAKE, sweep_config

CONFIG = {"space": {"method.num_slots": {"values": [1, 2, 3, 4, 5, 6]}}, "seeds": 2, "retries": 50}


class Forked:
    """A forked process with what the sweep asks of one."""

    def __init__(self, target: Callable[[], int], log: Path) -> None:
        sys.stdout.flush()
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                os.setsid()
                with log.open("ab") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                code = target()
            sys.stdout.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """Kill -9."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, sig: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, sig)


def fork_worker(
    directory: SweepDirectory, number: int, devices: tuple[str, ...], env: Mapping[str, str], log: Path
) -> Forked:
    """A worker, without reading torch again."""

    def target() -> int:
        os.environ.update(env)
        return work(directory, number, devices, FAKE)

    return Forked(target, log)


def fork_parent(config: SweepConfig, directory: SweepDirectory, storage: str | None = None, workers: int = 2) -> Forked:
    """`promptcomp sweep`."""
    directory.logs.mkdir(parents=True, exist_ok=True)

    def target() -> int:
        done = run_sweep(
            config, directory, storage=storage, workers=workers, console=Console(file=sys.stdout), start=fork_worker
        )
        return 0 if done else 130

    return Forked(target, directory.logs / "parent.log")


def living(folder: Path) -> list[int]:
    """Process ids of the live leases in a folder."""
    leases = [read_lease(path) for path in sorted(folder.glob("*.json")) if is_live(path)]
    return [lease.pid for lease in leases if lease is not None]


def shoot(rng: random.Random, directory: SweepDirectory, parent: Forked) -> str | None:
    """Kill one process with signal 9; says which."""
    kind = rng.choices(("worker", "trainer", "parent"), (5, 4, 2))[0]
    pids = {"worker": living(directory.worker_leases), "trainer": living(directory.leases), "parent": [parent.pid]}[
        kind
    ]
    if not pids or (kind == "parent" and parent.poll() is not None):
        return None
    pid = rng.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return f"kill -9 {kind} {pid}"
    return None


def main(folder: str, kills: str, seed: str, storage: str | None = None) -> int:
    """Kill `kills` processes, then let the sweep finish."""
    rng, directory = random.Random(int(seed)), SweepDirectory(Path(folder))
    config, began, done = sweep_config(**CONFIG), time.monotonic(), 0

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    parent = fork_parent(config, directory, storage)
    say(f"parent {parent.pid} started")
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(0.1, 0.7))
        code = parent.poll()
        if code == 0:
            say(f"parent {parent.pid} says that the sweep is finished")
            return 0
        if code is not None:
            parent = fork_parent(config, directory, storage)
            say(f"parent {parent.pid} started (the last one ended with {code})")
        elif done < int(kills):
            shot = shoot(rng, directory, parent)
            if shot is not None:
                done += 1
                say(shot)
    parent.kill()
    return 1


def two_parents(folder: str) -> int:
    """Start the same sweep twice at the same moment."""
    directory, config = SweepDirectory(Path(folder)), sweep_config(**CONFIG)
    parents = [fork_parent(config, directory, workers=1) for _ in range(2)]
    return max(parent.wait() for parent in parents)


def one_worker(folder: str) -> int:
    """A worker alone."""
    return work(SweepDirectory(Path(folder)), command=FAKE)


if __name__ == "__main__":
    named = {"two": two_parents, "worker": one_worker}.get(sys.argv[1])
    sys.exit(main(*sys.argv[1:]) if named is None else named(sys.argv[2]))
