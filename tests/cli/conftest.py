"""The program run in this process, and a tiny random LM of the toy world on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from promptcomp.cli import main
from promptcomp.toy.icl_world import toy_tokenizer


class Done(NamedTuple):
    """How the program ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The program's entry point, in an empty working directory."""
    return program(monkeypatch, capsys, tmp_path)


def program(monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], folder: Path) -> Run:
    """The program's entry point in a working directory, and what it prints as far as `capture` sees it."""

    def call(*words: str) -> Done:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["promptcomp", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capture.readouterr()
        return Done(int(stop.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 with dropout and the toy world's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_lm")
    tokenizer = toy_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_run(run: Run, tiny_lm: Path) -> Run:
    """`promptcomp fit` of a tiny MEND: call with a run directory's name and overrides."""

    def call(name: str, *overrides: str) -> Done:
        return run(
            "fit",
            "--method",
            "mend",
            "--run-dir",
            name,
            f"lm.path={tiny_lm}",
            "method.num_slots=2",
            "data.num_demonstrations=4",
            "data.queries_per_context=2",
            "data.world.num_test_tasks=4",
            "data.world.num_dev_tasks=4",
            "data.world.num_queries=4",
            "trainer.max_steps=8",
            "trainer.batch_size=2",
            "trainer.eval_every=3",
            "trainer.checkpoint_every=2",
            "trainer.accelerator=cpu",
            "evaluation.bootstrap_resamples=100",
            "evaluation.measure_cost=false",
            *overrides,
        )

    return call
