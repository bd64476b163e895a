"""Scoring a module and its bounds on the same examples in one pass, what its LM writes behind the same memories, and
turning both into results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from promptcomp.batch import Batch, Context
from promptcomp.datamodules.context_module import ContextDataModule, ExampleInfo
from promptcomp.datamodules.rationale.rationale_module import RationaleDataModule
from promptcomp.datamodules.taught import TaughtAnswer, TaughtDataModule
from promptcomp.evaluation import flops
from promptcomp.evaluation import memory_cost as cost
from promptcomp.evaluation.headroom import headroom
from promptcomp.evaluation.predictions import (
    GeneratedTexts,
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
from promptcomp.files import write_atomic
from promptcomp.language_model import LanguageModel, text_of
from promptcomp.language_model.generation import generate_within
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import EncoderStates, KVCache, Memory
from promptcomp.rivals import Reading
from promptcomp.run.closeness import Closeness
from promptcomp.run.rival_rows import Behind, Rivals, rivals_on

_KINDS: dict[type, flops.MemoryKind] = {KVCache: "kv_cache", EncoderStates: "encoder_states"}
"""The names that the cost formulas have for memories."""


@dataclass(slots=True)
class _Sizes:
    """Running sums over contexts, each once in however many batches its queries are, and over queries."""

    context_of: Mapping[int, int]
    """Example -> number of its context."""
    known: set[int] = field(default_factory=set)
    """Contexts of earlier batches."""
    contexts: int = 0
    context_tokens: int = 0
    slots: int = 0
    memory_bytes: float = 0.0
    kv_bytes: float = 0.0
    queries: int = 0
    query_tokens: int = 0
    kind: flops.MemoryKind = "soft_prompt"
    first_batch: Batch | None = None
    context_ids: dict[int, Tensor] = field(default_factory=dict)
    """Example -> token ids of its context."""

    def keep(self, batch: Batch) -> None:
        """Remember the contexts, of which a few are shown as texts."""
        rows = zip(batch.context.ids.to("cpu", torch.int32), batch.context.mask.cpu(), strict=True)
        ids = [row[mask] for row, mask in rows]
        numbers = zip(example_of_query(batch), batch.context_of.tolist(), strict=True)
        self.context_ids.update({number: ids[context] for number, context in numbers})

    def new_in(self, batch: Batch) -> Tensor:
        """Rows of a batch's contexts that no earlier batch had."""
        pairs = zip(example_of_query(batch), batch.context_of.tolist(), strict=True)
        rows = {self.context_of[number]: row for number, row in pairs}
        new = [row for number, row in rows.items() if number not in self.known]
        self.known |= rows.keys()
        return torch.tensor(new, dtype=torch.long, device=batch.context_of.device)

    def add(self, lm: LanguageModel, batch: Batch, memory: Memory | None, new: Tensor) -> None:
        contexts = len(new)
        self.contexts += contexts
        self.context_tokens += int(batch.context.mask[new].sum()) + contexts * lm.num_bos
        self.queries += len(batch.query_mask)
        self.query_tokens += int(batch.query_mask.sum())
        if memory is not None:
            self.kind = _KINDS.get(type(memory), "soft_prompt")
        if memory is not None and contexts:
            memory = memory.rows(new)
            self.slots += int(memory.num_slots.sum())
            self.memory_bytes += cost.memory_bytes(memory) * contexts
            self.kv_bytes += lm.kv_bytes(memory) * contexts
        if self.first_batch is None:
            self.first_batch = batch


@dataclass(slots=True)
class Assessment:
    """The results on one split."""

    predictions: list[Prediction]
    result: SplitResult
    sizes: _Sizes
    texts: Callable[[int], tuple[str, str, str]]
    """Context, query and right answer of an example."""


def assess(
    module: CompressionModule,
    datamodule: ContextDataModule,
    split: str,
    config: EvaluationConfig,
    *,
    calibrated: bool = False,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Assessment:
    """Score a split with the method's memory and, in the same pass, with the full prompt and with no prompt.

    Where answers are wanted (`config.generate`) they are written in the same pass too, behind the same memories.

    Args:
        module: A built module in eval mode.
        datamodule: Data with an `eval_dataloader`.
        split: One of `datamodule.eval_splits`.
        config: Bounds on or off, answers, bootstrap resamples.
        calibrated: Subtract the scores under the input "N/A" (PMI).
        on_batch: Called with batches done and batches in all.
    """
    module.choose_slots(config.slots)
    examples = datamodule.examples(split)
    # empty: the targets are not the LM's own answers
    teacher = datamodule.teacher_answers(split) if isinstance(datamodule, TaughtDataModule) else {}
    if teacher:
        own = {number: datamodule.written(answer.ids) for number, answer in teacher.items()}
        examples = [replace(example, teacher=own[example.number]) for example in examples]
    sizes = _Sizes({example.number: example.context for example in examples})
    answers = answers_for(datamodule, config, teacher)
    rouge = Rouge(config.sentences) if answers is not None else None  # now, because its sentence model may be missing
    rivals = rivals_on(split, config.rivals, module, datamodule)
    near = Closeness({example.number: example.gold for example in examples}) if config.bounds else None
    scores = _score(module, datamodule.eval_dataloader(split), config.bounds, on_batch, sizes, rivals, answers, near)
    null = None
    if calibrated:
        null = _score(module, datamodule.null_dataloader(split), config.bounds, on_batch, None, rivals)
    predictions = make_predictions(split, examples, scores, null, near.collected if near else None)
    texts = _texts_of(datamodule, examples, sizes.context_ids)
    if answers is not None and rouge is not None:
        questions = {number: texts(number) for number in answers.collected.get("method", ())}
        predictions = add_texts(predictions, answers.collected, questions, rouge, answers.by_teacher)
    identity, resamples = examples_sha256(examples), config.bootstrap_resamples
    known = None if rivals is None else rivals.results()
    result = summarise(predictions, datamodule.headline, examples_sha256=identity, resamples=resamples, rivals=known)
    if config.bounds and module.method.bound is not None:
        found = tuple(headroom(predictions, datamodule.headline, resamples))
        result = result.model_copy(update={"headroom_by_task": found})
    return Assessment(predictions, result, sizes, texts)


@torch.inference_mode()
def _score(
    module: CompressionModule,
    batches: Iterable[Batch],
    bounds: bool,
    on_batch: Callable[[int, int], None],
    sizes: _Sizes | None,
    rivals: Rivals | None,
    answers: Answers | None = None,
    near: Closeness | None = None,
) -> dict[str, OptionScores]:
    itself = module.method.bound
    rows = ["method", *(row for row in ("full_prompt", "no_prompt") if bounds and row != itself)]
    collected: dict[str, OptionScores] = {row: {} for row in rows}
    whole = "method" if itself == "full_prompt" else "full_prompt"
    total = len(batches)  # type: ignore[arg-type]
    for done, batch in enumerate(batches, start=1):
        batch = batch.to(module.device)
        memory = module.compress(batch.context)
        new = None
        if sizes is not None:  # they are those of the first pass
            sizes.keep(batch)
            new = sizes.new_in(batch)
            if bounds:  # sizes are shown beside them, and to count what a token costs takes a while
                sizes.add(module.lm, batch, memory, new)
        reading = Reading(module.lm, batch.context, memory)
        memories: dict[str, Behind] = {"method": (memory, batch)}
        for row in rows[1:]:  # the whole prompt as the LM reads it, or nothing
            memories[row] = reading.full if row == "full_prompt" else None, batch
        if rivals is not None:
            memories |= rivals.memories(reading, batch, new)
        for row in sorted(memories, key=lambda row: row != whole):  # the full prompt first
            each, read = memories[row]
            logits = module.lm(each, read, "targets")
            sums, counts, _ = logits.scores(len(read.target_ids))
            if near is not None:
                near.add(row, logits, read, is_full=row == whole)
            targets = zip(read.example.tolist(), read.choice.tolist(), strict=True)
            found = zip(sums.tolist(), counts.tolist(), strict=True)
            collected.setdefault(row, {}).update(zip(targets, found, strict=True))
        if answers is not None:
            answers.add(module, memories, batch)
        on_batch(done, total)
    tables: list[dict[str, Any]] = [collected, *(each.collected for each in (near, answers) if each is not None)]
    for row, result in (rivals.results() if rivals is not None else {}).items():
        if result.missing:
            for table in tables:
                table.pop(row, None)
    if bounds and itself is not None:
        for table in tables:
            table[itself] = table["method"]
    return collected


def _texts_of(
    datamodule: ContextDataModule, examples: Sequence[ExampleInfo], context_ids: Mapping[int, Tensor]
) -> Callable[[int], tuple[str, str, str]]:
    """What tells context, query and right answer of an example as texts."""
    by_number = {example.number: example for example in examples}

    @cache  # by identity: the queries of a context share its tensor
    def decoded(ids: Tensor) -> str:
        return text_of(datamodule.tokenizer, ids.tolist()).strip()

    def texts(number: int) -> tuple[str, str, str]:
        example = by_number[number]
        return example.instruction or decoded(context_ids[number]), example.input, example.output.strip()

    return texts


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
        memory_kind=sizes.kind,
        layout=layout,  # type: ignore[arg-type]
        compress_flops=module.compress_flops(context_tokens - lm.num_bos),
    )
    size = Size(
        context_tokens=context_tokens,
        memory_slots=slots,
        compression=context_tokens / slots if slots else None,
        context_bytes=context_tokens * lm.cost.kv_bytes_per_token,
        memory_bytes=sizes.memory_bytes / contexts,
        memory_kv_bytes=sizes.kv_bytes / contexts,
        query_tokens=query_tokens,
    )
    if config.measure_cost and sizes.first_batch is not None:
        prefill = prefill.model_copy(update=_milliseconds(module, sizes.first_batch))
    return size, prefill


@torch.inference_mode()
def _milliseconds(module: CompressionModule, batch: Batch) -> dict[str, float]:
    """Medians of warm runs for the first context of a batch, its first query and that query's first target."""
    query = (batch.context_of == 0).nonzero()[0]
    part, _ = batch.of_targets((batch.query_of == query).nonzero()[0])
    context = Context(batch.context.ids[:1], batch.context.mask[:1], batch.context.task[:1])
    one, lm = replace(part, context=context, teacher_context=context), module.lm
    memory = module.compress(context)
    calls: dict[str, Callable[[], object]] = {
        "compress_ms": lambda: module.compress(context),
        "prefill_ms": lambda: lm.score(memory, one),
        "full_prefill_ms": lambda: lm.score(lm.encode(context), one),
    }
    return {name: cost.measure_ms(call, device=module.device) for name, call in calls.items()}


@dataclass(slots=True)
class Answers:
    """Generates and collects answers; one object for one split."""

    datamodule: ContextDataModule
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    teacher: Mapping[int, TaughtAnswer]
    """Example -> the LM's own answer, where the targets are those."""
    by_teacher: dict[int, str] = field(default_factory=dict)
    """Their texts, within the limit that all rows have."""
    collected: dict[str, GeneratedTexts] = field(default_factory=dict)

    def add(self, module: CompressionModule, memories: Mapping[str, Behind], batch: Batch) -> None:
        """Answer every query of a batch greedily behind the memories of each row; its targets are not looked at."""
        numbers = example_of_query(batch)
        limits = room(module, list(memories.values()), self.max_new_tokens)
        written, left = self.datamodule.written, dict(zip(numbers, limits, strict=True))
        self.by_teacher |= {n: written(self.teacher[n].ids[:most]) for n, most in left.items() if n in self.teacher}
        for row, (memory, read) in memories.items():
            made = generate_within(module.lm, memory, read, limits, stop_ids=self.stop_ids)
            found = ((written(ids), len(ids) >= most) for ids, most in zip(made, limits, strict=True))
            self.collected.setdefault(row, {}).update(zip(numbers, found, strict=True))


def answers_for(
    datamodule: ContextDataModule, config: EvaluationConfig, teacher: Mapping[int, TaughtAnswer]
) -> Answers | None:
    """Where answers to the examples of a split are collected; None where none are wanted. They are no longer than the
    `teacher`'s may be."""
    wanted = datamodule.answers_are_generated or bool(teacher) if config.generate == "auto" else config.generate
    if not wanted:
        return None
    stop_ids, most = datamodule.prompt_format().stop_ids, config.max_new_tokens
    if teacher and (asks := datamodule.config.asks) is not None:
        most = min(most, asks.max_new_tokens)
    return Answers(datamodule, most, stop_ids, teacher)


def example_of_query(batch: Batch) -> list[int]:
    """Number of the example that each query [N] belongs to."""
    numbers = torch.zeros_like(batch.context_of)
    return numbers.scatter(0, batch.query_of, batch.example).tolist()


def room(module: CompressionModule, memories: Sequence[Behind], most: int) -> list[int]:
    """Tokens, `most` of them, that every row of the table can add to each query [N] of a batch within the LM's window.

    All rows get the same limit, so that none is cut where another is not.
    """
    window, masks = module.lm.window, [batch.query_mask for _, batch in memories]
    if window is None:
        return [most] * len(masks[0])
    front = torch.zeros_like(masks[0][:, 0], dtype=torch.long)  # positions in front of each query
    for memory, batch in memories:
        if memory is not None:
            used = memory.next_position if isinstance(memory, KVCache) else memory.num_slots
            front = front.maximum(used[batch.context_of])
    left = window - front - masks[0].sum(-1) - 1  # 1: a BOS
    return left.clamp(min=1, max=most).tolist()


@torch.inference_mode()
def write_rationales(
    module: CompressionModule,
    datamodule: ContextDataModule,
    splits: Sequence[str],
    path: Path,
    on_batch: Callable[[str, int, int], None],
) -> None:
    """Write one line for each example: split, example, input, the student's rationale and the teacher's.

    `on_batch` is called with what is at work, batches done and batches in all.

    Raises:
        ConfigError: the file cannot be written.
    """
    lines, data = [], cast(RationaleDataModule, datamodule)  # what data with two tasks offers
    stop_ids = data.prompt_format().stop_ids
    for split in splits:
        rows, loader = data.rows(split), data.rationale_dataloader(split)
        texts: dict[int, str] = {}
        for done, batch in enumerate(loader, start=1):
            batch = batch.to(module.device)
            memory = module.compress(batch.context)
            limits = room(module, [(memory, batch)], data.config.max_rationale_tokens)
            made = generate_within(module.lm, memory, batch, limits, stop_ids=stop_ids)
            for number, ids in zip(example_of_query(batch), made, strict=True):
                texts[number] = text_of(data.tokenizer, ids).strip()
            on_batch(f"rationales {split}", done, len(loader))
        for number in sorted(texts):
            row = rows[number]
            line = {
                "split": split,
                "example": number,
                "input": row.input,
                "rationale": texts[number],
                "teacher": row.llm_rationale or None,
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))
