"""Plain text: the 80/20 cut, short documents, the held-out documents, bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from promptcomp.batch import Batch
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.sections import Reader, TextConfig
from promptcomp.datamodules.text import Documents, TextDataModule, split_document
from promptcomp.toy.icl_world import toy_tokenizer
from tests.data_sections import show, validate

WORDS = ("lion", "pear", "hammer", "today", "about", "we", "like", "my")


def document(number: int, length: int) -> str:
    return " ".join(WORDS[(number + i) % len(WORDS)] for i in range(length))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return toy_tokenizer()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(document(i, 8 + i) for i in range(30)) + "\n", encoding="utf-8")
    return path


def module(corpus: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> TextDataModule:
    config = TextConfig(paths=(corpus,), **{"min_tokens": 10, "max_tokens": 30, "dev_documents": 5, **options})
    return TextDataModule(config, Documents(config), Reader(tokenizer, 0, 4, window=64))


@pytest.mark.parametrize(("length", "border"), [(20, 16), (72, 57), (160, 128), (6, 4), (4, 2), (3, 1)])
def test_split(length: int, border: int) -> None:
    """The first four are the lengths of MEND's release on its four test documents."""
    context, rest = split_document(range(length), 0.8)
    assert (len(context), len(rest)) == (border, length - border)


def test_training_items(corpus: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(corpus, tokenizer)
    sampler = dm.train_sampler()
    for batch in [next(iter(sampler)) for _ in range(2)]:
        for draw, length in zip(batch, dm.train_lengths(batch), strict=True):
            item = dm.train_context(draw)
            (query,) = item.queries
            total = len(item.ids) + len(query.ids) + len(query.targets[0].ids)
            assert total == length
            assert 10 <= total <= 30
            assert len(item.ids) == min(int(0.8 * total), total - 2)
            assert len(query.ids) == 1


def test_an_epoch_visits_every_long_document(corpus: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(corpus, tokenizer)
    texts = corpus.read_text().split("\n\n")
    long_enough = [text.strip() for text in texts if len(text.split()) >= 10]
    seen = set()
    for index in range(dm.num_train_items()):
        seen.add(tuple(dm._ids("train", index)))
    held_out = {tuple(dm._ids("dev", index)) for index in range(5)}
    assert not seen & held_out
    assert len(seen | held_out) == len(long_enough)


def test_held_out_documents(corpus: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(corpus, tokenizer)
    examples = dm.examples("dev")
    assert [e.number for e in examples] == list(range(5))
    assert {(e.kind, e.gold, len(e.options)) for e in examples} == {("free_form", 0, 1)}
    batches = list(dm.val_dataloader())
    assert sorted(torch.cat([batch.example for batch in batches]).tolist()) == list(range(5))
    other_seed = TextDataModule(dm.config, Documents(dm.config), Reader(tokenizer, 7, 4))
    assert other_seed.examples("dev") == examples


def test_no_dev_split(corpus: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    dm = module(corpus, tokenizer, dev_documents=0)
    assert dm.eval_splits == ()
    with pytest.raises(ConfigError, match="split 'dev' is unknown; this data has none"):
        dm.val_dataloader()


def test_json_lines(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"body": document(i, 20)}) + "\n" for i in range(8)))
    config = build(TextConfig, {"paths": [str(path)], "text_column": "body", "dev_documents": 2, "min_tokens": 4})
    dm = config.build(Reader(tokenizer, seed=0, batch_size=2))
    assert dm.num_train_items() == 6
    (row,) = show(config, tokenizer, "dev", 1)
    assert row.context_tokens == 16
    assert row.target_tokens == (3,)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": 3}\n', "a.jsonl:2: no text in 'text'"),
        ("a.jsonl", b'{"text": "fine"}\n{"text"\n', "a.jsonl:2: not valid JSON"),
        ("a.txt", b"fine\n\nnot \xff fine\n", "a.txt:3: not UTF-8 text"),
        ("a.txt", "fine\n".encode("utf-16"), "a.txt:1: not UTF-8 text but UTF-16; save it as UTF-8"),
        ("a.pdf", b"", "a.pdf: a text file should end in .txt, .jsonl"),
        ("a.txt", b"one word\n", "1 document.* nothing is left to train on"),
    ],
)
def test_bad_files(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    config = TextConfig(paths=(path,), min_tokens=4, dev_documents=1)
    with pytest.raises(ConfigError, match=message):
        TextDataModule(config, Documents(config), Reader(tokenizer, 0, 1)).num_train_items()


def test_validation_finds_every_bad_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": 3}\n{"text": "long enough to count"}\n{]\n\xff\n{"text": "x"}\n')
    found = validate(TextConfig(paths=(path, tmp_path / "gone.txt")))
    assert [(problem.line, problem.severity) for problem in found] == [
        (1, "error"),
        (3, "error"),
        (4, "error"),
        (5, "warning"),
        (None, "error"),
    ]


def test_contradictory_options(corpus: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="either `paths` or `hub`"):
        build(TextConfig, {})
    with pytest.raises(ConfigError, match="hub_config is of a dataset of the hub, and `paths` names files"):
        build(TextConfig, {"paths": [str(corpus)], "hub_config": "en"})
    with pytest.raises(ConfigError, match="max_tokens = 100 exceeds the LM's window of 64"):
        module(corpus, tokenizer, max_tokens=100)


class Step(L.LightningModule):
    """Trains one number and validates nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        raise AssertionError("there is no dev split")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_training_without_a_dev_split(corpus: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = L.Trainer(
        max_steps=4,
        limit_val_batches=0,  # what a trainer needs for data without a dev split
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Step(), datamodule=module(corpus, tokenizer, dev_documents=0))
    assert trainer.global_step == 4
