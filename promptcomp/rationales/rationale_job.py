"""The job of `promptcomp rationales`: its settings, data and template.

A template is a YAML file that people may edit: a few explained examples and the one to explain. `query` and `answer`
are the two halves of an example; `{input}` (or `{premise}` and `{hypothesis}`), `{rationale}` and `{label}` stand for
texts. A plain LM reads all of it as one text, a chat model as turns.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field, model_validator

from promptcomp.chat.client import Message
from promptcomp.chat.session import Writing
from promptcomp.config import Config, ConfigError, apply_overrides, build, read_yaml
from promptcomp.datamodules import DATASETS
from promptcomp.datamodules.rationale.rationale_config import RationaleConfig
from promptcomp.datamodules.sources.rationale_parsing import ParsedTask
from promptcomp.datamodules.sources.rationale_records import SEGMENT
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.documents import experiment_file
from promptcomp.rationales import RationaleOptions

_FIELDS = re.compile(r"\{(input|premise|hypothesis|rationale|label)\}")


class Demonstration(Config):
    """An explained example."""

    input: str = ""
    premise: str = ""
    hypothesis: str = ""
    rationale: str = Field(min_length=1)
    label: str = Field(min_length=1)


class PromptTemplate(Config):
    """How examples are put to a teacher and how its text is read."""

    parse: ParsedTask | None = None
    """Which known way of reading the text; null: `marker` divides it."""
    marker: str | None = None
    """The text between rationale and label."""
    equation: bool = False
    """With `marker`: the label must be a number or an expression with a value."""
    instruction: str = ""
    """Said first; may be empty."""
    query: str
    """An example up to where the teacher goes on."""
    answer: str
    """What the teacher should write."""
    separator: str = "\n\n"
    """Stands between examples (plain LMs)."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    max_tokens: int = Field(128, ge=1)
    """Longest answer."""
    demonstrations: tuple[Demonstration, ...] = ()
    """The explained examples."""

    @model_validator(mode="after")
    def _has_all_fields(self) -> PromptTemplate:
        asked, answered = set(_FIELDS.findall(self.query)), set(_FIELDS.findall(self.answer))
        if asked not in ({"input"}, {"premise", "hypothesis"}):
            raise ValueError("query must hold {input}, or {premise} and {hypothesis}, and no other field")
        if answered != {"rationale", "label"}:
            raise ValueError("answer must hold {rationale} and {label}, and no other field")
        if (self.parse is None) == (not (self.marker or "").strip()):
            raise ValueError("give either parse (a known task) or marker (the text between rationale and label)")
        if self.marker and self.marker not in self.answer:
            raise ValueError(f"answer must hold the marker {self.marker!r}")
        for number, shown in enumerate(self.demonstrations, start=1):
            if not all(getattr(shown, name).strip() for name in asked):
                raise ValueError(f"demonstration {number} lacks {' or '.join(sorted(asked))}")
        if not all(self.stop):
            raise ValueError("stop holds an empty text")
        return self

    def text(self, row: RationaleRow) -> str:
        """The prompt of a row for a plain LM.

        Raises:
            ConfigError: the row does not have the parts that are asked for.
        """
        parts = [self.instruction] if self.instruction else []
        parts += [_fill(self.query + self.answer, shown.model_dump()) for shown in self.demonstrations]
        return self.separator.join([*parts, _fill(self.query, self._fields(row))])

    def messages(self, row: RationaleRow) -> list[Message]:
        """The prompt of a row as a chat: examples are turns.

        Raises:
            ConfigError: the row does not have the parts that are asked for.
        """
        chat: list[Message] = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for shown in self.demonstrations:
            chat.append({"role": "user", "content": _fill(self.query, shown.model_dump())})
            chat.append({"role": "assistant", "content": _fill(self.answer, shown.model_dump()).strip()})
        return [*chat, {"role": "user", "content": _fill(self.query, self._fields(row))}]

    def _fields(self, row: RationaleRow) -> dict[str, str]:
        if "{premise}" not in self.query:
            return {"input": row.input.replace(SEGMENT, "\n")}
        premise, segment, hypothesis = row.input.partition(SEGMENT)
        if not segment:
            raise ConfigError(
                f"row {row.id!r} has one input, but the template asks for a premise and a hypothesis; "
                "use a template with {input}"
            )
        return {"premise": premise, "hypothesis": hypothesis}

    @property
    def sha256(self) -> str:
        """Identity of everything in the template."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json")).encode()).hexdigest()


def shipped_templates() -> dict[str, Path]:
    """The templates that come with the package, by name."""
    folder = Path(str(resources.files("promptcomp.rationales") / "templates"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def template_path(name: str) -> Path:
    """The file of a shipped template, or a file of one's own.

    Raises:
        ConfigError: there is no template of that name.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = shipped_templates()
    if name not in known:
        raise ConfigError(f"--template {name!r} is not known; give a YAML file, or one of {', '.join(known)}")
    return known[name]


def load_template(name: str) -> PromptTemplate:
    """A shipped template or one in a file.

    Raises:
        ConfigError: it cannot be read or lacks something.
    """
    path = template_path(name)
    return build(PromptTemplate, read_yaml(path), source=str(path) if path.parent != Path() else path.name)


def _fill(text: str, fields: Mapping[str, str]) -> str:
    """In one pass: a text that holds "{label}" stays as it is."""
    return _FIELDS.sub(lambda found: fields[found[1]], text)


_SAMPLING_TEMPERATURE = 0.7


class _DataSection(Config):
    data: Annotated[Union[tuple(DATASETS.values())], Field(discriminator="name")]  # type: ignore[valid-type]  # noqa: UP007


def load_data(method: str | None, config: Path | None, overrides: Sequence[str]) -> RationaleConfig:
    """The data section of an experiment, or one made of overrides alone (data.name=...); without a teacher's work.

    Raises:
        ConfigError: a mistake in it, or data that has no place for rationales.
    """
    tree: dict[str, Any] = {}
    if method is not None and config is not None:
        raise ConfigError("give either --method NAME (a shipped experiment) or --config FILE")
    if (file := config if method is None else experiment_file(method)) is not None:
        tree = {"data": read_yaml(file).get("data", {})}
    for item in overrides:
        if not item.startswith(("data.", "data=")):
            raise ConfigError(f"{item!r}: only data.* can be set here")
    tree = apply_overrides(tree, overrides)
    if not tree.get("data"):
        raise ConfigError("name the data, for example data.name=rationale_files data.test=[rows.jsonl]")
    data = build(_DataSection, tree, source="data").data
    if not isinstance(data, RationaleConfig):
        known = ", ".join(name for name, section in DATASETS.items() if issubclass(section, RationaleConfig))
        raise ConfigError(f"data.name = {data.name!r} has no rationales; choose {known}")
    return data.without_teacher()


def rows_of(data: RationaleConfig, split: str) -> Sequence[RationaleRow]:
    """The rows of a split of the data.

    Raises:
        ConfigError: there is no such split, a row is bad, or none has a column that was named.
    """
    source = data.source()
    if split not in source.splits:
        raise ConfigError(f"--split {split!r} is unknown; the data has {', '.join(source.splits)}")
    rows: Sequence[RationaleRow] = source.rows(split)
    source.check_columns()
    if not rows:
        raise ConfigError(f"the {split} split has no rows")
    return rows


def template_name(data: RationaleConfig) -> str:
    """The shipped template of the data's format.

    Raises:
        ConfigError: there is none.
    """
    name, known = data.format_name, shipped_templates()
    if name not in known:
        raise ConfigError(
            f"this data has no template of its own; give --template FILE.yaml, or one of {', '.join(known)}"
        )
    return str(name)


def pick_template(name: str | None, data: RationaleConfig) -> PromptTemplate:
    """The template asked for, or the one of the data's format.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    return load_template(template_name(data) if name is None else name)


def default_output(data: RationaleConfig, teacher: str, split: str) -> Path:
    """rationales/DATA-SPLIT-TEACHER.jsonl."""
    teacher = teacher.removeprefix("local:")
    teacher = Path(teacher).name if teacher.startswith("/") else teacher
    name = f"{data.format_name or type(data).model_fields['name'].default}-{split}-{teacher}"
    return Path("rationales") / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name).strip('_')}.jsonl"


def writing_of(options: RationaleOptions, template: PromptTemplate) -> Writing:
    """How the teacher writes.

    Raises:
        ConfigError: several samples that would all be the same.
    """
    temperature = options.temperature
    if temperature is None:
        temperature = _SAMPLING_TEMPERATURE if options.samples > 1 else 0.0
    if options.samples > 1 and temperature == 0:
        raise ConfigError(f"--samples {options.samples} at --temperature 0 are all the same; raise the temperature")
    return Writing(options.max_tokens or template.max_tokens, template.stop, temperature)
