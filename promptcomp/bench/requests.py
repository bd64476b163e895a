"""The ways of serving a query behind a prompt, as calls that can be timed and counted, with their analytic FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from promptcomp.batch import Batch
from promptcomp.bench.measurements import Way
from promptcomp.bench.subject import Subject
from promptcomp.evaluation.flops import (
    RequestFlops,
    cross_request_flops,
    decoder_request_flops,
    read_flops,
)
from promptcomp.evaluation.memory_cost import memory_bytes
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.cache import growing, passing
from promptcomp.language_model.parts import Prefix, prepend
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt

OnToken = Callable[[], None]


@dataclass(slots=True)
class Request:
    """One way of serving a batch of queries.

    `answer(new_tokens, on_token)` reads the queries behind what is kept and writes; `make` does what is done once for
    the prompts, with `make_flops` for one of them.
    """

    way: Way
    answer: Callable[[int, OnToken], None]
    flops: Callable[[int], RequestFlops]
    positions: float = 0.0
    held_bytes: float = 0.0
    kv_bytes: float = 0.0
    memory: Memory | None = None
    make: Callable[[], Memory | None] | None = None
    make_flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """A way that does not exist for this LM."""

    way: Way
    reason: str


def requests(subject: Subject, batch: Batch) -> list[Request | Refused]:
    """All ways of serving `batch` (one query behind each prompt)."""
    ways: list[Request | Refused] = [_no_cache(subject, batch), _prefix_cache(subject, batch)]
    compressed = _compressed(subject, batch)
    ways.append(compressed)
    if isinstance(compressed.memory, SoftPrompt) and not subject.module.lm.query_in_encoder:
        ways.append(_compressed_cached(subject, batch, compressed))
    return ways


def positions_needed(subject: Subject, prompt_tokens: int, new_tokens: int) -> int:
    """Position ids that a request takes at most, whichever way it is served."""
    lm = subject.module.lm
    slots = subject.module.num_memory_slots(prompt_tokens)
    return prompt_tokens + min(slots, prompt_tokens) + subject.query_tokens + new_tokens + lm.num_bos


def _no_cache(subject: Subject, batch: Batch) -> Request:
    lm = subject.module.lm
    tokens = batch.context.ids.shape[1]

    def answer(new_tokens: int, on_token: OnToken) -> None:
        if lm.family == "decoder":
            plain_answer(lm, torch.cat([batch.context.ids, batch.query_ids], 1), new_tokens, on_token)
        else:
            _generate(lm, lm.encode(batch.context), batch, new_tokens, on_token)

    kv = (tokens + lm.num_bos) * lm.kv_bytes_per_token
    return Request("no_cache", answer, lambda new: _flops(subject, None, tokens, new), kv_bytes=kv)


def plain_answer(lm: LanguageModel, ids: Tensor, new_tokens: int, on_token: OnToken) -> None:
    """Stock greedy decoding of rows of one length: one pass over [BOS | prompt | query], then token by token.

    No mask is given, so that attention takes its fastest kernel: the rival is not to be slowed by our packing.
    """
    ids, _ = prepend(ids, torch.ones_like(ids, dtype=torch.bool), lm.bos_id)
    model, cache = lm.body, growing()
    for _ in range(new_tokens):
        hidden = model(input_ids=ids, use_cache=True, **passing(model, cache)).last_hidden_state
        ids = lm.head(hidden[:, -1]).argmax(-1, keepdim=True)
        ids.tolist()  # the token reaches the user, so an accelerator is waited for
        on_token()


def _prefix_cache(subject: Subject, batch: Batch) -> Request | Refused:
    lm = subject.module.lm
    if lm.query_in_encoder:
        return Refused("prefix_cache", "the encoder reads prompt and query together, both ways: nothing can be kept")
    tokens = batch.context.ids.shape[1]
    make_flops = read_flops(lm.cost, tokens + lm.num_bos)
    return _behind(subject, batch, "prefix_cache", lambda: lm.encode(batch.context), make_flops)


def _compressed(subject: Subject, batch: Batch) -> Request:
    module = subject.module
    tokens = batch.context.ids.shape[1]
    return _behind(
        subject, batch, "compressed", lambda: module.compress(batch.context), module.compress_flops(float(tokens))
    )


def _compressed_cached(subject: Subject, batch: Batch, compressed: Request) -> Request:
    """The keys and values (T5: encoder output) of a soft prompt, worked out once as those of any prefix can be."""
    module, lm = subject.module, subject.module.lm
    rows = torch.arange(len(batch.context_of), device=batch.context_of.device)

    def make() -> Memory:
        vectors = module.compress(batch.context)
        assert isinstance(vectors, SoftPrompt)
        front = Prefix(vectors.embeds, vectors.mask, vectors.mask)
        return lm.read(lm.front(vectors, rows) if lm.family == "decoder" else front)

    read = read_flops(lm.cost, compressed.positions + lm.num_bos)
    return _behind(subject, batch, "compressed_cached", make, compressed.make_flops + read)


def _behind(subject: Subject, batch: Batch, way: Way, make: Callable[[], Memory | None], make_flops: float) -> Request:
    """A request that reads its query behind a memory that was made once."""
    lm = subject.module.lm
    memory = make()
    slots = 0.0 if memory is None else float(memory.num_slots.double().mean())
    return Request(
        way,
        lambda new_tokens, on_token: _generate(lm, memory, batch, new_tokens, on_token),
        lambda new_tokens: _flops(subject, memory, slots, new_tokens),
        positions=slots,
        held_bytes=memory_bytes(memory),
        kv_bytes=lm.kv_bytes(memory),
        memory=memory,
        make=make,
        make_flops=make_flops,
    )


def _generate(lm: LanguageModel, memory: Memory | None, batch: Batch, new_tokens: int, on_token: OnToken) -> None:
    lm.generate(memory, batch, max_new_tokens=new_tokens, on_tokens=lambda tokens: on_token())


def _flops(subject: Subject, memory: Memory | None, slots: float, new_tokens: int) -> RequestFlops:
    """Analytic FLOPs of one query behind `slots` positions: kept activations, or tokens or vectors that are read."""
    lm, query = subject.module.lm, float(subject.query_tokens)
    if lm.family == "decoder":
        if isinstance(memory, KVCache):
            return decoder_request_flops(lm.cost, read=query, seen=slots, new_tokens=new_tokens)
        read = lm.num_bos + slots + query
        return decoder_request_flops(lm.cost, read=read, seen=0.0, new_tokens=new_tokens)
    if lm.query_in_encoder:  # remembered states run through the encoder's blocks beside the query
        both = slots + query
        return cross_request_flops(lm.cost, in_encoder=both, encoded=both, decoded=1, new_tokens=new_tokens)
    encoded = slots or 1.0  # T5 reads an end of sequence where there is no prompt
    in_encoder = 0.0 if isinstance(memory, EncoderStates) else encoded
    return cross_request_flops(
        lm.cost, in_encoder=in_encoder, encoded=encoded, decoded=query + 1, new_tokens=new_tokens
    )
