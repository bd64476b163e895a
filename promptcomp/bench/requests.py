"""What is measured, and the ways of serving a query after a prompt, as calls that can be timed and counted.

A trained run, an experiment before training, a method on an LM of random weights (they cost as much as trained ones),
so a user sees what a method would cost before training it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.bench.measurements import Way
from promptcomp.config import ConfigError
from promptcomp.errors import command
from promptcomp.evaluation.flops import cross_request_flops, decoder_request_flops, read_flops
from promptcomp.evaluation.memory_cost import memory_bytes
from promptcomp.experiment import Experiment
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.cache import growing, passing
from promptcomp.language_model.loading import open_architecture, random_model
from promptcomp.language_model.parts import Prefix, prepend
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt, memory_to
from promptcomp.prompts.artifact import read_prompt
from promptcomp.prompts.prompt_files import open_lm
from promptcomp.run.opening import make_module, make_parts, open_trained

OnToken = Callable[[], None]


@dataclass(slots=True)
class Request:
    """One way of serving a batch of queries.

    `answer(new_tokens, on_token)` reads the queries behind what is kept and writes, `flops(new_tokens)` is what that
    takes for one query; `make` does what is done once for the prompts, with `make_flops` for one of them.
    """

    answer: Callable[[int, OnToken], None]
    flops: Callable[[int], float]
    positions: float = 0.0
    held_bytes: float = 0.0
    kv_bytes: float = 0.0
    memory: Memory | None = None
    make: Callable[[], Memory | None] | None = None
    make_flops: float = 0.0
    make_seconds: float = 0.0
    """What making took before: a memory that was trained for its prompt is charged its training."""


def requests(subject: Subject, batch: Batch) -> dict[Way, Request | str]:
    """All ways of serving `batch` (one query behind each prompt); a text: why this LM does not have one."""
    module, lm = subject.module, subject.module.lm
    tokens = batch.context.ids.shape[1]
    rows = torch.arange(len(batch.context_of), device=batch.context_of.device)

    def anew(new_tokens: int, on_token: OnToken) -> None:
        if lm.family == "decoder":
            plain_answer(lm, torch.cat([batch.context.ids, batch.query_ids], 1), new_tokens, on_token)
        else:
            _generate(lm, lm.encode(batch.context), batch, new_tokens, on_token)

    def cached_vectors() -> Memory:
        """The keys and values (T5: encoder output) of a soft prompt, computed once as those of any prefix can be."""
        vectors = module.compress(batch.context)
        assert isinstance(vectors, SoftPrompt)
        front = Prefix(vectors.embeds, vectors.mask, vectors.mask)
        return lm.read(lm.front(vectors, rows) if lm.family == "decoder" else front)

    kv = (tokens + lm.num_bos) * lm.cost.kv_bytes_per_token
    ways: dict[Way, Request | str] = {
        "no_cache": Request(anew, lambda new: _flops(subject, None, tokens, new), kv_bytes=kv),
        "prefix_cache": "the encoder reads prompt and query together, in both directions: nothing can be cached",
    }
    if not lm.query_in_encoder:
        make_flops = read_flops(lm.cost, tokens + lm.num_bos)
        ways["prefix_cache"] = _behind(subject, batch, lambda: lm.encode(batch.context), make_flops)
    make_flops = module.compress_flops(float(tokens))
    ways["compressed"] = own = _behind(subject, batch, lambda: module.compress(batch.context), make_flops)
    if isinstance(own.memory, SoftPrompt) and not lm.query_in_encoder:
        make_flops = own.make_flops + read_flops(lm.cost, own.positions + lm.num_bos)
        ways["compressed_cached"] = _behind(subject, batch, cached_vectors, make_flops)
    if isinstance(module, StoredMemory):
        for way in set(ways) & {"compressed", "compressed_cached"}:
            ways[way] = replace(ways[way], make_seconds=module.seconds)  # type: ignore[type-var]
    return ways


def positions_needed(subject: Subject, prompt_tokens: int, new_tokens: int) -> int:
    """Position ids that a request takes at most, whichever way it is served."""
    lm = subject.module.lm
    slots = subject.module.num_memory_slots(prompt_tokens)
    return prompt_tokens + min(slots, prompt_tokens) + subject.query_tokens + new_tokens + lm.num_bos


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


def _behind(subject: Subject, batch: Batch, make: Callable[[], Memory | None], make_flops: float) -> Request:
    """A request that reads its query with a memory that was made once."""
    lm = subject.module.lm
    memory = make()
    slots = 0.0 if memory is None else float(memory.num_slots.double().mean())
    return Request(
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


def _flops(subject: Subject, memory: Memory | None, slots: float, new_tokens: int) -> float:
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


POOL_CONTEXTS = 64
"""Contexts that prompts are put together from."""
DEFAULT_QUERY_TOKENS = 32
"""Where there is no data to take the mean from."""


@dataclass(slots=True)
class Subject:
    """A module in eval mode and the text that prompts and queries are made of."""

    module: CompressionModule | StoredMemory
    method: str
    lm: str
    trained: bool
    prompt_pool: Sequence[int]
    """Token ids that prompts are cut from; empty: random ids."""
    query_pool: Sequence[int]
    query_tokens: int
    seed: int = 0
    lengths: tuple[int, ...] = ()
    """Lengths of prompts; empty: any."""

    def batch(self, prompt_tokens: int, rows: int, device: torch.device) -> Batch:
        """`rows` prompts of exactly `prompt_tokens` tokens, each with one query and an empty answer."""
        generator = torch.Generator().manual_seed(self.seed)
        contexts = []
        for row in range(rows):
            prompt = self._cut(self.prompt_pool, prompt_tokens, row * prompt_tokens, generator)
            query = self._cut(self.query_pool, self.query_tokens, row * self.query_tokens, generator)
            contexts.append(EncodedContext(prompt, (EncodedQuery(query, (EncodedTarget((query[0],)),)),)))
        return collate(contexts).to(device)

    def _cut(self, pool: Sequence[int], count: int, start: int, generator: torch.Generator) -> tuple[int, ...]:
        if not pool:
            first = min(3, self.module.lm.vocab_size - 1)  # past the usual special tokens
            return tuple(torch.randint(first, self.module.lm.vocab_size, (count,), generator=generator).tolist())
        return tuple(pool[(start + i) % len(pool)] for i in range(count))


class StoredMemory:
    """The memory in a file, in the place of a method: it stands for every context, and was trained once.

    Args:
        file: a compressed prompt that says what it has taken.

    Raises:
        ConfigError: it is none, or says nothing of the kind; its LM is gone or another one.
    """

    def __init__(self, file: Path) -> None:
        memory, info = read_prompt(file)
        if not info.cost:
            again = command("bench", info.run or "RUN")
            raise ConfigError(f"{file}: was made by {info.method} in one pass, which its run shows: `{again}`")
        self.info, self.memory, self.seconds = info, memory, info.cost["seconds"]
        self.lm = open_lm(info, None, str(file)).eval()

    def to(self, device: torch.device) -> Self:
        """On another device."""
        self.lm.to(device)
        self.memory = memory_to(self.memory, device)
        return self

    def compress(self, context: Context) -> Memory:
        """The memory for each context [G]."""
        return self.memory.rows(torch.zeros_like(context.ids[:, 0]))

    def compress_flops(self, tokens: float) -> float:
        """That it has taken."""
        return self.info.cost["flops"]

    def num_memory_slots(self, tokens: int) -> int:
        """Its slots."""
        return self.info.slots


def open_file(file: Path, query_tokens: int | None) -> Subject:
    """What is measured of a memory that was trained for its prompt: one prompt of that length.

    Raises:
        ConfigError: see `StoredMemory`.
    """
    module = StoredMemory(file)
    info, asked = module.info, query_tokens or DEFAULT_QUERY_TOKENS
    return Subject(module, info.method, info.lm.path, True, (), (), asked, lengths=(info.source_tokens,))


def open_subject(
    experiment: Experiment, run: Path | None = None, *, has_random_lm: bool = False, query_tokens: int | None = None
) -> Subject:
    """What is measured, with an untrained method where there is no run.

    Args:
        experiment: the run's, or one before training.
        run: a finished run, with its trained weights and its own data.
        has_random_lm: nothing of the LM but its architecture is read (well-known names need no network), and no data.
        query_tokens: tokens of a query; None: the mean of the data, or DEFAULT_QUERY_TOKENS.

    Raises:
        ConfigError: anything wrong with the run or the configuration.
    """
    if run is not None:
        _, datamodule, module = open_trained(run, experiment)
    elif has_random_lm:
        module, path = _random_module(experiment), experiment.lm.path
        return Subject(module, experiment.method.name, path, False, (), (), query_tokens or DEFAULT_QUERY_TOKENS)
    else:
        datamodule, module = make_parts(experiment)
        module.configure_model()
        module.eval()
    prompts: list[int] = []
    queries: list[Sequence[int]] = []
    contexts = datamodule.eval_contexts(datamodule.eval_splits[0])
    for number in range(min(POOL_CONTEXTS, len(contexts))):
        encoded = contexts.whole(number)
        prompts += encoded.ids
        queries += [query.ids for query in encoded.queries]
    pool = [token for query in queries for token in query]
    mean = round(len(pool) / len(queries)) if queries else DEFAULT_QUERY_TOKENS
    return Subject(
        module=module,
        method=experiment.method.name,
        lm=experiment.lm.path,
        trained=run is not None,
        prompt_pool=prompts,
        query_pool=pool,
        query_tokens=query_tokens or max(1, mean),
    )


def _random_module(experiment: Experiment) -> CompressionModule:
    """The method on an LM of random weights, without a tokenizer."""
    architecture = open_architecture(experiment.lm, offline_table=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        hf = random_model(experiment.lm, architecture)
    lm = LanguageModel.from_parts(hf, None, layout=experiment.lm.layout, bos=False)
    module = make_module(experiment, ("task",), lm)
    module.configure_model()
    return module.eval()
