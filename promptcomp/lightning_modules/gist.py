"""Gisting: learning to compress prompts with gist tokens (Mu, Li, Goodman 2023, https://arxiv.org/abs/2304.08467).

The LM reads `[prompt t | k gist tokens | query x | output y]` and is trained by the cross-entropy of y. Its attention
mask lets nothing after the gist tokens attend to anything before them, so the activations G(t) at the gist tokens (keys
and values of every layer; in a T5 encoder the states) become all that is left of the prompt; they are kept and reused.
With F and L the positions of the first and the last gist token, a query q may attend to a key j if

    j <= L  where q <= L,     j >= F  where q > L     (and j <= q in a decoder)

With `attention: bidirectional` j <= q holds only where q > L: prompt and gist tokens see all of each other
(Feldman and Artzi 2025, https://arxiv.org/abs/2510.20797, for compression tokens), and what follows is as before.

Symbols: t = Context, k = num_slots, x = query, y = target, G = compress.

Deviations from the released code, all intended: the mask comes from positions and not from token ids, so a gist
token cannot get lost, leak or be mistaken (there: rows without one silently see the prompt; answers see it when the
prompt ends on the gist token); the gist token is a trained parameter and no entry of the tokenizer or the output head;
position ids count real tokens; padding is never attended; caches hold batches with an offset for each row; the loss is
a mean over the tokens of the whole batch. Not in the released code and off by default: LoRA, an embedding for each gist
token, distillation from the full prompt (the objective that motivates the paper; its authors train on y instead),
cross-entropy with the full prompt as well, cross-entropy of the prompt itself (autoencoding as in ICAE, Ge
et al. 2023, https://arxiv.org/abs/2307.06945). Plain text (data `text`) pretrains gist tokens without further options.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.batch import Batch, Context
from promptcomp.checkpoints.trained_state import Origin, check_trained, frozen_hash, read_lora, read_trained
from promptcomp.config import ConfigError
from promptcomp.evaluation.flops import read_flops
from promptcomp.language_model import LanguageModel, embedding_scale, token_table
from promptcomp.language_model.cache import KEYWORD_CODE
from promptcomp.language_model.parts import Prefix
from promptcomp.language_model.verify import check_both_ways
from promptcomp.lightning_modules.adapters import add_lora, without_lora
from promptcomp.lightning_modules.base import LossTerm, Pass
from promptcomp.lightning_modules.exported import HFExport, Page
from promptcomp.lightning_modules.gist_config import GistConfig
from promptcomp.lightning_modules.method_config import LoraConfig
from promptcomp.lightning_modules.objective import cross_entropy
from promptcomp.lightning_modules.taught_module import TaughtModule
from promptcomp.memory import EncoderStates, KVCache

NOISE = 0.1
"""Separate embeddings start this far apart, in standard deviations of the token embeddings."""


class Gist(TaughtModule):
    """Gisting: the LM learns to read a prompt's gist tokens instead of the prompt (see the module docstring)."""

    method: GistConfig

    def build(self) -> None:
        """The gist embedding [1 or k, D] and the teacher."""
        if self.lm.window is not None and (problem := self.method.window_problem(self.lm.window)):
            raise ConfigError(problem)
        self.both_ways = self.method.attention == "bidirectional" and self.lm.family == "decoder"
        if self.both_ways and not self.skeleton:
            check_both_ways(self.lm)
        self.gist = nn.Parameter(self._initial_embedding())
        self.teacher = self._open_teacher()
        self.keep_teacher()

    def _initial_embedding(self) -> Tensor:
        method, tokenizer = self.method, self.lm.tokenizer
        table, scale = token_table(self.lm.hf).weight.detach(), embedding_scale(token_table(self.lm.hf))
        if method.gist_token is not None and tokenizer is not None:
            number = tokenizer.get_vocab().get(method.gist_token)
            if number is None or number >= len(table):
                raise ConfigError(
                    f"method.gist_token = {method.gist_token!r}: the LM's tokenizer has no such token; "
                    "leave it null to start from the mean of the token embeddings"
                )
            start = table[number : number + 1]
        else:  # a table may have more rows than there are tokens (T5)
            start = table[: len(table) if tokenizer is None else len(tokenizer)].mean(0, keepdim=True)
        start = start * scale
        if method.shared_embedding:
            return start
        start = start.repeat(method.num_slots, 1)
        return start + NOISE * scale * table.std() * torch.randn_like(start)

    def _open_teacher(self) -> LanguageModel | None:
        """A separate frozen LM, where the LM that is trained cannot serve as the teacher."""
        method = self.method
        if not method.kl_weight or method.teacher == "self" or (method.teacher == "initial" and method.train != "lm"):
            return None
        teacher = copy.deepcopy(self.lm, {id(self.lm.tokenizer): self.lm.tokenizer})
        shapes_only = self.skeleton and self.device_mesh is not None  # the weights come from rank 0
        if method.teacher != "initial" and (shapes_only or not self.skeleton):
            load_teacher(teacher, Path(method.teacher), shapes_only=shapes_only)
        return teacher.requires_grad_(False)

    def origin(self) -> Origin:
        """With the number of gist tokens, which a shared embedding does not show."""
        return super().origin().model_copy(update={"num_slots": self.method.num_slots})

    def as_hf(self) -> HFExport:
        """The LM with gist tokens in its tokenizer and its embedding table."""
        tokenizer = self.lm.tokenizer
        assert tokenizer is not None
        ids, text = add_gist_tokens(self.lm.hf, tokenizer, self.gist.detach(), self.method.num_slots)
        return HFExport(self.lm.hf, gist_page(len(ids), self.both_ways, "", ids, text), ("lm.hf.", "gist"))

    def adapter_page(self, base: str) -> Page:
        """With the gist embedding, which is no part of the adapters."""
        return gist_page(self.method.num_slots, self.method.attention == "bidirectional", base)

    def slots(self) -> Tensor:
        """Embeddings of the gist tokens [k, D], or of the first of them."""
        return self.gist.expand(self.method.num_slots, -1)[: self.num_slots]

    def prefix(self, context: Context) -> Prefix:
        """A context and the gist tokens behind it, which alone are visible."""
        return self.lm.prefix(context, self.slots(), both_ways=self.both_ways)

    def compress(self, context: Context) -> KVCache | EncoderStates:
        """G(t): the activations at the gist tokens after each context."""
        return self.lm.read(self.prefix(context))

    def read_for_training(self, context: Context) -> Prefix | KVCache | EncoderStates:
        """The prefix itself, or its memory."""
        return self.prefix(context) if self.method.arrangement == "joint" else self.compress(context)

    def num_memory_slots(self, context_tokens: int) -> int:
        """k, whatever the context's length."""
        return self.num_slots

    def compress_flops(self, context_tokens: float) -> float:
        """The LM reads the context and the gist tokens."""
        return read_flops(self.lm.cost, self.lm.num_bos + context_tokens + self.num_slots)

    def passes(self, context_tokens: int, example_tokens: int, queries: int) -> list[Pass]:
        """The student; with the options for them, the LM and the teacher with the full prompt."""
        method, lm = self.method, self.lm.hf
        trained = method.train == "lm"
        context = self.lm.num_bos + context_tokens
        prefix = context + method.num_slots
        # An encoder that reads queries meets the prefix again with each of them, unless it was remembered.
        repeated = queries if self.lm.query_in_encoder and method.arrangement == "joint" else 1
        read = repeated * prefix + queries * example_tokens
        whole, length = context + queries * example_tokens, context + example_tokens
        found = [Pass(lm, read, prefix + example_tokens, True, trained)]
        if method.full_prompt_weight:
            found.append(Pass(lm, whole, length, True, trained))
        if method.reconstruction_weight:
            again = (prefix if method.arrangement == "joint" else 0) + context_tokens + 1  # 1: the request
            found.append(Pass(lm, again, again, True, trained, reconstructs=True))
        if method.kl_weight:
            teacher = lm if self.teacher is None else self.teacher.hf
            found.append(Pass(teacher, whole, length, False, False, caches_context=True))
        return found

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Scored tokens, and positions that are compared with the teacher."""
        found = super().counts(batch)
        if self.method.full_prompt_weight:
            found["full_ce"] = found["ce"]
        return found

    def own_terms(self, batch: Batch) -> list[LossTerm]:
        """CE with the full prompt."""
        if not self.method.full_prompt_weight:
            return []
        full = self.lm(self.lm.encode(batch.context), batch, "targets")
        return [cross_entropy("full_ce", full, self.method.full_prompt_weight)]

    @torch.no_grad()
    def teach(self, batch: Batch) -> Tensor:
        """The teacher's logits [P, V] behind the full prompt, without dropout; the initial LM has no adapters."""
        method = self.method
        lm = self.lm if self.teacher is None else self.teacher
        as_it_was = self.teacher is None and method.teacher == "initial" and method.train == "lora"
        was_training = lm.training
        lm.eval()
        try:
            with without_lora(lm) if as_it_was else nullcontext():
                return lm(lm.encode(batch.teacher_context), batch, self._where).values
        finally:
            lm.train(was_training)


def load_teacher(lm: LanguageModel, path: Path, *, shapes_only: bool = False) -> None:
    """Give an LM the weights of a run that trained it behind full prompts.

    Args:
        lm: The LM that the run started from; changed in place.
        path: A run directory, an export or a checkpoint (of adapters: no checkpoint, as it does not hold their sizes).
        shapes_only: Make room for the weights and leave them out.

    Raises:
        ConfigError: nothing readable is there, or it belongs to another method, family or shape.
    """
    tensors, info = read_trained(path)
    if any(".lora_" in name for name in tensors):
        lm.requires_grad_(False)
        add_lora(lm, LoraConfig.model_validate(read_lora(path)), skeleton=shapes_only)
    else:
        lm.requires_grad_(True)
    named = {f"lm.{name}": p for name, p in lm.named_parameters()}
    expected = {name: p.shape for name, p in named.items() if p.requires_grad}
    frozen = None if shapes_only else frozen_hash(named.items())
    method = "metaicl" if info.get("method") == "metaicl" else "full_prompt"
    source = f"method.teacher = {str(path)!r}"
    check_trained(tensors, info, expected, Origin(method=method, family=lm.family, lm="", frozen=frozen), source)
    if shapes_only:
        return
    lm.load_state_dict({name.removeprefix("lm."): tensor for name, tensor in tensors.items()}, strict=False)


def add_gist_tokens(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gist: Tensor, num_slots: int
) -> tuple[list[int], str]:
    """Give a model and its tokenizer gist tokens; returns the k tokens behind a prompt as ids and as text.

    Args:
        hf: Changed in place: new rows of the embedding table, and rows of zeros in an output head of its own.
        tokenizer: Changed in place.
        gist: Embeddings [1 or k, D].
        num_slots: k.
    """
    count, stem = len(gist), "gist"
    while True:
        words = [f"<{stem}>"] if count == 1 else [f"<{stem}_{number}>" for number in range(1, count + 1)]
        if not tokenizer.get_vocab().keys() & set(words):
            break
        stem = f"new_{stem}"
    tokenizer.add_tokens(words, special_tokens=True)
    known = tokenizer.get_vocab()
    numbers = [known[word] for word in words]
    table, head = token_table(hf), hf.get_output_embeddings()
    own = head.weight if isinstance(head, nn.Linear) and head.weight is not table.weight else None
    if max(numbers) >= table.num_embeddings:
        # The rows that T5 has beyond its tokenizer are kept: a table never shrinks.
        hf.resize_token_embeddings(max(numbers) + 1, mean_resizing=False)
        table, head = token_table(hf), hf.get_output_embeddings()
        if own is not None and head.weight is table.weight:  # tied, as the configuration of T5 1.1 says: it has its own
            head.weight = nn.Parameter(torch.cat([own, own.new_zeros(len(table.weight) - len(own), own.shape[1])]))
    with torch.no_grad():
        if isinstance(head, nn.Linear) and head.weight is not table.weight:
            head.weight[numbers] = 0
        table.weight[numbers] = (gist / embedding_scale(table)).to(table.weight)
    if hf.generation_config is not None:
        hf.generation_config.suppress_tokens = sorted({*(hf.generation_config.suppress_tokens or ()), *numbers})
    repeated = num_slots // count
    return numbers * repeated, "".join(words * repeated)


def gist_page(count: int, both_ways: bool, base: str = "", ids: Sequence[int] = (), text: str = "") -> Page:
    """Of a model with `count` gist tokens (see `add_gist_tokens`), or of adapters of the LM that `base` opens;
    `both_ways`: prompt and gist tokens see all of each other."""
    values = {"count": count, "base": base, "ids": list(ids), "text": text}
    values |= {"both_ways": both_ways, "keyword_code": KEYWORD_CODE}
    return Page("gist", values)
