"""Attention Matching: fewer keys, and values fitted so that attention gives what it gave (Zweiger et al. 2026,
https://arxiv.org/abs/2602.16284).

For every layer and head of the cache, with reference queries q_1 .. q_n, n being those of the context's tokens when the
LM reads it once more behind its cache (the paper's repeat-prefill, here without its instruction):

* keys: those of the context with the highest root mean square of attention weights a_ij over the queries ("highest
  attention keys");
* values: least squares, C_v = argmin |X C_v - Y|^2, with Y_i = sum_j a_ij v_j over the whole context and x_ij the
  weights over the kept keys alone. Directions of X below `1e-3` of its largest are left out.

The paper's third part, a bias of each kept key that gives it the mass of those that are gone, has no place in a cache
that holds keys and values only, so it is 0 here: with few keys, attention to the context is then too weak beside the
query's own tokens. All heads keep equally many. This row is therefore a lower bound of the method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from promptcomp.rivals.evict import kept, read_again, whole_keys
from promptcomp.rivals.rival import BudgetedRival, Made, Reading, Setting

if TYPE_CHECKING:
    from torch import Tensor

CUT = 1e-3
"""Singular values of the weights below this share of the largest count as 0."""


class AttentionMatching(BudgetedRival):
    """Some of the context's keys, with values fitted to them; without the paper's biases."""

    title: ClassVar[str] = "attention matching without biases"
    paper: ClassVar[str] = "Zweiger et al. 2026, arXiv 2602.16284"
    keeps_bos: ClassVar[bool] = True

    name: Literal["attention_matching"] = "attention_matching"

    def memory(self, reading: Reading, setting: Setting) -> Made:
        """A cache with fewer positions, a BOS always among them, and other values.

        Raises:
            NotMet: see `whole_keys` and `read_again`.
        """
        import torch

        from promptcomp.language_model import at_least_float32

        cache, budget = whole_keys(reading), self.budget(reading)
        if not int(budget.max()):
            return Made(None)
        parts = list(read_again(reading, cache))
        layers_of = [torch.cat([part[layer] for part in parts], 3).flatten(2, 3) for layer in range(len(cache.layers))]
        weights = [at_least_float32(each) for each in layers_of]
        # of the context alone: [G, H, Q * S, K], rows of padding stay 0
        weights = [each / each.sum(-1, keepdim=True).clamp(min=1e-30) for each in weights]
        bos = (cache.mask & (cache.mask.cumsum(-1) <= reading.lm.num_bos))[:, None]
        scores = [each.square().mean(2).sqrt().masked_fill(bos, float("inf")) for each in weights]
        # the weights travel with the keys: as columns beside them
        marked = tuple(
            (torch.cat([k, a.mT.to(k.dtype)], -1), v) for (k, v), a in zip(cache.layers, weights, strict=True)
        )
        few = kept(type(cache)(marked, cache.mask, cache.next_position), scores, budget, reading.lm.num_bos)
        layers, some = [], budget[:, None, None, None] > 0
        for (keys, own), (_, values), all_of in zip(few.layers, cache.layers, weights, strict=True):
            width = keys.shape[-1] - all_of.shape[2]
            matched = fitted(keys[..., width:].mT, few.mask, all_of, values)
            layers.append((keys[..., :width], matched.where(some, own)))
        return Made(type(cache)(tuple(layers), few.mask, few.next_position))


def fitted(few: Tensor, mask: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """The values of kept keys that give back, by least squares, what all values gave.

    Args:
        few: attention weights of the kept keys [G, H, n, k].
        mask: the real ones [G, k].
        weights: of all keys [G, H, n, K].
        values: of all keys [G, H, K, D].

    Returns:
        [G, H, k, D].
    """
    import torch

    few = few.double() * mask[:, None, None, :]
    shares = few / few.sum(-1, keepdim=True).clamp(min=1e-30)
    return (torch.linalg.pinv(shares, rtol=CUT) @ (weights.double() @ values.double())).to(values.dtype)
