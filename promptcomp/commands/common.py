"""Options and small helpers that commands share. Nothing heavy is imported here."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from promptcomp.commands import completing
from promptcomp.errors import ConfigError
from promptcomp.plain import printable, say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Overrides = Annotated[
    list[str] | None,
    Argument(
        metavar="KEY=VALUE",
        help="Configuration overrides, for example optim.lr=1e-4; the last wins.",
        autocompletion=completing.overrides,
    ),
]
MethodOption = Annotated[
    str | None,
    Option(
        "--method",
        "-m",
        help="A shipped experiment ('promptcomp experiments' lists them), or a YAML file.",
        autocompletion=completing.experiment_names,
    ),
]
RunArgument = Annotated[
    Path, Argument(help="A run directory made by 'promptcomp fit'.", autocompletion=completing.run_folders)
]
ConfigOption = Annotated[Path | None, Option("--config", "-c", help="A YAML file with a complete experiment.")]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON document on standard output, no tables.")]


class Commands(TyperGroup):
    """A group whose help says of every command the whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As the base class, which cuts what does not fit on a line."""
        shown = {name: self.commands[name] for name in self.list_commands(ctx) if not self.commands[name].hidden}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, " ".join((each.help or "").partition("\n\n")[0].split())) for name, each in shown.items()]
            )


class RunByDefault(Commands):
    """A group whose command `run` needs no name: what is not a subcommand is what to run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front unless a subcommand or the group's own help is asked for."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The subcommands, and what `run` takes first (options, where one was begun)."""
        run = self.commands["run"]
        with run.make_context("run", [], parent=ctx, resilient_parsing=True) as inner:
            if incomplete.startswith("-"):
                return list(run.shell_complete(inner, incomplete))
            first = next(each for each in run.params if each.param_type_name == "argument")
            return [*super().shell_complete(ctx, incomplete), *first.shell_complete(inner, incomplete)]


def show(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text; control characters that files, names or paths have brought are shown as escapes."""
    print(printable(text), end=end, file=file, flush=True)


def console_for(as_json: bool) -> Console:
    """The console for tables and progress: standard output, or standard error when standard output carries JSON."""
    from promptcomp.terminal import PlainConsole

    return PlainConsole(stderr=as_json)


@contextmanager
def loading(console: Console, what: str = "PyTorch") -> Iterator[None]:
    """On a terminal, say that something is read that takes seconds; of several processes of a run one says it."""
    from rich.control import Control
    from rich.segment import ControlType

    seen = console.is_terminal and not console.is_dumb_terminal and os.environ.get("LOCAL_RANK", "0") == "0"
    if seen:
        console.print(f"loading {what} ...", style="dim", end="")
    try:
        yield
    finally:
        if seen:
            console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))


def refuse_ignored(context: typer.Context, reason: str, *options: str) -> None:
    """Options that would be passed over in silence are mistakes.

    Args:
        context: of the command.
        reason: why they would be, in words that follow an option.
        options: `--name` of each.

    Raises:
        ConfigError: one of them was given.
    """
    for each in context.command.params:
        source, is_off = context.get_parameter_source(each.name or ""), context.params.get(each.name or "") is False
        names = each.secondary_opts if is_off and each.secondary_opts else each.opts
        if {*names} & {*options} and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{next(name for name in names if name in options)} {reason}")


def tell(found: Any, shown: str | RenderableType | Callable[[Console], None], as_json: bool) -> None:
    """What a command has done: one JSON document, or for people a text, a table, or what a function prints."""
    if as_json:
        print(json.dumps(found))
    elif isinstance(shown, str):
        say(console_for(False), shown)
    elif callable(shown):
        shown(console_for(False))
    else:
        console_for(False).print(shown)


def takes(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that these dataclasses declare; it gets each of them as the parameter of its name."""

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        own = {name: signature(group, eval_str=True).parameters for name, group in groups.items()}

        @functools.wraps(command)
        def called(**given: Any) -> None:
            found = {name: groups[name](**{key: given.pop(key) for key in keys}) for name, keys in own.items()}
            command(**found, **given)

        whole = signature(command, eval_str=True)
        parameters = [each for each in whole.parameters.values() if each.name not in groups]
        parameters += [each.replace(kind=Parameter.KEYWORD_ONLY) for keys in own.values() for each in keys.values()]
        called.__signature__ = whole.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return with_options
