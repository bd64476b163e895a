"""Parts of language models: results, output head and headless text encoder, prefixes, positions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from promptcomp.config import ConfigError
from promptcomp.language_model.counting import ModelCost, model_cost
from promptcomp.language_model.lm_config import ENCODER_DECODERS, unknown_encoder_decoder
from promptcomp.memory import EncoderStates, KVCache, SoftPrompt


class Logits(NamedTuple):
    """Next-token logits at P positions and which of them predict the E scored target tokens.

    The positions and their order depend on the batch alone, not on the memory, so a student's and a teacher's logits
    of the same batch align row by row.
    """

    values: Tensor  # [P, V]
    predictor: Tensor  # [E] row of `values`
    label: Tensor  # [E] the token that came
    target_of: Tensor  # [E] row of the batch's targets

    def log_probs(self) -> Tensor:
        """log p(label) of each scored target token [E], in at least float32."""
        values = at_least_float32(self.values)
        return values[self.predictor, self.label] - values.logsumexp(-1)[self.predictor]

    def scores(self, num_targets: int) -> Scores:
        """Log likelihood of each of the batch's M targets."""
        missed = self.values.argmax(-1)[self.predictor] != self.label

        def summed(values: Tensor) -> Tensor:
            return values.new_zeros(num_targets).index_add(0, self.target_of, values)

        tokens = torch.ones_like(self.target_of)
        return Scores(summed(self.log_probs()), summed(tokens), summed(missed.long()) == 0)


class Prefix(NamedTuple):
    """Embeddings read in front of the queries, of which the queries see a part only (gist tokens).

    Every real position of the prefix sees the real positions up to itself (`both_ways`, or an encoder: all of them);
    what comes after the prefix sees its visible positions alone. Position ids count all real positions.
    """

    embeds: Tensor  # [G, P, D]
    mask: Tensor  # [G, P] bool, real positions
    visible: Tensor  # [G, P] bool, a part of `mask`
    both_ways: bool = False

    def rows(self, index: Tensor) -> Prefix:
        """The prefixes of the rows `index` [N]."""
        return Prefix(self.embeds[index], self.mask[index], self.visible[index], self.both_ways)


class Scores(NamedTuple):
    """Log likelihood of each target given its query and memory."""

    sum_log_prob: Tensor  # [M]
    num_tokens: Tensor  # [M]
    is_greedy: Tensor  # [M] bool: every token is the likeliest one, so greedy decoding writes exactly this target


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened, anything wider unchanged."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def unsupported(hf: PreTrainedModel, why: str) -> str:
    """The message of a refusal."""
    kind, version = hf.config.model_type, transformers.__version__
    return f"models of type {kind!r} are not supported with transformers {version}: {why}"


@contextlib.contextmanager
def refusing(hf: PreTrainedModel, what: str) -> Iterator[None]:
    """Turn whatever a model's own code raises into a refusal.

    Raises:
        ConfigError: says `what` does not work with models of this type, and what was raised.
    """
    try:
        yield
    except (ConfigError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(unsupported(hf, f"{what} ({type(error).__name__}: {reason})")) from None


def in_memory(model: Any, tokenizer: Any = None, *, needs_weights: bool = True) -> PreTrainedModel:
    """The Hugging Face model in what a user gives: itself, or what peft or torch.compile have made of it.

    Raises:
        ConfigError: it is none, predicts no tokens, is an encoder-decoder of an unknown type, has no weights (where it
            `needs_weights`), or reads a trained prompt of peft, which stands outside of it; or the tokenizer is none.
    """
    hf = getattr(model, "_orig_mod", model)
    if any(each.is_prompt_learning for each in getattr(hf, "peft_config", {}).values()):
        raise ConfigError(
            "the model reads a trained prompt of peft in front of everything, which promptcomp cannot; give the model "
            "without it: model.get_base_model()"
        )
    if not isinstance(hf, PreTrainedModel) and hasattr(hf, "get_base_model"):
        hf = hf.get_base_model()
    if not isinstance(hf, PreTrainedModel):
        raise ConfigError(f"expected a model of transformers (a causal LM, or a T5), not {type(model).__name__}")
    if hf.config.is_encoder_decoder and hf.config.model_type not in ENCODER_DECODERS:
        raise ConfigError(unknown_encoder_decoder(hf.config.model_type))
    if hf.get_output_embeddings() is None:
        opener = "AutoModelForSeq2SeqLM" if hf.config.model_type in ENCODER_DECODERS else "AutoModelForCausalLM"
        raise ConfigError(f"{type(hf).__name__} predicts no tokens; load the model with {opener}.from_pretrained")
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(f"expected a tokenizer of transformers, not {type(tokenizer).__name__}")
    if needs_weights and any(each.is_meta for each in hf.parameters()):
        raise ConfigError("the model has no weights: it is on the meta device; load it on cpu or cuda")
    return hf


@contextlib.contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """A user's model for the time of a block. Then each of its parts is in the mode (training or not) that it was in,
    and each weight that was there asks for a gradient as it did."""
    training = [each for each in model.modules() if each.training]
    asked = [(each, each.requires_grad) for each in model.parameters()]
    try:
        yield
    finally:
        model.eval()
        for part in training:
            part.training = True
        for weight, asks in asked:
            weight.requires_grad_(asks)


def token_table(hf: PreTrainedModel) -> nn.Embedding:
    """The input embeddings of a model."""
    table = hf.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ConfigError(unsupported(hf, "they have no table of token embeddings"))
    return table


def look_up(hf: PreTrainedModel, ids: Tensor) -> Tensor:
    """Input embeddings [..., D] of token ids.

    Raises:
        ConfigError: a token has none (on a GPU torch ends the program).
    """
    table = token_table(hf)
    if ids.device.type == "cpu" and ids.numel():
        check_embedded(table, int(ids.max()))
    found: Tensor = table(ids)
    return found


def check_embedded(table: nn.Embedding, token: int) -> None:
    """
    Raises:
        ConfigError: the table has no row for a token.
    """
    if token >= table.num_embeddings:
        raise ConfigError(
            f"the tokenizer's token {token} has no embedding: the LM's table has {table.num_embeddings} rows; give "
            "the LM its own tokenizer, or resize the table (resize_token_embeddings of transformers)"
        )


def body_name(hf: PreTrainedModel) -> str:
    """The name of the child of a causal LM that makes the final hidden states.

    Raises:
        ConfigError: there is no such child.
    """
    if hf.base_model_prefix in hf._modules:
        return hf.base_model_prefix
    models = [name for name, child in hf.named_children() if isinstance(child, PreTrainedModel)]
    if len(models) != 1:
        raise ConfigError(unsupported(hf, "their output head cannot be separated from their body"))
    return models[0]


def logits_of(hf: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [P, V] of final hidden states [P, D] (T5: of its decoder's), by the model's own forward.

    Models differ in what they do behind the last block: a transform in front of the output layer, factors and soft caps
    behind it, under many names. So nothing of it is repeated here: the body's output is given instead of computed.
    """
    if hf.config.is_encoder_decoder:
        view = _with_given(hf, "decoder", hidden[None])
        output = type(hf).forward(view, encoder_outputs=(hidden,), decoder_inputs_embeds=hidden[None])
    else:
        view = _with_given(hf, body_name(hf), hidden[None])
        output = type(hf).forward(view, inputs_embeds=hidden[None])
    return output.logits[0]


class _Given:
    """Replaces the body and returns a given output."""

    def __init__(self, body: Any, hidden: Tensor) -> None:
        self._body, self._hidden = body, hidden

    def __call__(self, *args: object, **kwargs: object) -> _Output:
        return _Output(last_hidden_state=self._hidden)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._body, name)
        return self if isinstance(value, PreTrainedModel) else value  # OPT calls the decoder inside its body


class _Output(BaseModelOutput):
    """The output of a body that has kept nothing but the last hidden states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _with_given(hf: PreTrainedModel, body: str, hidden: Tensor) -> PreTrainedModel:
    """The same model, sharing all it has, with another body (`hf` itself is left as it is)."""
    view = object.__new__(type(hf))
    view.__dict__.update(hf.__dict__)
    view.__dict__["_modules"] = {**hf._modules, body: _Given(hf._modules[body], hidden)}
    return view


@torch.no_grad()
def embedding_scale(table: nn.Embedding) -> float:
    """What looking a token up multiplies its row of the table by (1; in Gemma, XGLM and BioGPT the square root of the
    width), taken from a look-up in a table of ones; 1 on the meta device, where nothing has a value."""
    if table.weight.device.type == "meta":
        return 1.0
    ones = torch.ones((), dtype=table.weight.dtype, device=table.weight.device).expand(table.weight.shape)
    first = torch.zeros(1, dtype=torch.long, device=ones.device)
    return float(torch.func.functional_call(table, {"weight": ones}, (first,)).double().mean())


def initial_vectors(
    table: nn.Embedding, shape: tuple[int, ...], how: str, std: float | Tensor, first: int = 0
) -> Tensor:
    """Vectors [*shape, D] at the scale of a table's look-ups: embeddings of random tokens from `first` on where `how`
    is "vocabulary", otherwise normal with `std`."""
    rows, scale = table.weight.detach(), embedding_scale(table)
    if how == "vocabulary":
        return rows[torch.randint(first, len(rows), shape)] * scale
    return torch.randn(*shape, rows.shape[1], dtype=rows.dtype, device=rows.device) * (std * scale)


class TextEncoder(nn.Module):
    """An LM without its head, as distillers use it: embeddings in, final hidden states out."""

    def __init__(self, body: PreTrainedModel, family: str, window: int | None, bos_id: int | None) -> None:
        super().__init__()
        self.body = body
        self.family = family
        self.window = window
        self.bos_id = bos_id

    @property
    def hf(self) -> PreTrainedModel:
        """Under the name that an LM has for its model."""
        return self.body

    @property
    def hidden_size(self) -> int:
        """Width of the embeddings."""
        return token_table(self.body).embedding_dim

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., D]."""
        return look_up(self.body, ids)

    @property
    def cost(self) -> ModelCost:
        """What a token costs it."""
        return model_cost(self.body)

    @property
    def num_bos(self) -> int:
        """Tokens that it reads in front of every sequence: BOS, or none."""
        return int(self.bos_id is not None)

    def with_bos(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask with BOS in front where the model uses one."""
        return prepend(ids, mask, self.bos_id)

    def forward(self, embeds: Tensor, mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Final hidden states [B, S, D]; a T5 needs contiguous tokens, others count `position_ids` where not given."""
        options: dict[str, Any] = {}
        if self.family != "encoder_decoder":
            options = {"position_ids": positions(mask) if position_ids is None else position_ids, "use_cache": False}
        return self.body(inputs_embeds=embeds, attention_mask=mask.long(), **options).last_hidden_state

    def read(self, ids: Tensor, mask: Tensor, slots: Tensor) -> Tensor:
        """Final hidden states [B, K, D] at slot embeddings `slots` [K, D] behind the tokens `ids` [B, C]."""
        slots = slots.expand(len(ids), -1, -1)
        whole = torch.cat([mask, mask.new_ones(slots.shape[:2])], 1)
        return self(torch.cat([self.embed(ids), slots], 1), whole)[:, -slots.shape[1] :]


MemoryType = TypeVar("MemoryType", SoftPrompt, KVCache, EncoderStates, Prefix)


def memory_rows(memory: MemoryType, index: Tensor) -> MemoryType:
    """`memory.rows(index)`, without a copy where the index changes nothing."""
    same = len(index) == memory.mask.shape[0] and torch.equal(index, torch.arange(len(index), device=index.device))
    return memory if same else memory.rows(index)


def prepend(ids: Tensor, mask: Tensor, token: int | None) -> tuple[Tensor, Tensor]:
    """Left-padded ids [B, S] and mask with `token` before the first real token of each row."""
    if token is None:
        return ids, mask
    rows, width = ids.shape
    place = (width - mask.sum(-1, keepdim=True)).long()
    wide = torch.cat([ids.new_zeros(rows, 1), ids], 1).scatter(1, place, token)
    return wide, torch.cat([mask.new_zeros(rows, 1), mask], 1).scatter(1, place, True)


def positions(mask: Tensor) -> Tensor:
    """Position ids that count real tokens only [B, S]."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def last_visible(values: Tensor, visible: Tensor, slots: int) -> Tensor:
    """The visible positions of keys or values [B, H, P, Dh] at the right end: [B, H, slots, Dh]."""
    order = visible.long().argsort(dim=1, stable=True)[:, visible.shape[1] - slots :]
    index = order[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, index)


def first_of(value: int | list[int] | None, default: int) -> int:
    if isinstance(value, list):
        return value[0]
    return default if value is None else value
