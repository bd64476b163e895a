"""An encoder that reads the context for an LM that stays as it is: what `pool` and `icae` share.

The encoder is an LM of its own whose weights may be those of the LM that answers. Then they are the same tensors, held
once, and the adapters stand in the encoder alone; so nothing has to be switched on and off, and the bounds and the
teacher are the LM as it was. The objective is CE of the answers + reconstruction_weight * CE of the context's own
tokens behind its slots + kl_weight * KL(LM with the full context || LM with the slots); each is a mean over tokens.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from promptcomp.batch import Context
from promptcomp.config import ConfigError
from promptcomp.evaluation.flops import read_flops
from promptcomp.language_model import LanguageModel, embedding_scale, token_table
from promptcomp.language_model.parts import Prefix
from promptcomp.language_model.verify import check_both_ways
from promptcomp.lightning_modules.adapters import add_lora
from promptcomp.lightning_modules.base import Pass, check_same_tokenizer
from promptcomp.lightning_modules.encoder_config import EncoderMethodConfig
from promptcomp.lightning_modules.taught_module import TaughtModule


def sharing_weights(lm: LanguageModel) -> LanguageModel:
    """Another LM with the same tensors: what is put into its modules later is not in the first one's."""
    same = [*lm.parameters(), *lm.buffers(), lm.tokenizer]
    return copy.deepcopy(lm, {id(each): each for each in same})


class EncoderModule(TaughtModule):
    """See the module docstring. A method adds `compress`, `num_memory_slots` and what it trains beside the encoder."""

    method: EncoderMethodConfig
    makes_vectors = True
    """Whether slots are vectors that go through a projection."""

    def build(self) -> None:
        """The encoder and the projection."""
        method = self.method
        if method.encoder is None:
            self.encoder = sharing_weights(self.lm)
        else:
            self.encoder = self.open_lm(method.encoder).requires_grad_(False)
            check_same_tokenizer(self.lm, self.encoder, f"method.encoder.path = {method.encoder.path!r}")
        self.both_ways = method.attention == "bidirectional" and self.encoder.family == "decoder"
        if self.both_ways and not self.skeleton:
            check_both_ways(self.encoder)
        self.projection = self._make_projection()
        self.build_slots()
        if method.train_encoder == "lora":
            add_lora(self.encoder.text_encoder(), method.lora, skeleton=self.skeleton)
        self.keep_teacher()

    def build_slots(self) -> None:
        """Make what is trained beside adapters and projection; the encoder has no adapters yet."""

    def train(self, mode: bool = True) -> EncoderModule:
        """Training mode for the trained parts alone."""
        super().train(mode)
        if self._is_built and self.method.train_encoder == "none":
            self.encoder.eval()
        return self

    def _make_projection(self) -> nn.Module:
        width, goal = self.encoder.hidden_size, self.lm.hidden_size
        if self.makes_vectors and self.method.projection == "none" and width != goal:
            raise ConfigError(f"method.projection = 'none': the encoder has width {width}, the LM {goal}; use 'linear'")
        if not self.makes_vectors or self.method.projection == "none":
            return nn.Identity()
        weight = token_table(self.lm.hf).weight
        linear = nn.Linear(width, goal, dtype=weight.dtype, device=weight.device)
        if width == goal and not self.skeleton:
            nn.init.zeros_(linear.bias)
            with torch.no_grad():
                nn.init.eye_(linear.weight).mul_(self._shortening())
        return linear

    def _shortening(self) -> Tensor:
        """Length of the LM's token embeddings by that of the encoder's final states, both means."""
        window = self.encoder.window or 32
        table = token_table(self.lm.hf)
        ids = torch.randint(
            0, self.lm.vocab_size, (8, min(32, window - self.encoder.num_bos)), device=table.weight.device
        )
        mask = torch.ones_like(ids, dtype=torch.bool)
        states = self.encoder.eval().states(
            self.encoder.prefix(Context(ids, mask, ids[:, 0]), both_ways=self.both_ways)
        )
        return embedding_scale(table) * table.weight.norm(dim=-1).mean() / states.norm(dim=-1).mean()

    def prefix(self, context: Context, slots: Tensor | None = None) -> Prefix:
        """What the encoder reads: a context, and slots [K, D] behind it."""
        return self.encoder.prefix(context, slots, both_ways=self.both_ways)

    def compress_flops(self, context_tokens: float) -> float:
        """Reading with the encoder, and projecting."""
        read = self.encoder.num_bos + context_tokens + min(self.method.slots_read, self.num_slots)
        matrices = sum(each.numel() for each in self.projection.parameters() if each.dim() == 2)
        return read_flops(self.encoder.cost, read) + 2.0 * self.num_memory_slots(round(context_tokens)) * matrices

    def passes(self, context_tokens: int, example_tokens: int, queries: int) -> list[Pass]:
        """Encoder, student, reconstruction and teacher."""
        lm, method, bos = self.lm, self.method, self.lm.num_bos
        front = bos + self.num_memory_slots(context_tokens)
        read = self.encoder.num_bos + context_tokens + method.slots_read
        trained = method.train_encoder == "lora" or method.slots_read > 0
        shared = queries * front if lm.query_in_encoder else front
        found = [
            Pass(self.encoder.text_encoder().body, read, read, trained, False),
            Pass(lm.hf, shared + queries * example_tokens, front + example_tokens, True, False),
        ]
        if method.reconstruction_weight:
            again = front + context_tokens + 2  # 2: the cue and what a method puts before it
            found.append(Pass(lm.hf, again, again, True, False, reconstructs=True))
        if method.kl_weight:
            whole, length = bos + context_tokens + queries * example_tokens, bos + context_tokens + example_tokens
            found.append(Pass(lm.hf, whole, length, False, False, caches_context=True))
        return found
