"""Exported gist tokens: entries of a tokenizer and rows of the embedding table, as transformers knows tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.language_model import LanguageModel, embedding_scale, token_table
from promptcomp.language_model.cache import keyword_code
from promptcomp.lightning_modules.exported import EXTRA, Page, adapter_code, front, model_code

_TEXTS = 'prompt, query = "text to compress", "text behind it"'


def add_gist_tokens(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gist: Tensor, num_slots: int
) -> tuple[list[int], str]:
    """Give a model and its tokenizer gist tokens; returns the k tokens behind a prompt as ids and as text.

    Args:
        hf: Changed in place: new rows of the embedding table, and rows of zeros in an output head of its own.
        tokenizer: Changed in place.
        gist: Embeddings [1 or k, D].
        num_slots: k.
    """
    count, stem = len(gist), "gist"
    while True:
        words = [f"<{stem}>"] if count == 1 else [f"<{stem}_{number}>" for number in range(1, count + 1)]
        if not tokenizer.get_vocab().keys() & set(words):
            break
        stem = f"new_{stem}"
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
    repeated = num_slots // count
    return numbers * repeated, "".join(words * repeated)


def hf_page(lm: LanguageModel, ids: list[int], text: str) -> Page:
    """Of a model with gist tokens (see `add_gist_tokens`)."""
    about = (
        f"A Hugging Face model whose tokenizer has learned gist tokens. Behind a prompt stand {len(ids)} of them, "
        f"`{text}` (ids {', '.join(map(str, ids))}); what follows may look at them and not at the prompt. "
        "Their rows of an output head of its own are zero, and the generation settings never choose them; where the "
        "head shares its weights with the embeddings, leave their logits out of a softmax."
    )
    read = f"torch.tensor([{front(lm.bos_id)} + ids_of(prompt) + {ids}])"
    steps = _query_code(lm, len(ids), "read", "torch.tensor([ids_of(query)])")
    code = _code(lm, model_code(lm, _cache_import(lm)).strip(), read, steps)
    return Page("Language model with gist tokens", about, code, (_TEXTS,))


def adapter_page(lm: LanguageModel, base: str, count: int) -> Page:
    """Of adapters with `count` gist tokens, which are vectors and no entries of the tokenizer."""
    about = (
        f"The gist embedding is in `{EXTRA}` (`gist`, one row for each gist token or one for all): {count} of them "
        "stand behind the embeddings of a prompt; what follows may look at them and not at the prompt, and its "
        "positions count on."
    )
    opening = f"""from safetensors.torch import load_file
{adapter_code(lm, base, f", AutoTokenizer{_cache_import(lm)}").strip()}
tokenizer = AutoTokenizer.from_pretrained({base})
table = model.get_input_embeddings()
gist = load_file(f"{{folder}}/{EXTRA}")["gist"].to(table.weight.dtype).expand({count}, -1)"""
    read = f"torch.cat([table(torch.tensor([{front(lm.bos_id)} + ids_of(prompt)])), gist[None]], 1)"
    steps = _query_code(lm, count, "inputs_embeds=read", "table(torch.tensor([ids_of(query)]))")
    return Page("Adapters", about, _code(lm, opening, read, steps), (_TEXTS,))


def _cache_import(lm: LanguageModel) -> str:
    return ", DynamicCache" if lm.family == "decoder" else ""


def _code(lm: LanguageModel, opening: str, read: str, steps: str) -> str:
    """Logits after each token of `query` (of an encoder-decoder: of the first answer token) behind the gist tokens."""
    signature = "from inspect import signature\n\n" if lm.family == "decoder" else ""
    return f"""
{signature}import torch
{opening}
ids_of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
read = {read}
{steps}"""


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
