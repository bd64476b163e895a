"""`promptcomp sweep work` (started by `sweep`, or by a cluster's jobs) and `promptcomp sweep doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from promptcomp.commands.common import JsonOption, console_for
from promptcomp.errors import command

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A sweep's directory.")]


def sweep_work(
    directory: DirectoryArgument,
    worker: Annotated[int, typer.Option("--worker", min=0, help="Number of this worker, for people.")] = 0,
    devices: Annotated[str, typer.Option("--devices", help="GPUs of this worker, as 0,1; default: as they are.")] = "",
) -> None:
    """Run trials of a sweep one by one until none is left; what `promptcomp sweep` and cluster jobs start."""
    from promptcomp.sweeps.sweep_directory import SweepDirectory
    from promptcomp.sweeps.worker import work

    names = tuple(name.strip() for name in devices.split(",") if name.strip())
    raise typer.Exit(work(SweepDirectory(directory), worker, names, fork=True))


def sweep_doctor(
    directory: DirectoryArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be; a damaged journal is kept as a copy.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look a sweep over: torn journal, stale locks, trials whose process is gone, results that were not told."""
    from promptcomp.sweeps.repair import examine
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    found = examine(SweepDirectory(directory), repair)
    console = console_for(as_json)
    for finding in found:
        mark = "repaired" if finding.repaired else "found"
        advice = f" ({finding.advice})" if finding.advice else ""
        console.print(f"{mark}: {finding.what}{advice}", highlight=False, markup=False, soft_wrap=True)
    left = [finding for finding in found if not finding.repaired]
    if not found:
        console.print("nothing is wrong", highlight=False)
    elif left and not repair:
        repair_it = command("sweep", "doctor", directory, "--repair")
        console.print(f"{repair_it} puts right what can be", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]))
    if left:
        raise typer.Exit(1)
