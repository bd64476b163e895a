"""`promptcomp report`: what finished runs have found, as the table of their end and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from promptcomp.commands.common import JsonOption, tell
from promptcomp.commands.completing import run_folders
from promptcomp.documents import how_to_begin
from promptcomp.errors import ConfigError
from promptcomp.files import check_output

if TYPE_CHECKING:
    from rich.console import Console


def report(
    runs: Annotated[list[Path], Argument(help="Run directories, or those of evaluations.", autocompletion=run_folders)],
    output: Annotated[
        Path | None, Option("--output", "-o", help="The page; default: report.html in the run; of several runs, here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page of finished runs (scores, curves, examples, cost, configuration), and print what they found."""
    for run in runs:
        if not run.is_dir():
            raise ConfigError(f"{run}: no such run directory{how_to_begin(run)}")
    several = len(runs) > 1
    path = output or (Path("report.html") if several else runs[0] / "report.html")
    check_output(path, force=True, example="report.html")
    from promptcomp.comparing.comparison import compare
    from promptcomp.comparing.comparison_table import page_tables, print_comparison
    from promptcomp.evaluation.results import read_results
    from promptcomp.report import print_report
    from promptcomp.run.run_page import write_page

    if not several:
        results = read_results(runs[0])
        write_page(path, runs)
        tell({"page": str(path)}, lambda console: print_report(results, console, runs[0], page=path), as_json)
        return
    comparison = compare(*runs, allow_different=True)
    write_page(path, runs, page_tables(comparison), [run.label for run in comparison.runs])

    def show(console: Console) -> None:
        print_comparison(comparison, console)
        console.print(f"as a page  {path}", soft_wrap=True)

    tell({"page": str(path)}, show, as_json)
