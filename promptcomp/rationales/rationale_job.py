"""What is to be explained, by whom and how: one call's settings, its data and its template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field

from promptcomp.chat.session import Writing
from promptcomp.config import Config, ConfigError, apply_overrides, build, read_yaml
from promptcomp.datamodules import DATASETS
from promptcomp.datamodules.rationale.rationale_config import (
    RationaleConfig,
)
from promptcomp.experiment import chosen_file
from promptcomp.rationales.template import PromptTemplate, load_template, shipped_templates

_SAMPLING_TEMPERATURE = 0.7


class _DataSection(Config):
    data: Annotated[Union[tuple(DATASETS.values())], Field(discriminator="name")]  # type: ignore[valid-type]  # noqa: UP007


@dataclass(frozen=True, slots=True)
class RationaleJob:
    """What is to be explained, by whom and how."""

    data: RationaleConfig
    teacher: str
    """The endpoint's model, or `local:PATH`."""
    chat: bool
    """The teacher reads turns and not one text."""
    split: str = "train"
    template: str | None = None
    """A shipped template or a YAML file; None: the one of the data's format."""
    rows: int | None = None
    """Only so many rows, the first ones; None: all."""
    samples: int = 1
    temperature: float | None = None
    """None: 0 (greedy) for one sample, 0.7 for several."""
    max_tokens: int | None = None
    """None: the template's."""
    seed: int = 0
    retry_refused: bool = False
    """Ask again what the teacher's server refused in an earlier call."""
    output: Path | None = None


def load_data(method: str | None, config: Path | None, overrides: Sequence[str]) -> RationaleConfig:
    """The data section of an experiment, or one made of overrides alone (data.name=...); without a teacher's work.

    Raises:
        ConfigError: a mistake in it, or data that has no place for rationales.
    """
    tree: dict[str, Any] = {}
    if method is not None or config is not None:
        tree = {"data": read_yaml(chosen_file(method, config)).get("data", {})}
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


def default_output(job: RationaleJob) -> Path:
    """rationales/DATA-SPLIT-TEACHER.jsonl."""
    data = job.data
    teacher = job.teacher.removeprefix("local:")
    teacher = Path(teacher).name if teacher.startswith("/") else teacher
    name = f"{data.format_name or type(data).model_fields['name'].default}-{job.split}-{teacher}"
    return Path("rationales") / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name).strip('_')}.jsonl"


def writing_of(job: RationaleJob, template: PromptTemplate) -> Writing:
    """How the teacher writes.

    Raises:
        ConfigError: several samples that would all be the same.
    """
    temperature = job.temperature
    if temperature is None:
        temperature = _SAMPLING_TEMPERATURE if job.samples > 1 else 0.0
    if job.samples > 1 and temperature == 0:
        raise ConfigError(f"--samples {job.samples} at --temperature 0 are all the same; raise the temperature")
    return Writing(job.max_tokens or template.max_tokens, template.stop, temperature)
