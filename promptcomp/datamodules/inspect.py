"""Inspecting data: rows as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from promptcomp.batch import EncodedContext
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.sampler import Draw


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
    contexts = _train_contexts(module) if split == "train" else _eval_contexts(module, split)
    rows = (row for item in contexts for row in _shown(module, split, *item))
    return list(islice(rows, count))


Item = tuple[Draw | int, EncodedContext, Sequence[int]]
"""A draw or the number of a context, the context, and the gold option of each query."""


def _train_contexts(module: ContextDataModule) -> Iterator[Item]:
    for draw in chain.from_iterable(module.train_sampler().global_batches()):
        context = module.train_context(draw)
        yield draw, context, [0] * len(context.queries)


def _eval_contexts(module: ContextDataModule, split: str) -> Iterator[Item]:
    examples = module.examples(split)
    contexts = module.eval_contexts(split)
    for number in range(len(contexts)):
        context = contexts.whole(number)
        yield number, context, [examples[query.example].gold for query in context.queries]


def _shown(
    module: ContextDataModule, split: str, item: Draw | int, context: EncodedContext, golds: Sequence[int]
) -> Iterator[ShownRow]:
    def text(ids: Sequence[int]) -> str:
        return str(module.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    for query, gold in zip(context.queries, golds, strict=True):
        about = module.shown(split, item, context, query)
        borders = [len(context.ids)] if about.borders is None else about.borders
        yield ShownRow(
            task=about.task,
            seed=about.seed,
            demonstrations=tuple(text(context.ids[a:b]) for a, b in zip([0, *borders], borders, strict=False)),
            dropped=about.dropped,
            cut_tokens=about.cut_tokens,
            query=text(query.ids),
            options=tuple(text(target.ids) for target in query.targets),
            gold=gold,
            context_tokens=len(context.ids),
            teacher_tokens=len(context.ids if context.teacher_ids is None else context.teacher_ids),
            query_tokens=len(query.ids),
            target_tokens=tuple(len(target.ids) for target in query.targets),
        )
