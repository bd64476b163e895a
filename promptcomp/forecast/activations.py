"""What a training step reads on one device, and what a forward pass keeps for its backward pass.

Lengths come from the budgets of the data, rows are as the LM packs them, what is kept is counted on tensors without
data.

The model runs once under torch's FakeTensorMode (shapes and types, no memory, no arithmetic), where the hooks on
autograd's saved tensors see all that is kept. So frozen weights, adapters, dropout, autocast's copies of weights and
each architecture's own code count as they are. (The usual formula, S B D (34 + 5 H S / D) bytes a layer of Korthikanti
et al. 2022, https://arxiv.org/abs/2205.05198, holds for a GPT-2 block with all weights trained and eager attention.)

Attention: on CPU torch chooses the kernel as it would for real tensors. On a GPU it counts as a fused kernel with a
mask: q, k, v, the output and a number for each row are kept, no scores (Dao et al. 2022, arXiv 2205.14135; the
memory-efficient kernel of `scaled_dot_product_attention`). "eager" attention keeps its S x S scores in either case.
Types follow CPU autocast, which keeps `pow` and `layer_norm` in the type of their input; CUDA's makes them float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from promptcomp.experiment import Experiment
from promptcomp.forecast.placement import Layout
from promptcomp.language_model.loading import ENCODER_DECODERS
from promptcomp.language_model.packing import MAX_ROW_TOKENS
from promptcomp.lightning_modules.base import CompressionModule, Pass
from promptcomp.lightning_modules.execution import NORMS, units_of


@dataclass(frozen=True, slots=True)
class Rows:
    """Sequences that a model reads in one pass: `count` rows of `length` tokens."""

    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a device reads at a time; lengths in tokens."""

    context: int
    example: int
    """A query with its target."""
    target: int
    """The target alone; as long as the example where that is not known."""
    queries: int
    """Of one context."""
    contexts: int
    by_tokens: bool = False
    """Whether `data.max_batch_tokens` says how many contexts, and `trainer.batch_size` does not."""

    def of(self, each: Pass) -> Work:
        """What one pass reads."""
        if not each.reconstructs:
            return self
        return replace(self, example=self.context + 1, target=self.context, queries=1)


def work_of(experiment: Experiment, module: CompressionModule, layout: Layout) -> Work:
    """What a device reads at a time, where they do not read equally much: the first one."""
    data = experiment.data
    context, example, target = data.lengths(module.lm.window)
    queries, by_tokens = data.training_queries, data.max_batch_tokens is not None
    contexts = math.ceil(micro_batch_of(experiment, context + queries * example) / layout.devices)
    return Work(context, example, target, queries, contexts, by_tokens)


def micro_batch_of(experiment: Experiment, tokens: int) -> int:
    """Contexts that all devices together read at a time, where one with its queries has so many tokens."""
    limit, trainer = experiment.data.max_batch_tokens, experiment.trainer
    return trainer.batch_size // trainer.accumulate if limit is None else max(1, limit // tokens)


def rows_of(module: CompressionModule, each: Pass, work: Work) -> tuple[Rows, Rows | None]:
    """The sequences of a pass, as promptcomp.language_model packs them."""
    work = work.of(each)
    length, rows = math.ceil(each.length), math.ceil(each.tokens / each.length) * work.contexts
    if each.model.config.is_encoder_decoder and each.model.get_output_embeddings() is None:
        return Rows(rows, length), Rows(rows, module.num_memory_slots(length) + 1)  # a distiller's decoder reads slots
    if each.model.config.is_encoder_decoder:
        if module.lm.query_in_encoder:
            count, known = work.contexts * work.queries, work.target if work.target < work.example else 0
            return Rows(count, max(1, length - known)), Rows(count, work.target + 1)
        tree = work.queries * work.example + 1
        split = math.ceil(tree / (MAX_ROW_TOKENS // 2)) if work.queries > 1 else 1
        read = Rows(work.contexts, max(1, length - work.example))
        return read, Rows(work.contexts * split, math.ceil(tree / split))
    if each.model.get_output_embeddings() is None:  # a distiller: chunks of a context
        return Rows(rows, length), None
    front, tree = length - work.example, work.queries * work.example
    split = math.ceil(tree / MAX_ROW_TOKENS) if work.queries > 1 else 1
    return Rows(work.contexts * split, front + math.ceil(tree / split)), None


def label_positions(module: CompressionModule, each: Pass, work: Work) -> int:
    """Positions of a micro-batch at which a pass makes logits."""
    if each.model.get_output_embeddings() is None:
        return math.ceil(work.contexts * each.scored)
    work = work.of(each)
    everywhere = module.compared == "all" and not module.lm.query_in_encoder
    length = work.example if everywhere else work.target
    return work.contexts * work.queries * length


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that a forward pass keeps for its backward pass, weights and buffers themselves not counted."""

    total: int = 0
    checkpointed: int = 0
    """With every block recomputed in the backward pass: the blocks' inputs and what is outside of blocks."""
    largest_block: int = 0
    """What one block keeps: recomputed in the backward pass, one block at a time."""

    def __add__(self, other: Kept) -> Kept:
        largest = max(self.largest_block, other.largest_block)
        return Kept(self.total + other.total, self.checkpointed + other.checkpointed, largest)


def kept_bytes(model: PreTrainedModel, rows: Rows, decoder_rows: Rows | None, layout: Layout) -> Kept:
    """What reading `rows` keeps, without the output head.

    Args:
        model: A causal LM, an encoder or an encoder-decoder, on any device; its weights are not read, and which of
            them are trained is taken from `requires_grad`.
        rows: What it reads (of an encoder-decoder: the encoder).
        decoder_rows: What the decoder of an encoder-decoder reads.
        layout: Types and kernels.
    """
    if decoder_rows is None:
        return _trace(model.base_model, partial(_inputs, model, rows, None, layout), layout)
    encoder: Any = model.get_encoder()
    decoder: Any = model.get_decoder()
    read = _trace(encoder, partial(_inputs, model, rows, None, layout), layout)
    return read + _trace(decoder, partial(_inputs, model, decoder_rows, rows, layout), layout)


def _inputs(model: PreTrainedModel, rows: Rows, encoder: Rows | None, layout: Layout) -> dict[str, Any]:
    """Embeddings, an additive mask and position ids; for a decoder an encoder's states too."""
    weights: Any = model.get_input_embeddings().weight
    empty = partial(torch.empty, dtype=layout.weight_type or weights.dtype)
    found: dict[str, Any] = {
        "inputs_embeds": empty(rows.count, rows.length, weights.shape[1], requires_grad=True),
        "attention_mask": empty(rows.count, 1, rows.length, rows.length),
    }
    if encoder is not None:
        states = empty(rows.count, encoder.length, weights.shape[1], requires_grad=True)
        across = empty(rows.count, 1, rows.length, encoder.length)
        return {**found, "encoder_hidden_states": states, "encoder_attention_mask": across, "use_cache": False}
    if model.config.model_type in ENCODER_DECODERS:
        return found
    return {**found, "position_ids": torch.zeros(rows.count, rows.length, dtype=torch.long), "use_cache": False}


@dataclass
class _Counter:
    """Storages that autograd keeps, each counted once."""

    own: frozenset[int]
    """Storages of weights and buffers."""
    found: dict[int, Tensor] = field(default_factory=dict)
    total: int = 0
    inputs: int = 0
    in_blocks: int = 0
    largest_block: int = 0
    _before: int = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number not in self.own and number not in self.found:
            self.found[number] = tensor  # alive, so that the number stays taken
            self.total += storage.nbytes()
        return tensor

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._before = self.total
        hidden = args[0] if args else kwargs["hidden_states"]
        self.inputs += hidden.untyped_storage().nbytes()

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        kept = self.total - self._before
        self.in_blocks += kept
        self.largest_block = max(self.largest_block, kept)

    def kept(self) -> Kept:
        return Kept(self.total, self.total - self.in_blocks + self.inputs, self.largest_block)


def _trace(body: nn.Module, make_inputs: Callable[[], dict[str, Any]], layout: Layout) -> Kept:
    """Run `body` on fake tensors."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        kinds: dict[Tensor, torch.dtype] = {}  # gathered in another type; norms undo it
        if layout.gathered is not None:
            units = [m for unit in units_of(body) for m in unit.modules() if not isinstance(m, NORMS)]
            kinds = {p: layout.gathered for module in units for p in module.parameters(recurse=False)}
        state = {
            name: torch.empty(
                p.shape, dtype=kinds.get(p) or layout.weight_type or p.dtype, requires_grad=p.requires_grad
            )
            for name, p in body.named_parameters()
        }
        state |= {name: torch.empty_like(b, device="cpu") for name, b in body.named_buffers()}
        counter = _Counter(frozenset(t.untyped_storage()._cdata for t in state.values()))
        inputs = make_inputs()
        if layout.on_gpu:
            stack.enter_context(_FusedAttention())
        if layout.autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=layout.autocast))
        blocks = set(getattr(body, "_no_split_modules", None) or ())  # what must not be split
        for module in body.modules():
            if type(module).__name__ in blocks:
                for hook in (
                    module.register_forward_pre_hook(counter.enter, with_kwargs=True),
                    module.register_forward_hook(counter.leave),
                ):
                    stack.callback(hook.remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor))
        torch.func.functional_call(body, state, (), inputs)
    return counter.kept()


class _Fused(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps; has no backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output = torch.empty_like(query)
        row = torch.empty(query.shape[:-1], dtype=torch.float32)
        kept = (query, key, value, output, row)
        ctx.save_for_backward(*(kept if mask is None else (*kept, mask)))
        return output


class _FusedAttention(TorchFunctionMode):
    """Replaces `scaled_dot_product_attention` by `_Fused`, in autocast's type where there is one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **named)
        tensors = [*args[:3], named.get("attn_mask")]
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            tensors = [None if t is None else t.to(kind) for t in tensors]
        return _Fused.apply(*tensors)
