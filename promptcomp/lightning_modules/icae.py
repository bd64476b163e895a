"""ICAE: a context in the memory slots of an autoencoder that is the LM itself (Ge et al., ICLR 2024,
https://arxiv.org/abs/2307.06945); with `slots: kv` 500xCompressor (Li, Su, Collier, ACL 2025,
https://arxiv.org/abs/2408.03094).

The encoder, the LM with LoRA adapters, reads the context c followed by k trained memory tokens m_1 ... m_k. ICAE keeps
its final states at these, projected; 500xCompressor keeps their keys and values in every layer, at the positions where
they were computed. The LM without adapters then reads them in front of the query.

    pretraining (plain text, data `text`): CE of the text that follows c (continuation)
                                           + reconstruction_weight * CE of c itself (autoencoding)
    instruction tuning (init_from=RUN):    CE of the answers

Symbols: k = num_slots, m = memory_tokens, [AE] = again, a trained vector behind the slots that asks for the context.

Deviations from the released code: adapters stand beside every linear layer unless `lora.targets` says otherwise (there:
queries and values); both terms are taken of the same text in every step (there: one of them is drawn for each text), so
that a step's loss does not depend on chance; [AE] is followed by the end-of-sequence token, behind which all else here
is asked for, and with `kv` that token alone asks (there: BOS); a projection that starts as a multiple of the identity
(`projection: none` is the paper's form); padding is never attended to, and position ids count real tokens. Longer
contexts than the window are refused (there: read in spans).
"""

from __future__ import annotations

import torch
from torch import nn

from promptcomp.batch import Context
from promptcomp.language_model import LanguageModel, token_table
from promptcomp.language_model.parts import Prefix, initial_vectors
from promptcomp.lightning_modules.encoder_config import IcaeConfig
from promptcomp.lightning_modules.encoder_module import EncoderModule
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt


class Icae(EncoderModule):
    """See the module docstring."""

    method: IcaeConfig

    @property
    def makes_vectors(self) -> bool:  # type: ignore[override]
        """See EncoderModule."""
        return self.method.slots == "embeddings"

    def build_slots(self) -> None:
        """The memory tokens [k, D of the encoder], and [AE] [1, D of the LM] where something is reconstructed."""

        def around_zero(lm: LanguageModel, count: int) -> nn.Parameter:
            table = token_table(lm.hf)
            return nn.Parameter(initial_vectors(table, (count,), "random", table.weight.detach().std()))

        self.memory_tokens = around_zero(self.encoder, self.method.num_slots)
        if self.method.reconstruction_weight and self.makes_vectors:
            self.again = around_zero(self.lm, 1)

    def compress(self, context: Context) -> SoftPrompt | KVCache | EncoderStates:
        """What the encoder computes at the memory tokens behind each context."""
        slots = self.num_slots
        prefix = self.prefix(context, self.memory_tokens[:slots])
        if not self.makes_vectors:
            return self.encoder.read(prefix)
        return SoftPrompt(self.projection(self.encoder.states(prefix)[:, -slots:]), prefix.mask[:, -slots:])

    def num_memory_slots(self, context_tokens: int) -> int:
        """k, whatever the context's length."""
        return self.num_slots

    def before_cue(self, memory: Memory | Prefix | None) -> Memory | Prefix | None:
        """The slots and [AE]."""
        if not isinstance(memory, SoftPrompt):
            return memory
        again = self.again.to(memory.embeds.dtype).expand(len(memory.mask), -1, -1)
        return SoftPrompt(torch.cat([memory.embeds, again], 1), torch.cat([memory.mask, memory.mask[:, :1]], 1))
