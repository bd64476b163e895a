"""Random models, batches and timing shared by the benchmarks."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model import LanguageModel


def make_lm(kind: str) -> LanguageModel:
    """A random model: "gpt2" and "t5" with a paper-like vocabulary at a small width, "toy" as the built-in decoder."""
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 1024, "vocab_size": 8192}
        hf = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    elif kind == "t5":
        sizes = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 3, "num_heads": 4, "vocab_size": 8192}
        hf = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    else:
        sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
        hf = LlamaForCausalLM(LlamaConfig(vocab_size=386, max_position_embeddings=512, **sizes))
    return LanguageModel.from_parts(hf.eval())


def make_contexts(
    lm: LanguageModel, *, contexts: int, queries: int, options: int, tokens: tuple[int, int, int], seed: int = 0
) -> list[EncodedContext]:
    """Random contexts of 16 demonstrations; `tokens`: of a demonstration, a query and (at most) an option."""
    rng = random.Random(seed)
    demonstration, query, option = tokens

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, lm.vocab_size) for _ in range(count))

    def make_query(example: int) -> EncodedQuery:
        targets = tuple(EncodedTarget(ids(rng.randint(1, option)), c) for c in range(options))
        return EncodedQuery(ids(query), targets, example)

    return [
        EncodedContext(ids(16 * demonstration), tuple(make_query(g * queries + n) for n in range(queries)))
        for g in range(contexts)
    ]


def make_batch(contexts: list[EncodedContext]) -> Batch:
    """A batch of them."""
    return collate(contexts)


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
