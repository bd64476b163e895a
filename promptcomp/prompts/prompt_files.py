"""A compressed prompt in Python (`load_prompt("prompt.safetensors").generate("query")`) and the LM that reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TextStreamer

from promptcomp import __version__
from promptcomp.batch import EncodedContext, EncodedQuery, collate
from promptcomp.checkpoints.hub import prompt_file
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import PromptFormat
from promptcomp.errors import check_fields, check_place
from promptcomp.files import check_output
from promptcomp.language_model import LanguageModel, LanguageModelConfig, text_of
from promptcomp.language_model.generation import generate_within
from promptcomp.language_model.loading import pick_device
from promptcomp.language_model.parts import lent
from promptcomp.memory import KVCache, Memory, memory_tensors, memory_to, save_memory
from promptcomp.plain import shown, trimmed
from promptcomp.prompts.artifact import PromptInfo, is_tokenizer, read_prompt, text_hash, weights_hash
from promptcomp.prompts.sources import whole
from promptcomp.run.opening import open_trained_lm, quiet

DEFAULT_NEW_TOKENS = 128
_SEEDS = range(-(2**63), 2**63)
"""What torch takes as a seed."""
OnText = Callable[[str], None]
Queries = TypeVar("Queries", str, list[str])


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How answers are generated."""

    max_new_tokens: int | None = None
    """Maximum number of tokens of an answer; None: DEFAULT_NEW_TOKENS, or as many as the LM's window leaves."""
    temperature: float = 0.0
    """0: the most likely token; otherwise tokens are sampled."""
    top_p: float = 1.0
    """Sample from the most likely tokens with this total probability."""
    seed: int = 0
    """Seed of the draws (with a temperature, answers also depend on `batch_size`)."""
    num_beams: int = 1
    """More than 1: beam search."""
    batch_size: int = 16
    """Queries that are answered at once."""

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: a batch size or a seed that is none, or a value of another type.
        """
        check_fields(self)
        if self.batch_size < 1:
            raise ConfigError(f"the batch size must be at least 1, not {self.batch_size}")
        if self.seed not in _SEEDS:
            known = f"a whole number from {_SEEDS[0]} to {_SEEDS[-1]}"
            raise ConfigError(f"the seed must be {known}, not {shown(self.seed)}")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as text (without white space around it) and as token ids (without the stop token)."""

    text: str
    ids: tuple[int, ...]


class PromptReader:
    """An LM with its tokenizer that answers queries behind a memory."""

    def __init__(self, lm: LanguageModel, format: PromptFormat) -> None:
        if lm.tokenizer is None:
            raise ConfigError("the LM has no tokenizer; give a folder that holds one beside the weights")
        self.lm, self.format, self.tokenizer = lm, format, lm.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the LM is."""
        return self.lm.hf.device

    def query_ids(self, query: str) -> tuple[int, ...]:
        """Token ids of a query, written as in training.

        Raises:
            ConfigError: nothing would be left for the LM to go on from, or it is no text.
        """
        own = trimmed(whole(query, "a query"), self.format.trims)
        text = self.format.query.replace("{input}", own) if own else self.format.empty_query
        ids = tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids and self.lm.family == "decoder":
            raise ConfigError("a query is empty, and this prompt cannot do without; write at least one word")
        return ids

    def answers(
        self,
        memory: Memory | None,
        queries: Sequence[str],
        settings: AnswerSettings,
        on_text: OnText | None = None,
    ) -> Iterator[Answer]:
        """The answer to every query behind a memory with one row, batch by batch.

        Args:
            memory: What stands in front of each query; None: nothing.
            queries: Their texts.
            settings: How to generate.
            on_text: Called with pieces of the text as they come (one query, one beam).

        Raises:
            ConfigError: an empty query, or settings that do not fit the LM or each other.
        """
        if memory is not None:
            memory = memory_to(memory, self.device)
        generator = torch.Generator(self.device).manual_seed(settings.seed)
        ids = [self.query_ids(query) for query in queries]  # an empty one should show before the work
        for start in range(0, len(ids), settings.batch_size):
            for found in self._batch(memory, ids[start : start + settings.batch_size], settings, generator, on_text):
                text = text_of(self.tokenizer, found)
                yield Answer(text.strip(), tuple(found))

    def _batch(
        self,
        memory: Memory | None,
        queries: Sequence[tuple[int, ...]],
        settings: AnswerSettings,
        generator: torch.Generator,
        on_text: OnText | None,
    ) -> list[list[int]]:
        context = EncodedContext((), tuple(EncodedQuery(ids, ()) for ids in queries))
        streamer = None if on_text is None else _Streamer(self.tokenizer, on_text)
        limit = settings.max_new_tokens
        most = [DEFAULT_NEW_TOKENS if limit is None else limit for _ in queries]
        if limit is None and self.lm.window is not None:
            left = self.lm.window - (next_position(self.lm, memory) or 0)
            most = [max(1, min(DEFAULT_NEW_TOKENS, left - len(ids))) for ids in queries]
        with lent(self.lm):
            found = generate_within(
                self.lm.eval(),
                memory,
                collate([context]).to(self.device),
                most,
                stop_ids=self.format.stop_ids,
                temperature=settings.temperature,
                top_p=settings.top_p,
                generator=generator,
                num_beams=settings.num_beams,
                on_tokens=None if streamer is None or settings.num_beams > 1 else streamer.on_tokens,
            )
        if streamer is not None:
            for token in found[0] if settings.num_beams > 1 else ():
                streamer.on_tokens([token])
            streamer.end()
        return found


class _Streamer(TextStreamer):
    """Hands on the text of one answer in whole words."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        super().__init__(tokenizer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._on_text = on_text
        self._started = False

    def on_tokens(self, tokens: list[int | None]) -> None:
        """The next token of the only row; None when it has ended."""
        if tokens[0] is not None:
            self.put(torch.tensor([tokens[0]]))

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Text that will not change any more; white space in front of the answer is left out."""
        piece = text if self._started else text.lstrip()
        if piece:
            self._started = True
            self._on_text(piece)


def next_position(lm: LanguageModel, memory: Memory | None) -> int | None:
    """Position id of the first token behind a memory of one row; None for an encoder-decoder LM."""
    if lm.family == "encoder_decoder":
        return None
    if isinstance(memory, KVCache):
        return int(memory.next_position[0])
    return (lm.bos_id is not None) + (0 if memory is None else int(memory.num_slots[0]))


def describe_prompt(
    reader: PromptReader, memory: Memory, source: str, hashes: tuple[str, str], **known: Any
) -> PromptInfo:
    """What the file of a prompt that was made now says of it.

    Args:
        reader: The LM that reads it.
        memory: One row.
        source: The text that it was made of.
        hashes: Of the LM's weights and of its tokenizer.
        known: The other fields.
    """
    dtype = next(tensor.dtype for tensor in memory_tensors(memory).values() if tensor.is_floating_point())
    return PromptInfo(
        family=reader.lm.family,
        lm_hash=hashes[0],
        tokenizer_hash=hashes[1],
        bos_id=reader.lm.bos_id,
        slots=int(memory.num_slots[0]),
        next_position=next_position(reader.lm, memory),
        dtype=str(dtype).removeprefix("torch."),
        source_sha256=text_hash(source),
        query=reader.format.query,
        empty_query=reader.format.empty_query,
        trims=reader.format.trims,
        stop_ids=reader.format.stop_ids,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        **known,
    )


def open_lm(info: PromptInfo, model: str | Path | None, source: str) -> LanguageModel:
    """The LM that a compressed prompt was made for, after making sure that it is the one.

    Args:
        info: What the prompt says of itself.
        model: A run directory or an LM's path to look at instead of where the prompt says it is.
        source: The prompt's name for messages.

    Raises:
        ConfigError: it is gone, or its family, tokenizer, BOS or weights are others.
    """
    place = model if model is not None else place_of_lm(info)
    if place is None:
        raise ConfigError(f"{source}: does not say where its LM is; name a run directory with --model")
    if model is None and Path(place).is_absolute() and not os.path.exists(place):
        near = (parent / Path(place).name for parent in Path(source).resolve().parents)
        needs = "config.yaml" if info.lm_is_trained else "config.json"
        place = next((each for each in near if (each / needs).is_file()), place)  # its hash is compared below
    if model is None and Path(place).is_absolute() and not os.path.exists(place):
        raise ConfigError(f"{source}: the LM it was made for is no longer at {place}; name it with --model")
    lm = lm_at(str(place), info.lm)
    reason = misfit(lm, weights_hash(lm.hf), info)
    if reason is not None:
        made_for = info.run if info.lm_is_trained else info.lm.path
        raise ConfigError(f"{source}: was made for {made_for}, and {place} {reason}")
    return lm


def place_of_lm(info: PromptInfo) -> str | None:
    """Where the LM of a prompt is: the run that trained it, or the LM's path."""
    return info.run if info.lm_is_trained else info.lm.path


def lm_at(place: str, config: LanguageModelConfig) -> LanguageModel:
    """The LM of a run as training left it, or the one at a path, opened with the other settings of `config`.

    Raises:
        ConfigError: it cannot be opened.
    """
    with quiet():
        if os.path.isfile(Path(place) / "config.yaml"):
            return open_trained_lm(Path(place))
        return LanguageModel.from_config(config.model_copy(update={"path": place}))


def misfit(lm: LanguageModel, weights: str, info: PromptInfo) -> str | None:
    """Why an LM cannot read a prompt (`weights`: its hash), in words that follow its name; None: it can."""
    if lm.family != info.family:
        return f"is of another family ({lm.family}, not {info.family}); give the right --model"
    if lm.tokenizer is None or not is_tokenizer(lm.tokenizer, info.tokenizer_hash) or lm.bos_id != info.bos_id:
        return "has another tokenizer; give the right --model, or compress again for this one"
    if weights != info.lm_hash:
        return (
            "has other weights (or the same in another dtype); give the right --model, or compress again for this one"
        )
    return None


class CompressedPrompt:
    """A compressed prompt and the LM that reads it (which is opened and checked when it is first needed).

    Args:
        memory: With one row, on the CPU.
        info: What is known of it.
        reader: The LM, where it is open already.
        model: A run directory or LM to use instead of the one that the prompt names.
        device: "auto", "cpu", "cuda", ...
        source: The prompt's name for messages.
    """

    def __init__(
        self,
        memory: Memory,
        info: PromptInfo,
        *,
        reader: PromptReader | None = None,
        model: str | Path | None = None,
        device: str = "auto",
        source: str = "the compressed prompt",
    ) -> None:
        self.memory, self.info, self._reader = memory, info, reader
        self._model, self._device, self._source = model, device, source

    def __repr__(self) -> str:
        info = self.info
        return f"CompressedPrompt({info.method}, {info.lengths})"

    @property
    def reader(self) -> PromptReader:
        """The LM that reads the prompt.

        Raises:
            ConfigError: it is gone, or another than the prompt was made for.
        """
        if self._reader is None:
            lm = open_lm(self.info, self._model, self._source)
            lm.to(pick_device(self._device))
            self._reader = PromptReader(lm, self.info.format)
        return self._reader

    def generate(
        self,
        queries: Queries,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        num_beams: int = 1,
        batch_size: int = 16,
        on_text: OnText | None = None,
    ) -> Queries:
        """The answer to one query, or the answers to several.

        Args:
            queries: One text, or a list of several.
            max_new_tokens: Maximum number of tokens of an answer; None: 128, or as many as the LM's window leaves.
            temperature: 0 takes the likeliest token; otherwise tokens are drawn.
            top_p: Sample from the most likely tokens with this total probability.
            seed: Seed of the draws.
            num_beams: More than 1: beam search.
            batch_size: Queries that are answered at once.
            on_text: Called with pieces of the answer as they come; for one query only.

        Raises:
            ConfigError: the LM is gone or another one, a query is empty, or the settings do not fit.
        """
        settings = AnswerSettings(max_new_tokens, temperature, top_p, seed, num_beams, batch_size)
        if isinstance(queries, str | bytes) or not isinstance(queries, Iterable):
            queries = whole(queries, "a query")
            return self.answers([queries], settings, on_text)[0].text
        return [answer.text for answer in self.answers([*queries], settings)]

    def answers(
        self, queries: Sequence[str], settings: AnswerSettings | None = None, on_text: OnText | None = None
    ) -> list[Answer]:
        """The answers with their token ids; `on_text` goes with one query."""
        settings = AnswerSettings() if settings is None else settings
        return list(self.reader.answers(self.memory, queries, settings, on_text))

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the prompt as a safetensors file.

        Raises:
            ConfigError: a file is there already (without `force`), or it cannot be written.
        """
        check_output(Path(path), force)
        save_memory(Path(path), self.memory, self.info.model_dump(mode="json"))
        return Path(path)


def load_prompt(
    path: str | Path, *, model: str | Path | None = None, revision: str | None = None, device: str = "auto"
) -> CompressedPrompt:
    """Read and verify a compressed prompt; its LM is opened (and checked) when the first query comes.

    Args:
        path: A file that `promptcomp compress` or `CompressedPrompt.save` has written, a folder that `promptcomp export
            --to tensors` has made of one, or the repository of such a folder on a hub: "user/name".
        model: A run directory or an LM's path to use instead of the one that the file names.
        revision: Branch, tag or commit of a repository.
        device: Where to generate: "auto" (a GPU if there is one), "cpu", "cuda", ...

    Raises:
        ConfigError: missing, truncated, edited, newer than this program, or no compressed prompt.
    """
    check_place(path, "a prompt")
    memory, info = read_prompt(prompt_file(Path(path), revision))
    return CompressedPrompt(memory, info, model=model, device=device, source=str(path))
