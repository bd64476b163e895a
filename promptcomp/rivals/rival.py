"""What is asked of a rival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from promptcomp.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from promptcomp.batch import Context
    from promptcomp.language_model import LanguageModel
    from promptcomp.memory import Memory


@dataclass
class Setting:
    """What rivals are given on one split."""

    lm: LanguageModel
    compress: Callable[[Context], Memory | None]
    """The method."""
    others: Context
    """Some contexts of the split, no two of them alike."""

    @cached_property
    def memory_of_others(self) -> Memory | None:
        """The method's memory of `others`."""
        return self.compress(self.others)


class Rival(Config):
    """Base of all rivals; each adds a literal `name`. A rival sees contexts and never queries, unless it says so."""

    title: ClassVar[str]
    """The name in tables."""
    paper: ClassVar[str] = ""
    query_aware: ClassVar[bool] = False
    """Whether what it keeps depends on the query: such rows are never ranked with the others."""
    is_control: ClassVar[bool] = False
    """Whether it has to score as no prompt does: what a method gains over it comes from the context."""
    needs_demonstrations: ClassVar[bool] = False
    keeps_bos: ClassVar[bool] = False
    """Whether its memory holds the LM's BOS as well, which is no part of a budget."""

    @property
    def row(self) -> str:
        """Its name in files."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The title with what sets this one apart."""
        return self.title

    def memory(self, setting: Setting, context: Context, own: Memory | None) -> Memory | None:
        """What stands in front of the queries.

        Args:
            setting: of the split.
            context: the contexts of a batch [G].
            own: the method's memory of them.
        """
        raise NotImplementedError


class TextRival(Rival):
    """Keeps some of a context's tokens, which the LM reads as it reads a full prompt."""

    keeps_bos: ClassVar[bool] = True

    slots: int | None = Field(None, gt=0)
    """Most tokens that are kept; null: as many as the method's memory has slots. A BOS counts in neither."""

    def memory(self, setting: Setting, context: Context, own: Memory | None) -> Memory | None:
        """The kept tokens as a full prompt."""
        import torch

        budget = torch.zeros_like(context.mask[:, 0], dtype=torch.long) if own is None else own.num_slots
        if self.slots is not None:
            budget = torch.full_like(budget, self.slots)
        return setting.lm.encode(tokens_of(context, self.keep(context, budget) & context.mask))

    def keep(self, context: Context, budget: Tensor) -> Tensor:
        """Which tokens stay, bool [G, C]; padding is left out afterwards. `budget` [G]: most tokens of each context."""
        raise NotImplementedError


def tokens_of(context: Context, keep: Tensor) -> Context:
    """The tokens `keep` [G, C] of left-padded contexts, in order."""
    from promptcomp.batch import Context as Tokens
    from promptcomp.language_model.packing import close_gaps

    ids, mask = close_gaps(context.ids, keep)
    first = int((~mask.any(0)).sum())
    return Tokens(ids[:, first:], mask[:, first:], context.task)
