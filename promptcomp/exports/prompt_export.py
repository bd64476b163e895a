"""Compressed prompts as folders that other programs read: peft adapters, caches of transformers, requests for vLLM.

What is written is tried at once: the other library, fed from the folder, must give the logits of promptcomp.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import shlex
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import Tensor

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.checkpoints.places import PROMPT
from promptcomp.config import ConfigError
from promptcomp.errors import command
from promptcomp.exports.card import CARD, of_prompt, with_card
from promptcomp.exports.export import Exported
from promptcomp.files import new_folder, write_atomic
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.cache import KEYWORD_CODE, growing, passing
from promptcomp.language_model.lm_config import locate
from promptcomp.language_model.rotating import counted
from promptcomp.lightning_modules.exported import Page, front, literal
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt, memory_tensors, tensor_bytes
from promptcomp.prompts.artifact import read_prompt
from promptcomp.prompts.prompt_files import PromptReader, open_lm
from promptcomp.run.opening import quiet

CACHE, ADAPTER = "cache.safetensors", "adapter_model.safetensors"
CHAT, COMPLETIONS, CLIENT = "chat.json", "completions.json", "client.py"
_PLACEHOLDER = "<prompt_embeds>"
"""vLLM's, for the place of vectors between texts."""
_TEMPLATE = (
    "{%- for message in messages -%}{%- for part in message['content'] -%}"
    "{{- part['text'] -}}{%- endfor -%}{%- endfor -%}"
)
"""Loops as vLLM knows them: from these it learns that the template takes parts, not one text."""
_TRIED = "one two three"


class _Prompt:
    """A prompt that is being exported, and its LM."""

    def __init__(self, path: Path, model: str | None, wanted: str) -> None:
        self.path = path
        stored, self.info = read_prompt(path)
        if wanted != "tensors" and (isinstance(stored, EncoderStates) or self.info.family != "decoder"):
            raise ConfigError(
                f"{path}: belongs to an encoder-decoder LM; only `promptcomp generate` reads such prompts: --to tensors"
            )
        if wanted == "vllm" and not isinstance(stored, SoftPrompt):
            raise ConfigError(
                f"{path}: holds keys and values, and vLLM takes embeddings in a request; use a method that makes "
                "vectors (mend, pool, icae, autocompressor, distill --kind embeddings), or give the file itself to the "
                "connector (docs/serving.md)"
            )
        self.memory: Memory = stored
        self.lm: LanguageModel = open_lm(self.info, model, str(path))
        self.reader = PromptReader(self.lm, self.info.format)
        self.notes: list[str] = []
        self.base = "BASE" if self.info.lm_is_trained else self.lm.hf.name_or_path or locate(self.info.lm.path)

    def as_cache(self) -> KVCache:
        """Keys and values at positions 0 to K - 1; of vectors what the LM makes of them, BOS in front."""
        memory = self.memory
        if isinstance(memory, SoftPrompt):
            memory = self.lm.read(self.lm.front(memory, torch.zeros(1, dtype=torch.long)))
        assert isinstance(memory, KVCache)
        return counted(self.lm.body, memory, str(self.path))

    def check(self, what: str, read: Callable[[Tensor], Tensor]) -> None:
        """Hold the logits [S, V] that `read` gives for the ids [1, S] of a query against promptcomp's.

        Raises:
            ConfigError: they differ by more than rounding.
        """
        ids = self.reader.query_ids(_TRIED)
        batch = collate([EncodedContext((), (EncodedQuery(ids, (EncodedTarget((ids[0],)),)),))])
        expected = self.lm(self.memory, batch, "all").values[: len(ids)].float()
        found = read(torch.tensor([ids])).float()[-len(ids) :]
        difference = float((found - expected).abs().max())
        if not difference <= 4 * torch.finfo(self.lm.hf.dtype).eps ** 0.5 * max(1.0, float(expected.abs().max())):
            raise ConfigError(
                f"{self.path}: {what} reads it otherwise on this LM (logits differ by {difference:.2g}), so it was not "
                "exported; `promptcomp generate` reads it"
            )
        self.notes.append(f"Logits of a query differ from promptcomp's by at most {difference:.1e}.")


@torch.no_grad()
def export_prompt(path: Path, folder: Path, wanted: str, model: str | None = None) -> Exported:
    """Write a compressed prompt for another program to a new folder, with a README on how to load it.

    Args:
        path: The prompt's file.
        folder: Must be empty or new.
        wanted: "tensors" (the file itself, as `generate` reads it), "peft" (PROMPT_TUNING of vectors, PREFIX_TUNING of
            keys and values), "transformers" (a cache) or "vllm" (requests with embeddings).
        model: A run directory or LM instead of the one that the prompt names.

    Raises:
        ConfigError: a damaged file, the LM is gone or another one, `folder` holds something, or the program cannot hold
            the memory exactly.
    """
    write = {"tensors": _tensors, "peft": _peft, "transformers": _transformers, "vllm": _vllm}[wanted]
    with new_folder(folder) as new:
        with quiet():
            prompt = _Prompt(path, model, wanted)
            page, values = write(prompt, new)
        info = prompt.info
        if info.trims and wanted != "tensors":  # promptcomp does it itself
            where = "around" if info.trims is True else f"on the {info.trims} of"
            prompt.notes.append(f"Take the white space {where} a query away.")
        values |= {"base": literal(prompt.base), "stop_ids": list(info.stop_ids), "notes": prompt.notes}
        values |= {"template": literal(info.query), "run": info.run if info.lm_is_trained else None}
        text = Page(page, values, package="promptcomp.exports").text(
            prompt.lm, method=info.method, path=info.lm.path, note=None
        )
        files = [file.name for file in new.iterdir()]
        given = ("--to", wanted, *(() if model is None else ("--model", model)))
        about = of_prompt(info, command("export", path.name, *given, "-o", folder.name))
        write_atomic(new / CARD, with_card(text, about, info.lm.path, info.method, wanted, files))
    return Exported(folder=folder, format=wanted, files=tuple(sorted([*files, CARD])), notes=tuple(prompt.notes))


def _tensors(prompt: _Prompt, folder: Path) -> tuple[str, dict[str, Any]]:
    shutil.copyfile(prompt.path, folder / PROMPT)
    if prompt.info.text is not None:
        prompt.notes.append("The file holds the text that was compressed.")
    return "prompt_file", {"file": PROMPT, "slots": prompt.info.slots}


def _transformers(prompt: _Prompt, folder: Path) -> tuple[str, dict[str, Any]]:
    cache, hf = prompt.as_cache(), prompt.lm.hf
    prompt.check("transformers", lambda ids: hf(ids, **passing(hf, growing(cache.layers))).logits[0])
    tensors = {name: tensor for name, tensor in memory_tensors(cache).items() if name.startswith("layers.")}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / CACHE)
    values = {"slots": int(cache.next_position[0]), "layers": len(cache.layers), "file": CACHE}
    return "cache", {**values, "keyword": KEYWORD_CODE}


def _peft(prompt: _Prompt, folder: Path) -> tuple[str, dict[str, Any]]:
    try:
        import peft
    except ImportError:
        raise ConfigError('--to peft needs the package peft; install it with: pip install "promptcomp[lora]"') from None

    lm, memory = prompt.lm, prompt.memory
    shape: dict[str, Any] = {"num_transformer_submodules": 1, "num_layers": lm.num_layers}
    if isinstance(memory, SoftPrompt) and lm.bos_id is None:
        vectors = memory.embeds[0][memory.mask[0]]
        heads = lm.hf.config.get_text_config().num_attention_heads
        settings: Any = peft.PromptTuningConfig(
            num_virtual_tokens=len(vectors), token_dim=lm.hidden_size, num_attention_heads=heads, **shape
        )
    else:
        layers = prompt.as_cache().layers
        _, heads, slots, width = layers[0][0].shape
        if any(tensor.shape != (1, heads, slots, width) for layer in layers for tensor in layer):
            raise ConfigError(f"{prompt.path}: layers of this LM have keys of several shapes; use --to transformers")
        vectors = torch.cat([tensor[0] for layer in layers for tensor in layer]).transpose(0, 1).flatten(1)
        settings = peft.PrefixTuningConfig(
            num_virtual_tokens=slots, token_dim=heads * width, num_attention_heads=heads, **shape
        )
    settings.task_type, settings.inference_mode = peft.TaskType.CAUSAL_LM, True
    settings.base_model_name_or_path, settings.revision = prompt.base, prompt.info.lm.revision
    settings.save_pretrained(str(folder))
    save_file({"prompt_embeddings": vectors.contiguous().clone()}, folder / ADAPTER, metadata={"format": "pt"})
    with warnings.catch_warnings(action="ignore"):  # peft calls things in transformers by their old names
        _try_peft(prompt, peft.PeftModel.from_pretrained(copy.copy(lm.hf), str(folder)))
    return "prompt_adapter", {"kind": str(settings.peft_type.value)}


def _try_peft(prompt: _Prompt, model: Any) -> None:
    prompt.check("peft", lambda ids: model(input_ids=ids).logits[0])
    ids = torch.tensor([prompt.reader.query_ids(_TRIED)])
    expected, versions = (
        model(input_ids=ids).logits[0, -1],
        " on ".join(f"{name} {version(name)}" for name in ("peft", "transformers")),
    )
    try:
        found = model.generate(
            input_ids=ids, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        ).logits[0][0]
        is_right = bool((found - expected).abs().max() <= 1e-2 * expected.abs().max().clamp(min=1))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        is_right = False
    said = (
        "`generate` reads the prompt, too"
        if is_right
        else "`PeftModel.generate` does NOT read the prompt: call the model"
    )
    prompt.notes.append(f"With {versions}, {said}.")


def _vllm(prompt: _Prompt, folder: Path) -> tuple[str, dict[str, Any]]:
    memory, info, tokenizer = prompt.memory, prompt.info, prompt.reader.tokenizer
    assert isinstance(memory, SoftPrompt)
    vectors = memory.embeds[0][memory.mask[0]].to(prompt.lm.hf.dtype)
    prompt.check(
        "a sequence of embeddings", lambda ids: prompt.lm.hf(inputs_embeds=_joined(prompt, vectors, ids)).logits[0]
    )
    marked, text = copy.deepcopy(tokenizer), info.query.replace("{input}", _TRIED)
    marked.add_tokens([AddedToken(_PLACEHOLDER, special=True)], special_tokens=True)
    if tuple(marked(_PLACEHOLDER + text, add_special_tokens=False)["input_ids"][1:]) != prompt.reader.query_ids(_TRIED):
        raise ConfigError(f"{prompt.path}: this LM's tokenizer reads a text behind vectors otherwise than alone")
    stream = io.BytesIO()
    torch.save(vectors.contiguous().clone(), stream)
    data = base64.b64encode(stream.getvalue()).decode()
    common = {
        "model": prompt.base,
        "max_tokens": 128,
        "temperature": 0,
        "stop_token_ids": list(info.stop_ids),
        "ignore_eos": True,  # promptcomp ends an answer at the tokens above alone
        "cache_salt": hashlib.sha256(tensor_bytes(vectors)).hexdigest(),
    }
    parts = [{"type": "prompt_embeds", "data": data}, {"type": "text", "text": info.query}]
    bos = "{{- bos_token -}}" if prompt.lm.bos_id is not None else ""
    chat = {**common, "messages": [{"role": "user", "content": parts}], "chat_template": bos + _TEMPLATE}
    write_atomic(folder / CHAT, json.dumps(chat) + "\n")
    write_atomic(folder / COMPLETIONS, json.dumps({**common, "prompt_embeds": data, "query": info.query}) + "\n")
    write_atomic(
        folder / CLIENT, (Path(__file__).with_name("pages") / "vllm_client.py.txt").read_text(encoding="utf-8")
    )
    served = shlex.quote(prompt.base)
    return "vllm", {
        "served": served,
        "dtype": str(prompt.lm.hf.dtype).removeprefix("torch."),
        "front": front(prompt.lm.bos_id),
    }


def _joined(prompt: _Prompt, vectors: Tensor, ids: Tensor) -> Tensor:
    bos = prompt.lm.embed(torch.tensor([front(prompt.lm.bos_id)], dtype=torch.long))
    return torch.cat([bos, vectors[None], prompt.lm.embed(ids)], 1)
