"""Pretraining a decoder-only LM on text files or MetaICL tasks: byte-level BPE and packed next-token loss.

Rows of MetaICL tasks are read as documents of many rows of one task, so that the LM may learn to read demonstrations.
Documents are shuffled anew in every epoch, joined with <bos> between them, and cut into blocks of equal length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from glob import escape
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from promptcomp.config import ConfigError
from promptcomp.datamodules.sources.metaicl_folder import read_partition
from promptcomp.datamodules.sources.records import Asked, good_records, text_problems
from promptcomp.datamodules.sources.row_files import read_records
from promptcomp.datamodules.text import text_documents
from promptcomp.toy.lessons import Lessons
from promptcomp.toy.recipe import StageConfig, TextCorpus


class TextLessons(Lessons[StageConfig]):
    """Packed next-token prediction, in one stage."""

    def __init__(self, config: TextCorpus, batch_size: int, seed: int, start_from: Path | None = None) -> None:
        super().__init__([StageConfig(name="text", steps=config.steps)], batch_size, f"text/{seed}")
        self.config = config
        self._texts: list[str] = []
        config.check_places()
        for file in config.files:
            records = good_records(
                text_documents(file), lambda row: text_problems(row, ("text",)), None, file, "documents"
            )
            self._texts += [record.content["text"] for record in records]
        self._tasks = _metaicl_rows(config)
        documents = self._shuffled_documents()
        made = None if start_from is None else _tokenizer_of(start_from)
        self.tokenizer = made or train_tokenizer(documents, config.vocab_size)
        self._blocks = self._endless_blocks()
        self._held_out = torch.tensor([next(self._blocks) for _ in range(config.held_out_blocks)])

    @property
    def lr_scale(self) -> float:
        """Cosine from 1 to `final_lr_scale`."""
        low = self.config.final_lr_scale
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * self._step_in_stage / self.config.steps))

    def batch_loss(self, model: PreTrainedModel) -> Tensor:
        """Mean next-token loss on the next blocks."""
        return _next_token_loss(model, torch.tensor([next(self._blocks) for _ in range(self._batch_size)]))

    def skills(self, model: PreTrainedModel) -> dict[str, float]:
        """Loss on the blocks kept apart (nats a token); their rows may come again in documents of later epochs."""
        return {"held_out_loss": _next_token_loss(model, self._held_out).item()}

    def _shuffled_documents(self) -> list[str]:
        documents = list(self._texts)
        for rows in self._tasks:
            order = self._rng.sample(rows, len(rows))
            size = self.config.rows_per_document
            documents += ["".join(order[i : i + size]) for i in range(0, len(order), size)]
        self._rng.shuffle(documents)
        return documents

    def _endless_blocks(self) -> Iterator[list[int]]:
        buffer: list[int] = []
        width = self.config.block_tokens
        while True:
            for document in self._shuffled_documents():
                buffer += [self.tokenizer.bos_token_id, *self.tokenizer(document).input_ids]
                while len(buffer) >= width:
                    yield buffer[:width]
                    del buffer[:width]


def train_tokenizer(documents: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text survives encoding and decoding. Ids: <pad> 0, <bos> 1, <eos> 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """That of an earlier run.

    Raises:
        ConfigError: there is none.
    """
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        raise ConfigError(f"start_from = '{folder}': no folder of an earlier run (it has no tokenizer)") from None


def _next_token_loss(model: PreTrainedModel, blocks: Tensor) -> Tensor:
    logits = model(input_ids=blocks, use_cache=False).logits[:, :-1]  # [B, T - 1, V]
    return F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())


def _metaicl_rows(config: TextCorpus) -> list[list[str]]:
    """Rendered rows of each task of the partition."""
    if config.metaicl_dir is None:
        return []
    split, partition = config.metaicl_split, str(config.metaicl_partition)
    lists = read_partition(config.metaicl_dir, partition, "data.metaicl_partition", (split,))
    after_input, after_row = config.separators
    tasks = []
    for name in lists[split]:
        rows: dict[str, None] = {}  # an ordered set: classification tasks repeat rows over their seeds
        for file in sorted((config.metaicl_dir / "data" / name).glob(f"{escape(name)}_*_train.jsonl")):
            records = read_records(file, Asked(("input", "output")))
            for record in good_records(records, lambda row: text_problems(row, ("input", "output")), None):
                rows[f"{record.content['input']}{after_input}{record.content['output']}{after_row}"] = None
        if not rows:
            raise ConfigError(f"data.metaicl_dir: task {name!r} has no *_train.jsonl in {config.metaicl_dir / 'data'}")
        tasks.append(list(rows))
    return tasks
