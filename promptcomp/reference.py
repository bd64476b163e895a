"""Every key that a YAML file may hold, in words: for `promptcomp explain`, a dry run's comments and the reference page.

The texts are the docstrings of the schema's fields and classes. Nothing here needs torch.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from promptcomp.config import Config, models_in, read_yaml, tag_of
from promptcomp.documents import glossary, shipped
from promptcomp.errors import ConfigError, close_matches
from promptcomp.experiment import Experiment

Model = type[BaseModel]
Route = tuple[tuple[str, str | None], ...]
_FOLDERS = {"sweep": "sweeps", "pretrain": "pretrain", "leaderboard": "leaderboards", "slurm": None}
"""Files beside experiments: the word in front of their keys, and where the shipped ones are."""
_MOST = 3
"""Keys that are shown where none is called what was asked for, and their meanings have it."""
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", date: "date"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class KeyEntry:
    """A key, a section, or one of the sections that a name chooses among."""

    path: str
    """With the name of the section that has the key: method.mend.num_slots."""
    key: str
    """As a configuration has it: method.num_slots."""
    type: str = "section"
    """"word": one of the glossary."""
    default: str = ""
    """As YAML; empty: a section, or the key is required (which `type` says)."""
    owner: Model | None = None
    """The class whose field it is."""
    sections: Mapping[str, Model] = field(default_factory=dict)
    """What its `name` chooses among."""
    source: str = ""
    """The paper that it is from."""
    model: Model | None = None
    """The section that it is, or holds."""
    route: Route = ()
    """The keys that lead to it in a file, each with the `name` that the section there must have."""
    text: str = ""
    """What a word means."""

    @cached_property
    def meaning(self) -> str:
        """What it is for, from the source (read when it is asked for)."""
        if self.owner is not None:
            return _meaning(self.owner, self.path.rpartition(".")[2])
        return _text(self.model.__doc__) if self.model is not None else self.text

    @property
    def lead(self) -> str:
        """The meaning without that of single choices."""
        return self._parts[0]

    @property
    def choices(self) -> Mapping[str, str]:
        """What it may be, and what each of these means."""
        return {tag: _text(each.__doc__) for tag, each in self.sections.items()} or self._parts[1]

    @cached_property
    def _parts(self) -> tuple[str, dict[str, str]]:
        declared = self.owner.model_fields[self.path.rpartition(".")[2]] if self.owner is not None else None
        return _parted(declared.annotation if declared is not None else None, self.meaning)


@cache
def entries() -> dict[str, KeyEntry]:
    """All of them by path, sections before their keys."""
    from promptcomp.cluster.profile import SlurmProfile
    from promptcomp.leaderboard.track import Track
    from promptcomp.sweeps.sweep_config import SweepConfig
    from promptcomp.toy.recipe import PretrainConfig

    found = dict(of_experiment())
    others: dict[str, Model] = {
        "sweep": SweepConfig,
        "slurm": SlurmProfile,
        "pretrain": PretrainConfig,
        "leaderboard": Track,
    }
    for name, model in others.items():
        found[name] = KeyEntry(name, name, model=model)
        found |= {each.path: each for each in _below(model, f"{name}.", f"{name}.", (), "")}
    return found


@cache
def of_experiment() -> dict[str, KeyEntry]:
    """Those of an experiment, by path; the rest of the schema stays unread."""
    return {each.path: each for each in _below(Experiment, "", "", (), "")}


def below(entry: KeyEntry) -> list[KeyEntry]:
    """What stands one level below it."""
    known = entries() if entry.path.partition(".")[0] in ("", *_FOLDERS) else of_experiment()
    return [each for each in known.values() if each.path.rpartition(".")[0] == entry.path]


def find(word: str) -> list[list[KeyEntry]]:
    """What a word may mean, those that say the same together: a word of the glossary, a path, a key, the last part of
    one, or words that the meaning of a key has.

    Raises:
        ConfigError: nothing; it names the nearest.
    """
    said, word = word, word.partition("=")[0].strip(".").lower()
    known_as = glossary().get(word.replace("_", " "))
    alike: dict[tuple[str, ...], list[KeyEntry]] = {}
    for each in [] if known_as is None else [KeyEntry(said, said, type="word", text=known_as)]:
        alike[(each.type,)] = [each]
    tests = (
        lambda each: each.path == word,
        lambda each: each.key == word,
        lambda each: f".{each.path}".endswith(f".{word}") or f".{each.key}".endswith(f".{word}"),
    )
    known = list(of_experiment().values())
    found = next((some for test in tests[:2] if (some := [each for each in known if test(each)])), None)
    if found is None:
        known = list(entries().values())
        found = next((some for test in tests if (some := [each for each in known if test(each)])), None)
    if found is None and known_as is None and len(word) > 3:
        of = re.compile(rf"\b{re.escape(word.replace('_', ' '))}\b", re.IGNORECASE)
        found = [each for each in known if each.owner is not None and of.search(each.meaning)][:_MOST] or None
    if found is None and known_as is None:
        names = {end for each in known for path in (each.path, each.key) for end in (path, path.rpartition(".")[2])}
        all_names = dict.fromkeys([*sorted(names, key=len), *shipped(), *glossary()])
        near = close_matches(word, all_names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`promptcomp explain` lists the sections"
        raise ConfigError(f"there is no key, section, experiment or word {word!r}; {hint}")
    for each in found or ():
        alike.setdefault((each.type, each.default, each.meaning), []).append(each)
    return list(alike.values())


def set_by(entry: KeyEntry) -> dict[str, list[str]]:
    """Value -> the shipped files that set the key to it; "" stands for a section."""
    found: dict[str, list[str]] = {}
    for name, tree in _trees(entry.path.partition(".")[0]).items():
        for value in _values(tree, entry.route):
            found.setdefault("" if isinstance(value, Mapping) else yaml_text(value), []).append(name)
    return found


def tried_by(entry: KeyEntry) -> list[str]:
    """The shipped sweeps that try values of the key."""
    found = []
    for name, tree in _trees("sweep").items():
        tried = {*tree["space"], *(key for each in tree["space"].values() for key in _chosen(each))}
        of = _trees("").get(tree["experiment"], {})
        found += [name] if entry.key in tried and any(_values(of, entry.route[:1])) else []
    return found


def described(group: list[KeyEntry]) -> dict[str, Any]:
    """All that is known of an entry, and of those that say the same, for JSON."""
    entry = group[0]
    if entry.type == "word":
        return {"path": entry.path, "type": entry.type, "meaning": entry.meaning}
    fields = {key: getattr(entry, key) for key in ("path", "key", "meaning", "type", "default", "source")}
    also = [each.path for each in group[1:]]
    more = {"set_by": set_by(entry), "tried_by": tried_by(entry), "also": also, "keys": [e.path for e in below(entry)]}
    return {**fields, "choices": dict(entry.choices), **more}


def summary_of(file: Path) -> str:
    """What a shipped file's comment says first, up to a colon or a full stop."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, s in enumerate(lines) if s[:1] != "#")]]
    return first_sentence(" ".join(comment)).partition(": ")[0]


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r"(?<=[^.][^.A-Z][.])(?=\s+[A-Z]|\s*$)", _text(text), maxsplit=1)[0].removesuffix(".")


def commented(config: Config, indent: str = "") -> str:
    """A configuration as YAML with what every key means in front of it; reads back to an equal object."""
    import textwrap

    lines, tree = [], config.model_dump(mode="json")
    for name in type(config).model_fields:
        value = getattr(config, name)
        text = "" if name == "name" and tag_of(type(config)) else _meaning(type(config), name)
        lines += textwrap.wrap(text, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if isinstance(value, Config):
            lines += [f"{indent}{name}:", commented(value, f"{indent}  ").rstrip("\n")]
        else:
            dumped = yaml.safe_dump({name: tree[name]}, sort_keys=False, allow_unicode=True)
            lines += [indent + line if line else line for line in dumped.rstrip("\n").split("\n")]
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The reference of all keys as one page; a section that occurs in several places has its table once."""
    homes: dict[type[BaseModel], str] = {}
    for each in sorted(entries().values(), key=lambda each: each.path.count(".")):
        if each.model is not None:
            homes.setdefault(each.model, each.path)
    lines = ["# Keys", ""]
    heads = [each for each in entries().values() if each.model is None or homes[each.model] == each.path]
    for entry in (KeyEntry("", ""), *(each for each in heads if below(each))):
        keys = below(entry)
        if entry.path:
            lines += [f"## `{entry.path}`", "", *([f"{entry.meaning}"] if entry.meaning else []), ""]
            lines += [f"Source: {entry.source}.", ""] if entry.source else []
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"] if keys else []
        for key in keys:
            home = homes.get(key.model) if key.model is not None else None
            meaning = key.meaning + (f" Keys: see `{home}`." if home else "")
            cells = (f"`{key.path.rpartition('.')[2]}`", key.type, f"`{key.default}`" if key.default else "", meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines += [""]
    return "\n".join(lines)


def yaml_text(value: Any) -> str:
    """A value as a configuration would have it, on one line; a section in its differences from the defaults."""
    tree = value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value
    value = to_jsonable_python(tree, fallback=str)
    if isinstance(value, str):
        return value if value and value.isprintable() and value.strip() == value else json.dumps(value)
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_text(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def _below(model: type[BaseModel], path: str, key: str, route: Route, source: str) -> Iterator[KeyEntry]:
    """The entries of a section's fields and of what is below them."""
    own_first = dict.fromkeys(key for each in model.__mro__ for key in inspect.get_annotations(each))
    for name in (key for key in own_first if key in model.model_fields):
        declared = model.model_fields[name]
        if name == "name" and tag_of(model):  # its own name, which the entry above it lists
            continue
        here, plain, inner = f"{path}{name}", f"{key}{name}", models_in(declared.annotation)
        tagged = {str(tag_of(each)): each for each in inner} if len(inner) > 1 and all(map(tag_of, inner)) else {}
        default = declared.get_default(call_default_factory=True)
        section = inner[0] if len(inner) == 1 and not tagged else None
        yield KeyEntry(
            here,
            plain,
            _type(declared) + (", required" if declared.is_required() else ""),
            "" if declared.is_required() or (text := yaml_text(default)) == "{}" else text,
            model,
            tagged,
            source,
            section,
            (*route, (name, None)),
        )
        for tag, each in tagged.items():
            paper, to = getattr(each, "paper", ""), (*route, (name, tag))
            yield KeyEntry(f"{here}.{tag}", f"{here}.{tag}", source=paper, model=each, route=to)
            yield from _below(each, f"{here}.{tag}.", f"{plain}.", to, paper)
        for each in () if tagged else inner:
            yield from _below(each, f"{here}.", f"{plain}.", (*route, (name, None)), source)


def _meaning(model: type[BaseModel], name: str) -> str:
    """A field's text; one that only changes a default has that of the class before it."""
    texts = (_docstrings(each.__module__).get(each.__name__, {}).get(name) for each in model.__mro__)
    return _text(next(filter(None, texts), model.model_fields[name].description))


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """The texts below the fields of each class of a module, from its source: to read all of them with every class, as
    pydantic can, would take a third of the time in which a command has its schema."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):  # a class of a notebook, or of a package without its source
        return {}
    return {
        each.name: {
            of.target.id: below.value.value
            for of, below in pairwise(each.body)
            if isinstance(of, ast.AnnAssign)
            and isinstance(of.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        }
        for each in ast.walk(tree)
        if isinstance(each, ast.ClassDef)
    }


def _parted(annotation: Any, meaning: str) -> tuple[str, dict[str, str]]:
    """A text without what it says of single choices ("a: ...; b and c: ..."), and that for each choice of a Literal."""
    names = [yaml_text(each) for each in _literals(annotation)]
    if not names:
        return meaning, {}
    found = dict.fromkeys(names, "")
    one = rf"[\"`]?(?:{'|'.join(map(re.escape, sorted([*names, 'null'], key=len, reverse=True)))})[\"`]?"
    said = list(re.finditer(rf"(?<![\w./-])({one}(?:(?:, | and | or ){one})*)((?: \([^)]*\))?): ", meaning))
    ends = [*(each.start() for each in said[1:]), None]
    rest = ""
    for each, end in zip(said, ends, strict=bool(said)):
        text = meaning[each.end() : end]
        if end is None:
            text, _, rest = text.partition(". ")
        for name in re.findall(one, each[1]):
            found[name.strip('"`')] = text.rstrip("; .") + each[2]
    lead = meaning[: said[0].start()] if said else meaning
    return f"{lead.rstrip(' :;,')} {rest}".strip(), found


def _type(part: Any) -> str:
    """An annotation, or a field, in words with its bounds."""
    if isinstance(part, FieldInfo):
        annotation, limits = part.annotation, part.metadata
    elif get_origin(part) is Annotated:
        annotation, *more = get_args(part)
        limits = [limit for each in more for limit in (each.metadata if isinstance(each, FieldInfo) else [each])]
    else:
        annotation, limits = part, []
    bounds = [
        f"{sign} {getattr(each, name)}" for each in limits for name, sign in _BOUNDS.items() if hasattr(each, name)
    ]
    return f"{_plain_type(annotation)} {' and '.join(bounds)}".rstrip()


def _plain_type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(yaml_text, parts))
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(map(_type, parts)))
        return " or ".join(words)
    if origin in (tuple, list):
        if len(parts) == 1 or parts[1] is Ellipsis:
            return f"list of {_type(parts[0])}"
        return f"list of {len(parts)}: {', '.join(map(_type, parts))}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return "null" if annotation is type(None) else _WORDS.get(annotation, "anything")


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is not dict:
        for part in get_args(annotation):
            yield from _literals(part)


def _text(docstring: str | None) -> str:
    """The first paragraph on one line."""
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())


@cache
def _trees(kind: str) -> dict[str, Mapping[str, Any]]:
    """The shipped files that hold keys of a kind, by name."""
    if kind not in _FOLDERS:
        return {name: read_yaml(file) for name, file in shipped().items()}
    folder = _FOLDERS[kind]
    return {name: read_yaml(file) for name, file in shipped(folder).items()} if folder else {}


def _values(tree: Any, route: Route) -> Iterator[Any]:
    """What a file has at a route; of a list, what each of its sections has."""
    if not route:
        yield tree
        return
    (key, tag), *rest = route
    if not isinstance(tree, Mapping) or key not in tree:
        return
    for each in tree[key] if isinstance(tree[key], list) and (tag or rest) else [tree[key]]:
        if tag is None or (isinstance(each, Mapping) and each.get("name") == tag):
            yield from _values(each, tuple(rest))


def _chosen(dimension: Any) -> Iterator[str]:
    """The keys that the choices of a sweep set."""
    for settings in dimension.get("choices", {}).values() if isinstance(dimension, Mapping) else ():
        yield from settings
