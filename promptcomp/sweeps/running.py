"""`promptcomp sweep`: begins or continues a sweep, starts workers, watches them, shows how it goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from rich.console import Console

from promptcomp.config import ConfigError
from promptcomp.stopping import called_at_stop
from promptcomp.sweeps.crew import Crew, Start
from promptcomp.sweeps.space import PlannedTrial, grid, planned_trial
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.study import StateReader, begin
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory


def run_sweep(
    config: SweepConfig,
    directory: SweepDirectory,
    *,
    storage: str | None = None,
    workers: int = 1,
    devices: str | Sequence[str] | None = None,
    console: Console | None = None,
    on_state: Callable[[SweepState], None] | None = None,
    start: Start | None = None,
) -> bool:
    """Run a sweep until all its trials are done, its budget is used up, or somebody stops it.

    Args:
        config: the sweep.
        directory: its own; what is there is continued.
        storage: a database's address; None: a journal file in the directory, or what the sweep was begun with.
        workers: trials at a time on this machine; 0: only write the sweep down (workers are started elsewhere).
        devices: CUDA devices to share out among the workers (a list, or "0,1,2"); None: all that this machine has.
        console: for people.
        on_state: is shown the state, at most twice a second.
        start: begins a worker; None: a process with this Python.

    Returns:
        Whether it has come to its end: every trial is finished, pruned or failed for good, or a budget is used up.
        False: a signal has come; trials that ran have saved their state, the same call continues them.

    Raises:
        ConfigError: a change that finished trials forbid; too few devices; an unusable storage.
    """
    console = console or Console()
    named = [name.strip() for name in devices.split(",")] if isinstance(devices, str) else devices
    shares = share_devices(config, directory, workers, named)
    sweep = begin(config, directory, storage, workers)
    secret = None if sweep.address is None else sweep.address.render_as_string(hide_password=False)
    sweep.close()  # the workers have connections of their own
    reader = StateReader(directory, secret)
    crew = Crew(directory, shares, secret, lambda text: console.print(text, highlight=False, markup=False), start)
    with called_at_stop(crew.stop):
        try:
            crew.watch(reader, on_state)
        finally:
            crew.end()
    state = reader.read()
    reader.close()
    if on_state is not None:
        on_state(state)
    if crew.stopped:
        return False
    if crew.problem:
        raise ConfigError(crew.problem)
    return is_done(state) or state.stopped_by is not None


def is_done(state: SweepState) -> bool:
    """Whether nothing is left to do."""
    over = {"finished", "pruned", "failed"}
    trials = [trial for trial in state.trials if trial.status not in over]
    left_out = _left_out(state)
    controls = [control for control in state.controls if control.status not in over]
    return not trials and not controls and len(state.trials) + left_out >= state.planned


def _left_out(state: SweepState) -> int:
    """Trials that will never be run: further seeds of dropped points."""
    have = {point: sum(trial.point == point for trial in state.trials) for point in state.dropped}
    return sum(state.config.seeds - count for count in have.values())


def share_devices(
    config: SweepConfig, directory: SweepDirectory, workers: int, devices: Sequence[str] | None
) -> list[tuple[str, ...]]:
    """Devices of each worker; empty ones on a machine without CUDA devices.

    Raises:
        ConfigError: too few devices for so many workers, or trials that take several machines.
    """
    cell = _some_cell(config, directory)
    trainer = None if cell is None else cell.experiment.trainer
    per = trainer.devices if trainer is not None and isinstance(trainer.devices, int) else 1
    on_gpu = trainer is None or trainer.accelerator in ("auto", "gpu")
    found = list(devices) if devices is not None else (_cuda_devices() if on_gpu else [])
    if not found or not on_gpu:
        return [()] * workers
    if len(found) < workers * per:
        raise ConfigError(
            f"{workers} workers with {per} device{'s' if per > 1 else ''} each need {workers * per}, and there are "
            f"{len(found)} ({', '.join(found)}); use --workers {max(1, len(found) // per)}"
        )
    return [tuple(found[i * per : (i + 1) * per]) for i in range(workers)]


def _some_cell(config: SweepConfig, directory: SweepDirectory) -> PlannedTrial | None:
    try:
        return planned_trial(config, directory, grid(config)[0], config.first_seed)
    except ConfigError:  # a continuous interval
        return None


def _cuda_devices() -> list[str]:
    """CUDA devices that this process may use, found without starting CUDA here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
