"""A teacher that runs here: any LM that the package can load. What all prompts share is read once and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from promptcomp.batch import Context, EncodedContext, EncodedQuery, collate
from promptcomp.language_model import LanguageModel, LanguageModelConfig, reads_queries_in_encoder
from promptcomp.language_model.local import local_device
from promptcomp.memory import Memory
from promptcomp.rationales.asking import Writing
from promptcomp.rationales.reading import cut_at


class _AllEnded(Exception):
    """Every row has met a stop text."""


class LocalTeacher:
    """Greedy or sampled continuations of plain text.

    Args:
        path: a folder or a hub name.
        device: auto: CUDA where there is one. On CUDA the weights are bfloat16.

    Raises:
        ConfigError: the model or its tokenizer cannot be read.
    """

    def __init__(self, path: str, device: str = "auto") -> None:
        self._device = local_device(device)
        dtype = "bfloat16" if self._device.type == "cuda" else "float32"
        config = LanguageModelConfig.model_validate({"path": path, "dtype": dtype, "layout": "query_in_encoder"})
        self.lm = LanguageModel.from_config(config).eval().to(self._device)
        assert self.lm.tokenizer is not None
        self._tokenizer = self.lm.tokenizer
        self._end = (self.lm.end_id,) if reads_queries_in_encoder(config) else ()
        self._stop_ids = self._ends()
        self._shared: tuple[int, ...] = ()
        self._memory: Memory | None = None

    def _ends(self) -> tuple[int, ...]:
        settings = self.lm.hf.generation_config
        ends = settings.eos_token_id if settings is not None else None
        known = [ends] if isinstance(ends, int) else list(ends or [])
        if isinstance(self._tokenizer.eos_token_id, int):
            known.append(self._tokenizer.eos_token_id)
        return tuple(dict.fromkeys(known))

    def _encode(self, prompt: str) -> tuple[int, ...]:
        return (*self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"], *self._end)

    @torch.no_grad()
    def prepare(self, prompts: Sequence[str], max_tokens: int) -> list[str | None]:
        """Read the tokens that all prompts begin with; gives back for each why it cannot be continued (None: it can).

        The shared part is found in the tokens of whole prompts, so that it changes nothing of what the LM reads.
        """
        encoded = [self._encode(prompt) for prompt in prompts]
        reasons = [self._too_long(ids, max_tokens) for ids in encoded]
        possible = [ids for ids, reason in zip(encoded, reasons, strict=True) if reason is None]
        self._shared, self._memory = (), None
        if possible:
            self._shared = shared_prefix(possible)
            ids = torch.tensor([self._shared], dtype=torch.long, device=self._device)
            task = torch.zeros(1, dtype=torch.long, device=self._device)
            self._memory = self.lm.encode(Context(ids, torch.ones_like(ids, dtype=torch.bool), task))
        return reasons

    def _too_long(self, ids: Sequence[int], max_tokens: int) -> str | None:
        length = len(ids) + (self.lm.bos_id is not None)
        if not ids:
            return "the prompt is empty"
        if self.lm.window is None or length + max_tokens <= self.lm.window:
            return None
        return f"{length} prompt tokens and {max_tokens} for the answer exceed the LM's window of {self.lm.window}"

    @torch.no_grad()
    def continue_texts(self, prompts: Sequence[str], writing: Writing, seed: int) -> list[tuple[str, int, int, bool]]:
        """Text, prompt tokens, completion tokens and whether the text was cut, for each prompt of those prepared."""
        encoded = [self._encode(prompt) for prompt in prompts]
        first = len(self._shared)
        queries = tuple(EncodedQuery(ids[first:], ()) for ids in encoded)
        batch = collate([EncodedContext(self._shared, queries)], pad_id=self.lm.end_id).to(self._device)
        rows = _Rows(self, len(prompts), writing.stop)
        generator = torch.Generator(self._device).manual_seed(seed)
        with contextlib.suppress(_AllEnded):
            self.lm.generate(
                self._memory,
                batch,
                max_new_tokens=writing.max_tokens,
                stop_ids=self._stop_ids,
                temperature=writing.temperature,
                generator=generator,
                on_tokens=rows.add,
            )
        return [
            (cut_at(text, writing.stop), len(ids), len(tokens), not ended)
            for text, ids, tokens, ended in zip(rows.texts, encoded, rows.tokens, rows.ended, strict=True)
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of new tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


class _Rows:
    """The texts of a batch while they are written."""

    def __init__(self, teacher: LocalTeacher, count: int, stop: Sequence[str]) -> None:
        self._teacher, self._stop = teacher, stop
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
            self.texts[row] = self._teacher.decode(self.tokens[row])
            self.ended[row] = any(end in self.texts[row] for end in self._stop)
        if all(self.ended):
            raise _AllEnded


def shared_prefix(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all rows begin with; every row has at least one more."""
    low, high = min(rows), max(rows)  # what these two share, all between them share
    most = min(map(len, rows)) - 1
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), most)
    return low[: min(length, most)]
