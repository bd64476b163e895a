"""What is asked of a rival."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from promptcomp.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from promptcomp.batch import Batch, Context
    from promptcomp.language_model import LanguageModel
    from promptcomp.memory import Memory


class NotMet(Exception):
    """Why a rival has no row: a budget that it cannot meet, or an LM that it does not work with."""


@dataclass
class Setting:
    """What controls are given on one split."""

    compress: Callable[[Context], Memory | None]
    """The method."""
    others: Context
    """Some contexts of the split, no two of them alike."""

    @cached_property
    def memory_of_others(self) -> Memory | None:
        """The method's memory of `others`."""
        return self.compress(self.others)


@dataclass
class Reading:
    """The contexts [G] of a batch, and what is read of them once for all rivals."""

    lm: LanguageModel
    tokens: Context
    own: Memory | None
    """The method's memory of them."""
    queries: tuple[Tensor, Tensor] | None = None
    """Ids and mask [G, Q] of the query that each memory is made for. Only rivals that say they see queries are given
    them: a row is then a context with one of its queries."""

    @cached_property
    def _read(self) -> tuple[Memory | None, Tensor | None]:
        from promptcomp.language_model.observing import read_context

        if self.lm.family == "encoder_decoder":
            return self.lm.encode(self.tokens), None
        return read_context(self.lm, self.tokens)

    @property
    def full(self) -> Memory | None:
        """The full prompt as a memory, as `lm.encode` gives it."""
        return self._read[0]

    @cached_property
    def surprisal(self) -> Tensor:
        """-log p of each token given those before it [G, C], in nats.

        Raises:
            NotMet: the LM does not predict what it reads.
        """
        from promptcomp.language_model.observing import surprisal

        if (hidden := self._read[1]) is None:
            raise NotMet("an encoder-decoder LM does not predict the tokens that its encoder reads")
        return surprisal(self.lm, hidden, self.tokens)

    @property
    def lengths(self) -> Tensor:
        """Positions of the full contexts [G], BOS included."""
        return self.tokens.mask.sum(-1) + self.lm.num_bos

    def of_queries(self, batch: Batch) -> Reading:
        """The same with one row for each query of the batch."""
        rows, tokens = batch.context_of, self.tokens
        part = None if tokens.part is None else tokens.part[rows]
        context = type(tokens)(tokens.ids[rows], tokens.mask[rows], tokens.task[rows], part)
        own = None if self.own is None else self.own.rows(rows)
        return Reading(self.lm, context, own, (batch.query_ids, batch.query_mask))


class Made(NamedTuple):
    """What a rival makes of the contexts [G] of a batch."""

    memory: Memory | None
    """What stands in front of the queries."""
    held: Tensor | None = None
    """Bytes [G] that are allocated to hold it, where these are not the bytes of the memory's tensors."""


class Rival(Config):
    """Base of all rivals; each narrows `name`. A rival sees contexts and never queries, unless it says so."""

    title: ClassVar[str]
    """The name in tables."""
    paper: ClassVar[str] = ""
    is_control: ClassVar[bool] = False
    """Whether it has to score as no prompt does: what a method gains over it comes from the context."""
    needs_demonstrations: ClassVar[bool] = False
    keeps_bos: ClassVar[bool] = False
    """Whether its memory holds the LM's BOS as well, which is no slot of a budget."""

    name: str
    """Which rival."""

    @property
    def sees_queries(self) -> bool:
        """Whether what it keeps depends on the query: such rows are never ranked with the others."""
        return False

    @property
    def variants(self) -> tuple[str, ...]:
        """Words for what sets it apart from others of its name."""
        return ()

    @property
    def row(self) -> str:
        """Its name in files."""
        return re.sub(r"\W+", "_", " ".join((self.name, *self.variants)))

    @property
    def label(self) -> str:
        """The title with what sets this one apart."""
        return f"{self.title} ({', '.join(self.variants)})" if self.variants else self.title

    def check_places(self) -> None:
        """Look whether what it reads beside the LM is there.

        Raises:
            ConfigError: a folder is not.
        """

    def asked(self, reading: Reading) -> tuple[Tensor | None, Tensor | None]:
        """The budget of each context: slots [G], or bytes [G] of keys and values; None: it has no such budget."""
        return None, None

    def memory(self, reading: Reading, setting: Setting) -> Made:
        """What stands in front of the queries.

        Raises:
            NotMet: it has no row here.
        """
        raise NotImplementedError


def _share(value: Any) -> Any:
    """`1/8` as a number."""
    try:
        return float(Fraction(value)) if isinstance(value, str) else value
    except (ValueError, ZeroDivisionError):
        return value


Share = Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)]
"""A part of the bytes that the keys and values of the full context take: 0.125 or 1/8."""


def share_text(share: float) -> str:
    """`1/8 of the bytes`."""
    return f"{Fraction(share).limit_denominator(1000)} of the bytes"


class BudgetedRival(Rival):
    """Keeps some positions of a context."""

    slots: int | None = Field(None, gt=0)
    """Most positions that are kept; null: as many as the method's memory has slots. A BOS counts in neither."""
    bytes: Share | None = None
    """Instead of slots: most bytes that are kept, as a share of the keys and values of the full context in the LM's own
    precision (`1/8`). A BOS counts in both."""

    @property
    def _kind(self) -> str:
        """The word for what it keeps."""
        return ""

    @property
    def variants(self) -> tuple[str, ...]:
        """See Rival."""
        slots = f"{self.slots} slots" if self.slots is not None else ""
        return tuple(filter(None, (self._kind, slots, "" if self.bytes is None else share_text(self.bytes))))

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.slots is not None and self.bytes is not None:
            raise ValueError("give slots or bytes, not both")
        return self

    def budget(self, reading: Reading) -> Tensor:
        """Most positions of each context [G], without BOS."""
        if self.bytes is not None:
            share = Fraction(self.bytes).limit_denominator(10**6)  # in whole numbers, which round nothing
            return (reading.lengths * share.numerator // share.denominator).sub(reading.lm.num_bos).clamp(min=0)
        if self.slots is not None:
            return reading.lengths.new_full(reading.lengths.shape, self.slots)
        return reading.lengths * 0 if reading.own is None else reading.own.num_slots

    def asked(self, reading: Reading) -> tuple[Tensor | None, Tensor | None]:
        """See Rival."""
        if self.bytes is None:
            return self.budget(reading), None
        return None, reading.lengths * (self.bytes * reading.lm.cost.kv_bytes_per_token)


class TextRival(BudgetedRival):
    """Keeps some of a context's tokens, which the LM reads as it reads a full prompt."""

    keeps_bos: ClassVar[bool] = True

    def memory(self, reading: Reading, setting: Setting) -> Made:
        """The kept tokens as a full prompt."""
        if not reading.tokens.mask.any():
            return Made(None)
        kept = self.keep(reading, self.budget(reading)) & reading.tokens.mask
        return Made(reading.lm.encode(tokens_of(reading.tokens, kept)))

    def keep(self, reading: Reading, budget: Tensor) -> Tensor:
        """Which tokens stay, bool [G, C]; padding is left out afterwards. `budget` [G]: most tokens of each context."""
        raise NotImplementedError


def tokens_of(context: Context, keep: Tensor) -> Context:
    """The tokens `keep` [G, C] of left-padded contexts, in order."""
    from promptcomp.batch import Context as Tokens
    from promptcomp.language_model.packing import close_gaps

    ids, mask = close_gaps(context.ids, keep)
    first = int((~mask.any(0)).sum())
    return Tokens(ids[:, first:], mask[:, first:], context.task)


def best(scores: Tensor, mask: Tensor, number: Tensor) -> Tensor:
    """Which of the real positions have the highest scores; the first of equal ones.

    Args:
        scores: [G, ..., C].
        mask: real positions [G, C].
        number: how many stay of each row [G].

    Returns:
        bool [G, ..., C].
    """
    between = (slice(None), *[None] * (scores.dim() - 2))
    scores = scores.masked_fill(~mask[between], float("-inf"))
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(-1)
    return (rank < number[between][..., None]) & mask[between]
