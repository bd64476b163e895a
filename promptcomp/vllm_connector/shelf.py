"""The registry of compressed prompts beside a vLLM server: what a file must be to be used there, and its keys, turned.

It needs no vLLM. Nothing here reads transformers either: weights are hashed as they lie in the LM's folder, and angles
are computed from its configuration.
"""

from __future__ import annotations

import hashlib
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from promptcomp.config import ConfigError
from promptcomp.documents import parse_json, read_json
from promptcomp.memory import KVCache, load_memory, tensor_bytes, tensor_label

FIELD = "promptcomp"
"""The field of `kv_transfer_params` that names a prompt."""
PLACEHOLDER = 0
"""The token id that stands at the slots' positions; it is never read."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_TURNED = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Architectures whose every layer turns keys by halves (component i with i + size / 2), as `turned` does."""
_KNOWN = {"registry", "lm_hash", "cached_mib"}
_THREADS = 4


class Refused(ConfigError):
    """A prompt cannot be used; `status` is the HTTP status that says so."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def frequencies(config: Any, layer: int) -> Tensor:
    """Angles [size / 2] by which a layer's rotary embedding turns keys for each position, in float64.

    They are rounded to float32 first, as models hold them. Sources: Su et al. 2021 (2104.09864), position interpolation
    (2306.15595, "linear"), YaRN (2309.00071), Llama 3.1's scaling of low frequencies ("llama3").

    Raises:
        Refused: positions are absolute, or turn keys in another way than by one angle for each frequency.
    """
    if config.model_type not in _TURNED:
        raise Refused(
            f"models of type {config.model_type!r} have positions that cannot be moved (known: {', '.join(_TURNED)}); "
            "only prompts whose next position is their number of slots can be used"
        )
    found, kinds = getattr(config, "rope_parameters", None) or {}, getattr(config, "layer_types", None) or ()
    if layer < len(kinds) and isinstance(found.get(kinds[layer]), dict):
        found = found[kinds[layer]]
    base, kind = float(found["rope_theta"]), found.get("rope_type", "default")
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = int(size * found.get("partial_rotary_factor", 1.0))
    plain = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    if kind == "default":
        return plain.float().double()
    slow = plain / found["factor"] if kind in ("linear", "llama3", "yarn") else plain
    if kind == "llama3":
        turns = found["original_max_position_embeddings"] * plain / (2 * math.pi)
        low, high = found["low_freq_factor"], found["high_freq_factor"]
        share = ((turns - low) / (high - low)).clamp(0, 1)
    elif kind == "yarn":

        def place(turns: float) -> float:
            length = found.get("original_max_position_embeddings") or config.max_position_embeddings
            return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = place(found.get("beta_fast") or 32), place(found.get("beta_slow") or 1)
        if found.get("truncate", True):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, size - 1)
        share = 1 - ((torch.arange(size // 2) - first) / (last - first or 0.001)).double().clamp(0, 1)
    elif kind == "linear":
        share = torch.zeros_like(plain)
    else:
        raise Refused(f"rotary positions of type {kind!r} do not turn keys by the same angles at every length")
    return (slow * (1 - share) + plain * share).float().double()


def turned(keys: Tensor, by: int, angles: Tensor) -> Tensor:
    """Keys [..., Dh] as they would be `by` positions later (negative: earlier), computed in float64."""
    size = len(angles)
    one, two, rest = keys.double().split([size, size, keys.shape[-1] - 2 * size], -1)
    cos, sin = (by * angles).cos(), (by * angles).sin()
    return torch.cat([one * cos - two * sin, two * cos + one * sin, rest], -1).to(keys.dtype)


@lru_cache(maxsize=64)
def lm_hash(model: str, dtype: str, adapter: str | None = None) -> str:
    """The hash that promptcomp gives the weights in a folder of safetensors (`prompts.artifact.weights_hash`), read in
    `dtype`, with a LoRA adapter of peft beside them.

    Raises:
        Refused: there are no such files.
    """
    folder = Path(model)
    jobs: dict[str, tuple[Path, str, torch.dtype | None]] = {}  # name in the model -> file, name there, type
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, local_files_only=True))
    index = folder / "model.safetensors.index.json"
    files = set(read_json(index, "index")["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    tied = read_json(folder / "config.json", "configuration").get("tie_word_embeddings", False)
    try:
        for file in files:
            with safe_open(folder / file, "pt") as opened:
                jobs |= {name: (folder / file, name, getattr(torch, dtype)) for name in opened.keys()}  # noqa: SIM118
        if adapter is not None:
            file, layers = Path(adapter) / "adapter_model.safetensors", set()
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
            for name in names:
                layer, part, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
                jobs[f"{layer}.{part}.default.weight"] = (file, name, None)
                layers.add(layer)
            for old in [name for name in jobs if name.rpartition(".")[0] in layers]:
                layer, _, part = old.rpartition(".")
                jobs[f"{layer}.base_layer.{part}"] = jobs.pop(old)
    except (OSError, SafetensorError, ValueError) as error:
        raise Refused(f"the weights of the LM cannot be read ({error}); give its hash as lm_hash") from None
    if tied:
        jobs.pop("lm_head.weight", None)
    jobs = {name: job for name, job in jobs.items() if not name.endswith("rotary_emb.inv_freq")}

    def digest(name: str) -> bytes:
        file, inside, kind = jobs[name]
        with safe_open(file, "pt") as opened:
            tensor = opened.get_tensor(inside)
        tensor = tensor if kind is None else tensor.to(kind)
        found = hashlib.sha256(tensor_label(name, tensor))
        found.update(tensor_bytes(tensor))
        return found.digest()

    with ThreadPoolExecutor(_THREADS) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, sorted(jobs)))).hexdigest()


@dataclass(frozen=True, slots=True)
class Served:
    """What a file's header says of a prompt that this server can use."""

    path: str
    sha256: str
    slots: int
    info: dict[str, Any]


class PromptShelf:
    """The registry of a server, from its `VllmConfig`.

    Raises:
        ConfigError: the registry is no folder, or the server cannot use prompts at all.
    """

    def __init__(self, config: Any) -> None:
        transfer, model, parallel = config.kv_transfer_config, config.model_config, config.parallel_config
        extra = transfer.kv_connector_extra_config
        if unknown := extra.keys() - _KNOWN:
            raise ConfigError(f"kv_connector_extra_config: unknown {sorted(unknown)}; known: {sorted(_KNOWN)}")
        self.folder = Path(extra.get("registry", "")).resolve()
        if "registry" not in extra or not self.folder.is_dir():
            raise ConfigError(f"kv_connector_extra_config.registry: no such folder ({extra.get('registry')})")
        if transfer.kv_load_failure_policy != "fail":
            raise ConfigError("kv_load_failure_policy must be fail: placeholders would be read as text")
        if parallel.tensor_parallel_size * parallel.pipeline_parallel_size != 1 or config.speculative_config:
            raise ConfigError("compressed prompts need one worker for all layers, and no speculative decoding")
        if config.cache_config.cache_dtype != "auto":
            raise ConfigError(f"--kv-cache-dtype {config.cache_config.cache_dtype}: use auto with compressed prompts")
        window = model.get_sliding_window()
        if window is not None and model.max_model_len > window:
            raise ConfigError(
                f"some layers see the last {window} positions, so that slots would fall out of sight; start with "
                f"--max-model-len {window}"
            )
        self.text, self.model, self.length = model.hf_text_config, model.model, model.max_model_len
        self.shape = (self.text.num_hidden_layers, model.get_total_num_kv_heads(), model.get_head_size())
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.hash, self.cached_bytes = extra.get("lm_hash"), int(extra.get("cached_mib", 1024)) << 20

    def names(self) -> list[str]:
        """Prompts in the folder."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors") if _NAME.fullmatch(path.stem))

    def find(self, name: object, adapter: str | None = None) -> Served:
        """A prompt by its name; `adapter` is the folder of the LoRA adapter that the request reads it with.

        Raises:
            Refused: there is none of this name (404), or this server cannot use it (422).
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Refused(f"kv_transfer_params.{FIELD}: {str(name)[:80]!r} is no name of a prompt", 400)
        path = (self.folder / f"{name}.safetensors").resolve()
        if not path.is_file() or not path.is_relative_to(self.folder):
            raise Refused(f"there is no compressed prompt {name!r} here", 404)
        try:
            stat = path.stat()
            found = _header(str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino)
            self._check(found, adapter)
        except (OSError, SafetensorError, ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:
            said = str(error) if isinstance(error, ConfigError) else f"no compressed prompt ({error!r})"
            raise Refused(f"the compressed prompt {name!r} cannot be used here: {said}") from None
        return found

    def _check(self, found: Served, adapter: str | None) -> None:
        info, lm = found.info, found.info["lm"]
        shape = (info["layers"], *info["shape"])
        if shape != self.shape:
            raise Refused(f"{shape} layers, heads and numbers of a head, where the LM here has {self.shape}")
        if info["dtype"] != self.dtype or lm["dtype"] != self.dtype:
            raise Refused(f"made in {lm['dtype']}, and the LM runs in {self.dtype}; start vLLM with --dtype")
        if found.info["next_position"] != found.slots:
            for layer in range(self.shape[0]):
                frequencies(self.text, layer)
        if found.slots + 1 >= self.length:
            raise Refused(f"{found.slots} slots leave no room in --max-model-len {self.length}")
        if info["lm_hash"] != (self.hash or lm_hash(self.model, self.dtype, adapter)):
            beside = "no LoRA adapter" if adapter is None else f"the LoRA adapter {Path(adapter).name}"
            raise Refused(f"made for other weights than {self.model} with {beside}")

    def load(self, found: Served) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [K, H, Dh] of every layer, keys turned so that the slots stand at 0 to K - 1.

        Raises:
            ConfigError: the file is gone, damaged, or another one by now.
        """
        memory, _ = load_memory(Path(found.path))
        with safe_open(found.path, "pt") as file:  # afterwards: what was read is what the scheduler saw, or newer
            if file.metadata()["sha256"] != found.sha256:
                raise ConfigError(f"{found.path}: was replaced while it was read")
        assert isinstance(memory, KVCache)
        by, real = found.slots - int(memory.next_position[0]), memory.mask[0]
        layers = []
        for number, (keys, values) in enumerate(memory.layers):
            keys, values = keys[0][:, real], values[0][:, real]
            keys = turned(keys, by, frequencies(self.text, number)) if by else keys
            layers.append((keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()))
        return layers


@lru_cache(maxsize=4096)
def _header(path: str, *changed: int) -> Served:
    """What a file says of itself; its tensors are checked when they are loaded."""
    with safe_open(path, "pt") as file:
        entries = file.metadata() or {}
        header = parse_json(entries.get("promptcomp", "{}"))
        kind = header.get("kind") if isinstance(header, dict) else None
        if kind is None:
            raise Refused("no file of a compressed prompt")
        if kind != "KVCache":
            raise Refused(f"holds a {kind}, no keys and values; vectors are sent as prompt_embeds")
        info, names = header["metadata"], set(file.keys())
        shapes = {tuple(file.get_slice(name).get_shape()) for name in names if name.startswith("layers.")}
        slots, position = int(file.get_tensor("mask").sum()), int(file.get_tensor("next_position")[0])
    if len(shapes) != 1 or not slots:
        raise Refused("has no slots, or not equally many in every layer")
    ((rows, heads, _, width),) = shapes
    if rows != 1 or info.get("family") != "decoder":
        raise Refused("holds several memories, or is for an encoder-decoder LM")
    layers = sum(name.endswith(".keys") for name in names)
    info = {**info, "layers": layers, "shape": (heads, width), "next_position": position}
    return Served(path, entries["sha256"], slots, info)
