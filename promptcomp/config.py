"""Configuration: a strict pydantic base, YAML files, `key=value` overrides and errors a person can act on.

Order of precedence: code defaults < YAML file < overrides, left to right. All mistakes are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptcomp.documents import DEPTH, parse_yaml, read_yaml
from promptcomp.errors import ConfigError, close_matches, did_you_mean, first_line
from promptcomp.plain import shown

__all__ = ["Config", "ConfigError", "Measured", "apply_overrides", "build", "dump", "parse_value", "read_yaml"]


class Config(BaseModel):
    """Base of every configuration section: unknown keys refused, frozen; the text below a field is what `explain` says
    (`reference.py` reads it)."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, defer_build=True)


class Measured(Config):
    """Base of records of what was measured: a number may be one that is not finite (it is written as null)."""

    model_config = ConfigDict(allow_inf_nan=True)


Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moment of AdamW."""
NOT_LOADED: dict[str, str] = {}
"""Name of each section of an installed package that could not be imported -> a sentence that says why."""
_MOST = 20
"""Mistakes that one message names."""
_MEMBER = re.compile(r"int|float|str|bool|[\w-]+\[.*")
"""What pydantic calls the member of a union in the place of a mistake."""
_PLAIN = {
    r"valid tuple": "valid list",
    r"valid dictionary or (instance of \w+|object to extract fields from)": "section",
    r" for <class 'pathlib.Path'>": "",
    r"Datetimes provided to dates .*|Input should be a valid date\b.*": "Input should be a date as YYYY-MM-DD",
}
"""Words of pydantic's -> words of a configuration."""

ConfigType = TypeVar("ConfigType", bound=Config)
SectionT = TypeVar("SectionT", bound=Config)


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str], texts: bool = False) -> dict[str, Any]:
    """A copy of `tree` with `a.b=value` assignments applied in order; values are read as YAML (`texts`: see
    `parse_value`).

    Raises:
        ConfigError: an assignment has no `=`, an empty path, goes through a value, or its value is not YAML.
    """
    settings, words = [], list(overrides)
    for number, override in enumerate(words):
        path, equals, raw = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys) or len(keys) > DEPTH:
            raise ConfigError(f"{shown(override)}: an override is written {_as_meant(words, number)}")
        settings.append((path, parse_value(raw, override, texts), override))
    return _set(tree, settings)


def _as_meant(words: list[str], number: int) -> str:
    """How a word that is no override was meant: a key and its value are one word."""
    word, before, after = words[number], words[max(number - 1, 0)], words[number + 1 : number + 2]
    if before.endswith("="):
        return f"without spaces: {before}{word}"
    if "." in word and after and "=" not in after[0]:
        return f"with =, as one word: {word}={after[0]}"
    return "section.key=value, for example optim.lr=1e-4"


def with_settings(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with dotted keys set (two underscores are a dot too, for keywords of Python); a mapping
    as a value replaces what was there.

    Raises:
        ConfigError: a key goes through a value.
    """
    return _set(tree, ((key.replace("__", "."), value, key) for key, value in settings.items()))


def _set(tree: Mapping[str, Any], settings: Iterable[tuple[str, Any, str]]) -> dict[str, Any]:
    """A copy of `tree` with (dotted key, value, what to call it in a message) set in order."""
    result = _copy(tree)
    for dotted, value, word in settings:
        *parents, last = dotted.split(".")
        node = result
        for key in parents:
            child = node.get(key)
            if child is None:
                child = node[key] = {}
            if not isinstance(child, dict):
                raise ConfigError(
                    f"{shown(word)}: {shown(key)} holds the value {shown(child)} and has no keys below it"
                )
            node = child
        node[last] = _copy(value) if isinstance(value, Mapping) else value
    return result


def parse_value(raw: str, word: str, texts: bool = False) -> Any:
    """The value in a word of the command line, read as YAML.

    Args:
        raw: the value.
        word: the whole word, for the message.
        texts: every scalar stays the text that it is.

    Raises:
        ConfigError: it is not YAML, or more than may be.
    """
    try:
        return parse_yaml(raw, texts)
    except ValueError as error:
        raise ConfigError(
            f"{shown(word)}: the value is not valid YAML ({error}); quote it, for example key='\"a: b\"'"
        ) from None


def build(schema: type[ConfigType], tree: Mapping[str, Any], source: str = "configuration") -> ConfigType:
    """Validate `tree` against `schema`.

    Raises:
        ConfigError: lists every mistake with its dotted path, the value found and the nearest known key.
    """
    try:
        made = schema.model_validate(tree)
    except ValidationError as error:
        found = _without_members(error.errors(include_url=False))
        lines = [_describe(item, schema) for item in found[:_MOST]]
        lines += [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    else:  # pydantic takes true for 1, and 0 for the first day of 1970
        odd = [*_taken_for(tree, made)]
        lines = [f"{key} = {value}: Input should be a {what}" for key, value, what in odd[:_MOST]]
        if not lines:
            return made
    raise ConfigError("\n".join([f"{source}:", *(f"  {line}" for line in lines)]))


def _taken_for(given: Any, made: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted keys and values of a tree that were taken for another kind, and the kind that they should be of."""
    if isinstance(given, bool):
        if isinstance(made, int | float) and not isinstance(made, bool):
            yield path, given, "number"
    elif isinstance(given, int | float) and isinstance(made, date):
        yield path, given, "date as YYYY-MM-DD"
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inner = made.get(key) if isinstance(made, Mapping) else getattr(made, str(key), None)
            yield from _taken_for(value, inner, f"{path}.{key}" if path else str(key))
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple) and len(given) == len(made):
        for number, (value, inner) in enumerate(zip(given, made, strict=True)):
            yield from _taken_for(value, inner, f"{path}.{number}")


def dump(config: Config) -> str:
    """The configuration as YAML that `build` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _without_members(errors: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mistakes placed by keys alone: what a union's members say of a value is one, of a section that of its keys."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for error in errors:
        place = tuple(part for part in error["loc"] if not _MEMBER.fullmatch(str(part)))
        known = f"{found[place]['msg']}, or " if place in found else ""
        message = error["msg"].removeprefix("Input should be ") if known else error["msg"]
        found[place] = {**error, **found.get(place, {}), "loc": place, "msg": known + message}
    inner = {place[:end] for place in found for end in range(len(place))}
    return [each for place, each in found.items() if not (place in inner and isinstance(each["input"], Mapping))]


def _describe(error: dict[str, Any], schema: type[BaseModel]) -> str:
    path: list[str] = []
    parents: list[type[BaseModel]] = [schema]
    annotations: list[Any] = []
    last_fields: tuple[str, ...] = tuple(schema.model_fields)
    for part in error["loc"]:
        tagged = [model for model in parents if tag_of(model) == part]
        if tagged:  # the discriminator of a tagged union is no key of the file
            parents = tagged
            last_fields = tuple(parents[0].model_fields)
            continue
        path.append(str(part))
        if isinstance(part, int):  # what a list holds stands in the annotation of its key
            continue
        last_fields = tuple(dict.fromkeys(name for model in parents for name in model.model_fields))
        annotations = [p.model_fields[part].annotation for p in parents if part in p.model_fields]
        parents = [model for each in annotations for model in models_in(each)]
    dotted = ".".join(path)
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(path[-1], last_fields, f"known keys: {', '.join(last_fields)}")
        if not hint.startswith("did"):
            ends = {key.rpartition(".")[2]: key for key in reversed(_keys(schema)) if key != dotted}
            near = [path[-1]] if path[-1] in ends else []
            if len(path) == 1:
                near += [each for each in ends if path[0] in each.split("_")]
                near += close_matches(path[0], ends)
            hint = f"did you mean {ends[near[0]]!r}?" if near else hint
        return f"{dotted}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{dotted}: missing"
    if error["type"] == "union_tag_invalid":
        known = [str(tag_of(model)) for model in parents]
        found = str(error["ctx"]["tag"])
        return f"{dotted}.name = {found!r}: {NOT_LOADED.get(found) or did_you_mean(found, known)}"
    if error["type"] == "union_tag_not_found":
        return f"{dotted}.name: missing; known: {', '.join(str(tag_of(model)) for model in parents)}"
    if error["type"] in ("model_type", "model_attributes_type") and parents and isinstance(error["input"], str):
        first = next(iter(parents[0].model_fields)) if not tag_of(parents[0]) else "name"
        return f"{dotted} = {shown(error['input'])}: it is a section; one of its keys is {dotted}.{first}"
    if error["input"] == "None" and any(type(None) in get_args(each) for each in annotations):
        return f"{dotted} = 'None': write null where there is to be none"
    message = error["msg"].removeprefix("Value error, ")
    for theirs, ours in _PLAIN.items():
        message = re.sub(theirs, ours, message)
    return f"{dotted} = {shown(error['input'])}: {message}" if dotted else message


def _keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a schema, those of upper sections first."""
    found, inner = [f"{prefix}{name}" for name in schema.model_fields], []
    for name, declared in schema.model_fields.items():
        for model in models_in(declared.annotation):
            inner += _keys(model, f"{prefix}{name}.")
    return list(dict.fromkeys([*found, *inner]))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes inside an annotation (unions and Annotated unwrapped)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def tag_of(model: type[BaseModel]) -> Any:
    """What `name` has to be for a section to be this one; None: it is not chosen by its name."""
    field = model.model_fields.get("name")
    return field.default if field is not None and get_origin(field.annotation) is Literal else None


def with_installed(group: str, own: Mapping[str, type[SectionT]], base: type[SectionT]) -> dict[str, type[SectionT]]:
    """This package's sections by name, and those that installed packages add with an entry point of the section's name.

    Sections are imported with the schema, so their files import no torch.

    Args:
        group: The group of entry points, "promptcomp.methods" or "promptcomp.data".
        own: The sections of this package.
        base: The class that every section derives from.

    One that cannot be imported is left out and noted in `NOT_LOADED`.

    Raises:
        ConfigError: an installed section is none, or takes the name of another.
    """
    found = dict(own)
    for point in entry_points(group=group):
        package = point.dist.name if point.dist is not None else "unknown"
        where = f"{point.value} (entry point {point.name!r} of {group}, package {package})"
        try:
            section = point.load()
        except (Exception, SystemExit) as error:  # whatever another package's code raises
            NOT_LOADED[point.name] = (
                f"{where} cannot be imported ({type(error).__name__}: {first_line(error)}); fix or uninstall {package}"
            )
            continue
        if not (isinstance(section, type) and issubclass(section, base)):
            raise ConfigError(f"{where} is no subclass of {base.__module__}.{base.__name__}")
        if tag_of(section) != point.name:
            raise ConfigError(f"{where}: it needs a field `name: Literal[{point.name!r}] = {point.name!r}`")
        if lacks := [name for name in sorted(base.__class_vars__) if not hasattr(section, name)]:
            raise ConfigError(
                f"{where}: it lacks {', '.join(lacks)} ({base.__module__}.{base.__name__} says what they are)"
            )
        if point.name in found:
            raise ConfigError(f"{where}: the name is taken by {found[point.name].__module__}")
        found[point.name] = section
    return found
