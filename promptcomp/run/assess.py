"""Scoring a module and its bounds on the same examples in one pass, and turning the scores into results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from promptcomp.batch import Batch, Context
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.evaluation import flops
from promptcomp.evaluation import memory_cost as cost
from promptcomp.evaluation.predictions import (
    MetricName,
    OptionScores,
    Prediction,
    add_texts,
    examples_sha256,
    make_predictions,
)
from promptcomp.evaluation.results import Cost, Size, SplitResult
from promptcomp.evaluation.summarize import summarise
from promptcomp.evaluation.texts import Rouge
from promptcomp.experiment import EvaluationConfig
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt
from promptcomp.run.written_texts import Answers, answers_for

OnBatch = Callable[[int, int], None]
"""Called with (batches done, batches in all)."""
_KINDS: dict[type[Memory], flops.MemoryKind] = {
    SoftPrompt: "soft_prompt",
    KVCache: "kv_cache",
    EncoderStates: "encoder_states",
}
"""The names that the cost formulas have for memories."""


@dataclass(slots=True)
class _Sizes:
    """Running sums over contexts and queries."""

    contexts: int = 0
    context_tokens: int = 0
    slots: int = 0
    memory_bytes: float = 0.0
    kv_bytes: float = 0.0
    queries: int = 0
    query_tokens: int = 0
    kind: flops.MemoryKind | None = None
    first_batch: Batch | None = None

    def add(self, lm: LanguageModel, batch: Batch, memory: Memory | None) -> None:
        contexts = len(batch.context.mask)
        self.contexts += contexts
        self.context_tokens += int(batch.context.mask.sum()) + contexts * lm.num_bos
        self.queries += len(batch.query_mask)
        self.query_tokens += int(batch.query_mask.sum())
        if memory is not None:
            self.kind = _KINDS[type(memory)]
            self.slots += int(memory.num_slots.sum())
            self.memory_bytes += cost.memory_bytes(memory) * contexts
            self.kv_bytes += lm.kv_bytes(memory) * contexts
        if self.first_batch is None:
            self.first_batch = batch


@dataclass(slots=True)
class Assessment:
    """What was found on one split."""

    predictions: list[Prediction]
    result: SplitResult
    sizes: _Sizes = field(default_factory=_Sizes)


def assess(
    module: CompressionModule,
    datamodule: ContextDataModule,
    split: str,
    metric: MetricName,
    config: EvaluationConfig,
    *,
    calibrated: bool = False,
    on_batch: OnBatch = lambda done, total: None,
) -> Assessment:
    """Score a split with the method's memory and, in the same pass, with the full prompt and with no prompt.

    Where answers are wanted (`config.generate`) they are written in the same pass too, behind the same memories.

    Args:
        module: A built module in eval mode.
        datamodule: Data with an `eval_dataloader`.
        split: One of `datamodule.eval_splits`.
        metric: The headline metric (one of `metrics.METRICS`).
        config: Bounds on or off, answers, bootstrap resamples.
        calibrated: Subtract the scores under the input "N/A" (PMI).
        on_batch: Progress callback.
    """
    examples = datamodule.examples(split)
    sizes = _Sizes()
    answers = answers_for(datamodule, config, examples)
    rouge = Rouge(config.sentences) if answers is not None else None  # now, because its sentence model may be missing
    scores = _score(module, datamodule.eval_dataloader(split), config.bounds, on_batch, sizes, answers)
    null = None
    if calibrated:
        null = _score(module, datamodule.null_dataloader(split), config.bounds, on_batch, _Sizes())
    predictions = make_predictions(split, examples, scores, null)
    if answers is not None and rouge is not None:
        predictions = add_texts(predictions, answers.collected, answers.questions, rouge)
    result = summarise(
        predictions,
        metric,
        examples_sha256=examples_sha256(examples),
        resamples=config.bootstrap_resamples,
    )
    return Assessment(predictions, result, sizes)


@torch.inference_mode()
def _score(
    module: CompressionModule,
    batches: Iterable[Batch],
    bounds: bool,
    on_batch: OnBatch,
    sizes: _Sizes,
    answers: Answers | None = None,
) -> dict[str, OptionScores | None]:
    itself = module.method.bound
    rows = ["method", *(row for row in ("full_prompt", "no_prompt") if bounds and row != itself)]
    collected = {row: OptionScores() for row in rows}
    total = len(batches)  # type: ignore[arg-type]
    for done, batch in enumerate(batches, start=1):
        batch = batch.to(module.device)
        memory = module.compress(batch.context)
        if bounds:  # sizes are shown beside them, and to count what a token costs takes a while
            sizes.add(module.lm, batch, memory)
        memories = {"method": memory}
        for row in rows[1:]:  # the whole prompt as the LM reads it, or nothing
            memories[row] = module.lm.encode(batch.context) if row == "full_prompt" else None
        for row in rows:
            sums, counts, _ = module.lm.score(memories[row], batch)
            collected[row].add(batch.example.tolist(), batch.choice.tolist(), sums.tolist(), counts.tolist())
        if answers is not None:
            answers.add(module, memories, batch)
        on_batch(done, total)
    if bounds and itself is not None:
        collected[itself] = collected["method"]
        if answers is not None:
            answers.repeat("method", itself)
    return dict(collected)


def measure(module: CompressionModule, sizes: _Sizes, layout: str, config: EvaluationConfig) -> tuple[Size, Cost]:
    """Mean sizes over the contexts of a split, analytic FLOPs, and milliseconds measured on this machine."""
    lm = module.lm
    contexts, queries = max(sizes.contexts, 1), max(sizes.queries, 1)
    context_tokens, slots = sizes.context_tokens / contexts, sizes.slots / contexts
    query_tokens = sizes.query_tokens / queries
    prefill = flops.prefill_flops(
        lm.cost,
        context_tokens=context_tokens,
        memory_slots=slots,
        query_tokens=query_tokens,
        front_tokens=lm.num_bos,
        memory_kind=sizes.kind or "soft_prompt",
        layout=layout,  # type: ignore[arg-type]
        compress_flops=module.compress_flops(context_tokens - lm.num_bos),
    )
    size = Size(
        context_tokens=context_tokens,
        memory_slots=slots,
        compression=context_tokens / slots if slots else None,
        context_bytes=context_tokens * lm.kv_bytes_per_token,
        memory_bytes=sizes.memory_bytes / contexts,
        memory_kv_bytes=sizes.kv_bytes / contexts,
        query_tokens=query_tokens,
    )
    found: dict[str, float | None] = {
        "flops_ratio": prefill.ratio,
        "compress_flops": prefill.compress,
        "prefill_flops": prefill.compressed,
        "full_prefill_flops": prefill.full,
        "cached_full_prefill_flops": prefill.cached_full,
        "cached_prefill_flops": prefill.cached_compressed,
        "no_prompt_prefill_flops": prefill.no_prompt,
        "break_even_queries": prefill.break_even_queries if prefill.compress else None,
    }
    if config.measure_cost and sizes.first_batch is not None:
        found |= _milliseconds(module, sizes.first_batch)
    return size, Cost.model_validate(found)


@torch.inference_mode()
def _milliseconds(module: CompressionModule, batch: Batch) -> dict[str, float]:
    """Medians of warm runs for one context and one query."""
    one, lm = first_query(batch), module.lm
    memory = module.compress(one.context)
    calls: dict[str, Callable[[], object]] = {
        "compress_ms": lambda: module.compress(one.context),
        "prefill_ms": lambda: lm.score(memory, one),
        "full_prefill_ms": lambda: lm.score(lm.encode(one.context), one),
    }
    return {name: cost.measure_ms(call, device=module.device) for name, call in calls.items()}


def first_query(batch: Batch) -> Batch:
    """The first context of a batch with its first query and that query's first target."""
    query = int((batch.context_of == 0).nonzero()[0])
    target = int((batch.query_of == query).nonzero()[0])
    context = Context(batch.context.ids[:1], batch.context.mask[:1], batch.context.task[:1])
    zero = torch.zeros(1, dtype=torch.long, device=batch.query_ids.device)
    return Batch(
        context=context,
        teacher_context=context,
        query_ids=batch.query_ids[query : query + 1],
        query_mask=batch.query_mask[query : query + 1],
        target_ids=batch.target_ids[target : target + 1],
        target_mask=batch.target_mask[target : target + 1],
        context_of=zero,
        query_of=zero,
        example=batch.example[target : target + 1],
        choice=batch.choice[target : target + 1],
        role=batch.role[target : target + 1],
    )
