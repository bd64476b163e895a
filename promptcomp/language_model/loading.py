"""Finding and opening Hugging Face models and tokenizers: folders, hub names and the built-in models."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub.constants import ENDPOINT
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from promptcomp.config import ConfigError
from promptcomp.language_model.architectures import (
    changed_architecture,
    first_layers,
    fitting,
    known_architectures,
    start_positions,
)
from promptcomp.language_model.attention import Window
from promptcomp.language_model.lm_config import (
    BUILTIN,
    ENCODER_DECODERS,
    LanguageModelConfig,
    locate,
    unknown_encoder_decoder,
)
from promptcomp.language_model.parts import logits_of
from promptcomp.language_model.pretrained import GGUF, is_made

_TEXT_PARTS = {
    r"^(model\.)?(language_model|text_model)\.lm_head\.": "lm_head.",
    r"^(model\.)?(language_model|text_model)\.(model\.)?(?!lm_head)": "model.",
}
"""Names of the text model's tensors in checkpoints of models that see pictures as well."""
_MOST_LAYERS = 10_000
_log = logging.getLogger(__name__)


def open_architecture(config: LanguageModelConfig, *, offline_table: bool = False) -> PretrainedConfig:
    """The architecture alone; with `offline_table`, well-known names need no network.

    Raises:
        ConfigError: nothing can be read there, or the family is not supported.
    """
    path = _folder(config.path)
    if offline_table and path in known_architectures() and not Path(path).exists():
        sizes = dict(known_architectures()[path])
        found = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    else:
        with _reading(config.path, "model"):
            found = AutoConfig.from_pretrained(**_place(config))
    found = _readable(found, config.path)
    if config.from_scratch is not None and config.from_scratch.settings:
        found = changed_architecture(found, config.from_scratch.settings, config.path)
    if config.layers is not None:
        found = first_layers(found, config.layers, config.path)
    if (layers := found.get_text_config(decoder=True).num_hidden_layers) > _MOST_LAYERS:
        raise ConfigError(f"{config.path}: {layers} layers are too many; at most {_MOST_LAYERS} can be built")
    return found


def _readable(found: PretrainedConfig, path: str) -> PretrainedConfig:
    """The architecture of what reads text in a model of this one, where language models of this kind are supported."""
    kind = found.model_type
    if found.is_encoder_decoder:
        if kind in ENCODER_DECODERS:
            return found
        raise ConfigError(f"{path}: {unknown_encoder_decoder(kind)}")
    text = found.get_text_config(decoder=True)
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING and (text is found or _heads_agree(found, text)):
        if text is not found:
            text.tie_word_embeddings = found.tie_word_embeddings
        return text
    if type(found) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return found
    raise ConfigError(f"{path}: models of type {kind!r} are not supported: transformers has no causal LM of this type")


def _heads_agree(found: PretrainedConfig, text: PretrainedConfig) -> bool:
    """Whether a language model gives the same logits alone as inside a model that sees pictures as well.

    Some scale or cap them alone only (Cohere, Gemma, Granite). Both are made without weights, with an output layer that
    passes the mean of the hidden states on. Where the larger one cannot be made, they agree only if the logits alone
    are those of the output layer.
    """
    if type(found) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return True
    mean, logits = 8.0, []
    try:
        for config in (text, found):
            with torch.device("meta"):
                hf = _model_class(config)._from_config(copy.deepcopy(config))
            width = hf.get_input_embeddings().embedding_dim
            head = nn.Linear(width, 1, bias=False)
            nn.init.constant_(head.weight, 1 / width)
            hf.set_output_embeddings(head)
            logits.append(float(logits_of(hf, torch.full((1, width), mean)).detach()))
    except Exception:  # whatever transformers raises, or a head that is more than an output layer
        return all(math.isclose(each, mean, rel_tol=1e-5) for each in logits)
    return math.isclose(*logits, rel_tol=1e-5)


def _factory(architecture: PretrainedConfig) -> Any:
    if architecture.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM if type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def _model_class(architecture: PretrainedConfig) -> type[PreTrainedModel]:
    made: type[PreTrainedModel] = _factory(architecture)._model_mapping[type(architecture)]
    return made


def attention(config: LanguageModelConfig, architecture: PretrainedConfig) -> str:
    """The attention code that is used: what was asked for, or the best one that the model has.

    torch's own attention (sdpa) knows no cap on the scores (`attn_logit_softcapping`); some versions of transformers
    offer it all the same to models that have one.

    Raises:
        ConfigError: the model does not have the one that was asked for.
    """
    made, wanted = _model_class(architecture), config.attn_implementation
    capped = getattr(architecture.get_text_config(), "attn_logit_softcapping", None) is not None
    has = {"eager": True, "sdpa": made._supports_sdpa and not capped, "flex_attention": made._supports_flex_attn}
    if wanted is not None and not has[wanted]:
        others = " or ".join(name for name, there in has.items() if there)
        raise ConfigError(
            f"lm.attn_implementation = {wanted}: models of type {architecture.model_type!r} do not have it in "
            f"transformers; set it to {others}, or leave it out"
        )
    if wanted is None and not has["sdpa"]:
        _say_eager(architecture.model_type)
    return wanted or ("sdpa" if has["sdpa"] else "eager")


@cache
def _say_eager(kind: str) -> None:
    _log.warning("note: models of type %r have no sdpa attention in transformers; eager is used instead", kind)


def open_model(config: LanguageModelConfig, architecture: PretrainedConfig) -> PreTrainedModel:
    """The model with its weights, in eval mode; with `from_scratch` they follow torch's global seed.

    Raises:
        ConfigError: the weights are missing, unreadable or do not fit the architecture.
    """
    if config.from_scratch is not None:
        hf = random_model(config, architecture)
        if config.from_scratch.positional_start is not None:
            start_positions(hf, config.from_scratch.positional_start)
        return hf
    if config.path.startswith(BUILTIN) and not list(Path(locate(config.path)).glob("*.safetensors")):
        raise ConfigError(f"{config.path} has no weights; start it with random ones: lm.from_scratch={{}}")
    is_text = type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING
    with _reading(config.path, "weights"):
        opened = _factory(architecture).from_pretrained(
            **_place(config),
            config=architecture,
            **_settings(config, architecture),
            key_mapping=_TEXT_PARTS if is_text else None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return fitting(opened, config.path).eval()


def random_model(config: LanguageModelConfig, architecture: PretrainedConfig) -> PreTrainedModel:
    """A model with random weights, drawn from torch's global generator, in eval mode."""
    with _reading(config.path, "architecture"):
        hf = _factory(architecture).from_config(
            architecture, **_settings(config, architecture), trust_remote_code=False
        )
    return hf.eval()


def _settings(config: LanguageModelConfig, architecture: PretrainedConfig) -> dict[str, Any]:
    found = {"dtype": getattr(torch, config.dtype), "attn_implementation": attention(config, architecture)}
    # torch's grouped products, by which experts are computed, take no float64
    return found | ({"experts_implementation": "eager"} if config.dtype == "float64" else {})


def identity(config: LanguageModelConfig, hf: PreTrainedModel) -> str:
    """Which weights a model was opened with, told without reading them: random ones, or files by size and time."""
    if config.from_scratch is not None:
        return "random"
    folder = Path(locate(config.path))
    files = sorted(each for suffix in ("safetensors", "bin", "json") for each in folder.glob(f"*.{suffix}"))
    found = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    return f"{config.path} {config.revision} {getattr(hf.config, '_commit_hash', None)} {found}"


def settings_hash(config: PretrainedConfig) -> str:
    """Hash of an architecture's settings (rotary base, windows, ...), which change what the same weights answer."""
    aside = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")
    settings = {name: value for name, value in config.to_dict().items() if name not in aside}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def open_skeleton(config: LanguageModelConfig, architecture: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device: shapes without weights."""
    with torch.device("meta"):
        hf = random_model(config, architecture)
    if architecture.is_encoder_decoder and not getattr(architecture, "scale_decoder_outputs", False):
        # T5 1.1 and mT5 have an output head of their own, which transformers learns from the checkpoint only.
        hf.lm_head.weight = nn.Parameter(torch.empty_like(hf.lm_head.weight), requires_grad=False)
    return hf


def open_tokenizer(config: LanguageModelConfig, *, on_disk: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model; `on_disk`: as it is on this machine, without asking the hub.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    place = _place(config, on_disk=on_disk)
    with _reading(config.path, "tokenizer"):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**place)
    return found


def open_token_classifier(config: LanguageModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that tells for each token whether it is kept (label 1) or not (label 0), in eval mode, and its tokenizer.

    Raises:
        ConfigError: there is none, it cannot be read, or it is none of this kind.
    """
    with _reading(config.path, "token classifier"):
        architecture = AutoConfig.from_pretrained(**_place(config))
        kinds = architecture.architectures or ()
        if architecture.num_labels != 2 or not any(each.endswith("ForTokenClassification") for each in kinds):
            raise ConfigError(
                f"{config.path}: not a classifier that keeps tokens or drops them; give one that was trained with two "
                "labels"
            )
        opened = AutoModelForTokenClassification.from_pretrained(
            **_place(config), config=architecture, ignore_mismatched_sizes=True, output_loading_info=True
        )
    tokenizer = open_tokenizer(config)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{config.path}: the tokenizer does not tell which word a token is of; save a fast one beside it"
        )
    return fitting(opened, config.path).eval().requires_grad_(False), tokenizer


def open_window(config: LanguageModelConfig) -> int | None:
    """Maximum number of positions that the LM can read, from its architecture alone; None: no limit (T5).

    Raises:
        ConfigError: the architecture cannot be read.
    """
    architecture = open_architecture(config)
    return None if architecture.is_encoder_decoder else Window.of(architecture).size


def reads_queries_in_encoder(config: LanguageModelConfig) -> bool:
    """Whether queries go to an encoder, which expects EOS at the end of what it reads.

    Raises:
        ConfigError: nothing can be read at the model's path, or its family is not supported.
    """
    return config.layout == "query_in_encoder" and bool(open_architecture(config).is_encoder_decoder)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens and with the spaces that were read.

    Tokenizers that transformers 4 has saved may ask for a cleaning that takes spaces away ("it 's", "7 ."): an answer
    would then differ from the text that was learned, and from its own beginning in a stream.
    """
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer starts a text with BOS by itself (GPT-2 and T5: no; Llama, OPT: yes)."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def reads_bos(config: LanguageModelConfig) -> bool:
    """Whether an LM of this configuration reads BOS; no, where neither it nor a tokenizer on this disk says so."""
    if config.bos is not None:
        return config.bos
    return Path(_folder(config.path)).is_dir() and _starts_with_bos(config.path)


@cache
def _starts_with_bos(path: str) -> bool:
    try:
        return adds_bos(open_tokenizer(LanguageModelConfig(path=path)))
    except ConfigError:  # a folder with an architecture and nothing else
        return False


def _folder(path: str) -> str:
    """What transformers is to open. Of a GGUF file it is made when it is first needed, and kept in the cache."""
    found = locate(path)
    if path.endswith(GGUF) and found != path and not is_made(Path(found)):
        from promptcomp.language_model.dequantize import make_folder

        _log.warning("note: %s is dequantised to float32, once, into %s", path, found)
        make_folder(Path(found), Path(path).name, str(Path(path).resolve()), lambda _: Path(path).resolve())
    return found


def _place(config: LanguageModelConfig, *, on_disk: bool = False) -> dict[str, Any]:
    """What transformers' from_pretrained is told; without a network a name is looked for on this disk alone, as with
    `on_disk`, which asks no network."""
    return {
        "pretrained_model_name_or_path": _folder(config.path),
        "revision": config.revision,
        "trust_remote_code": False,
        "local_files_only": on_disk or _is_out_of_reach(config.path),
    }


def _is_out_of_reach(path: str) -> bool:
    return not Path(locate(path)).exists() and _without_hub()


@cache
def _without_hub() -> bool:
    """Whether the hub has no address here. The hub's client would ask for it six times for each file, 23 seconds long.
    A proxy finds addresses by itself."""
    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


@contextmanager
def _reading(path: str, what: str) -> Iterator[None]:
    """Reading what others have written: whatever transformers raises for it becomes a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(" ".join(lines[: 2 if lines[0].endswith(":") else 1]).split())
        if _without_hub.cache_info().currsize and _is_out_of_reach(path):  # if it was asked for
            reason = f"{urlsplit(ENDPOINT).hostname} has no address here: no network?"
        problem = f"cannot be read; give a folder saved by save_pretrained or a reachable hub name ({reason})"
        if "trust_remote_code" in str(error):
            problem = "needs its own code (auto_map), which promptcomp does not run; give another model"
        raise ConfigError(f"{path}: the {what} {problem}") from None


def pick_device(name: str) -> torch.device:
    """The device of `auto` (a GPU if there is one), `cpu`, `mps`, `cuda` or `cuda:1`.

    Raises:
        ConfigError: another name, or no such device here.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ConfigError(f"--device {name!r} is not known; choose auto, cpu, cuda or cuda:1")
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and int(name[5:] or 0) >= here:
        raise ConfigError(f"--device {name}: torch sees {here or 'no'} CUDA device(s) here; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: torch sees no Apple GPU here; use --device cpu")
    return torch.device(("cuda" if here else "cpu") if name == "auto" else name)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, which take a fraction of float32's time; False where
    torch does not say."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
