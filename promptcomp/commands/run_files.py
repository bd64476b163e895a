"""What a run leaves: `promptcomp checkpoint ...` (inspect checkpoints, join sharded ones), `export` and `push` (runs
and compressed prompts for other programs and for a hub), `report` (what finished runs have found, as table and page).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from promptcomp.checkpoints.places import places_of, to_join
from promptcomp.commands.common import Commands, JsonOption, console_for, show, tell
from promptcomp.commands.completing import run_folders
from promptcomp.documents import how_to_begin
from promptcomp.errors import ConfigError
from promptcomp.files import check_empty, check_file, check_output
from promptcomp.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.checkpoints.describe import Description

app = typer.Typer(help="Inspect checkpoints, join sharded ones.", no_args_is_help=True, cls=Commands)
_Place = Annotated[Path, Argument(help="A run directory, a checkpoint (file or folder) or an export.")]
MOST_TENSORS = 20
To = Literal["hf", "peft", "tensors", "transformers", "vllm"]
_OF_PROMPTS = ("tensors", "peft", "transformers", "vllm")


@app.command("show")
def checkpoint_show(
    path: _Place,
    every_tensor: Annotated[bool, Option("--all", help="List every tensor.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show its content: format, method, LM, step, trained tensors, the optimiser's state, sizes."""
    places = places_of(path)  # a mistake is told before torch is imported
    from promptcomp.checkpoints.describe import describe

    found = [describe(place) for place in places]
    if as_json:
        print(json.dumps([each.model_dump(mode="json") for each in found]))
        return
    console = console_for(as_json)
    for number, each in enumerate(found):
        if number:
            console.print()
        _print(each, console, every_tensor)


def _print(found: Description, console: Console, every_tensor: bool) -> None:
    from promptcomp.evaluation.formatting import bytes_text
    from promptcomp.terminal import plain_table

    step = "" if found.step is None else f", step {found.step}"
    state = "no optimiser state" if found.optimizer is None else f"optimiser state of {found.optimizer['numbers']:,}"
    lines = [
        found.path,
        f"  {found.kind}, format {found.format}{step}, {bytes_text(found.bytes)}",
        f"  method {found.method} on {found.lm} ({found.family})",
        f"  {found.parameters:,} trained parameters in {len(found.tensors)} tensors, {state}",
    ]
    lines += [f"  {name}: {bytes_text(size)}" for name, size in found.files.items()]
    say(console, "\n".join(lines))
    shown = found.tensors if every_tensor else found.tensors[:MOST_TENSORS]
    rows = [("   ", tensor.name, " x ".join(map(str, tensor.shape)) or "number", tensor.dtype) for tensor in shown]
    console.print(plain_table(("", "tensor", "shape", "dtype"), rows, show_header=False))
    if len(shown) < len(found.tensors):
        console.print(f"    ... and {len(found.tensors) - len(shown)} more (--all)", highlight=False)


@app.command()
def verify(path: _Place, as_json: JsonOption = False) -> None:
    """Read everything; report missing or truncated files and numbers that are not finite. Exit code 1 if damaged."""
    places = places_of(path)
    from promptcomp.checkpoints.describe import damage

    found = {str(place): damage(place) for place in places}
    lines = [line for place, problems in found.items() for line in problems or [f"{place}: fine"]]
    tell(found, "\n".join(lines), as_json)
    if any(found.values()):
        raise typer.Exit(1)


@app.command()
def consolidate(
    path: Annotated[Path, Argument(help="A run directory, or a sharded checkpoint (a folder).")],
    output: Annotated[
        Path | None, Option("--output", "-o", help="The file to write; default: it replaces the folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Join the parts of a sharded checkpoint into one file, which every command takes."""
    to_join(path, output)
    from promptcomp.checkpoints.checkpoint_files import consolidate as join

    file = join(path, output)
    tell({"file": str(file), "bytes": file.stat().st_size}, f"written to {file}", as_json)


def export(
    what: Annotated[
        Path, Argument(help="A run directory made by 'promptcomp fit', or the file of a compressed prompt.")
    ],
    output: Annotated[Path, Option("--output", "-o", help="A new folder.")],
    to: Annotated[
        To | None,
        Option(
            help="Of a run: hf (a transformers folder), peft (adapters, soft prompts) or tensors; default: what suits "
            "the method. Of a prompt: tensors (the file itself), peft, transformers (a cache) or vllm (requests with "
            "embeddings)."
        ),
    ] = None,
    model: Annotated[str | None, Option(help="Of a prompt: a run or LM instead of the one that it names.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's trained parts or a compressed prompt for another program, with a README on how to load it."""
    is_prompt = what.is_file() or what.suffix == ".safetensors"
    if is_prompt and to not in _OF_PROMPTS:
        raise ConfigError(
            f"{what}: is a compressed prompt; give --to {', '.join(_OF_PROMPTS[:-1])} or {_OF_PROMPTS[-1]}"
        )
    if is_prompt:
        check_file(what, "memory file")
        check_empty(output)
        from promptcomp.exports.prompt_export import export_prompt

        found = export_prompt(what, output, str(to), model)
    else:
        if to == "transformers" or to == "vllm" or model is not None:
            option = "--model" if model is not None else f"--to {to}"
            raise ConfigError(f"{what}: {option} goes with a compressed prompt; `promptcomp compress` makes its file")
        from promptcomp.run.configured import trained_experiment

        trained_experiment(what).method.export_format(to)
        check_empty(output)
        from promptcomp.exports.export import export as write

        found = write(what, output, to)
    lines = [f"written to {found.folder} ({found.format}): {', '.join(found.files)}", *found.notes]
    tell(found.model_dump(mode="json"), "\n".join(lines), as_json)


def push(
    folder: Annotated[Path, Argument(help="What 'promptcomp export' has written.")],
    name: Annotated[str, Argument(help="The repository: user/name.")],
    private: Annotated[
        bool, Option("--private", help="Make it a private repository; a public one is refused.")
    ] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Upload without asking for confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload an export to a repository of the Hugging Face hub (HF_ENDPOINT: another), with the token of `hf auth`."""
    from promptcomp.checkpoints.hub import check_name, upload

    check_name(name)
    from promptcomp.exports.card import files_of

    files = files_of(folder)
    from promptcomp.evaluation.formatting import bytes_text

    size = sum((folder / file).stat().st_size for file in files)
    text = f"{len(files)} files, {bytes_text(size)}, to {name}: {', '.join(files)}"
    if not yes:
        say(console_for(as_json), text)
        if not sys.stdin.isatty():
            raise ConfigError("there is no terminal to ask for confirmation; give --yes to upload")
        if not typer.confirm("Upload?", err=True):
            show("nothing was uploaded", file=sys.stderr)
            raise typer.Exit(0)
    address, others = upload(folder, files, name, private=private)
    found = {"repository": name, "files": files, "bytes": size, "commit": address, "other_files": others}
    stay = f"\nalso in it, from before: {', '.join(others)}" if others else ""
    tell(found, f"uploaded {text}{stay}\n{address}", as_json)


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
