"""A teacher whose predictions are kept: KL over classes as in a naive loop, KL without a cache where all is kept."""

from __future__ import annotations

import errno
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.errors import NoSpace
from promptcomp.files import cache_folder
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.language_model.blending import Blend
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from tests.gist_modules import CONTEXTS
from tests.tiny_models import VOCABULARY, naive_log_probs, tiny_lm

KEPT: dict[str, Any] = {"kl_weight": 1.0, "teacher_cache": True, "num_slots": 2}
METHOD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("gist", {"train": "lora"}),
    ("gist", {"train": "lm"}),
    ("mend", {"slot_init": "vocabulary"}),
    ("pool", {}),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTCOMP_CACHE", str(tmp_path / "cache"))


def module(name: str = "gist", lm: LanguageModel | str = "llama", **options: Any) -> CompressionModule:
    section = METHODS[name](**{**KEPT, **options})
    made = section.module(tiny_lm(lm) if isinstance(lm, str) else lm, OptimConfig(), max_steps=1, seed=0)
    made.configure_model()
    return made.eval()


def kl(of: CompressionModule, batch: Batch) -> Tensor:
    (term,) = [term for term in of.losses(batch) if term.name == "kl"]
    return term.total / term.count


def forbid_the_teacher(of: CompressionModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(batch: Batch) -> Tensor:
        raise AssertionError("the teacher has been asked again")

    monkeypatch.setattr(of, "teach", refuse)


def test_predictions_for_mixed_words_are_not_kept() -> None:
    own, batch = module("pool").train(), collate(CONTEXTS)
    size = own.lm.vocab_size
    own._blend = Blend(torch.arange(size), torch.zeros(size))
    with torch.no_grad():
        kl(own, batch)
        assert not own._kept.path.exists()  # type: ignore[attr-defined]
        own._blend = None
        kl(own, batch)
    assert own._kept.path.exists()  # type: ignore[attr-defined]


@pytest.mark.parametrize("lm", ["llama", "gpt2", "t5_query_in_encoder", "t5_query_in_decoder"])
def test_the_classes_of_a_naive_loop(lm: str) -> None:
    """Ragged rows, two queries on one context, an empty context; of every position 5 tokens and all others."""
    own, batch = module(lm=lm, train="none", teacher_top_k=5), collate(CONTEXTS)
    with torch.no_grad():
        found = kl(own, batch)
        student = own.lm(own.compress(batch.context), batch).values.double().log_softmax(-1)
    total, position = 0.0, 0
    logits = own.lm(own.compress(batch.context), batch)
    rows = student[logits.predictor]
    for context in CONTEXTS:
        for query in context.queries:
            full = naive_log_probs(own.lm, context.ids, query.ids, query.targets[0].ids)
            for step in full.double():
                theirs, ours = step.exp().tolist(), rows[position].exp().tolist()
                top = sorted(range(VOCABULARY), key=lambda token: -theirs[token])[:5]
                classes = [(theirs[token], ours[token]) for token in top]
                classes.append((1 - sum(p for p, _ in classes), 1 - sum(q for _, q in classes)))
                total += sum(p * math.log(p / q) for p, q in classes)
                position += 1
    assert float(found) == pytest.approx(total / position, abs=1e-5)


@pytest.mark.parametrize("positions", ["targets", "all"])
@pytest.mark.parametrize(("name", "options"), METHOD_OPTIONS, ids=["lora", "lm", "mend", "pool"])
def test_all_tokens_are_the_loss_without_a_cache(
    name: str, options: dict[str, Any], positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where some rows are kept and others are not; what is kept needs no teacher and gives the same bits."""
    batch, options = collate(CONTEXTS), {**options, "kl_positions": positions, "temperature": 2.0}
    plain = module(name, teacher_cache=False, **options)
    own = module(name, teacher_top_k=1000, **options)
    wanted = kl(plain, batch)
    kl(own, collate(CONTEXTS[1:2]))  # a part of the rows
    first = kl(own, batch)
    torch.testing.assert_close(first, wanted, rtol=0, atol=1e-5)
    for term in (first, wanted):
        term.backward()
    for one, two in zip(own.trained_parameters().values(), plain.trained_parameters().values(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-5)
    again = module(name, teacher_top_k=1000, **options)
    forbid_the_teacher(again, monkeypatch)
    assert torch.equal(kl(again, batch), first)
    torch.testing.assert_close(kl(again, collate(CONTEXTS[:1])), kl(plain, collate(CONTEXTS[:1])))


def test_64_tokens_of_a_trained_lm() -> None:
    """The KL over classes is at most that over all tokens, and with 64 of a trained LM's hardly less."""
    lm = LanguageModel.from_config(LanguageModelConfig(path="builtin:toy_decoder"))
    assert lm.tokenizer is not None
    ids = lm.tokenizer("a big red fox => yes\na small cat => no\nthe dog =>", add_special_tokens=False).input_ids
    query = EncodedQuery(tuple(ids[-4:]), (EncodedTarget(tuple(ids[2:6])),))
    batch = collate([EncodedContext(tuple(ids[:-4]), (query,))])
    whole = module(lm=lm, train="none", teacher_cache=False, kl_positions="all")
    own = module(lm=lm, train="none", kl_positions="all")
    with torch.no_grad():
        full, kept = float(kl(whole, batch)), float(kl(own, batch))
    assert 0 <= full - kept < 0.1 * full


def test_other_weights_and_rows_are_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate(CONTEXTS)
    kl(module(), batch)
    other = tiny_lm("llama")
    with torch.no_grad():
        next(other.hf.parameters())[0, 0] += 1e-3
    again = module(lm=other)
    forbid_the_teacher(again, monkeypatch)
    with pytest.raises(AssertionError, match="asked again"):
        kl(again, batch)
    longer = EncodedContext((40, 41), (EncodedQuery((24, 25, 26, 27, 28), (EncodedTarget((36, 37, 38)),)),))
    same = module()
    forbid_the_teacher(same, monkeypatch)
    with pytest.raises(AssertionError, match="asked again"):
        kl(same, collate([longer]))
    assert len([*(cache_folder() / "teachers").iterdir()]) == 2


def test_a_kill_between_two_rows_and_a_file_that_is_none() -> None:
    own, batch = module(), collate(CONTEXTS)
    wanted = kl(own, batch)
    (path,) = (cache_folder() / "teachers").iterdir()
    with sqlite3.connect(path) as file:
        file.execute("DELETE FROM predictions WHERE rowid % 2")
    assert torch.allclose(kl(own, batch), wanted, atol=1e-6)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match=r"cannot be kept there .* remove the file"):
        kl(own, batch)


def test_a_full_disk_is_told_apart_from_other_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the error's number: a folder may be called full."""
    batch = collate(CONTEXTS)
    (tmp_path / "full").write_text("no folder")
    monkeypatch.setenv("PROMPTCOMP_CACHE", str(tmp_path / "full" / "cache"))
    with pytest.raises(ConfigError) as mistake:
        kl(module(), batch)
    assert not isinstance(mistake.value, NoSpace)

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", no_room)
    with pytest.raises(NoSpace):
        kl(module(), batch)


def test_a_row_without_a_position() -> None:
    """An empty query whose target is one token: nothing stands before it that would be compared."""
    alone = EncodedContext((40, 41), (EncodedQuery((), (EncodedTarget((36,)),)),))
    batch = collate([alone, CONTEXTS[1]])
    whole = module(teacher_cache=False)
    for _ in range(2):
        torch.testing.assert_close(kl(module(teacher_top_k=1000), batch), kl(whole, batch), rtol=0, atol=1e-5)


def test_teachers_that_move_are_refused() -> None:
    with pytest.raises(ValueError, match="changes with every step"):
        METHODS["gist"](**KEPT, teacher="self")
    METHODS["gist"](**KEPT, teacher="self", train="none")
    for name in ("gist", "mend", "icae"):
        with pytest.raises(ValueError, match="kl_weight above 0"):
            METHODS[name](**{**KEPT, "kl_weight": 0.0})
    problem = METHODS["pool"](**KEPT).strategy_problem("fsdp")
    assert problem is not None
    assert "use ddp" in problem
