"""MEND: Meta dEmonstratioN Distillation (Li et al., ICLR 2024, https://arxiv.org/abs/2403.06914).

A small LM, the distiller, reads demonstrations D followed by l learned slot embeddings S; its final hidden states at
the slots, projected by tanh(Linear) where the sizes differ, are l vectors V put in front of the query in a frozen LM.
The teacher is the same frozen LM reading D itself. Stage 1 ("pretrain") minimises KL(teacher || student) on plain text
split 80/20; stage 2 ("finetune") minimises CE on the answers + lambda * KL on meta-training tasks.

Symbols: l = num_slots, S = slots, V = compress(D), lambda = kl_weight, T = temperature. KL averages over all tokens of
query and answer of the whole batch, both sides divided by T, without a factor T^2; CE is a token mean over the batch.

Deviations from the released code, all intended: the frozen LM is in eval mode (there: dropout in teacher and
student); position ids count real tokens (there: padding shifts the slots); the teacher reads the student's
demonstrations unless the data section gives it a budget of its own; demonstrations beyond the distiller's window are
distilled in chunks whose vectors are concatenated (there: only the last group's vectors were kept); other distillers
than GPT-2, T5 included; `frozen_embeddings` (there: all of the distiller is trained). Training with `kl_weight: 0` is
the HyperTuning-like ablation. `slots: states` (T5) is another form than the paper's: the frozen decoder attends to V
itself, and V never goes through the frozen encoder.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5EncoderModel

from promptcomp.batch import Context
from promptcomp.config import ConfigError
from promptcomp.evaluation.flops import cross_decoder_flops, read_flops
from promptcomp.language_model import TextEncoder, embedding_scale, token_table
from promptcomp.language_model.parts import initial_vectors
from promptcomp.language_model.t5_encoder import SlotDecoder
from promptcomp.lightning_modules.base import Pass, check_same_tokenizer
from promptcomp.lightning_modules.exported import HFExport, Page, front
from promptcomp.lightning_modules.mend_config import MendConfig
from promptcomp.lightning_modules.taught_module import TaughtModule
from promptcomp.memory import EncoderStates, SoftPrompt


def split_into_chunks(context: Context, size: int) -> tuple[Tensor, Tensor]:
    """Left-padded contexts [G, C] as chunks [G, chunks, size], counted from the end so that padding moves no border."""
    rows, width = context.ids.shape
    chunks = max(1, -(-width // size))
    size = size if chunks > 1 else width
    padded = (F.pad(each, (chunks * size - width, 0)) for each in (context.ids, context.mask))
    ids, mask = (each.view(rows, chunks, size) for each in padded)
    return ids, mask


class Mend(TaughtModule):
    """MEND: a distiller turns demonstrations into vectors for a frozen LM (see the module docstring)."""

    method: MendConfig

    def build(self) -> None:
        """The distiller, the slots and the projection."""
        method = self.method
        if method.slots == "states" and (self.lm.family == "decoder" or self.lm.query_in_encoder):
            raise ConfigError(
                "method.slots = 'states' is for encoder-decoder LMs whose decoder reads the query "
                "(lm.layout=query_in_decoder); use 'inputs'"
            )
        self.distiller = self._open_distiller()
        self.distiller.requires_grad_(True)
        if method.frozen_encoder and method.slots_in != "decoder":
            raise ConfigError("method.frozen_encoder needs method.slots_in=decoder, where the decoder is trained")
        if method.frozen_encoder:  # the decoder's weights alone are trained, without the token embeddings
            self.distiller.body.get_encoder().requires_grad_(False)
        if method.frozen_encoder or method.frozen_embeddings:
            token_table(self.distiller.body).requires_grad_(False)
        self.slots = nn.Parameter(self._initial_slots())
        self.projection = self._make_projection(self.distiller.hidden_size)
        self.keep_teacher()

    def train(self, mode: bool = True) -> Mend:
        """Training mode for the trained parts alone."""
        super().train(mode)
        if self._is_built and self.method.frozen_encoder:
            self.distiller.body.get_encoder().eval()
        return self

    def _open_distiller(self) -> TextEncoder:
        config = self.method.distiller
        other = self.lm
        if config is not None:
            other = self.open_lm(config)
            check_same_tokenizer(self.lm, other, f"method.distiller.path = {config.path!r}")
        in_decoder = self.method.slots_in == "decoder"
        if in_decoder and other.family == "decoder":
            raise ConfigError("method.slots_in = 'decoder' is for encoder-decoder distillers; use 'encoder'")
        encoder = other.text_encoder(with_decoder=in_decoder)
        return encoder if config is not None else copy.deepcopy(encoder)

    def _initial_slots(self) -> Tensor:
        table, std = token_table(self.distiller.body), self.distiller.body.config.to_dict().get("initializer_range")
        if std is None:  # T5 has no such number; its own embeddings give the scale
            std = 1.0 if self.skeleton else float(table.weight.detach().square().mean().sqrt())
        # The reference draws ids from 100 upwards, past special tokens and single bytes.
        first = 100 if table.num_embeddings > 200 else 0
        return initial_vectors(table, (self.method.num_slots,), self.method.slot_init, std, first)

    def _make_projection(self, width: int) -> nn.Module:
        kind, goal = self.method.projection, self.lm.hidden_size
        if kind == "auto":
            kind = "none" if width == goal else "tanh"
        if kind == "none" and width != goal:
            raise ConfigError(f"method.projection = 'none': the distiller has width {width}, the LM {goal}; use 'tanh'")
        if self.method.projection_init == "identity" and kind != "linear":
            raise ConfigError(f"method.projection_init = 'identity' needs method.projection=linear, not {kind!r}")
        if kind == "none":
            return nn.Identity()
        weight = self.slots
        linear = nn.Linear(width, goal, dtype=weight.dtype, device=weight.device)
        if self.method.projection_init == "identity" and not self.skeleton:
            self._start_at_identity(linear)
        return nn.Sequential(linear, nn.Tanh()) if kind == "tanh" else linear

    @torch.no_grad()
    def _start_at_identity(self, linear: nn.Linear) -> None:
        """Make the first vectors hidden states of the length of the LM's token embeddings."""
        ids = torch.randint(0, self.lm.vocab_size, (8, min(32, self._chunk_size())), device=linear.weight.device)
        was_training = self.distiller.training
        hidden = self.distiller.eval().read(ids, torch.ones_like(ids, dtype=torch.bool), self.slots)
        self.distiller.train(was_training)
        table = token_table(self.lm.hf)
        length = embedding_scale(table) * table.weight.norm(dim=-1).mean() / hidden.norm(dim=-1).mean()
        nn.init.eye_(linear.weight).mul_(length)
        nn.init.zeros_(linear.bias)

    def compress(self, context: Context) -> SoftPrompt | EncoderStates:
        """num_slots vectors for each chunk of each context; slots of chunks that hold no token are masked."""
        ids, mask = split_into_chunks(context, self._chunk_size())
        rows, chunks, _ = ids.shape
        present = mask.any(-1)
        present[:, -1] = True  # an empty context still gets its slots
        ids, mask = self.distiller.with_bos(ids.flatten(0, 1), mask.flatten(0, 1))
        num_slots = self.num_slots
        vectors = self.projection(self.distiller.read(ids, mask, self.slots[:num_slots]))
        vectors = vectors.reshape(rows, chunks * num_slots, -1)
        mask = present[:, :, None].expand(-1, -1, num_slots).reshape(rows, chunks * num_slots)
        return EncoderStates((vectors,), mask) if self.method.slots == "states" else SoftPrompt(vectors, mask)

    def num_memory_slots(self, context_tokens: int) -> int:
        """num_slots for each chunk."""
        return self.num_slots * max(1, -(-context_tokens // self._chunk_size()))

    def compress_flops(self, context_tokens: float) -> float:
        """The distiller reads demonstrations and slots; then the projection."""
        slots = self.num_memory_slots(math.ceil(context_tokens))
        chunks = slots // self.num_slots
        read, cost = context_tokens / chunks, self.distiller.cost
        if self.method.slots_in == "decoder":
            slot_flops = cross_decoder_flops(cost, self.num_slots + 1, read) - cost.head
            flops = read_flops(cost, read) + slot_flops
        else:
            flops = read_flops(cost, self.distiller.num_bos + read + self.num_slots)
        return chunks * flops + 2.0 * slots * sum(p.numel() for p in self.projection.parameters() if p.dim() == 2)

    def passes(self, context_tokens: int, example_tokens: int, queries: int) -> list[Pass]:
        """Distiller, student and teacher."""
        slots = self.num_memory_slots(context_tokens)
        front = self.lm.num_bos + slots
        student = front + example_tokens
        # Queries share the row that holds the slots, unless an encoder reads each query with them.
        student_tokens = queries * student if self.lm.query_in_encoder else front + queries * example_tokens
        # The distiller reads the slots, unless its decoder does; a frozen encoder counts as trained (an upper bound).
        bos, chunk = self.distiller.num_bos, self._chunk_size()
        in_encoder = self.method.slots_in == "encoder"
        read = context_tokens + in_encoder * (slots + slots // self.slots.shape[0] * bos)
        length = min(read, chunk + in_encoder * (self.slots.shape[0] + bos))
        found = [
            Pass(self.distiller.body, read, length, True, True),
            Pass(self.lm.hf, student_tokens, student, True, False),
        ]
        if self.method.compares:
            context = self.lm.num_bos + context_tokens
            tokens, length = context + queries * example_tokens, context + example_tokens
            found.append(Pass(self.lm.hf, tokens, length, False, False, caches_context=True))
        return found

    def _chunk_size(self) -> int:
        limit = self.method.max_chunk_tokens
        window = self.distiller.window
        if window is None:
            return limit if limit is not None else 1 << 30
        room = window - self.slots.shape[0] - self.distiller.num_bos
        if room < 1:
            raise ConfigError(self.method.no_room(window))
        return room if limit is None else min(limit, room)

    def as_hf(self) -> HFExport:
        """The distiller, a separate model; an encoder alone as transformers has it."""
        body: Any = self.distiller.body
        if self.distiller.family == "encoder_decoder" and self.method.slots_in == "encoder":
            whole = T5EncoderModel(body.config)
            whole.encoder = body
            whole.shared = body.embed_tokens
            body = whole
        reads = f"demonstrations followed by {len(self.slots)} learned slots"
        if self.method.slots_in == "decoder":
            reads = f"demonstrations in its encoder and {len(self.slots)} learned slots in its decoder"
        use = "stand in front of a query's embeddings in the frozen LM"
        if self.method.slots == "states":
            use = "take the place of the encoder's output in the frozen LM"
        kinds: dict[type[nn.Module], str] = {nn.Linear: "linear", nn.Identity: "none"}
        values = {
            "reads": reads,
            "use": use,
            "opener": type(body).__name__ if isinstance(body, T5EncoderModel) else "AutoModel",
            "front": front(self.distiller.bos_id),
            "start_id": self.distiller.start_id if isinstance(self.distiller, SlotDecoder) else None,
            "projection": kinds.get(type(self.projection), "tanh"),
        }
        return HFExport(body, Page("distiller", values), ("distiller.",))
