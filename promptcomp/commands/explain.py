"""`promptcomp explain`, `methods` and `experiments`: what there is, in words. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option

from promptcomp.commands.common import JsonOption, console_for, show, tell
from promptcomp.commands.completing import experiment_names, method_names, words_to_explain
from promptcomp.commands.mistakes import home_of
from promptcomp.errors import ConfigError, command, did_you_mean
from promptcomp.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.reference import KeyEntry


def explain(
    context: Context,
    word: Annotated[
        str | None,
        Argument(
            metavar="KEY",
            help="A key (optim.lr), a section (trainer, data.table_icl), a method, a rival, a word of the glossary; "
            "alone: the sections.",
            autocompletion=words_to_explain,
        ),
    ] = None,
    markdown: Annotated[bool, Option("--markdown", help="Print the reference of all keys as a page.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a key, a section or a word is: meaning, type, default, choices, paper, and which experiments set it."""
    from promptcomp import reference
    from promptcomp.documents import shipped

    if markdown:
        show(reference.markdown(), end="")
        return
    if word is None:
        tops = [each for each in reference.entries().values() if "." not in each.path]
        tell({each.path: each.meaning for each in tops}, lambda console: _print_sections(tops, console), as_json)
        return
    try:
        found = reference.find(word)
    except ConfigError:
        if word in context.find_root().command.commands:  # type: ignore[attr-defined]
            raise ConfigError(f"{word!r} is a command; `{command(word, '--help')}` explains it") from None
        if word not in shipped():
            raise
        experiments(word, as_json)
    else:
        print_explained(found, as_json)


def methods(
    name: Annotated[
        str | None, Argument(metavar="NAME", help="Explain this one, with its keys.", autocompletion=method_names)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the methods and controls, or explain one."""
    from promptcomp.config import NOT_LOADED
    from promptcomp.lightning_modules import METHODS

    if name is not None:
        print_section("method", name, METHODS, as_json)
        return
    if as_json:
        found = [
            {"name": name, "summary": s.summary, "paper": s.paper, "families": s.families, "needs": s.needs}
            for name, s in METHODS.items()
        ]
        print(json.dumps({"methods": found, "not_loaded": NOT_LOADED}))
        return
    console = console_for(False)
    wide = 3 if console.width >= 160 else 2
    rows = [(name, section.summary, section.paper)[:wide] for name, section in METHODS.items()]
    print_rows(("method", "what it does", "paper")[:wide], rows, console)
    say(console, "\n`promptcomp methods NAME` explains one; `promptcomp experiments` lists what `fit` can start.")
    for problem in NOT_LOADED.values():
        say(console, f"not loaded: {problem}")


def experiments(
    name: Annotated[
        str | None, Argument(metavar="NAME", help="Print this one's file.", autocompletion=experiment_names)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the shipped experiments, or print one's configuration with its comments."""
    from promptcomp.documents import read_yaml, shipped
    from promptcomp.files import read_text
    from promptcomp.reference import summary_of

    known = shipped()
    if name is not None:
        if name not in known:
            raise ConfigError(f"there is no experiment {name!r}; {_nearest(name, known)}")
        if as_json:
            print(json.dumps({"name": name, "file": str(known[name]), "config": read_yaml(known[name])}))
            return
        show(read_text(known[name], "experiment"), end="")
        say(console_for(False), f"\n# {known[name]}\n# start it: {command('fit', name)}")
        return
    found = {each: summary_of(file) for each, file in known.items()}

    def draw(console: Console) -> None:
        for of_paper in (False, True):
            rows = [row for row in found.items() if row[0].startswith("paper/") is of_paper]
            print_rows(("as in the papers" if of_paper else "experiment", "what it is"), rows, console)
            console.print()
        say(console, "Start one with `promptcomp fit NAME`; `promptcomp experiments NAME` prints it.")

    tell(found, draw, as_json)


def print_section(kind: str, name: str, known: Mapping[str, Any], as_json: bool) -> None:
    """One of the sections that a name chooses among.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in known:
        from promptcomp.config import NOT_LOADED

        raise ConfigError(f"there is no {kind} {name!r}; {NOT_LOADED.get(name) or _nearest(name, known)}")
    from promptcomp.reference import of_experiment

    print_explained([[of_experiment()[f"{kind}.{name}"]]], as_json)


def _nearest(name: str, known: Iterable[str]) -> str:
    home = home_of(name)
    return f"did you mean {home}?" if home else did_you_mean(name, known)


def print_explained(groups: list[list[KeyEntry]], as_json: bool) -> None:
    """What is known of entries; those of a group say the same."""
    from promptcomp import reference

    found = [reference.described(group) for group in groups]

    def draw(console: Console) -> None:
        for number, (each, group) in enumerate(zip(found, groups, strict=True)):
            if number:
                console.print()
            _print_entry(group[0], each, console)

    tell(found, draw, as_json)


def print_rows(columns: Iterable[str], rows: Iterable[tuple[str, ...]], console: Console) -> None:
    """A table whose first column is bold and whole."""
    from rich.text import Text

    from promptcomp.terminal import plain_table

    table = plain_table(columns, [(Text(first, style="bold"), *rest) for first, *rest in rows])
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"
        column.max_width = 20 if column.header == "default" else None
    console.print(table, highlight=False)


def _print_sections(tops: list[KeyEntry], console: Console) -> None:
    print_rows(("key", "default", "meaning"), [(each.path, each.default, each.meaning) for each in tops], console)
    say(
        console,
        "\n`promptcomp explain KEY` explains one, such as trainer, optim.lr, method.mend, data.table_icl, num_slots.",
    )


def _print_entry(entry: KeyEntry, found: Mapping[str, Any], console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from promptcomp import reference
    from promptcomp.terminal import plain_table

    if entry.type == "word":
        console.print(Text(entry.path, style="bold"), Padding(Text(entry.meaning), (0, 0, 0, 2)))
        return
    is_key = entry.type != "section"
    console.print(Text.assemble((entry.path, "bold"), f" = {entry.default}" if entry.default else ""), highlight=False)
    if text := entry.lead if entry.choices else entry.meaning:
        console.print(Padding(Text(text), (0, 0, 0, 2)))
    rows = [("type", entry.type)] if is_key else []
    rows += [("written", entry.key)] if is_key and entry.key != entry.path else []
    rows += [("choices" if not i else "", f"{name}: {text}") for i, (name, text) in enumerate(entry.choices.items())]
    rows += [("paper", entry.source)] if entry.source else []
    if is_key or (entry.route and entry.route[-1][1]):  # not of sections that all of them have
        rows += [
            ("set by" if not i else "", f"{f'{value}: ' if value else ''}{', '.join(names)}")
            for i, (value, names) in enumerate(found["set_by"].items())
        ]
    rows += [("tried by", "sweep " + ", ".join(found["tried_by"]))] if found["tried_by"] else []
    rows += [("same in", ", ".join(found["also"]))] if found["also"] else []
    keys = [] if entry.choices else reference.below(entry)
    if not keys and "." in entry.path:
        over = entry.path.rpartition(".")[0]
        section = reference.KeyEntry(over, over)
        beside = [each.path.rpartition(".")[2] for each in reference.below(section) if each is not entry]
        rows += [("beside it", ", ".join(beside))]
    console.print(Padding(plain_table(("", ""), rows, show_header=False), (0, 0, 0, 2)), highlight=False)
    if keys:
        console.print()
        lines = [
            (each.path.rpartition(".")[2], each.default or each.type.rpartition(", ")[2], each.meaning) for each in keys
        ]
        print_rows(("key", "default", "meaning"), lines, console)
