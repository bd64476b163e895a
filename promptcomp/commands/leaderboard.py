"""`promptcomp leaderboard`: methods and rivals at equal budgets. A track is a sweep; the board is built of files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from promptcomp.commands.common import JsonOption, Overrides, RunByDefault, console_for, show
from promptcomp.commands.sweep import planned
from promptcomp.errors import ConfigError, command
from promptcomp.plain import say

app = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Compare methods and rivals at equal budgets: promptcomp leaderboard TRACK [KEY=VALUE...], or build DIR.",
    epilog="`promptcomp leaderboard run --help` lists the tracks and the options.",
)
FloorOption = Annotated[
    float, Option(min=0.0, max=1.0, help="Share of the full context's gain that is to be kept, for the fewest slots.")
]


@app.command("run")
def leaderboard_run(
    track: Annotated[
        str,
        Argument(
            metavar="TRACK",
            help="demonstrations, instructions, demonstrations_smollm2, instructions_smollm2, or a YAML file.",
        ),
    ],
    overrides: Overrides = None,
    methods: Annotated[str | None, Option(help="Methods, with commas: the track's, or shipped experiments.")] = None,
    slots: Annotated[str | None, Option(help="Budgets in slots, with commas.")] = None,
    bytes_: Annotated[
        str | None, Option("--bytes", help="Budgets as shares of the full context's bytes (1/8,1/16).")
    ] = None,
    rivals: Annotated[str | None, Option(help="Rivals, with commas.")] = None,
    rates: Annotated[str | None, Option(help="Learning rates of all trained rows; dev chooses.")] = None,
    seeds: Annotated[int | None, Option(min=1, help="Seeds of every row.")] = None,
    workers: Annotated[int, Option("--workers", "-w", min=1, help="Trials at a time, each a process.")] = 1,
    floor: FloorOption = 0.95,
    output: Annotated[Path | None, Option("--output", "-o", help="Default: leaderboards/TRACK.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Train nothing: print the plan.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a track and build its board. The same command continues it.

    KEY=VALUE holds for all rows, NAME:KEY=VALUE for one method, sweep.KEY=VALUE for the sweep.
    """
    from promptcomp.leaderboard.track import plan_of, read_track
    from promptcomp.sweeps.checking import check

    given: dict[str, Any] = {"slots": slots, "bytes": bytes_, "rates": rates, "methods": methods, "rivals": rivals}
    listed = {name: _listed(text, f"--{name}") for name, text in given.items() if text is not None}
    plan = plan_of(read_track(track, {**listed, "seeds": seeds}), overrides or ())
    check(plan.sweep)
    folder, console = output or Path("leaderboards") / Path(track).stem, console_for(as_json)
    for row in plan.rows if dry_run else ():
        if row.failure:
            say(console, f"n/a: {row.name}: {row.failure}")
    state = planned(plan.sweep, folder / "sweep", workers, plan.track.split, dry_run, as_json)
    if state is None:
        return
    from promptcomp.leaderboard.board_row import write_rows
    from promptcomp.leaderboard.from_sweep import rows_of_sweep

    words = [word for name, text in given.items() if text is not None for word in (f"--{name}", text)]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    write_rows(folder, rows_of_sweep(plan, state, command("leaderboard", track, *(overrides or ()), *words)))
    _build(folder, floor, as_json)
    if any(trial.status == "failed" for trial in state.trials):
        raise typer.Exit(1)


@app.command("build")
def leaderboard_build(
    folder: Annotated[Path, Argument(metavar="DIR", help="A folder with rows/ROW/SEED.json.")],
    floor: FloorOption = 0.95,
    as_json: JsonOption = False,
) -> None:
    """Build leaderboard.md, leaderboard.json and index.html from the files of rows alone."""
    _build(folder, floor, as_json)


def _listed(text: str, option: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise ConfigError(f"{option} {text!r}: a value is empty; write a,b,c")
    return found


def _build(folder: Path, floor: float, as_json: bool) -> None:
    from promptcomp.leaderboard.board_row import read_rows

    rows = read_rows(folder)
    from promptcomp.leaderboard.board import build_board
    from promptcomp.leaderboard.board_views import print_board, write_board

    board, console = build_board(rows, floor), console_for(as_json)
    page = write_board(board, folder)
    if as_json:
        show(board.model_dump_json())
    else:
        print_board(board, console)
    say(console, f"page: {page}")
