"""Plain text for stage 1 of MEND: the first 80 % of a document stand for the demonstrations, the rest is completed.

The first token of the rest is the query and the others are the target, so that each training target has a token of the
document before it, as in the release (which never predicts the first token of the rest either).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule, Counts, ExampleInfo, PromptFormat
from promptcomp.datamodules.sampler import Draw, EvalContexts, EvalPart
from promptcomp.datamodules.sections import Reader, TextConfig, check_split
from promptcomp.datamodules.sources.arrow import open_table, text_column
from promptcomp.datamodules.sources.records import Asked, Found, Record, collecting, good_records
from promptcomp.datamodules.sources.row_files import FILE_KINDS, check_file, read_records
from promptcomp.datamodules.tasks import Source
from promptcomp.plain import not_utf8

_SPLIT_STREAM = 7


class Documents(Source):
    """The documents that a section names."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config

    @cached_property
    def texts(self) -> Sequence[str]:
        """All of them.

        Raises:
            ConfigError: a file is missing, bad or of an unknown kind, or the dataset cannot be loaded.
        """
        return self._read(None)

    def check(self, found: Found = None) -> None:
        """See the base class; documents that are too short are warned of."""
        self.texts = self._read(found)

    def _read(self, found: Found) -> Sequence[str]:
        config, asked = self.config, Asked((self.config.text_column,))
        if config.hub is not None:
            return text_column(open_table(config.hub, config.hub_config, config.hub_split, asked), config.text_column)
        texts: list[str] = []
        for path in config.paths:
            with collecting(found, str(path)):
                texts += _file_texts(path, asked, config.min_tokens, found)
        return texts


class TextDataModule(ContextDataModule):
    """Documents as contexts with one query and one target each. Evaluation knows a loss only: there are no options."""

    config: TextConfig
    source: Documents

    def __init__(self, config: TextConfig, source: Documents, reader: Reader) -> None:
        """
        Raises:
            ConfigError: the documents do not fit the LM's window.
        """
        super().__init__(config, source, reader)
        config.budget(reader.window)

    def check_rows(self, found: Found) -> None:
        """See the base class."""
        for split in self.source.splits:
            self._ids(split, 0)

    def count(self, split: str) -> Counts:
        """See the base class."""
        is_train = split == "train"
        count = self.num_train_items() if is_train else self.config.dev_documents
        return Counts(split, rows=count, tasks=1, contexts=count, asked=None if is_train else count)

    @cached_property
    def _order(self) -> np.ndarray:
        """Places of the documents in a fixed random order: the dev split, then the train split."""
        config = self.config
        # a token is at least one byte, so the others are surely too short; the rest is found out when it is tokenised
        long_enough = [i for i, text in enumerate(self.source.texts) if len(text.encode()) >= config.min_tokens]
        if len(long_enough) <= config.dev_documents:
            raise ConfigError(
                f"{len(long_enough)} document(s) of at least data.min_tokens = {config.min_tokens} tokens; that is not "
                f"more than data.dev_documents = {config.dev_documents}, so nothing is left to train on"
            )
        return np.array(long_enough)[np.random.default_rng((0, _SPLIT_STREAM)).permutation(len(long_enough))]

    def _text(self, place: int) -> str:
        return self.source.texts[int(self._order[place])]

    def num_train_items(self) -> int:
        """Training documents."""
        return len(self._order) - self.config.dev_documents

    def _ids(self, split: str, index: int) -> Sequence[int]:
        """Ids of a document; of a document that is too short, those of the next one of the split that is not."""
        size = self.num_train_items() if split == "train" else self.config.dev_documents
        first = self.config.dev_documents if split == "train" else 0
        for step in range(size):
            ids = self.cache(self._text(first + (index + step) % size))
            if len(ids) >= self.config.min_tokens:
                return ids[: self.config.max_tokens]
        raise ConfigError(f"no document of the {split} split has data.min_tokens = {self.config.min_tokens} tokens")

    def _context(self, split: str, index: int, example: int) -> EncodedContext:
        context, rest = split_document(self._ids(split, index), self.config.context_share)
        query = EncodedQuery(tuple(rest[:1]), (EncodedTarget(tuple(rest[1:])),), example)
        return EncodedContext(tuple(context), (query,))

    def train_context(self, draw: Draw) -> EncodedContext:
        """The document of a draw."""
        return self._context("train", draw.index, 0)

    def train_texts(self, draw: Draw) -> Iterable[str]:
        """See the base class."""
        return (self._text(self.config.dev_documents + draw.index),)

    def eval_contexts(self, split: str) -> EvalContexts:
        """The held-out documents."""

        def length(number: int) -> int:
            return len(self._context("dev", number, number).ids)

        def encode(part: EvalPart) -> EncodedContext:
            return self._context("dev", part.context, part.context)

        return EvalContexts(self.config.dev_documents, length, lambda _: (1,), encode)

    def examples(self, split: str) -> Sequence[ExampleInfo]:
        """The held-out documents as free-form examples.

        Raises:
            ConfigError: the split is unknown.
        """
        check_split(split, self.eval_splits)
        found = []
        for number in range(self.config.dev_documents):
            context, rest = split_document(self._ids("dev", number), self.config.context_share)
            parts = (list(context), list(rest))
            texts = [str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in parts]
            found.append(ExampleInfo(number, "text", "free_form", None, number, 0, (texts[1],), texts[0], texts[1]))
        return found

    def prompt_format(self) -> PromptFormat:
        """Text goes on as it is."""
        return PromptFormat("{input}", "", self.end_ids)


def split_document(ids: Sequence[int], share: float) -> tuple[Sequence[int], Sequence[int]]:
    """The first `int(share * length)` tokens and the rest; the rest has at least two tokens, the first part one."""
    border = max(1, min(int(share * len(ids)), len(ids) - 2))
    return ids[:border], ids[border:]


def _file_texts(path: Path, asked: Asked, min_tokens: int, found: Found) -> list[str]:
    texts: list[str] = []
    is_plain = path.suffix.lower() == ".txt"
    if not is_plain and path.suffix.lower() not in FILE_KINDS:
        raise ConfigError(f"{path}: a text file should end in .txt, {', '.join(FILE_KINDS)}")
    column = "text" if is_plain else asked.required[0]

    def wrong(content: Mapping[str, Any]) -> list[str]:
        return [] if isinstance(content.get(column), str) else [f"no text in {column!r}"]

    records = text_documents(path) if is_plain else read_records(path, asked)
    for record in good_records(records, wrong, found, path, "documents"):
        texts.append(record.content[column])
        if len(texts[-1].encode()) < min_tokens:
            record.warn([f"shorter than min_tokens = {min_tokens}"], found)
    return texts


def text_documents(path: Path) -> Iterator[Record]:
    """The documents of a text file, which stand between blank lines.

    Raises:
        ConfigError: the file is missing or cannot be read.
    """
    check_file(path)
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    line_number, block, start = 1, list[bytes](), 1
    for raw_line in [*raw.splitlines(keepends=True), b"\n"]:
        if raw_line.strip():
            start = start if block else line_number
            block.append(raw_line)
        elif block:
            yield _document(str(path), start, b"".join(block))
            block = []
        line_number += 1


def _document(file: str, start: int, block: bytes) -> Record:
    try:
        return Record(file, start, {"text": block.decode("utf-8").strip()})
    except UnicodeDecodeError as error:
        return Record(file, start + block.count(b"\n", 0, error.start), problem=not_utf8(block))
