"""Processes of one machine that watch each other: when one of them dies, the others end with a message.

Lightning's launcher kills all of them without a word when one that it has started dies, and leaves them alone when the
first one dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from promptcomp.checkpoints.saving import ShardedStrategy
from promptcomp.errors import Exit, known_code
from promptcomp.run.run_directory import told_to_children

_LOOK_EVERY = 0.5
"""Seconds."""
_PATIENCE = 5.0
"""Seconds that a process has to end by itself, with a message of its own, after another one has died."""


class WatchfulLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine; each is watched by the first one, and watches it."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the others (on rank 0), begin to watch, and go on."""
        environment = self.cluster_environment
        if isinstance(environment, LightningEnvironment):
            if environment.creates_processes_externally:
                _watch(_ParentGone())
            else:
                with told_to_children(Path(trainer.logger.save_dir)):
                    self._call_children_scripts()
                _watch(_ChildGone(self.procs))
        return function(*args, **kwargs)


def code_of_lost(launcher: object) -> int:
    """The exit code of the first process that a launcher has started and that has failed, waited for; 1: none has."""
    if not isinstance(launcher, WatchfulLauncher):
        return Exit.CRASHED
    gone, deadline = _ChildGone(launcher.procs), time.monotonic() + _PATIENCE
    while gone() is None and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY)
    return gone.code or Exit.CRASHED


class WatchfulDDP(DDPStrategy):
    """Every device holds the whole model."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout=timeout, gradient_as_bucket_view=True)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = WatchfulLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


class WatchfulFSDP(ShardedStrategy):
    """Every device holds a part of the model."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = WatchfulLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


class _ChildGone:
    """Tells whether one of the started processes has failed, and how."""

    def __init__(self, children: Sequence[subprocess.Popen[Any]]) -> None:
        self._children, self.code = children, 0

    def __call__(self) -> str | None:
        for number, child in enumerate(self._children, start=1):
            code = child.poll()
            if code:
                self.code = code
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"process {number} of this run {how}"
        return None

    def stop_others(self) -> None:
        """They wait for a process that will not answer."""
        for child in self._children:
            if child.poll() is None:
                child.kill()


class _ParentGone:
    """Tells whether the process that has started this one is there no more."""

    def __init__(self) -> None:
        self._parent, self.code = os.getppid(), 0

    def __call__(self) -> str | None:
        return None if os.getppid() == self._parent else "the first process of this run has ended"

    def stop_others(self) -> None:
        """They look for themselves."""


def _watch(gone: _ChildGone | _ParentGone) -> None:
    threading.Thread(target=_look, args=(gone,), daemon=True, name="rank-watch").start()


def _look(gone: _ChildGone | _ParentGone) -> NoReturn:
    while (problem := gone()) is None:
        time.sleep(_LOOK_EVERY)
    time.sleep(_PATIENCE)  # most of the time the process notices by itself, and this thread ends with it
    gone.stop_others()
    print(f"error: {problem}; continue the run with 'promptcomp fit --resume RUN'", file=sys.stderr, flush=True)
    os._exit(known_code(gone.code))
