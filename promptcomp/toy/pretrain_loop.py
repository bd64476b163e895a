"""Training a small base LM from scratch: its architecture and special start, and one folder written at every check."""

from __future__ import annotations

import json
import platform
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import promptcomp
from promptcomp.checkpoints.checkpoint_files import remove, replace
from promptcomp.config import Config, ConfigError
from promptcomp.errors import close_matches
from promptcomp.files import follow_umask, write_atomic
from promptcomp.language_model.architectures import start_positions
from promptcomp.toy.answer_lessons import InstructionLessons, RationaleLessons
from promptcomp.toy.icl_lessons import ToyLessons
from promptcomp.toy.lessons import Lessons
from promptcomp.toy.recipe import (
    Architecture,
    CopyStart,
    InstructionCurriculum,
    PretrainConfig,
    PretrainOptim,
    RationaleCurriculum,
    TextCorpus,
    ToyCurriculum,
    ToySeq2SeqCurriculum,
)
from promptcomp.toy.seq2seq_lessons import ToySeq2SeqLessons
from promptcomp.toy.text_lessons import TextLessons

OnStep = Callable[[int, int, Mapping[str, float]], None]
"""Called with (step, total steps at most, {"loss": ..., and skills where they were measured})."""


_LESSONS: dict[type[Config], Callable[[Any, int, int], Lessons[Any]]] = {
    ToyCurriculum: ToyLessons,
    ToySeq2SeqCurriculum: ToySeq2SeqLessons,
    InstructionCurriculum: InstructionLessons,
    RationaleCurriculum: RationaleLessons,
}


def pretrain(config: PretrainConfig, output_dir: Path, on_step: OnStep | None = None) -> Path:
    """Train a base LM and write it as a Hugging Face folder with `recipe.json`.

    The folder is written whole under another name and then renamed, first at the first check, so an interrupted run
    leaves either nothing or the model of the last check.

    Args:
        config: The recipe.
        output_dir: The folder to write; an earlier one is replaced.
        on_step: Progress callback.

    Returns:
        `output_dir`.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # of the whole process
    torch.manual_seed(config.seed)
    if isinstance(config.data, TextCorpus):  # weights that are gone on from know the tokens of their own text
        lessons: Lessons[Any] = TextLessons(config.data, config.batch_size, config.seed, config.start_from)
    else:
        lessons = _LESSONS[type(config.data)](config.data, config.batch_size, config.seed)
    tokenizer = lessons.tokenizer
    special = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    model = build_model(config.architecture, len(tokenizer), *special)
    reads_pairs = isinstance(config.data, ToySeq2SeqCurriculum | RationaleCurriculum) or (
        isinstance(config.data, InstructionCurriculum) and "decoder_only" not in config.data.layouts
    )
    if model.config.is_encoder_decoder != reads_pairs:
        wanted = "an encoder-decoder" if reads_pairs else "a decoder-only"
        raise ConfigError(
            f"data.name = {config.data.name!r} trains {wanted} model, not model_type "
            f"{config.architecture.model_type!r}; start from the recipe {'toy_t5' if reads_pairs else 'toy_decoder'}"
        )
    room = getattr(model.config, "max_position_embeddings", None)
    if isinstance(config.data, TextCorpus) and room is not None and config.data.block_tokens > room:
        raise ConfigError(f"data.block_tokens = {config.data.block_tokens}: the model has {room} positions")
    if config.start_from is not None:
        _load_weights(model, config.start_from)
    optim = config.optim
    optimizer = _make_optimizer(model, optim)
    total = min(lessons.total_steps, config.steps or lessons.total_steps)
    history: list[dict[str, Any]] = []
    start = time.perf_counter()
    step = 0
    model.train()
    while step < total and not lessons.finished:
        lr = optim.lr * lessons.lr_scale * min(1.0, (step + 1) / max(1, optim.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        stage = lessons.stage.name
        loss = lessons.loss(model)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        step += 1
        numbers: dict[str, float] = {"loss": loss.item()}
        last = step == total or lessons.finished
        if step % config.check_every == 0 or last:
            numbers |= _measured(model, lessons.skills)
            seconds = round(time.perf_counter() - start, 1)
            history.append(
                {"step": step, "stage": stage, "seconds": seconds, **{k: round(v, 4) for k, v in numbers.items()}}
            )
            _save(model, lessons, config, {"history": history}, output_dir)
        if on_step is not None:
            on_step(step, total, numbers)
    _save(model, lessons, config, {"metrics": _measured(model, lessons.report), "history": history}, output_dir)
    return output_dir


def _measured(model: PreTrainedModel, measure: Callable[[PreTrainedModel], dict[str, Any]]) -> dict[str, Any]:
    model.eval()
    with torch.no_grad():
        found = measure(model)
    model.train()
    return found


def _load_weights(model: PreTrainedModel, folder: Path) -> None:
    """The weights of another base LM of this architecture."""
    try:
        weights = load_file(folder / "model.safetensors")
        unexpected = set(weights) - set(model.state_dict())
        missing = {name for name, _ in model.named_parameters()} - set(weights)  # of tied ones the first name
        if unexpected or missing:
            raise ConfigError(
                f"start_from = '{folder}': its weights are not those of the architecture, a {model.config.model_type}"
            )
        model.load_state_dict(weights, strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"start_from = '{folder}': {str(error).splitlines()[0]}") from None


def _make_optimizer(model: PreTrainedModel, optim: PretrainOptim) -> torch.optim.AdamW:
    """AdamW with the token embeddings in a group of their own where they have a learning rate of their own."""
    table = model.get_input_embeddings().weight
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    if optim.embedding_lr_scale != 1.0:
        groups[0]["params"] = [parameter for parameter in model.parameters() if parameter is not table]
        groups.append({"params": [table], "lr_scale": optim.embedding_lr_scale})
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)


def _save(
    model: PreTrainedModel, lessons: Lessons[Any], config: PretrainConfig, record: Mapping[str, Any], output_dir: Path
) -> None:
    """Write the folder whole: weights, configuration, tokenizer and `recipe.json` with `record` in it."""
    recipe = {
        "config": config.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "promptcomp": promptcomp.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
        **record,
    }
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = output_dir.with_name(f".{output_dir.name}.{secrets.token_hex(4)}.partial")
    try:
        model.save_pretrained(partial)
        lessons.tokenizer.save_pretrained(partial)
        write_atomic(partial / "recipe.json", json.dumps(recipe, indent=1) + "\n")
        follow_umask(partial)
        replace(partial, output_dir)
    finally:
        remove(partial)


def build_model(
    architecture: Architecture, vocab_size: int, pad_id: int, bos_id: int | None, eos_id: int
) -> PreTrainedModel:
    """A freshly initialised model; initial weights follow torch's global seed.

    Raises:
        ConfigError: transformers has no such language model or cannot make it of these settings, or a special start is
            asked of a model that cannot have it.
    """
    kind = architecture.model_type
    if kind not in CONFIG_MAPPING_NAMES:
        raise ConfigError(f"architecture.model_type = {kind!r}: not known to transformers; try llama, gpt2 or t5")
    settings = {"vocab_size": vocab_size, "pad_token_id": pad_id, "bos_token_id": bos_id, "eos_token_id": eos_id}
    try:
        usual = AutoConfig.for_model(kind)
        for name in (name for name in architecture.settings if not hasattr(usual, name)):
            if near := close_matches(name, {*usual.to_dict(), *usual.attribute_map}, cutoff=0.85):
                raise ConfigError(
                    f"architecture.settings.{name}: a {kind} has no such setting; did you mean {near[0]!r}?"
                )
        config = AutoConfig.for_model(kind, **{**settings, **architecture.settings})
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        if type(config) not in auto_class._model_mapping:
            raise ConfigError(f"architecture.model_type = {kind!r}: no language model; try llama, gpt2 or t5")
        model = auto_class.from_config(config)
    except ConfigError:
        raise
    except Exception as error:  # whatever transformers says of settings
        told = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise ConfigError(f"architecture.settings: no {kind} can be made of them ({told})") from None
    if architecture.embedding_std is not None:
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=architecture.embedding_std)
    if architecture.positional_start is not None:
        start_positions(model, architecture.positional_start)
    if architecture.copy_start is not None:
        apply_copy_start(model, architecture.copy_start)
    return model


def apply_copy_start(model: PreTrainedModel, start: CopyStart) -> None:
    """Set the initial weights of a T5 model in place.

    Raises:
        ConfigError: the model is no T5, has too few heads, or has no exact bucket for an offset.
    """
    if model.config.model_type != "t5":
        raise ConfigError(f"architecture.copy_start needs model_type t5, not {model.config.model_type!r}")
    buckets: int = model.config.relative_attention_num_buckets
    encoder: Any = model.get_encoder()
    decoder: Any = model.get_decoder()
    ahead = [_bucket(offset, buckets, both_ways=True) for offset in start.encoder_offsets]
    _set_self_attention(encoder, ahead, start.self_bias, start)
    behind = [_bucket(offset, buckets, both_ways=False) for offset in start.decoder_offsets]
    _set_self_attention(decoder, behind, start.decoder_self_bias, start)
    for block in decoder.block:
        _match(block.layer[1].EncDecAttention, 0, start)


def _bucket(offset: int, buckets: int, *, both_ways: bool) -> int:
    """T5's bucket of a distance; where a stack looks both ways, half of the buckets are for tokens that follow."""
    where = "architecture.copy_start"
    if both_ways and abs(offset) >= buckets // 4:
        raise ConfigError(f"{where}.encoder_offsets: {offset} is too far; exact below {buckets // 4}")
    if not both_ways and not -buckets // 2 < offset <= 0:
        raise ConfigError(f"{where}.decoder_offsets: {offset} is not one of 0, -1 ... {1 - buckets // 2}")
    return abs(offset) + (buckets // 2 if offset > 0 else 0)


@torch.no_grad()
def _set_self_attention(stack: Any, wanted: Sequence[int], self_bias: float | None, start: CopyStart) -> None:
    first = stack.block[0].layer[0].SelfAttention  # its position biases are used by every layer of the stack
    if len(wanted) >= first.n_heads:
        raise ConfigError(f"architecture.copy_start: {len(wanted)} offsets need more than {first.n_heads} heads")
    table = first.relative_attention_bias.weight  # [buckets, H]
    for head, bucket in enumerate(wanted):
        table[bucket, head] = start.peak
    if self_bias is not None:
        table[0, len(wanted) :] = self_bias
    for block in stack.block:
        attention = block.layer[0].SelfAttention
        attention.q.weight[: len(wanted) * attention.key_value_proj_dim] *= start.content_scale
        _match(attention, len(wanted), start)


@torch.no_grad()
def _match(attention: Any, first_head: int, start: CopyStart) -> None:
    rows = slice(first_head * attention.key_value_proj_dim, None)
    scale = start.match_scale * attention.key_value_proj_dim**-0.5  # T5 does not divide by sqrt(d_kv) itself
    attention.q.weight[rows] = attention.k.weight[rows] * scale
