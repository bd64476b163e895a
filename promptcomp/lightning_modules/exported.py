"""What methods export beside trained tensors, and pages that say how it is loaded without promptcomp.

The pages are in `pages/`. Their code works on `folder`, `prompt` and `query` and leaves `model`, `logits` or `vectors`;
tests run it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from promptcomp.language_model import LanguageModel

EXTRA = "promptcomp_extra.safetensors"
"""File of the trained tensors that have no place in the model or the adapter."""


@dataclass(frozen=True, slots=True)
class Page:
    """The README of an exported folder: the file `pages/<name>.md.j2` and what it is filled in with."""

    name: str
    values: dict[str, Any]
    package: str = "promptcomp.lightning_modules"
    """Whose folder `pages` has the file."""

    def text(self, lm: LanguageModel | None = None, **values: Any) -> str:
        """The page of a method on an LM; `values` besides those of the page itself."""
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

        loader = ChoiceLoader([PackageLoader(each, "pages") for each in (self.package, __package__)])
        environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        if lm is not None:
            factory = "AutoModelForCausalLM" if lm.family == "decoder" else "AutoModelForSeq2SeqLM"
            values |= {"lm": lm, "factory": factory, "front": front(lm.bos_id), "extra": EXTRA}
        return environment.get_template(f"{self.name}.md.j2").render(values | self.values) + "\n"


@dataclass(frozen=True, slots=True)
class HFExport:
    """A Hugging Face model that holds what was trained."""

    model: PreTrainedModel
    page: Page
    inside: tuple[str, ...] = ("lm.hf.",)
    """Beginnings of the names of the trained tensors that it holds; the others go to a file beside it."""


def literal(text: str) -> str:
    """A text as Python code has it."""
    return json.dumps(text, ensure_ascii=False)


def front(bos_id: int | None) -> list[int]:
    """Ids in front of every sequence."""
    return [] if bos_id is None else [bos_id]
