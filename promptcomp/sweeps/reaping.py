"""What became of trials: dead workers' ones are taken back, finished runs are adopted, dev metrics are passed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from promptcomp.config import ConfigError
from promptcomp.run.finding import find
from promptcomp.sweeps.planning import Record
from promptcomp.sweeps.queue import Queue
from promptcomp.sweeps.snapshot import Leases
from promptcomp.sweeps.space import Cell, cell_of, control_cells
from promptcomp.sweeps.study import Sweep
from promptcomp.sweeps.values import constraint_values, dev_reports, is_lower_better, metric_rows, objective_values

Say = Callable[[str], None]


def is_ours(sweep: Sweep, record: Record) -> bool:
    """Whether an attempt is running in this directory (machines that share only a database have others)."""
    return record.state == "running" and record.place in ("", sweep.place)


def abandoned(sweep: Sweep) -> list[tuple[Queue, Record, bool]]:
    """Running attempts whose worker and trainer are gone, with their queue and whether they are controls."""
    leases = Leases(sweep.directory)
    return [
        (queue, record, is_control)
        for queue, is_control in ((sweep.trials, False), (sweep.controls, True))
        for record in queue.records()
        if is_ours(sweep, record) and not leases.has(record, is_control)
    ]


def reap(sweep: Sweep, say: Say) -> None:
    """Take back abandoned trials; those that have results are adopted. For holders of the planning lock."""
    for queue, record, is_control in abandoned(sweep):
        _take_back(sweep, queue, record, is_control, say)


def _take_back(sweep: Sweep, queue: Queue, record: Record, is_control: bool, say: Say) -> None:
    what = f"{'control' if is_control else 'trial'} {record.number} ({record.cell or 'no cell'})"
    if not record.cell:
        queue.drop(record.number)  # killed between drawing a point and noting it
        return
    spent, run = _spent(sweep, record), run_of(sweep, record, is_control)
    if is_finished(sweep, record, run, is_control):
        say(f"{what}: its worker is gone, its run is finished: adopted")
        adopt(sweep, queue, record.number, run, spent, is_control)
    elif not record.worker:
        queue.fail(record.number, "interrupted", "its worker died before it began")
    else:
        say(f"{what}: its worker and its trainer are gone; attempt {record.attempt} is over")
        queue.fail(record.number, "lost", f"worker {record.worker} and its trainer died", spent)
    sweep.directory.lease_of(record.cell).unlink(missing_ok=True)


def run_of(sweep: Sweep, record: Record, is_control: bool) -> Path:
    """The run directory of an attempt."""
    directory = sweep.directory
    folder = directory.controls if is_control else directory.runs
    return directory.path / record.run if record.run else folder / record.cell


def is_finished(sweep: Sweep, record: Record, run: Path, is_control: bool) -> bool:
    """Whether a run directory holds the finished run of a trial."""
    if not (run / "results.json").is_file():
        return False
    try:
        cell = cell_of_record(sweep, record, is_control)
    except ConfigError:
        return False
    return cell is not None and find(cell.experiment, run)[0] == "finished"


def _spent(sweep: Sweep, record: Record) -> float:
    """Device seconds of a dead attempt: from its beginning to its lease's last touch."""
    if record.started is None:
        return 0.0
    try:
        last = sweep.directory.lease_of(record.cell).stat().st_mtime
    except OSError:
        return 0.0
    return max(0.0, last - record.started.timestamp()) * record.devices


def cell_of_record(sweep: Sweep, record: Record, is_control: bool) -> Cell | None:
    """The cell of an attempt; None for a control that the sweep no longer has.

    Raises:
        ConfigError: the sweep no longer has the point.
    """
    if is_control:
        return controls_of(sweep).get(record.key)
    return cell_of(sweep.config, sweep.directory, record.params, record.seed)


def controls_of(sweep: Sweep) -> dict[tuple[str, int], Cell]:
    """The controls: name and seed -> cell."""
    return {(each.point, each.seed): each for each in control_cells(sweep.config, sweep.directory)}


def adopt(sweep: Sweep, queue: Queue, number: int, run: Path, device_seconds: float, is_control: bool) -> str | None:
    """Tell the results of a finished run.

    Returns:
        Why it has no value; None: it has been told (by this worker, or by another one before).
    """
    queue.note(number, run=relative(run, sweep.directory.path))
    if is_control:
        queue.complete(number, [0.0], {}, device_seconds)  # its values are read from its run
        return None
    try:
        values = list(objective_values(sweep.config, run).values())
        constraints = constraint_values(sweep.config, run)
    except ConfigError as error:
        queue.fail(number, "value", str(error), device_seconds)
        return str(error)
    report(sweep, queue, number, run)
    queue.complete(number, values, constraints, device_seconds)
    return None


def report(sweep: Sweep, queue: Queue, number: int, run: Path) -> tuple[str | None, dict[int, float]]:
    """Tell Optuna the dev metric of a run so far, better ones in the direction of the objective.

    Returns:
        The metric and its values.
    """
    metric, found = dev_reports(metric_rows(run), sweep.config.pruning.metric)
    if metric is None or len(sweep.config.objectives) > 1:  # Optuna takes reports for one objective only
        return metric, found
    lower = sweep.config.objectives[0].direction == "minimize"
    queue.report(number, found, 1.0 if is_lower_better(metric) == lower else -1.0)
    return metric, found


def devices_of(cell: Cell) -> int:
    """Devices (on CPU: processes) of a trial."""
    devices = cell.experiment.trainer.devices
    return devices if isinstance(devices, int) else 1


def relative(run: Path, folder: Path) -> str:
    """A run's place as noted: below the sweep's directory where it is there, so that the directory can be moved."""
    try:
        return str(run.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(run.resolve())
