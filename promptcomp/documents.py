"""YAML and JSON that promptcomp reads itself: configurations, overrides, records of runs and sweeps.

Anything wrong with them is one ConfigError with the place, found in bounded time and memory: what a file may hold is
limited in bytes, depth, and in what its aliases stand for. Data sets have readers of their own (`datamodules`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from promptcomp.errors import ConfigError, close_matches, command, did_you_mean
from promptcomp.files import decoded, read_bounded
from promptcomp.plain import shown

YAML_LIMIT = 2**20
"""Maximum number of bytes of a YAML file."""
JSON_LIMIT = 2**26
"""Maximum number of bytes of a JSON file (results of thousands of tasks are some megabytes)."""
DEPTH = 64
"""Maximum number of levels of lists and mappings."""
_EXPANDED = 4 * YAML_LIMIT
"""Maximum number of letters and values of a YAML text with every alias written out."""
_WHOLE = 2**64
"""Whole numbers are below this on both sides of 0."""
_LONGEST_NUMBER = 1024
"""Maximum number of characters of a number in YAML."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_ZEROS = re.compile(r"(?<=^[-+])0+(?=\d)|^0+(?=\d)")
"""What stands in front of a number and says nothing."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BASE_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class _Refused(ValueError):
    """What is wrong, with the place where it is known."""


class _KeysOnce:
    """A mapping has every key once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if (key.tag, key.value) in seen:
                    raise _Refused(f"{_at(key.start_mark)}the key {shown(key.value)} occurs twice")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)  # type: ignore[misc]  # of the loader that this is mixed into


class _Values(_KeysOnce, _LOADER):
    """Scalars by their kind. Numbers are those of YAML 1.2: to PyYAML, which reads 1.1, 010 is 8 and 1:30 is 90."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag in _NUMBERS:
            if ":" in node.value:
                return node.value
            if len(node.value) > _LONGEST_NUMBER:
                raise _Refused(f"{_at(node.start_mark)}a number of {len(node.value)} characters is too large")
            node.value = _ZEROS.sub("", node.value)
        try:
            found = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError, OverflowError, TypeError) as error:
            if isinstance(error, _Refused):
                raise
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise _Refused(f"{_at(node.start_mark)}{shown(node.value)} is not valid as {tag}") from None
        if isinstance(found, int) and abs(found) >= _WHOLE:
            raise _Refused(
                f"{_at(node.start_mark)}the number {shown(node.value)} is too large; quote it if it is a text"
            )
        if isinstance(found, str) and "\0" in found:
            raise _Refused(f"{_at(node.start_mark)}a text holds a NUL character")
        return found


_Values.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)  # no setting is a date
for _foreign in ("binary", "set", "omap", "pairs"):  # what JSON cannot hold cannot be kept in a run either
    _Values.add_constructor(f"tag:yaml.org,2002:{_foreign}", yaml.SafeLoader.construct_undefined)


class _Texts(_KeysOnce, _BASE_LOADER):
    """Every scalar stays the text that it is."""


def read_yaml(
    path: Path, what: str = "configuration file", texts: bool = False, example: str = "method: {name: mend}"
) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        what: what it should be, for messages.
        texts: every scalar stays the text that it is (an account may be called 007).
        example: what it looks like, for messages.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8, not YAML, or not a mapping with text keys.
    """
    try:
        tree = parse_yaml(decoded(read_bounded(path, YAML_LIMIT, what), path), texts)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        kind = "a mapping with a key that is no text" if isinstance(tree, dict) else type(tree).__name__
        raise ConfigError(f"{path}: expected a mapping such as '{example}', found {kind}")
    return tree


def shipped(folder: str = "") -> dict[str, Path]:
    """The files that come with the package, by name: experiments ("mend", "paper/mend_gpt2_large_pretrain", ...), or
    what a folder beside them holds ("sweeps", "leaderboards", "pretrain")."""
    root = Path(str(resources.files("promptcomp"))) / "experiments"
    files = root.joinpath(folder).glob("*.yaml") if folder else (*root.glob("*.yaml"), *root.glob("paper/*.yaml"))
    return {str(path.relative_to(root / folder).with_suffix("")): path for path in sorted(files)}


@cache
def glossary() -> dict[str, str]:
    """The words of the glossary in lower case, several of a row each by itself, and what they mean."""
    file, found = Path(str(resources.files("promptcomp"))) / "assets" / "glossary.md", dict[str, str]()
    for row in file.read_text(encoding="utf-8").splitlines():
        words, bar, meaning = row.strip("| ").partition(" | ")
        if row.startswith("| ") and bar:
            text = re.sub(r"\*\*|`", "", re.sub(r" \[[^\]]*\]", "", meaning))
            found |= dict.fromkeys((word.strip().lower() for word in words.split(",")), text)
    del found["word"]
    return found


def experiment_file(name: str) -> Path:
    """The YAML of a shipped experiment, or the file of that name.

    Raises:
        ConfigError: it is neither; where it is something else, the command for that.
    """
    known, path = shipped(), Path(name)
    if name in known or path.suffix == ".yaml" or (path.suffix == ".yml" and path.exists()):
        return known.get(name, path)
    if other := starts(name):
        raise ConfigError(f"{name!r} is no experiment; {other} is what starts it")
    for file, words in (("config.yaml", ("fit", "--resume")), ("sweep.yaml", ("sweep",))):
        if path.joinpath(file).is_file():
            raise ConfigError(f"{name!r} is no experiment; {command(*words, path)} continues it")
    beside = path.with_suffix(".yaml") if path.name else path
    hint = f"did you mean {str(beside)!r}?" if beside.is_file() else ""
    hint = hint or did_you_mean(name, known, f"{command('experiments')} lists them")
    raise ConfigError(f"{name!r} is neither a shipped experiment nor a YAML file; {hint}")


def starts(name: str) -> str | None:
    """The command that starts a shipped file which is no experiment, if one has this name."""
    folders = {"sweeps": "sweep", "leaderboards": "leaderboard", "pretrain": "pretrain"}
    return next((command(word, name) for folder, word in folders.items() if name in shipped(folder)), None)


def how_to_begin(run: object) -> str:
    """For a message, where a run was to be named: the nearest one in ./runs, or how one of the experiment of this name
    is begun, if there is one."""
    if str(run) in shipped():
        return f"; {command('fit', run)} makes one"
    known = {each.parent.name: each.parent for each in Path("runs").glob("*/config.yaml")}
    near = close_matches(Path(str(run)).name, known)
    return f"; did you mean {shown(str(known[near[0]]))}?" if near else ""


def of_sweep(folder: Path) -> str:
    """For a message, where a folder is no run: what shows its runs, if it is a sweep's."""
    if not os.path.isfile(folder / "sweep.yaml"):
        return ""
    show = command("sweep", "show", folder)
    return f"; {folder} is a sweep: `{show}` shows what it has found, and its runs are in {folder / 'runs'}"


def is_experiment(tree: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of a run, and neither of a sweep nor of pretraining."""
    return "method" in tree and "experiment" not in tree


def parse_yaml(text: str, texts: bool = False) -> Any:
    """The value of a YAML text.

    Args:
        text: one document.
        texts: every scalar stays the text that it is.

    Raises:
        ValueError: it is none, or more than may be (see the module); one sentence with line and column.
    """
    try:
        if len(text) > YAML_LIMIT:
            raise _Refused(f"larger than {YAML_LIMIT / 2**20:.0f} MiB")
        _check_events(text)
        return yaml.load(text, Loader=_Texts if texts else _Values)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        raise _Refused(f"{_at(mark) if mark else ''}{words}") from None
    except yaml.reader.ReaderError as error:
        raise _Refused(f"the character {error.character!r} at position {error.position} is not allowed") from None
    except yaml.YAMLError as error:
        raise _Refused(" ".join(str(error).split())) from None
    except UnicodeEncodeError:
        raise _Refused("not UTF-8 text") from None


def read_json(path: Path, what: str, hint: str = "") -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        what: what it should be, for messages ("results file").
        hint: the way out where it is damaged.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8 or not JSON.
    """
    text = decoded(read_bounded(path, JSON_LIMIT, what), path)
    try:
        return parse_json(text)
    except ValueError as error:
        way = f", {hint}" if hint else ""
        raise ConfigError(f"{path}: not a {what}, not valid JSON ({error}); it is damaged or edited{way}") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text of limited depth, with finite numbers, keys that occur once and whole characters.

    Raises:
        ValueError: it is none; one sentence, with the line where it is known.
    """
    try:
        found = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_int=_whole, parse_float=_finite
        )
        _check_depth(found)
        if _HALF_PAIR.search(text if isinstance(text, str) else text.decode("utf-8", "replace")):
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _Refused(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _Refused(f"nested deeper than {DEPTH} levels") from None
    except UnicodeError:
        raise _Refused("a text holds half of a surrogate pair, or is not UTF-8") from None
    return found


def _check_events(text: str) -> None:
    """Refuse what would not end: nesting without end, aliases that multiply or hold themselves."""
    sizes, known, open_anchors = [0], dict[str, int](), list[str | None]()
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1 + len(event.value)
            if event.anchor:
                known[event.anchor] = 1 + len(event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            open_anchors.append(event.anchor)
            if len(open_anchors) > DEPTH:
                raise _Refused(f"{_at(event.start_mark)}nested deeper than {DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop(), open_anchors.pop()
            sizes[-1] += size
            if anchor:
                known[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                raise _Refused(f"{_at(event.start_mark)}*{event.anchor} refers to something that contains it")
            sizes[-1] += known.get(str(event.anchor), 0)
        if sizes[-1] > _EXPANDED:
            raise _Refused(f"{_at(event.start_mark)}aliases (*name) expand to more than can be read")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _Refused(f"the key {shown(twice)} occurs twice")
    return found


def _no_number(name: str) -> float:
    raise _Refused(f"{name} is not a valid JSON number")


def _whole(digits: str) -> int:
    if len(digits) > len(str(_WHOLE)) + 1 or abs(int(digits)) >= _WHOLE:
        raise _Refused(f"the number {shown(digits)} is too large")
    return int(digits)


def _finite(digits: str) -> float:
    found = float(digits)
    if not math.isfinite(found):
        raise _Refused(f"the number {shown(digits)} is too large")
    return found


def _check_depth(tree: Any) -> None:
    level, depth = [tree], 0
    while level:
        depth += 1
        if depth > DEPTH + 1:
            raise _Refused(f"nested deeper than {DEPTH} levels")
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: "
