"""Looking at data: rows as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from promptcomp.batch import RATIONALE, EncodedContext, EncodedQuery
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.icl import ICLDataModule
from promptcomp.datamodules.plans import Plan, assemble
from promptcomp.datamodules.rationale.rationale_module import RationaleDataModule
from promptcomp.datamodules.sampler import EvalPart


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One query of a context, decoded from the ids that the model gets."""

    task: str
    seed: int | None
    demonstrations: tuple[str, ...]
    """The context, piece by piece; their concatenation is what the compressor reads."""
    dropped: int
    """Demonstrations that did not fit the budget."""
    cut_tokens: int
    """Tokens cut from demonstrations by the per-example cap and the budget."""
    query: str
    options: tuple[str, ...]
    """Targets: the options in evaluation, the output in training."""
    gold: int
    context_tokens: int
    teacher_tokens: int
    query_tokens: int
    target_tokens: tuple[int, ...]


def show(module: ContextDataModule, split: str, count: int) -> list[ShownRow]:
    """The first rows of a split ("train", "dev" or a test split) as the model will see them, at most `count`.

    Raises:
        ConfigError: the data is bad or the split unknown.
    """
    if split == "train":
        contexts = _train_contexts(module)
    else:
        contexts = _eval_contexts(module, split)
    rows = (row for plan, context, golds in contexts for row in _shown(module, plan, context, golds))
    return list(islice(rows, count))


Item = tuple[Plan | None, EncodedContext, Sequence[int]]
"""The plan of a context (None for text), the context, and the gold option of each query."""


def _train_contexts(module: ContextDataModule) -> Iterator[Item]:
    for batch in module.train_sampler().global_batches():
        for draw in batch:
            plan = module.train_plan(draw) if isinstance(module, ICLDataModule) else None
            context = module.train_context(draw)
            yield plan, context, [0] * len(context.queries)


def _eval_contexts(module: ContextDataModule, split: str) -> Iterator[Item]:
    examples = module.examples(split)
    contexts = module.eval_contexts(split)
    for number in range(len(contexts)):
        plan = module.eval_plans(split)[number] if isinstance(module, ICLDataModule) else None
        context = contexts.encode(EvalPart(number, 0, len(contexts.targets(number))))
        yield plan, context, [examples[query.example].gold for query in context.queries]


def _shown(
    module: ContextDataModule, plan: Plan | None, context: EncodedContext, golds: Sequence[int]
) -> Iterator[ShownRow]:
    def text(ids: Sequence[int]) -> str:
        return str(module.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    borders, dropped, cut = [len(context.ids)], 0, 0
    if plan is not None and isinstance(module, ICLDataModule):
        parts = module.demonstration_parts(plan)
        _, borders = assemble(parts, module.budget, module.config.truncation)
        dropped = len(parts) - len(borders)
        kept = parts[dropped:] if module.config.truncation == "left" else parts[: len(borders)]
        cut = sum(part.cut + len(part) for part in kept) - len(context.ids)
    pieces = tuple(text(context.ids[a:b]) for a, b in zip([0, *borders], borders, strict=False))
    for query, gold in zip(context.queries, golds, strict=True):
        yield ShownRow(
            task=plan.task.name if plan is not None else _task(module, context, query),
            seed=plan.task.seed if plan is not None else None,
            demonstrations=pieces,
            dropped=dropped,
            cut_tokens=cut,
            query=text(query.ids),
            options=tuple(text(target.ids) for target in query.targets),
            gold=gold,
            context_tokens=len(context.ids),
            teacher_tokens=len(context.ids if context.teacher_ids is None else context.teacher_ids),
            query_tokens=len(query.ids),
            target_tokens=tuple(len(target.ids) for target in query.targets),
        )


def _task(module: ContextDataModule, context: EncodedContext, query: EncodedQuery) -> str:
    """What a query without a plan asks for."""
    if isinstance(module, RationaleDataModule):
        return f"{module.data_name}, {'rationale' if query.targets[0].role == RATIONALE else 'label'}"
    return dict(enumerate(module.task_names)).get(context.task, "text")
