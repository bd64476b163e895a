"""A judge that runs here: any causal language model that transformers can load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.chat_templates import turn_end
from promptcomp.endpoints import Message
from promptcomp.language_model.lm_config import LanguageModelConfig
from promptcomp.language_model.loading import open_architecture, open_model, open_tokenizer, open_window
from promptcomp.language_model.local import local_device


class LocalJudge:
    """Greedy answers of a local model. Chats are written with the tokenizer's chat template, or plainly without one.

    Args:
        path: a folder or a hub name.
        device: auto: CUDA where there is one. On CUDA the weights are bfloat16.

    Raises:
        ConfigError: the model or its tokenizer cannot be read, or it is no causal LM.
    """

    def __init__(self, path: str, device: str = "auto") -> None:
        self.device = local_device(device)
        config = LanguageModelConfig(path=path, dtype="bfloat16" if self.device.type == "cuda" else "float32")
        architecture = open_architecture(config)
        if architecture.is_encoder_decoder:
            raise ConfigError(f"--local {path}: a {architecture.model_type} cannot be a judge; name a causal LM")
        self.tokenizer = open_tokenizer(config)
        self.window = open_window(config)
        hf: Any = open_model(config, architecture)
        self.hf = hf.to(self.device)
        ends = self.hf.generation_config.eos_token_id
        self._ends: list[int] = [ends] if isinstance(ends, int) else list(ends or [])
        if self.tokenizer.eos_token_id is not None:
            self._ends.append(int(self.tokenizer.eos_token_id))
        self._ends += turn_end(self.tokenizer)

    def too_long(self, messages: Sequence[Message], max_tokens: int) -> str | None:
        """Why the chat cannot be answered; None: it can."""
        length = len(self._encode(messages))
        if self.window is None or length + max_tokens <= self.window:
            return None
        return f"{length} prompt tokens and {max_tokens} for the answer exceed the model's window of {self.window}"

    @torch.no_grad()
    def answer(self, chats: Sequence[Sequence[Message]], max_tokens: int) -> list[tuple[str, int, int, bool]]:
        """Text, prompt tokens, completion tokens and whether the text was cut, for each chat."""
        prompts = [self._encode(chat) for chat in chats]
        width = max(len(prompt) for prompt in prompts)
        room = max_tokens if self.window is None else min(max_tokens, self.window - width)
        if room < 1:  # only a question asked again can have become too long; it then counts as unanswered
            return [("", len(prompt), 0, True) for prompt in prompts]
        padding = self._ends[0] if self._ends else 0  # masked, so any token will do
        ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device
        )  # [B, width]
        settings = GenerationConfig(
            max_new_tokens=room, do_sample=False, eos_token_id=self._ends or None, pad_token_id=padding
        )
        written = self.hf.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()
        return [self._finish(prompt, new) for prompt, new in zip(prompts, written, strict=True)]

    def _finish(self, prompt: list[int], new: list[int]) -> tuple[str, int, int, bool]:
        end = next((i for i, token in enumerate(new) if token in self._ends), None)
        text = self.tokenizer.decode(new[:end], skip_special_tokens=True)
        return str(text), len(prompt), len(new) if end is None else end + 1, end is None

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        if self.tokenizer.chat_template is not None:
            turns = [{"role": str(m["role"]), "content": m["content"]} for m in messages]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        text = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
        return list(self.tokenizer(f"{text}\n\nAssistant:")["input_ids"])
