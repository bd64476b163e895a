"""Inspecting data: rows as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from promptcomp.batch import EncodedContext, EncodedQuery
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
    items: Iterator[tuple[Draw | int, EncodedContext]]
    if split == "train":
        draws = chain.from_iterable(module.train_sampler().global_batches())
        items, golds = ((draw, module.train_context(draw)) for draw in draws), None
    else:
        golds, contexts = [example.gold for example in module.examples(split)], module.eval_contexts(split)
        items = ((number, contexts.whole(number)) for number in range(len(contexts)))
    queries = ((item, context, query) for item, context in items for query in context.queries)
    return [
        _shown(module, split, item, context, query, golds[query.example] if golds else 0)
        for item, context, query in islice(queries, count)
    ]


def _shown(
    module: ContextDataModule, split: str, item: Draw | int, context: EncodedContext, query: EncodedQuery, gold: int
) -> ShownRow:
    def text(ids: Sequence[int]) -> str:
        return str(module.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    about = module.shown(split, item, context, query)
    borders = [len(context.ids)] if about.borders is None else about.borders
    return ShownRow(
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
