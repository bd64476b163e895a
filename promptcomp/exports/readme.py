"""The README.md of an exported folder: what it is, and how to load it without promptcomp.

The functions named `*_code` return Python that works on `folder`, `prompt` and `query` and leaves `model`, `logits`,
`vectors` or `tensors`; tests run it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from promptcomp.experiment import Experiment
from promptcomp.exports.gist_tokens import GistTokens
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.cache import keyword_code
from promptcomp.language_model.loading import locate
from promptcomp.language_model.t5_encoder import SlotDecoder
from promptcomp.lightning_modules.mend import Mend

EXTRA = "promptcomp_extra.safetensors"
"""Trained tensors that have no place in the model or the adapter."""
_FOLDER = 'folder = "."'
_CACHE_IMPORTS = ("from inspect import signature\n\n", ", DynamicCache")
_TEXTS = 'prompt, query = "text to compress", "text behind it"'


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


def language_model(experiment: Experiment, lm: LanguageModel, gist: GistTokens | None) -> str:
    """Of a Hugging Face model."""
    if gist is None:
        return _page(
            experiment,
            "Language model",
            "A plain Hugging Face model. Prompts are written as in training (`promptcomp data show`).",
            _block(model_code(lm)),
        )
    count = len(gist.ids)
    about = (
        f"A Hugging Face model whose tokenizer has learned gist tokens. Behind a prompt stand {count} of them, "
        f"`{gist.text}` (ids {', '.join(map(str, gist.ids))}); what follows may look at them and not at the prompt. "
        "Their rows of an output head of its own are zero, and the generation settings never choose them; where the "
        "head shares its weights with the embeddings, leave their logits out of a softmax."
    )
    return _page(experiment, "Language model with gist tokens", about, _block(gist_code(lm, gist), _TEXTS))


def _factory(lm: LanguageModel) -> str:
    return "AutoModelForCausalLM" if lm.family == "decoder" else "AutoModelForSeq2SeqLM"


def model_code(lm: LanguageModel, more: str = "") -> str:
    """Opens model and tokenizer; `more` names are imported as well."""
    name = _factory(lm)
    return f"""
from transformers import AutoTokenizer, {name}{more}

model = {name}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


def gist_code(lm: LanguageModel, gist: GistTokens) -> str:
    """Logits after each token of `query` (of an encoder-decoder: of the first answer token) behind the gist tokens."""
    signature, cache = _CACHE_IMPORTS if lm.family == "decoder" else ("", "")
    return f"""
{signature}import torch
{model_code(lm, cache).strip()}
ids_of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
read = torch.tensor([{_front(lm.bos_id)} + ids_of(prompt) + {list(gist.ids)}])
{_query_code(lm, len(gist.ids), "read", "torch.tensor([ids_of(query)])")}"""


def gist_vectors_code(experiment: Experiment, lm: LanguageModel, count: int) -> str:
    """The same for an adapter, where the gist tokens are vectors and no entries of the tokenizer."""
    signature, cache = _CACHE_IMPORTS if lm.family == "decoder" else ("", "")
    return f"""
{signature}import torch
from safetensors.torch import load_file
{_adapter_code(experiment, lm, f", AutoTokenizer{cache}").strip()}
tokenizer = AutoTokenizer.from_pretrained({_origin(experiment)})
table = model.get_input_embeddings()
gist = load_file(f"{{folder}}/{EXTRA}")["gist"].to(table.weight.dtype).expand({count}, -1)
ids_of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
read = torch.cat([table(torch.tensor([{_front(lm.bos_id)} + ids_of(prompt)])), gist[None]], 1)
{_query_code(lm, count, "inputs_embeds=read", "table(torch.tensor([ids_of(query)]))")}"""


def _front(bos_id: int | None) -> list[int]:
    return [] if bos_id is None else [bos_id]


def _query_code(lm: LanguageModel, count: int, given: str, query: str) -> str:
    """From `read`, the prompt and the gist tokens, to `logits`.

    Args:
        lm: the LM.
        count: gist tokens.
        given: how the model takes `read`.
        query: the query in the form of `read`.
    """
    if lm.family == "decoder":
        return f"""
{keyword_code("model")}  # its name in this release of transformers
cache = DynamicCache()
model({given}, use_cache=True, **{{keyword: cache}})
for layer in cache.layers:  # all that is kept of the prompt
    layer.keys, layer.values = layer.keys[:, :, -{count}:], layer.values[:, :, -{count}:]
after = torch.tensor([ids_of(query)])
positions = torch.arange(read.shape[1], read.shape[1] + after.shape[1])[None]
logits = model(after, position_ids=positions, **{{keyword: cache}}).logits
"""
    if not lm.query_in_encoder:
        return f"""
states = model.get_encoder()({given}).last_hidden_state[:, -{count}:]  # all that is kept of the prompt
after = torch.tensor([[{lm.start_id}] + ids_of(query)])
logits = model(encoder_outputs=(states,), decoder_input_ids=after).logits
"""
    return f"""
first, last = read.shape[1] - {count}, read.shape[1]
read = torch.cat([read, {query}], 1)
sees = torch.zeros(1, 1, read.shape[1], read.shape[1])
sees[..., :last, last:] = sees[..., last:, :first] = torch.finfo(sees.dtype).min
states = model.get_encoder()({given}, attention_mask=sees).last_hidden_state[:, first:]
logits = model(encoder_outputs=(states,), decoder_input_ids=torch.tensor([[{lm.start_id}]])).logits
"""


def distiller(experiment: Experiment, module: Mend) -> str:
    """Of MEND's distiller."""
    count = module.slots.shape[0]
    reads = f"demonstrations followed by {count} learned slots"
    if module.method.slots_in == "decoder":
        reads = f"demonstrations in its encoder and {count} learned slots in its decoder"
    use = "stand in front of a query's embeddings in the frozen LM"
    if module.method.slots == "states":
        use = "take the place of the encoder's output in the frozen LM"
    about = (
        f"A Hugging Face model (without an output head) that reads {reads}. Its final states at the slots, projected "
        f"where the sizes differ, are the vectors that {use}. Longer demonstrations than the "
        "model's window are read in chunks, whose vectors follow each other. Slots and projection are in "
        f"`{EXTRA}`."
    )
    return _page(experiment, "Distiller", about, _block(distiller_code(module), 'prompt = "demonstrations"'))


def distiller_code(module: Mend) -> str:
    """Vectors [1, K, D] of `prompt`."""
    whole = module.distiller.family == "decoder" or module.method.slots_in == "decoder"
    name = "AutoModel" if whole else "T5EncoderModel"
    front = _front(module.distiller.bos_id)
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
{_slots_code(module)}{project}
"""


def _slots_code(module: Mend) -> str:
    """From `ids` to the states at the slots, `vectors`."""
    if isinstance(module.distiller, SlotDecoder):
        return f"""encoded = model.get_encoder()(input_ids=ids).last_hidden_state
start = model.get_input_embeddings()(torch.tensor([[{module.distiller.start_id}]]))
embeds = torch.cat([start, extra["slots"][None]], 1)
vectors = model.get_decoder()(inputs_embeds=embeds, encoder_hidden_states=encoded).last_hidden_state[:, 1:]"""
    return """embeds = torch.cat([model.get_input_embeddings()(ids), extra["slots"][None]], 1)
vectors = model(inputs_embeds=embeds).last_hidden_state[:, -len(extra["slots"]):]"""


def _origin(experiment: Experiment) -> str:
    """Arguments of `from_pretrained` for the LM that training began with."""
    revision = f', revision="{experiment.lm.revision}"' if experiment.lm.revision else ""
    return f'"{locate(experiment.lm.path)}"{revision}'


def _adapter_code(experiment: Experiment, lm: LanguageModel, more: str = "") -> str:
    return f"""
from transformers import {_factory(lm)}{more}

model = {_factory(lm)}.from_pretrained({_origin(experiment)})
model.load_adapter(folder)  # by peft
"""


def adapters(experiment: Experiment, lm: LanguageModel, gist: int, beside: str) -> str:
    """Of LoRA adapters, with `gist` gist tokens (0: there are none); `beside` says where they are."""
    parts = [f"Low-rank adapters in peft's format. {beside}."]
    if not gist:
        return _page(experiment, "Adapters", *parts, _block(_adapter_code(experiment, lm)))
    parts.append(
        f"The gist embedding is in `{EXTRA}` (`gist`, one row for each gist token or one for all): {gist} of them "
        "stand behind the embeddings of a prompt; what follows may look at them and not at the prompt, and its "
        "positions count on."
    )
    return _page(experiment, "Adapters", *parts, _block(gist_vectors_code(experiment, lm, gist), _TEXTS))


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
from transformers import {_factory(lm)}

base = {_factory(lm)}.from_pretrained({_origin(experiment)})
with warnings.catch_warnings():  # peft calls things in transformers by their old names
    warnings.simplefilter("ignore", FutureWarning)
    model = PeftModel.from_pretrained(base, {where})
"""
