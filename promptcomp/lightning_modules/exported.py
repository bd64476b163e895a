"""What methods export beside trained tensors, and Python that loads it without promptcomp.

The code works on `folder`, `prompt` and `query` and leaves `model`, `logits` or `vectors`; tests run it.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from promptcomp.language_model import LanguageModel

EXTRA = "promptcomp_extra.safetensors"
"""File of the trained tensors that have no place in the model or the adapter."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the README of an exported folder says."""

    title: str
    about: str
    code: str
    given: tuple[str, ...] = ()
    """Lines of Python in front of the code: examples of what it works on."""


@dataclass(frozen=True, slots=True)
class HFExport:
    """A Hugging Face model that holds what was trained."""

    model: PreTrainedModel
    page: Page
    inside: tuple[str, ...] = ("lm.hf.",)
    """Beginnings of the names of the trained tensors that it holds; the others go to a file beside it."""


def factory(lm: LanguageModel) -> str:
    """The class of transformers that opens it."""
    return "AutoModelForCausalLM" if lm.family == "decoder" else "AutoModelForSeq2SeqLM"


def model_code(lm: LanguageModel, more: str = "") -> str:
    """Opens model and tokenizer; `more` names are imported as well."""
    name = factory(lm)
    return f"""
from transformers import AutoTokenizer, {name}{more}

model = {name}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


def adapter_code(lm: LanguageModel, base: str, more: str = "") -> str:
    """Opens the LM with adapters; `base` are the arguments of `from_pretrained`, `more` names are imported as well."""
    return f"""
from transformers import {factory(lm)}{more}

model = {factory(lm)}.from_pretrained({base})
model.load_adapter(folder)  # by peft
"""


def front(bos_id: int | None) -> list[int]:
    """Ids in front of every sequence."""
    return [] if bos_id is None else [bos_id]
