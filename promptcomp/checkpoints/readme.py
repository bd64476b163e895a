"""The README.md of an exported folder: what it is, and how to load it without promptcomp.

The functions named `*_code` return Python that works on `folder`, `prompt` and `query` and leaves `logits` (or
`vectors`); tests run it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from promptcomp.checkpoints.gist_tokens import GistTokens
from promptcomp.experiment import Experiment
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.mend import Mend

EXTRA = "promptcomp_extra.safetensors"
"""Trained tensors that have no place in the model or the adapter."""


def _page(experiment: Experiment, what: str, *parts: str) -> str:
    origin = f"Trained with promptcomp, method `{experiment.method.name}`, on `{experiment.lm.path}`."
    return "\n\n".join([f"# {what}", origin, *parts]) + "\n"


def _block(code: str, *lines: str) -> str:
    return "\n".join(["```python", *lines, code.strip(), "```"])


def tensors(experiment: Experiment) -> str:
    """Of `trained.safetensors` and `promptcomp.json`."""
    code = 'from safetensors.torch import load_file\n\ntensors = load_file("trained.safetensors")'
    return _page(
        experiment,
        "Trained tensors",
        "`trained.safetensors` holds the tensors that training has changed, by name; `promptcomp.json` says of which "
        "method and LM. `method.init_from=FOLDER` starts a run of the same method from here.",
        _block(code),
    )


def language_model(experiment: Experiment, module: CompressionModule, gist: GistTokens | None) -> str:
    """Of a Hugging Face model."""
    if gist is None:
        return _page(
            experiment,
            "Language model",
            "A plain Hugging Face model. Prompts are written as in training (`promptcomp data show`).",
            _block(model_code(module)),
        )
    count = len(gist.ids)
    about = (
        f"A Hugging Face model whose tokenizer has learned gist tokens. Behind a prompt stand {count} of them, "
        f"`{gist.text}` (ids {', '.join(map(str, gist.ids))}); what follows may look at them and not at the prompt. "
        "Their rows of an output head of its own are zero, and the generation settings never choose them; where the "
        "head shares its weights with the embeddings, leave their logits out of a softmax."
    )
    given = ('folder = "."', 'prompt, query = "text to compress", "text behind it"')
    return _page(experiment, "Language model with gist tokens", about, _block(gist_code(module, gist), *given))


def _factory(module: CompressionModule) -> str:
    return "AutoModelForCausalLM" if module.lm.family == "decoder" else "AutoModelForSeq2SeqLM"


def model_code(module: CompressionModule) -> str:
    """Opens model and tokenizer."""
    name = _factory(module)
    return f"""
from transformers import AutoTokenizer, {name}

model = {name}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


def gist_code(module: CompressionModule, gist: GistTokens) -> str:
    """Logits after each token of `query` (of an encoder-decoder: of the first answer token) behind the gist tokens."""
    count, lm = len(gist.ids), module.lm
    front = [] if lm.bos_id is None else [lm.bos_id]
    start = f"""
import torch
{model_code(module).strip()}
ids_of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
ids = torch.tensor([{front} + ids_of(prompt) + {list(gist.ids)}])
"""
    if lm.family == "decoder":
        return f"""{start}
cache = model(ids, use_cache=True).past_key_values
for layer in cache.layers:  # all that is kept of the prompt
    layer.keys, layer.values = layer.keys[:, :, -{count}:], layer.values[:, :, -{count}:]
after = torch.tensor([ids_of(query)])
positions = torch.arange(ids.shape[1], ids.shape[1] + after.shape[1])[None]
logits = model(after, past_key_values=cache, position_ids=positions).logits
"""
    if not lm.query_in_encoder:
        return f"""{start}
states = model.get_encoder()(ids).last_hidden_state[:, -{count}:]  # all that is kept of the prompt
after = torch.tensor([[{lm.start_id}] + ids_of(query)])
logits = model(encoder_outputs=(states,), decoder_input_ids=after).logits
"""
    return f"""{start}
first, last = ids.shape[1] - {count}, ids.shape[1]
ids = torch.cat([ids, torch.tensor([ids_of(query)])], 1)
sees = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
sees[..., :last, last:] = sees[..., last:, :first] = torch.finfo(sees.dtype).min
states = model.get_encoder()(ids, attention_mask=sees).last_hidden_state[:, first:]
logits = model(encoder_outputs=(states,), decoder_input_ids=torch.tensor([[{lm.start_id}]])).logits
"""


def distiller(experiment: Experiment, module: Mend) -> str:
    """Of MEND's distiller."""
    about = (
        f"A Hugging Face model (without an output head) that reads demonstrations followed by "
        f"{module.slots.shape[0]} learned slots. Its final states at the slots, projected where the sizes differ, are "
        "the vectors that stand in front of a query's embeddings in the frozen LM. Longer demonstrations than the "
        "model's window are read in chunks, whose vectors follow each other. Slots and projection are in "
        f"`{EXTRA}`."
    )
    given = ('folder = "."', 'prompt = "demonstrations"')
    return _page(experiment, "Distiller", about, _block(distiller_code(module), *given))


def distiller_code(module: Mend) -> str:
    """Vectors [1, K, D] of `prompt`."""
    name = "AutoModel" if module.distiller.family == "decoder" else "T5EncoderModel"
    front = [] if module.distiller.bos_id is None else [module.distiller.bos_id]
    project = ""
    if isinstance(module.projection, nn.Linear):
        project = '\nvectors = vectors @ extra["projection.weight"].T + extra["projection.bias"]'
    elif not isinstance(module.projection, nn.Identity):
        project = '\nvectors = torch.tanh(vectors @ extra["projection.0.weight"].T + extra["projection.0.bias"])'
    return f"""
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, {name}

model, tokenizer = {name}.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
extra = load_file(f"{{folder}}/{EXTRA}")
ids = torch.tensor([{front} + tokenizer(prompt, add_special_tokens=False)["input_ids"]])
embeds = torch.cat([model.get_input_embeddings()(ids), extra["slots"][None]], 1)
vectors = model(inputs_embeds=embeds).last_hidden_state[:, -len(extra["slots"]):]{project}
"""


def _peft_code(experiment: Experiment, place: str, factory: str) -> str:
    return f"""
from peft import PeftModel
from transformers import {factory}

base = {factory}.from_pretrained("{experiment.lm.path}")
model = PeftModel.from_pretrained(base, "{place}")
"""


def adapters(experiment: Experiment, factory: str, *, with_gist: bool) -> str:
    """Of LoRA adapters."""
    parts = ["Low-rank adapters in peft's format."]
    if with_gist:
        parts.append(
            f"The gist embedding is in `{EXTRA}` (`gist`, one row for each gist token or one for all): put "
            f"{experiment.method.num_slots} of them behind the embeddings of a prompt (`inputs_embeds`), and keep of "
            "the cache only their positions; position ids count on."
        )
    return _page(experiment, "Adapters", *parts, _block(_peft_code(experiment, ".", factory)))


def prompts(experiment: Experiment, places: Sequence[str], factory: str) -> str:
    """Of learned vectors."""
    about = "Learned vectors in peft's prompt-tuning format; peft puts them in front of the input's embeddings."
    if len(places) > 1:
        about += " A folder for each task: " + ", ".join(f"`{place}`" for place in places) + "."
    return _page(experiment, "Soft prompts", about, _block(_peft_code(experiment, places[0], factory)))
