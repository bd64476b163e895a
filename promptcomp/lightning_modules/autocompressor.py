"""AutoCompressors: an LM that reads a long context in segments, each behind the summaries of those before it (Chevalier
et al., EMNLP 2023, https://arxiv.org/abs/2305.14788).

A context is cut into segments S_1 ... S_n. The LM reads [BOS | s_1 ... s_(i-1) | S_i | <Sum>_1 ... <Sum>_e] with e
trained summary tokens, and s_i, its final states at these, are e input vectors for all that it reads later: the next
segments (summaries are accumulated) and the query, which stands behind BOS and s_1 ... s_n.

    loss = CE of the answers + context_weight * CE of the tokens of S_1 ... S_n, each token behind what stands before it

The first token of a segment is predicted at the last vector before it, that of S_1 at BOS where the LM has one. Token
number t of T is in the first segment i with t <= ceil(T (w_1 + ... + w_i) / (w_1 + ... + w_n)): all w are 1; in
training (`random_segments`) each is drawn from U(1, 2) anew for each step, the same for all its contexts.

Gradients stop after N = backprop_segments segments: counted from the query, the segments form groups of N, and vectors
made before a group are constants in it. So the answers train the summaries of the last N segments, and the tokens of
an earlier group those of its own segments.

Symbols: n = segments, e = num_slots / n, <Sum> = summary_tokens, s = compress.

Deviations: num_slots vectors are divided among the segments (the paper: 50 for each of as many segments as a text has),
so that methods are compared at equal positions; the two cross-entropies are separate means (there: one mean over all
tokens, and no answers); absolute positions count vectors and summary tokens (there: OPT gives them none, so that its
table lasts for longer texts).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptcomp.batch import Batch, Context
from promptcomp.checkpoints.trained_state import Origin
from promptcomp.evaluation.flops import read_flops
from promptcomp.language_model import embedding_scale, token_table
from promptcomp.language_model.packing import close_gaps
from promptcomp.language_model.parts import Prefix, at_least_float32, check_embedded
from promptcomp.lightning_modules.autocompressor_config import AutocompressorConfig
from promptcomp.lightning_modules.base import CompressionModule, Counts, LossTerm, Pass
from promptcomp.lightning_modules.exported import HFExport, Page
from promptcomp.lightning_modules.objective import cross_entropy
from promptcomp.memory import SoftPrompt


class Autocompressor(CompressionModule):
    """See the module docstring."""

    method: AutocompressorConfig

    def build(self) -> None:
        """The summary tokens [e, D], which start as the end of sequence."""
        table = token_table(self.lm.hf)
        check_embedded(table, self.lm.end_id)
        end = table.weight.detach()[self.lm.end_id] * embedding_scale(table)
        self.summary_tokens = nn.Parameter(end.repeat(self.method.num_slots // self.method.segments, 1))

    def origin(self) -> Origin:
        """With the number of slots, which is that of all segments."""
        return super().origin().model_copy(update={"num_slots": self.method.num_slots})

    def as_hf(self) -> HFExport:
        """The LM; the summary tokens are in a file beside it."""
        return HFExport(self.lm.hf, self.adapter_page(""))

    def adapter_page(self, base: str) -> Page:
        """How a text is read in segments."""
        return Page("autocompressor", {"base": base, "segments": self.method.segments})

    def compress(self, context: Context) -> SoftPrompt:
        """The accumulated summaries of each context."""
        return self._read(context, None)

    def num_memory_slots(self, context_tokens: int) -> int:
        """k, whatever the context's length: a segment without a token is summed up too."""
        return self.num_slots

    def _read(self, context: Context, log_probs: list[Tensor] | None) -> SoftPrompt:
        """The summaries; log p of the context's tokens is added to a list."""
        lm, method = self.lm, self.method
        tokens = self.summary_tokens[: self.num_slots // method.segments]
        rows = torch.arange(len(context.ids), device=context.ids.device)
        ends, place = self._ends(context.mask), context.mask.long().cumsum(-1) - 1
        vectors = lm.embed(context.ids[:, :0])
        slots = tokens.to(vectors.dtype).expand(len(rows), -1, -1)
        memory = SoftPrompt(vectors, context.mask[:, :0])
        for number in range(method.segments):
            left = method.segments - number
            if number and left % method.backprop_segments == 0:
                memory = SoftPrompt(memory.embeds.detach(), memory.mask)
            inside = context.mask & (place >= ends[:, number, None]) & (place < ends[:, number + 1, None])
            width = int(inside.sum(-1).max())
            ids, real = (each[:, each.shape[1] - width :] for each in close_gaps(context.ids, inside))
            front = lm.front(memory, rows)
            embeds = torch.cat([front.embeds, lm.embed(ids), slots], 1)
            mask = torch.cat([front.mask, real, real.new_ones(slots.shape[:2])], 1)
            embeds, mask = close_gaps(embeds, mask)
            # without a term of their own, earlier segments than those of the last group learn nothing
            learns = log_probs is not None or left <= method.backprop_segments
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                states = lm.states(Prefix(embeds, mask, mask))
            if log_probs is not None:
                log_probs.append(self._log_probs(states[:, : -len(tokens)], ids, real, first=number == 0))
            vectors = torch.cat([memory.embeds, states[:, -len(tokens) :]], 1)
            memory = SoftPrompt(vectors, mask.new_ones(vectors.shape[:2]))
        return memory

    def _log_probs(self, states: Tensor, ids: Tensor, real: Tensor, *, first: bool) -> Tensor:
        """log p of a segment's tokens, which end with the states; without BOS the very first has no predecessor."""
        scored = real & F.pad(real, (1, 0))[:, :-1] if first and self.lm.bos_id is None else real
        before = F.pad(states, (0, 0, 1, 0))[:, states.shape[1] - ids.shape[1] : states.shape[1]]
        values = at_least_float32(self.lm.head(before[scored]))
        return values.gather(-1, ids[scored][:, None]).squeeze(-1) - values.logsumexp(-1)

    def _ends(self, mask: Tensor) -> Tensor:
        """Where the segments of each context end, counted in its tokens [G, n + 1]; the first number is 0."""
        shares = torch.ones(self.method.segments)
        if self.training and self.method.random_segments:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.global_step)
            shares += torch.rand(len(shares), generator=generator)
        shares = F.pad(shares.cumsum(0) / shares.sum(), (1, 0)).to(mask.device)
        return (mask.sum(-1, keepdim=True) * shares - 1e-3).ceil().long()  # 1e-3: rounding is no token more

    def compress_flops(self, context_tokens: float) -> float:
        """Reading every segment behind the summaries before it."""
        return sum(read_flops(self.lm.cost, read) for read in self._lengths(context_tokens))

    def _lengths(self, context_tokens: float) -> list[float]:
        """What is read with each segment."""
        count, each = self.method.segments, self.num_slots // self.method.segments
        return [self.lm.num_bos + (number + 1) * each + context_tokens / count for number in range(count)]

    def passes(self, context_tokens: int, example_tokens: int, queries: int) -> list[Pass]:
        """Each segment, and the queries behind the summaries."""
        lm, method, trained = self.lm, self.method, self.method.train == "lm"
        body = lm.text_encoder().body
        found: list[Pass] = []
        for number, read in enumerate(self._lengths(context_tokens)):
            learns = method.context_weight > 0 or method.segments - number <= method.backprop_segments
            scored = context_tokens / method.segments if method.context_weight else 0.0
            found.append(Pass(body, read, read, learns, learns and trained, scored=scored))
        front = lm.num_bos + method.num_slots
        return [*found, Pass(lm.hf, front + queries * example_tokens, front + example_tokens, True, trained)]

    def counts(self, batch: Batch) -> Counts:
        """Scored tokens of answers and of contexts."""
        found: dict[str, Tensor | int] = {"ce": self.lm.scored_tokens(batch).sum()}
        if self.method.context_weight:
            mask = batch.context.mask
            found["context"] = mask.sum() - (mask.any(-1).sum() if self.lm.bos_id is None else 0)
        return found

    def losses(self, batch: Batch) -> list[LossTerm]:
        """See the module docstring."""
        weight = self.method.context_weight
        log_probs: list[Tensor] | None = [] if weight else None
        memory = self._read(batch.context, log_probs)
        terms = [cross_entropy("ce", self.lm(memory, batch, "targets"))]
        if log_probs is not None:
            each = torch.cat(log_probs)
            terms.append(LossTerm("context", -each.sum(), len(each), weight))
        return terms
