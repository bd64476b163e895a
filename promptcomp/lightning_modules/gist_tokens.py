"""Exported gist tokens: entries of a tokenizer and rows of the embedding table, as transformers knows tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.language_model import LanguageModel, embedding_scale, token_table
from promptcomp.language_model.cache import keyword_code
from promptcomp.lightning_modules.exported import EXTRA, Page, adapter_code, front, model_code

_CACHE_IMPORTS = ("from inspect import signature\n\n", ", DynamicCache")
_TEXTS = 'prompt, query = "text to compress", "text behind it"'


@dataclass(frozen=True, slots=True)
class GistTokens:
    """The gist tokens of an exported model."""

    ids: tuple[int, ...]
    """What stands behind a prompt: k token ids."""
    text: str
    """The same as text."""


def add_gist_tokens(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gist: Tensor, num_slots: int
) -> GistTokens:
    """Give a model and its tokenizer gist tokens.

    Args:
        hf: Changed in place: new rows of the embedding table, and rows of zeros in an output head of its own.
        tokenizer: Changed in place.
        gist: Embeddings [1 or k, D].
        num_slots: k.
    """
    words = _unused(tokenizer, len(gist))
    tokenizer.add_tokens(words, special_tokens=True)
    known = tokenizer.get_vocab()
    numbers = [known[word] for word in words]
    table = token_table(hf)
    if max(numbers) >= table.num_embeddings:
        # The rows that T5 has beyond its tokenizer are kept: a table never shrinks.
        hf.resize_token_embeddings(max(numbers) + 1, mean_resizing=False)
        table = token_table(hf)
    head = hf.get_output_embeddings()
    with torch.no_grad():
        if isinstance(head, nn.Linear) and head.weight is not table.weight:
            head.weight[numbers] = 0
        table.weight[numbers] = (gist / embedding_scale(table)).to(table.weight)
    if hf.generation_config is not None:
        hf.generation_config.suppress_tokens = sorted({*(hf.generation_config.suppress_tokens or ()), *numbers})
    repeated = [words[0]] * num_slots if len(words) == 1 else words
    ids = numbers * num_slots if len(words) == 1 else numbers
    return GistTokens(tuple(ids), "".join(repeated))


def _unused(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    known = tokenizer.get_vocab()
    stem = "gist"
    while True:
        words = [f"<{stem}>"] if count == 1 else [f"<{stem}_{number}>" for number in range(1, count + 1)]
        if not known.keys() & set(words):
            return words
        stem = f"new_{stem}"


def hf_page(lm: LanguageModel, gist: GistTokens) -> Page:
    """Of a model with gist tokens."""
    about = (
        f"A Hugging Face model whose tokenizer has learned gist tokens. Behind a prompt stand {len(gist.ids)} of them, "
        f"`{gist.text}` (ids {', '.join(map(str, gist.ids))}); what follows may look at them and not at the prompt. "
        "Their rows of an output head of its own are zero, and the generation settings never choose them; where the "
        "head shares its weights with the embeddings, leave their logits out of a softmax."
    )
    return Page("Language model with gist tokens", about, gist_code(lm, gist), (_TEXTS,))


def adapter_page(lm: LanguageModel, base: str, count: int) -> Page:
    """Of adapters with `count` gist tokens."""
    about = (
        f"The gist embedding is in `{EXTRA}` (`gist`, one row for each gist token or one for all): {count} of them "
        "stand behind the embeddings of a prompt; what follows may look at them and not at the prompt, and its "
        "positions count on."
    )
    return Page("Adapters", about, gist_vectors_code(lm, base, count), (_TEXTS,))


def gist_code(lm: LanguageModel, gist: GistTokens) -> str:
    """Logits after each token of `query` (of an encoder-decoder: of the first answer token) behind the gist tokens."""
    signature, cache = _CACHE_IMPORTS if lm.family == "decoder" else ("", "")
    return f"""
{signature}import torch
{model_code(lm, cache).strip()}
ids_of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
read = torch.tensor([{front(lm.bos_id)} + ids_of(prompt) + {list(gist.ids)}])
{_query_code(lm, len(gist.ids), "read", "torch.tensor([ids_of(query)])")}"""


def gist_vectors_code(lm: LanguageModel, base: str, count: int) -> str:
    """The same for an adapter, where the gist tokens are vectors and no entries of the tokenizer."""
    signature, cache = _CACHE_IMPORTS if lm.family == "decoder" else ("", "")
    return f"""
{signature}import torch
from safetensors.torch import load_file
{adapter_code(lm, base, f", AutoTokenizer{cache}").strip()}
tokenizer = AutoTokenizer.from_pretrained({base})
table = model.get_input_embeddings()
gist = load_file(f"{{folder}}/{EXTRA}")["gist"].to(table.weight.dtype).expand({count}, -1)
ids_of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
read = torch.cat([table(torch.tensor([{front(lm.bos_id)} + ids_of(prompt)])), gist[None]], 1)
{_query_code(lm, count, "inputs_embeds=read", "table(torch.tensor([ids_of(query)]))")}"""


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
