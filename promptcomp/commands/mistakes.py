"""What the command line could not read (a command, an option, an argument that is missing), in one sentence."""

from __future__ import annotations

from typing import Any

from promptcomp.errors import close_matches, command

_MEANT = {
    "train": ("fit",),
    "run": ("fit",),
    "resume": ("fit", "--resume"),
    "continue": ("fit", "--resume"),
    "test": ("evaluate",),
    "eval": ("evaluate",),
    "plot": ("report",),
    "plots": ("report",),
    "show": ("report",),
    "list": ("experiments",),
    "ls": ("experiments",),
    "version": ("--version",),
}
"""What other programs call these."""


def sentence(error: Any, words: list[str]) -> str:
    """What is wrong, and the nearest right command.

    Args:
        error: A usage error of typer's (or of the click that older ones stand on).
        words: The command line behind `promptcomp`.
    """
    context = error.ctx
    path = context.command_path.split()[1:] if context is not None else []
    more = f"`{command(*path, '--help')}` says more"
    option = getattr(error, "option_name", None)
    if option and context is not None and hasattr(error, "possibilities"):
        instead = _instead_of_option(option, context, words) or more
        return f"{' '.join(['promptcomp', *path])}: there is no option {option}; {instead}"
    message = str(error.format_message())
    if message.startswith("No such command"):
        depth = len(path)
        rest = list(words)
        for word in path:
            rest.remove(word)
        name = next((word for word in rest if not word.startswith("-")), "")
        return f"there is no command {name!r}; {_instead_of_command(name, rest, context, depth) or more}"
    if type(error).__name__ == "MissingParameter" and error.param is not None:
        is_option = error.param.opts[0].startswith("-")
        name = "/".join(error.param.opts) if is_option else (error.param.metavar or error.param.name).upper()
        return f"{' '.join(['promptcomp', *path])}: {name} is missing ({(error.param.help or '').rstrip('.')}); {more}"
    return f"{' '.join(['promptcomp', *path])}: {message.rstrip('.')}; {more}"


def home_of(name: str) -> str | None:
    """The command that knows a name, where another one was given it."""
    from promptcomp.datamodules import DATASETS
    from promptcomp.documents import shipped, starts
    from promptcomp.lightning_modules import METHODS

    if name in METHODS:
        return command("methods", name)
    if name in DATASETS:
        return command("data", "list", name)
    return command("fit", name) if name in shipped() else starts(name)


def _instead_of_option(option: str, context: Any, words: list[str]) -> str | None:
    from promptcomp.reference import of_experiment

    takes_keys = any(each.name in ("overrides", "words") for each in context.command.params)
    plain = option.lstrip("-").replace("-", "_")
    keys = [each.key for each in of_experiment().values() if each.owner is not None] if takes_keys else []
    keys.sort(key=lambda key: key.count("."))
    known = [name for each in context.command.params for name in each.opts if name.startswith("-")]
    near = close_matches(option.replace("_", "-"), known, cutoff=0.85 if takes_keys else 0.7)
    key = None if near else next((key for key in keys if plain in (key, key.rpartition(".")[2])), None)
    if key is None:
        near = near or close_matches(option.replace("_", "-"), known, cutoff=0.7)
        if near:
            return f"did you mean {near[0]}?"
        ends = {each.rpartition(".")[2]: each for each in reversed(keys)}
        key = next((ends[end] for end in close_matches(plain, ends, cutoff=0.7)), None)
    if key is None:
        return None
    given = next((word for word in words if word.startswith(option)), option)
    after = words[words.index(given) + 1 :] if given in words else []
    value = given.partition("=")[2] or (after[0] if after and "=" not in after[0] else "VALUE")
    return f"keys of the configuration have no dashes: {key}={value}"


def _instead_of_command(name: str, rest: list[str], context: Any, depth: int) -> str | None:
    from promptcomp.documents import shipped

    known = {key for key, each in context.command.commands.items() if not each.hidden}
    path = context.command_path.split()[1:]
    if not depth and name == "help":
        return f"`{command(*[word for word in rest if word in known][:1], '--help')}` is what shows it"
    if not depth and name in _MEANT:
        more = rest[rest.index(name) + 1 :] if _MEANT[name][0] in ("fit", "evaluate", "report") else []
        return f"`{command(*_MEANT[name], *(word for word in more if not word.startswith('-')))}` does that"
    if not depth and name in shipped():
        return f"did you mean `{command('fit', name)}`?"
    if near := close_matches(name, sorted(known)):
        return f"did you mean `{command(*path, near[0])}`?"
    if home := home_of(name):
        return f"did you mean `{home}`?"
    if near := close_matches(name, [] if depth else shipped()):
        return f"did you mean `{command('fit', near[0])}`?"
    return None
