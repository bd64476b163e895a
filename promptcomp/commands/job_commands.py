"""`promptcomp jobs` and `promptcomp cancel`: our jobs on a SLURM cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcomp.commands.common import JsonOption, console_for
from promptcomp.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.cluster.jobs import JobView


def jobs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder to look below: a run, or many.")] = Path(
        "runs"
    ),
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Show the last lines of each job's log.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Our jobs below a folder: state, reason, time, restarts, step, newest metric; also those SLURM has forgotten."""
    from promptcomp.cluster.jobs import list_jobs, log_tail

    console = console_for(as_json)
    found = list_jobs(folder)
    if as_json:
        listed = [{**view.as_json(), "tail": log_tail(view, tail)} for view in found.jobs]
        print(json.dumps({"jobs": listed, "remarks": list(found.remarks)}))
        return
    for remark in found.remarks:
        console.print(remark, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not found.jobs:
        console.print(
            f"no jobs below {folder}; 'promptcomp fit ... --slurm' submits one", highlight=False, soft_wrap=True
        )
        return
    _print_table(found.jobs, folder, console)
    for view in found.jobs if tail else ():
        console.print(f"\n{view.id}  {view.log or '(no log yet)'}", style="bold", markup=False, highlight=False)
        for line in log_tail(view, tail):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def cancel(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN|JOB]...", help="Run directories or job numbers.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every job of ours below --dir.")] = False,
    folder: Annotated[Path, typer.Option("--dir", help="Folder that our runs are in.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Cancel jobs that 'promptcomp' has submitted, never others. What a run has saved stays and can be continued."""
    from promptcomp.cluster.jobs import cancel_jobs

    if bool(targets) == everything:
        raise ConfigError("name run directories or job numbers, or give --all alone")
    done = cancel_jobs(folder, targets or [], everything)
    if as_json:
        print(json.dumps({"cancelled": [view.as_json() for view in done]}))
        return
    console = console_for(False)
    for view in done:
        console.print(f"cancelled job {view.id} of {view.run}", highlight=False, soft_wrap=True)
    if not done:
        console.print("nothing to cancel: no job of ours waits or runs there", highlight=False)


def _print_table(found: tuple[JobView, ...], folder: Path, console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("job", "state", "reason", "time", "restarts", "step", "newest", "run"):
        table.add_column(name, justify="right" if name in ("time", "restarts", "step") else "left", overflow="fold")
    for view in found:
        run = Path(view.run)
        values = (
            view.id, view.state, view.reason, view.elapsed, view.restarts, view.step, view.metric,
            run.relative_to(folder) if run != folder else run.name,
        )  # fmt: skip
        table.add_row(*("" if value is None else str(value) for value in values))
    console.print(table, highlight=False, markup=False)
