"""The README.md of an exported folder: what it is, and how to load it without promptcomp.

What only a method can say comes from its module (`CompressionModule.as_hf`, `adapter_page`).
"""

from __future__ import annotations

from collections.abc import Sequence

from promptcomp.experiment import Experiment
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.loading import locate
from promptcomp.lightning_modules.exported import Page, factory

_FOLDER = 'folder = "."'


def _page(experiment: Experiment, what: str, *parts: str) -> str:
    origin = f"Trained with promptcomp, method `{experiment.method.name}`, on `{experiment.lm.path}`."
    return "\n\n".join([f"# {what}", origin, *parts]) + "\n"


def _block(code: str, *lines: str) -> str:
    return "\n".join(["```python", _FOLDER, *lines, code.strip(), "```"])


def tensors(experiment: Experiment) -> str:
    """Of `trained.safetensors` and `promptcomp.json`."""
    code = 'from safetensors.torch import load_file\n\ntensors = load_file(f"{folder}/trained.safetensors")'
    return _page(
        experiment,
        "Trained tensors",
        "`trained.safetensors` holds the tensors that training has changed, by name; `promptcomp.json` says of which "
        "method and LM. `method.init_from=FOLDER` starts a run of the same method from here, and in Python "
        "`promptcomp.load_compressor(FOLDER)` compresses prompts with it (`config.yaml` says how they are written).",
        _block(code),
    )


def of_page(experiment: Experiment, page: Page) -> str:
    """Of a Hugging Face model."""
    return _page(experiment, page.title, page.about, _block(page.code, *page.given))


def origin(experiment: Experiment) -> str:
    """Arguments of `from_pretrained` for the LM that training began with."""
    revision = f', revision="{experiment.lm.revision}"' if experiment.lm.revision else ""
    return f'"{locate(experiment.lm.path)}"{revision}'


def adapters(experiment: Experiment, page: Page, beside: str) -> str:
    """Of LoRA adapters; `beside` says where they are."""
    parts = [f"Low-rank adapters in peft's format. {beside}.", *([page.about] if page.about else [])]
    return _page(experiment, page.title, *parts, _block(page.code, *page.given))


def prompts(experiment: Experiment, places: Sequence[str], lm: LanguageModel) -> str:
    """Of learned vectors."""
    about = "Learned vectors in peft's prompt-tuning format; peft puts them in front of the input's embeddings."
    if places != ["."]:
        about += " A folder for each task: " + ", ".join(f"`{place}`" for place in places) + "."
    where = "folder" if places == ["."] else f'f"{{folder}}/{places[0]}"'
    return _page(experiment, "Soft prompts", about, _block(prompts_code(experiment, lm, where)))


def prompts_code(experiment: Experiment, lm: LanguageModel, where: str) -> str:
    """Opens the LM with the vectors in the folder that the expression `where` names."""
    return f"""
import warnings

from peft import PeftModel
from transformers import {factory(lm)}

base = {factory(lm)}.from_pretrained({origin(experiment)})
with warnings.catch_warnings():  # peft calls things in transformers by their old names
    warnings.simplefilter("ignore", FutureWarning)
    model = PeftModel.from_pretrained(base, {where})
"""
