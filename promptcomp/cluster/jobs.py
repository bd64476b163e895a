"""The jobs below a folder: what SLURM says about them, and what their files say when SLURM has forgotten them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptcomp.cluster import slurm
from promptcomp.cluster.job_record import JobRecord, find_folders, read_records, resubmitted
from promptcomp.cluster.slurm import Entry, SlurmError
from promptcomp.config import ConfigError
from promptcomp.errors import command
from promptcomp.run.run_directory import read_metrics


@dataclass(frozen=True, slots=True)
class JobView:
    """One job (or element of an array) as `promptcomp jobs` shows it."""

    run: str
    """The run (or sweep) directory."""
    id: str
    state: str
    """SLURM's word; FINISHED, STOPPED or UNKNOWN where only the files are left to ask."""
    reason: str
    elapsed: str
    restarts: int | None
    nodes: str
    step: int | None
    """Last step in metrics.csv."""
    metric: str
    """The newest dev result or loss."""
    log: str
    """The log file; empty before there is one."""

    @property
    def is_live(self) -> bool:
        """Waiting or running."""
        return self.state in slurm.LIVE

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Listing:
    """All jobs below a folder."""

    jobs: tuple[JobView, ...]
    remarks: tuple[str, ...]
    """Why SLURM could not be asked."""


def list_jobs(top: Path) -> Listing:
    """The newest job of each run below `top`, and every known element of arrays.

    Raises:
        ConfigError: no such folder, or a damaged jobs.json.
    """
    if not top.is_dir():
        raise ConfigError(f"{top}: no such folder; give the one that the runs are in")
    folders = [(folder, record, number) for folder in find_folders(top) for record, number in _current(folder)]
    known, remarks = _ask([number for _, _, number in folders])
    views: list[JobView] = []
    for folder, record, number in folders:
        entries = [entry for entry in known if entry.job == number]
        views += [_view(folder, record, entry) for entry in entries or [_from_files(folder, record, number)]]
    return Listing(tuple(views), remarks)


def log_tail(view: JobView, lines: int) -> list[str]:
    """The last lines of a job's log."""
    if not view.log:
        return []
    with Path(view.log).open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 400 * lines))
        return file.read().decode("utf-8", errors="replace").splitlines()[-lines:]


def cancel_jobs(top: Path, chosen: Sequence[str], everything: bool) -> list[JobView]:
    """Cancel jobs of ours below `top`, named by run directory or number; returns those that were live.

    Raises:
        ConfigError: a name is no job of ours; SLURM is missing or refuses.
    """
    places = [top] if everything else [Path(name) for name in chosen if os.path.isdir(name)]
    numbers = [name for name in chosen if not os.path.isdir(name)]
    listings = {place: list_jobs(place) for place in (*places, *((top,) if numbers else ()))}
    for listing in listings.values():
        if listing.remarks:
            raise ConfigError(listing.remarks[0])
    views = [view for place in places for view in listings[place].jobs]
    for name in numbers:
        found = [view for view in listings[top].jobs if name in (view.id, view.id.partition("_")[0])]
        if not found:
            raise ConfigError(
                f"{name}: neither a run directory nor a job of a run below {top}; `{command('jobs', top)}` lists ours"
            )
        views += found
    live = {view.id: view for view in views if view.is_live}
    if live:
        slurm.cancel(sorted({number.partition("_[")[0] for number in live}))
    return list(live.values())


def _current(folder: Path) -> Iterable[tuple[JobRecord, str]]:
    """The newest record of a folder with the number it goes by now; all records of arrays."""
    records = read_records(folder).jobs
    again = resubmitted(folder)
    for i, record in enumerate(records):
        newest = i == len(records) - 1
        if record.kind == "array":
            yield record, record.id
            if newest:
                yield from ((record, number) for number in again)
        elif newest:
            later = [number for number in again if int(number) > int(record.id)]
            yield record, later[-1] if later else record.id


def _ask(numbers: list[str]) -> tuple[list[Entry], tuple[str, ...]]:
    """squeue, then sacct for those that the controller has forgotten."""
    if not numbers:
        return [], ()
    try:
        known = [entry for entry in slurm.queue() if entry.job in numbers]
    except SlurmError as error:
        return [], (f"{error}; showing what the files say",)
    forgotten = set(numbers) - {entry.job for entry in known}
    return known + slurm.accounts(sorted(forgotten)), ()


def _view(folder: Path, record: JobRecord, entry: Entry) -> JobView:
    run = folder.parent  # its files by their names: the package of runs would import torch
    step, metric = _progress(run / "metrics.csv") if record.kind == "fit" else (None, "")
    log = folder / f"{entry.id}.out" if "[" not in entry.id else folder / "none"
    return JobView(
        run=str(run),
        id=entry.id,
        state=entry.state,
        reason=entry.reason,
        elapsed=entry.elapsed,
        restarts=entry.restarts,
        nodes=entry.nodes,
        step=step,
        metric=metric,
        log=str(log) if log.is_file() else "",
    )


def _from_files(folder: Path, record: JobRecord, number: str) -> Entry:
    """The state of a job that SLURM does not know."""
    if record.kind == "fit" and (folder.parent / "results.json").is_file():
        return Entry(number, "FINISHED")
    stopped = record.kind == "fit" and (folder.parent / "checkpoints" / "last.ckpt").exists()
    return Entry(number, "STOPPED" if stopped else "UNKNOWN")


def _progress(path: Path) -> tuple[int | None, str]:
    """The last step of metrics.csv, and its newest dev accuracy, dev loss or training loss."""
    rows = read_metrics(path)
    if not rows:  # not there yet
        return None, ""
    step = int(rows[-1]["step"])
    for name in ("dev/accuracy", "dev/loss", "train/loss"):
        value = next((row[name] for row in reversed(rows) if row.get(name)), None)
        if value is not None:
            with contextlib.suppress(ValueError):
                return step, f"{name} {float(value):.3f}"
    return step, ""
