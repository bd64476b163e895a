"""Evicted keys and values: of every layer and head only some positions of the full context's cache are kept.

Which ones is asked without the query, so that a cache serves every query; all heads keep equally many, so that what is
counted is what is allocated; and positions stay as they were, so that rotary and absolute ones are exact.

* `streaming`: the first tokens and the last ones (StreamingLLM, Xiao et al. 2024, arXiv 2309.17453, which numbers
  positions anew).
* `knorm`: the keys of smallest norm (Devoto et al. 2024, arXiv 2406.11430).
* `snapkv`: what the context's own last tokens attend to, summed over them and smoothed over neighbours, beside these
  tokens (SnapKV, Li et al. 2024, arXiv 2404.14469, whose observed tokens may be the question).
* `kvzip`: the most that any token attends to a position when the LM reads the context once more behind its cache
  (KVzip, Kim et al. 2025, arXiv 2505.23416, which puts an instruction to repeat in between, shares the budget unevenly
  over heads, and reads parts of 2,048 tokens; here `chunk`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from promptcomp.rivals.rival import BudgetedRival, Made, NotMet, Reading, Setting, best, tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from promptcomp.memory import KVCache

CHUNK = 256
"""Tokens that are read at a time behind the full cache: their attention weights are held for all layers."""


class Evict(BudgetedRival):
    """Keys and values of the positions that `score` chooses, within the budget."""

    title: ClassVar[str] = "evicted cache"
    paper: ClassVar[str] = "arXiv 2309.17453, 2406.11430, 2404.14469, 2505.23416"
    keeps_bos: ClassVar[bool] = True

    name: Literal["evict"] = "evict"
    score: Literal["streaming", "knorm", "snapkv", "kvzip"] = "snapkv"
    """What says which positions are kept. streaming: the first and the last (StreamingLLM); knorm: the keys of smallest
    norm; snapkv: what the context's last tokens attend to (SnapKV); kvzip: what the LM attends to when it reads the
    context once more (KVzip)."""
    sinks: int = Field(4, ge=0)
    """streaming: first tokens that are kept beside a BOS, at most half of the budget."""
    window: int = Field(16, gt=0)
    """snapkv: last tokens that are observed; of them at most half of the budget is kept for certain."""
    kernel: int = Field(5, gt=0)
    """snapkv: neighbours whose largest weight a position gets (odd)."""

    @model_validator(mode="after")
    def _has_a_middle(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {self.kernel}")
        return self

    @property
    def _kind(self) -> str:
        return self.score

    def memory(self, reading: Reading, setting: Setting) -> Made:
        """A cache with fewer positions, a BOS always among them.

        Raises:
            NotMet: see `whole_cache`, and `whole_keys` for `knorm`.
        """
        cache = whole_keys(reading) if self.score == "knorm" else whole_cache(reading)
        budget = self.budget(reading)
        if not int(budget.max()):
            return Made(None)
        scores = [each.masked_fill(self._certain(reading, cache, budget)[:, None], float("inf"))
                  for each in self._scores(reading, cache)]  # fmt: skip
        return Made(kept(cache, scores, budget, reading.lm.num_bos))

    def _certain(self, reading: Reading, cache: KVCache, budget: Tensor) -> Tensor:
        """Positions that are kept whatever their score [G, K]: BOS, and what the score says."""
        place = cache.mask.long().cumsum(-1) - 1
        from_end = cache.mask.sum(-1, keepdim=True) - place
        half, certain = budget[:, None] // 2, place < reading.lm.num_bos
        if self.score == "streaming":
            certain = certain | (place < half.clamp(max=self.sinks) + reading.lm.num_bos)
        elif self.score == "snapkv":
            certain = certain | (from_end <= half.clamp(max=self.window))
        return certain & cache.mask

    def _scores(self, reading: Reading, cache: KVCache) -> Iterator[Tensor]:
        """For each layer how much each position is worth [G, H, K]."""
        if self.score == "streaming":
            place = cache.mask.long().cumsum(-1).float()  # half precision does not tell late positions apart
            yield from (place[:, None].expand(-1, keys.shape[1], -1) for keys, _ in cache.layers)
        elif self.score == "knorm":
            yield from (-keys.float().norm(dim=-1) for keys, _ in cache.layers)
        elif self.score == "snapkv":
            yield from self._observed(reading, cache)
        else:
            found: list[Tensor] = []
            for weights in read_again(reading, cache):
                most = [layer.amax((2, 3)) for layer in weights]
                found = [one.maximum(two) for one, two in zip(found, most, strict=True)] if found else most
            yield from found

    def _observed(self, reading: Reading, cache: KVCache) -> Iterator[Tensor]:
        import torch
        from torch.nn.functional import max_pool1d

        from promptcomp.language_model.observing import attended
        from promptcomp.language_model.parts import prepend

        ids, mask = prepend(reading.tokens.ids, reading.tokens.mask, reading.lm.bos_id)
        first = max(0, ids.shape[1] - self.window)
        before = tuple((keys[:, :, :first], values[:, :, :first]) for keys, values in cache.layers)
        front = type(cache)(before, mask[:, :first], mask[:, :first].sum(-1))
        for weights in attended(reading.lm, front, ids[:, first:], mask[:, first:]):
            total = weights.sum((2, 3))
            smooth = max_pool1d(total, self.kernel, stride=1, padding=self.kernel // 2)
            yield torch.where(mask[:, None], smooth, 0)


def whole_cache(reading: Reading) -> KVCache:
    """The full context's keys and values.

    Raises:
        NotMet: the LM has none that could be told apart, or counts positions of a cache from its end.
    """
    from promptcomp.memory import KVCache as Cache

    if reading.lm.family == "encoder_decoder":
        raise NotMet("an encoder-decoder LM keeps a context as its encoder's states, not as keys and values")
    if reading.lm.pattern is not None and reading.lm.pattern.window is not None:
        raise NotMet("some layers of the LM look back over a window, and what is kept of a cache has gaps")
    if not isinstance(reading.full, Cache) or not reading.tokens.ids.shape[1]:
        raise NotMet("the contexts are empty")
    return reading.full


def whole_keys(reading: Reading) -> KVCache:
    """The same of an LM whose cache holds keys and values themselves.

    Raises:
        NotMet: it holds latents (DeepSeek's multi-head latent attention), or see `whole_cache`.
    """
    cache = whole_cache(reading)
    _, heads, _, width = cache.layers[0][0].shape
    if heads == 1 and width == getattr(reading.lm.text_config, "kv_lora_rank", None):
        raise NotMet("the LM's cache holds latents, of which each layer makes its keys and values anew")
    return cache


def read_again(reading: Reading, cache: KVCache) -> Iterator[list[Tensor]]:
    """Attention weights [G, H, Q, S, K] of the context's tokens read once more behind its cache, layer by layer, for S
    tokens of each context at a time, each part as if it came right after the context.

    Raises:
        NotMet: the LM's window ends with the context.
    """
    from promptcomp.language_model.observing import attended

    tokens, room = reading.tokens, cache.next_position.new_full(cache.next_position.shape, CHUNK)
    if reading.lm.window is not None:
        room = (reading.lm.window - cache.next_position).clamp(max=CHUNK)
    if int(room.min()) < 1:
        raise NotMet(f"behind the contexts the LM's window of {reading.lm.window} leaves no room to read them again")
    part = (tokens.mask.long().cumsum(-1) - 1) // room[:, None]  # counted in tokens: padding moves no border
    for number in range(int(part.max()) + 1):
        again = tokens_of(tokens, tokens.mask & (part == number))
        found = attended(reading.lm, cache, again.ids, again.mask)
        yield [weights[..., : cache.mask.shape[1]] for weights in found]


def kept(cache: KVCache, scores: Sequence[Tensor], budget: Tensor, bos: int) -> KVCache:
    """The positions of highest score; a context of which none may stay is read as no prompt.

    Args:
        cache: [G, H, K, ...].
        scores: for each layer [G, H, K].
        budget: how many stay of each context [G] beside BOS.
        bos: how many BOS are in front.
    """
    import torch

    number = (budget + bos).minimum(cache.mask.sum(-1))
    slots = int(number.max())
    layers = []
    for (keys, values), score in zip(cache.layers, scores, strict=True):
        stays = best(score, cache.mask, number)
        index = stays.long().argsort(dim=-1, stable=True)[..., stays.shape[-1] - slots :, None]
        pair = [part.gather(2, index.expand(*index.shape[:3], part.shape[-1])) for part in (keys, values)]
        layers.append((pair[0], pair[1]))
    mask = torch.arange(slots, device=number.device) >= slots - number[:, None]
    return type(cache)(tuple(layers), mask, cache.next_position.where(budget > 0, bos))
