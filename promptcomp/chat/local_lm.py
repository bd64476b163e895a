"""A language model that answers here: any that the package can load. Their common prefix is read once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from promptcomp.batch import Context, EncodedContext, EncodedQuery, collate
from promptcomp.chat.client import Message
from promptcomp.chat.replies import Reply, cut_at
from promptcomp.chat.session import Writing
from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.templates import turn_end
from promptcomp.language_model import LanguageModel, LanguageModelConfig, reads_queries_in_encoder, text_of
from promptcomp.language_model.lm_config import place_of
from promptcomp.language_model.loading import open_architecture, pick_device
from promptcomp.memory import Memory

Prompt = str | Sequence[Message]
"""A text to go on with, or a chat."""


def local_identity(path: str) -> str:
    """The name of a local model in a record: a folder by its full path, a hub name as it is."""
    return f"local:{place_of(path)}"


def end_tokens(lm: LanguageModel, *, chat: bool) -> tuple[int, ...]:
    """Tokens that end what an LM writes by itself, or its turn in a chat."""
    tokenizer, settings = lm.tokenizer, lm.hf.generation_config
    assert tokenizer is not None
    found = settings and settings.eos_token_id
    ends = [found] if isinstance(found, int) else list(found or [])
    ends += [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    return tuple(dict.fromkeys(ends)) + (turn_end(tokenizer) if chat else ())


class _AllEnded(Exception):
    """Every row has met a stop text."""


class LocalLM:
    """Greedy or sampled continuations of texts, or answers to chats.

    Chats are written with the tokenizer's chat template, or plainly without one.

    Args:
        path: a folder or a hub name.
        device: auto: CUDA where there is one. On CUDA the weights are bfloat16.
        chat: it answers chats, as a judge does; only a causal LM can. False: it goes on with texts.

    Raises:
        ConfigError: the device is unknown or not there, the model or its tokenizer cannot be read, or it is no causal
            LM but is to answer chats.
    """

    def __init__(self, path: str, device: str = "auto", *, chat: bool = False) -> None:
        self._device = pick_device(device)
        # A chat template writes its own BOS token, and so does the tokenizer where there is no template.
        dtype = "bfloat16" if self._device.type == "cuda" else "float32"
        settings = {"path": path, "dtype": dtype, "layout": "query_in_encoder", "bos": False if chat else None}
        config = LanguageModelConfig.model_validate(settings)
        if chat and (architecture := open_architecture(config)).is_encoder_decoder:
            raise ConfigError(f"--local {path}: a {architecture.model_type} cannot be a judge; name a causal LM")
        self.lm = LanguageModel.from_config(config).eval().to(self._device)
        assert self.lm.tokenizer is not None
        self._tokenizer = self.lm.tokenizer
        self._end = (self.lm.end_id,) if reads_queries_in_encoder(config) else ()
        self._stop_ids = end_tokens(self.lm, chat=chat)
        self._shared: tuple[int, ...] = ()
        self._memory: Memory | None = None

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return (*self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"], *self._end)
        if self._tokenizer.chat_template is not None:
            turns = [{"role": str(message["role"]), "content": message["content"]} for message in prompt]
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        text = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
        return tuple(self._tokenizer(f"{text}\n\nAssistant:", verbose=False)["input_ids"])

    @torch.no_grad()
    def prepare(self, prompts: Sequence[Prompt], max_tokens: int) -> list[str | None]:
        """Read the tokens that all prompts begin with; gives back for each why it cannot be answered (None: it can).

        The shared part is found in the tokens of whole prompts, so that it changes nothing of what the LM reads.
        """
        encoded = [self._encode(prompt) for prompt in prompts]
        reasons = [self._too_long(ids, max_tokens) for ids in encoded]
        self._share([ids for ids, reason in zip(encoded, reasons, strict=True) if reason is None])
        return reasons

    def _share(self, encoded: Sequence[tuple[int, ...]]) -> None:
        if encoded:
            self._shared = shared_prefix(encoded)
            ids = torch.tensor([self._shared], dtype=torch.long, device=self._device)
            task = torch.zeros(1, dtype=torch.long, device=self._device)
            self._memory = self.lm.encode(Context(ids, torch.ones_like(ids, dtype=torch.bool), task))

    def _too_long(self, ids: Sequence[int], max_tokens: int) -> str | None:
        length, window = len(ids) + self.lm.num_bos, self.lm.window
        if not ids:
            return "the prompt is empty"
        if window is None or length + max_tokens <= window:
            return None
        return f"{length} prompt tokens and {max_tokens} for the answer exceed the LM's window of {window}"

    def _left(self, ids: Sequence[int], most: int) -> int:
        return most if self.lm.window is None else max(0, min(most, self.lm.window - self.lm.num_bos - len(ids)))

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt], writing: Writing, seed: int) -> list[Reply]:
        """One reply to each prompt of those prepared, or to a chat that goes on from one of them."""
        encoded = [self._encode(prompt) for prompt in prompts]
        left = [self._left(ids, writing.max_tokens) for ids in encoded]
        if len(set(left)) > 1:  # a chat that has come near the window's end takes no room from those beside it
            found = dict[int, Reply]()
            for own in sorted(set(left)):
                rows = [row for row, each in enumerate(left) if each == own]
                found |= zip(rows, self.answer([prompts[row] for row in rows], writing, seed), strict=True)
            return [found[row] for row in range(len(prompts))]
        if (room := left[0]) < 1:  # only a chat that went on can have become too long; it then counts as unanswered
            return [Reply("", len(ids), 0, "length", None) for ids in encoded]
        first = len(self._shared)
        if any(len(ids) <= first or ids[:first] != self._shared for ids in encoded):
            self._share(encoded)
            first = len(self._shared)
        queries = tuple(EncodedQuery(ids[first:], ()) for ids in encoded)
        batch = collate([EncodedContext(self._shared, queries)]).to(self._device)
        written = _Rows(self._tokenizer, len(prompts), writing.stop)
        with contextlib.suppress(_AllEnded):
            self.lm.generate(
                self._memory,
                batch,
                max_new_tokens=room,
                stop_ids=self._stop_ids,
                temperature=writing.temperature,
                generator=torch.Generator(self._device).manual_seed(seed),
                on_tokens=written.add,
            )
        return [
            Reply(cut_at(text, writing.stop), len(ids), len(tokens), "stop" if ended else "length", None)
            for text, ids, tokens, ended in zip(written.texts, encoded, written.tokens, written.ended, strict=True)
        ]


class _Rows:
    """The texts of a batch while they are written."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, count: int, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.texts = [""] * count
        self.ended = [False] * count

    def add(self, tokens: list[int | None]) -> None:
        """
        Raises:
            _AllEnded: nothing more is wanted.
        """
        for row, token in enumerate(tokens):
            if self.ended[row]:
                continue
            if token is None:
                self.ended[row] = True
                continue
            self.tokens[row].append(token)
            self.texts[row] = text_of(self._tokenizer, self.tokens[row])
            self.ended[row] = any(end in self.texts[row] for end in self._stop)
        if all(self.ended):
            raise _AllEnded


def shared_prefix(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all rows begin with; every row has at least one more."""
    low, high = min(rows), max(rows)  # what these two share, all between them share
    most = min(map(len, rows)) - 1
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), most)
    return low[: min(length, most)]
