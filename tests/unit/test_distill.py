"""Cartridges: the distance to the whole context, what is trained, resumption, the file's use, and mistakes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import promptcomp
from promptcomp.batch import Context
from promptcomp.chat.replies import Reply
from promptcomp.cli import main
from promptcomp.config import ConfigError
from promptcomp.distilling import cartridge_training, self_study
from promptcomp.distilling.beside import Beside
from promptcomp.distilling.cartridge import (
    Agreement,
    Cartridge,
    TeacherAnswer,
    agreement,
    divergence,
    first_slots,
)
from promptcomp.distilling.cartridge_training import Training, TrainingPlan
from promptcomp.distilling.teacher_answers import Teacher
from promptcomp.distilling.work_folder import WorkFolder
from promptcomp.evaluation.bootstrap import wilson
from promptcomp.exports.card import of_prompt
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules.objective import class_divergence, class_log_probs
from promptcomp.memory import KVCache
from promptcomp.prompts.prompt_files import load_prompt
from promptcomp.rivals import NotMet
from tests.judge_server import Answer, completion, fault, serving
from tests.prompt_runs import save_lm
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_lm

WORDS = ["horse", "plum", "shirt", "apple", "cat", "tea", "owl", "boat", "leek", "violin", "salmon", "bench", "tiny"]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 40))
QUESTIONS = [" ".join(np.random.default_rng(i).choice(WORDS, 3)) for i in range(1, 17)]
CONTEXT = tuple(range(3, 23))
PLAN = TrainingPlan(steps=6, lr=0.05, batch_size=3, eval_every=2, seed=1)


def context_of(ids: Sequence[int]) -> Context:
    row = torch.tensor([list(ids)])
    return Context(row, torch.ones_like(row, dtype=torch.bool), row.new_zeros(1))


def answered(lm: LanguageModel, folder: Path, ids: Sequence[int] = CONTEXT, count: int = 6) -> list[TeacherAnswer]:
    queries = [tuple(int(i) for i in np.random.default_rng(n).integers(2, 60, 3 + n % 3)) for n in range(count)]
    teacher = Teacher(lm, lambda: lm.encode(context_of(ids)), lambda: False)
    with WorkFolder(folder) as work:
        return teacher.answers(queries, (7, 9), 5, work, 4, lambda count: None)


def test_the_divergence_is_that_of_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (4 * torch.randn(5, 40, generator=generator) for _ in range(2))
    top = teacher.topk(6, -1).indices
    found = class_divergence(student, class_log_probs(teacher, top), top)
    expected = 0.0
    for p_logits, q_logits, tokens in zip(teacher.tolist(), student.tolist(), top.tolist(), strict=True):
        p_all, q_all = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (p_logits, q_logits))
        classes = [[p_all[t] for t in tokens], [q_all[t] for t in tokens]]
        p, q = ([*own, 1 - sum(own)] for own in classes)
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_answers_are_the_lms_own_behind_the_whole_context(kind: str, tmp_path: Path) -> None:
    lm = tiny_lm(kind)
    for answer in answered(lm, tmp_path / "work"):
        sequence = [*CONTEXT, *answer.query]
        for label, top, log_probs in zip(answer.labels, answer.top, answer.log_probs, strict=True):
            with torch.no_grad():
                logits = lm.hf(torch.tensor([sequence])).logits[0, -1].double()
            assert label == int(logits.argmax())
            expected = logits.log_softmax(-1)[top.long()]
            torch.testing.assert_close(log_probs[:-1].double(), expected, atol=1e-4, rtol=1e-4)
            sequence.append(label)
        assert all(label not in (7, 9) for label in answer.labels[:-1])
        assert len(answer.labels) == 5 or answer.labels[-1] in (7, 9)


@pytest.mark.parametrize("slots", ["kv", "embeddings"])
@pytest.mark.parametrize(("kind", "bos"), [("llama", None), ("llama", 1), ("gpt2", None), ("opt", None)])
def test_a_cartridge_with_all_slots_starts_as_the_whole_context(
    kind: str, bos: int | None, slots: str, tmp_path: Path
) -> None:
    lm = tiny_lm(kind)
    lm.bos_id = bos
    answers = answered(lm, tmp_path / "work")
    all_of_it = len(CONTEXT) + lm.num_bos * (slots == "kv")
    start = Cartridge(first_slots(lm, CONTEXT, all_of_it, slots), torch.float32).memory()
    assert int(start.num_slots[0]) == all_of_it
    found = agreement(lm, start, answers, 4)
    assert found.kl == pytest.approx(0.0, abs=1e-5)
    assert (found.top1, found.exact) == (1.0, 1.0)
    assert agreement(lm, None, answers, 2).kl > 0.01


def test_it_starts_as_attention_matching_at_its_own_positions(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    answers = answered(lm, tmp_path / "work")
    beside = Beside(lm, context_of(CONTEXT), {}, True, lambda memory: agreement(lm, memory, answers, 4))
    name, start, reads, _ = beside.start(5, "kv", "auto")
    assert isinstance(start, KVCache)
    assert reads == 2
    assert (start.next_position.tolist(), start.num_slots.tolist()) == ([5], [5])
    found = dict(beside.rows({name: beside.rivals_of(5, "kv")[name]}))[name]
    assert found is not None
    assert agreement(lm, start, answers, 4).kl == pytest.approx(found["kl"], rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("phi", None),  # a part of each key turns
        ("stablelm", None),
        ("gpt2", "positions are not rotary"),
        ("hunyuan_v1_dense", "a way of its own"),  # normed after they are turned
        ("deepseek_v3", "holds latents"),
        ("gptj", "a way of its own"),
        ("gemma3_text", "look back over a window"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matching_starts_where_keys_can_be_moved(kind: str, reason: str | None, dtype: torch.dtype) -> None:
    lm = LanguageModel.from_parts(tiny_family(kind).to(dtype))
    beside = Beside(lm, context_of(CONTEXT), {}, True, lambda memory: Agreement(1.0, 0.0, 0.0))
    if reason is None:
        assert beside.matched(5).memory.next_position.tolist() == [5]  # type: ignore[union-attr]
        return
    with pytest.raises(NotMet, match=reason) as refused:
        beside.matched(5)
    start = beside.start(5, "kv", "auto")
    assert (start.name, start.instead) == ("first 5 tokens", str(refused.value))


def test_rounding_of_16_bits_is_no_other_turn() -> None:
    model = tiny_family("llama")
    for layer in model.model.layers:  # attention of trained LMs is as sharp
        for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
            weight.data *= 16
    lm = LanguageModel.from_parts(model.to(torch.bfloat16))
    beside = Beside(lm, context_of(CONTEXT), {}, True, lambda memory: Agreement(1.0, 0.0, 0.0))
    assert beside.start(5, "kv", "auto").name == beside.matched(5).name


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("kind", ["kv", "embeddings"])
def test_rivals_take_as_many_bytes_as_the_cartridge(kind: str, bos: int | None) -> None:
    lm = tiny_lm("llama")
    lm.bos_id = bos
    beside = Beside(lm, context_of(CONTEXT), {}, False, lambda memory: Agreement(1.0, 0.0, 0.0))
    own = lm.kv_bytes(first_slots(lm, CONTEXT, 5, kind))
    rows = dict(beside.rows(beside.rivals_of(5, kind)))
    assert {name: row and row["bytes"] for name, row in rows.items()} == {
        "first 5 tokens": own,
        "last 5 tokens": own,
    }


def test_training_brings_it_nearer_and_leaves_the_lm_and_position_0_alone(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    answers = answered(lm, tmp_path / "work", count=8)
    before = {name: value.clone() for name, value in lm.hf.state_dict().items()}
    start = first_slots(lm, CONTEXT, 4, "kv")
    assert isinstance(start, KVCache)
    cartridge = Cartridge(start, torch.float32)
    lm.requires_grad_(False)
    training = Training(lm, cartridge, PLAN, answers, answers, tmp_path / "state")
    assert training.run(lambda: False, lambda progress: None)
    progress, memory = training.progress, cartridge.memory()
    assert progress.best.kl < 0.7 * progress.looks[0][1].kl
    assert [step for step, _ in progress.looks] == [0, 2, 4, 6]
    assert agreement(lm, memory, answers, 4).kl == pytest.approx(progress.best.kl, rel=1e-4)
    assert isinstance(memory, KVCache)
    for now, then in zip(memory.layers, start.layers, strict=True):
        for one, other in zip(now, then, strict=True):
            assert torch.equal(one[:, :, 0], other[:, :, 0])
            assert not torch.equal(one[:, :, 1:], other[:, :, 1:])
    assert all(torch.equal(value, before[name]) for name, value in lm.hf.state_dict().items())


def test_a_killed_training_goes_on_with_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    answers = answered(lm, tmp_path / "work")
    monkeypatch.setattr(cartridge_training, "SAVE_SECONDS", 1e9)

    def training(name: str) -> Training:
        return Training(
            lm, Cartridge(first_slots(lm, CONTEXT, 4, "kv"), torch.float32), PLAN, answers, answers, tmp_path / name
        )

    whole = training("whole")
    whole.run(lambda: False, lambda progress: None)

    def killed(progress: Any) -> None:
        if progress.step == 3:  # one step after the last save
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training("killed").run(lambda: False, killed)
    again = training("killed")
    assert again.progress.step == 2
    again.run(lambda: False, lambda progress: None)
    assert again.progress.losses == whole.progress.losses
    assert again.progress.looks == whole.progress.looks
    assert all(torch.equal(a, b) for a, b in zip(again.cartridge.slots, whole.cartridge.slots, strict=True))


def test_slots_without_a_gradient_are_saved_and_read_again(tmp_path: Path) -> None:
    """HRM reads most of its layers without one."""
    lm = LanguageModel.from_parts(tiny_family("hrm_text")).requires_grad_(False)
    answers = answered(lm, tmp_path / "work")

    def training() -> Training:
        cartridge = Cartridge(first_slots(lm, CONTEXT, 4, "kv"), torch.float32)
        return Training(lm, cartridge, PLAN, answers, answers, tmp_path / "state")

    whole = training()
    assert whole.run(lambda: False, lambda progress: None)
    assert any(slot.grad is None for slot in whole.cartridge.slots)
    again = training()
    assert again.run(lambda: False, lambda progress: None)
    assert again.progress.losses == whole.progress.losses
    assert all(torch.equal(a, b) for a, b in zip(again.cartridge.slots, whole.cartridge.slots, strict=True))


def test_questions_of_a_step_are_random_orders_one_after_the_other() -> None:
    drawn = [number for step in range(7) for number in cartridge_training.chosen(7, 4, step, 3)]
    assert all(sorted(drawn[start : start + 7]) == list(range(7)) for start in range(0, 28, 7))
    assert drawn[:7] != drawn[7:14]


# ---- self-study


def test_self_study_keeps_what_was_asked(tmp_path: Path) -> None:
    calls: list[int] = []

    def ask(requests: Sequence[str], most: int, seed: int) -> list[Reply]:
        calls.append(seed)
        if len(calls) == 2 and tmp_path.joinpath("stop").exists():
            raise KeyboardInterrupt
        assert all('"' in request for request in requests)
        texts = [f"1. Question: what is number {seed} {n}? And more" for n in range(len(requests))]
        return [Reply(text, 5, 6, None, None) for text in [*texts[:-2], "", texts[0]]]

    whole, kept = self_study.study(tmp_path / "whole.jsonl", TEXT, 30, 0, ask)
    assert len(whole) == len(set(whole)) == 30
    assert "what is number 0 0?" in whole
    assert any(text.startswith("Go on with the text") for text in whole)
    assert sum(each.prompt_tokens or 0 for each in kept) > 0
    calls.clear()
    (tmp_path / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        self_study.study(tmp_path / "killed.jsonl", TEXT, 30, 0, ask)
    (tmp_path / "stop").unlink()
    again, _ = self_study.study(tmp_path / "killed.jsonl", TEXT, 30, 0, ask)
    assert again == whole
    assert calls[1] == calls[2]  # the first batch is not asked again, the interrupted one with the same draws


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ('"Who built the tower in Rome?" Because', "Who built the tower in Rome?"),
        ("\n- What is it about? It is", "What is it about?"),
        ("Question 2: Why is it so\uff1f", "Why is it so\uff1f"),
        ("The tower is tall.", ""),
        ("Sure, here it is:\n\nWhat is the tower for?", "What is the tower for?"),
        ("Why?", ""),
        ("<think>\nWhat should I ask?\n</think>\n\nWhat is the tower for?", "What is the tower for?"),
        ("<think>\nWhat should I ask?\n", ""),
        ("", ""),
    ],
)
def test_questions_are_found_in_replies(reply: str, question: str) -> None:
    assert self_study.the_question(reply) == question


# ---- the command


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lms")
    return {kind: save_lm(folder / kind, kind) for kind in ("gpt2", "t5")}


@pytest.fixture
def call(
    tmp_path: Path, lms: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "questions.txt").write_text("\n".join([*QUESTIONS, QUESTIONS[0]]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["promptcomp", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def words(lms: dict[str, Path], *more: str, kind: str = "gpt2", questions: bool = True) -> list[str]:
    own = ["distill", "--lm", str(lms[kind]), "--text", "text.txt", "--slots", "6", "-o", "memory.safetensors"]
    own += ["--questions", "questions.txt"] if questions else []
    return [*own, "--steps", "4", "--eval-every", "2", "--answer-tokens", "4", "--device", "cpu", *more]


def test_the_file_is_a_compressed_prompt(
    call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], tmp_path: Path
) -> None:
    code, out, err = call(*words(lms, "--slots", "6,4", "--json"))
    assert code == 0, err
    files = json.loads(out)["files"]
    assert [Path(each["file"]).name for each in files] == ["memory-6.safetensors", "memory-4.safetensors"]
    assert files[0]["cost"]["questions"] == len(QUESTIONS)
    assert [set(each) for each in files[0]["examples"]] == 3 * [{"question", "whole", "cartridge"}]
    assert all(each["question"] in QUESTIONS for each in files[0]["examples"])
    rows = files[0]["held_out"]
    assert {"no context", "first 6 tokens", "last 6 tokens", "cartridge", "the whole text"} == set(rows)
    per_token = rows["the whole text"]["bytes"] / rows["the whole text"]["slots"]
    assert rows["the whole text"]["slots"] == files[0]["tokens"]
    assert rows["cartridge"]["bytes"] == rows["last 6 tokens"]["bytes"] == 6 * per_token
    assert len(list((tmp_path / "memory.distill" / "answers").iterdir())) == 1
    prompt = load_prompt("memory-6.safetensors", device="cpu")
    assert (prompt.info.slots, prompt.info.next_position, prompt.info.run) == (6, 6, None)
    code, out, err = call("generate", "--prompt", "memory-6.safetensors", "cat tea", "--max-new-tokens", "3")
    assert code == 0, err
    about = "".join(of_prompt(prompt.info, ""))
    exact, count = rows["cartridge"]["exact"], files[0]["cost"]["held_out_questions"]
    low, high = wilson(exact * count, count) or (0, 0)
    assert f"| {exact:.3f} [{low:.3f}, {high:.3f}] |" in about
    assert f"On {count:.0f} questions that it was not trained with" in about
    code, out, err = call("inspect", "memory-6.safetensors")
    assert [line for line in out.splitlines() if line.split()[:2] == ["cartridge", f"{rows['cartridge']['kl']:.3f}"]]
    assert "flops=" in out
    code, out, err = call(
        "bench", "memory-4.safetensors", "--new-tokens", "2", "--repeats", "3", "--batch-sizes", "1", "--json"
    )
    assert code == 0, err
    records = {record["way"]: record for record in json.loads(out)["records"]}
    assert records["compressed"]["positions"] == 4
    assert records["compressed"]["prompt_tokens"] == prompt.info.source_tokens
    assert records["compressed"]["making"]["flops"] == files[1]["cost"]["flops"]
    assert records["compressed"]["making"]["ms"]["median"] > 1000 * files[1]["cost"]["seconds"]
    assert call("bench", "memory-4.safetensors", "optim.lr=1")[0] == 2
    # the same command again makes nothing anew, a file of somebody else is not replaced
    before = Path("memory-6.safetensors").stat().st_mtime_ns
    code, out, err = call(*words(lms, "--slots", "6,4", "--json"))
    assert code == 0, err
    assert json.loads(out)["files"][0]["held_out"] == files[0]["held_out"]
    assert Path("memory-6.safetensors").stat().st_mtime_ns > before
    Path("memory-6.safetensors").write_bytes(b"mine")
    code, out, err = call(*words(lms, "--slots", "6,4"))
    assert code == 2
    assert "exists already" in err


def test_rivals_and_other_texts_stand_beside_it(
    call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], tmp_path: Path
) -> None:
    for folder, text in (("short", " ".join(TEXT.split()[:12])), ("long", TEXT)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cartridge").write_text(text)  # the name of another row
    files = ("--beside", "short/cartridge", "--beside", "long/cartridge")
    code, out, err = call(*words(lms, "--slots", "6,4", "--rivals", *files, "--json"))
    assert code == 0, err
    six, four = (each["held_out"] for each in json.loads(out)["files"])
    short, again = six["short/cartridge"], six["long/cartridge"]
    assert short == four["short/cartridge"]
    code, _, err = call(*words(lms, *files, "--beside", "./short/cartridge"))
    assert (code, "the same file is given twice" in err) == (2, True)
    assert (short["bytes"] < again["bytes"], again["top1"], again["exact"]) == (True, 1.0, 1.0)
    assert again["kl"] == pytest.approx(0, abs=1e-6)
    assert six["quantised cache (8 bits)"]["kl"] < six["quantised cache (4 bits)"]["kl"]
    assert six["quantised cache (4 bits)"]["bytes"] < six["the whole text"]["bytes"] / 2
    for score in ("streaming", "knorm", "snapkv", "kvzip"):
        for slots, found in ((6, six), (4, four)):
            evicted = next(row for name, row in found.items() if name.startswith(f"evicted cache ({score}"))
            assert (evicted["slots"], evicted["bytes"]) == (slots, found["cartridge"]["bytes"])
    code, out, err = call(*words(lms, "--slots", "6,4", "--beside", "none.txt"))
    assert code == 2
    assert "none.txt: no such file" in err


def test_ctrl_c_keeps_the_best_and_the_same_command_goes_on(
    call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training._step

    def interrupted(training: Training) -> float:
        if training.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", interrupted)
        code, out, err = call(*words(lms))
    assert code == 130, err
    assert "stopped after step 3 of 4" in out
    assert "is kept, and the same command goes on" in out
    assert load_prompt("memory.safetensors").info.cost["steps"] == 3
    code, out, err = call(*words(lms))
    assert code == 0, err
    assert load_prompt("memory.safetensors").info.cost["steps"] == 4
    monkeypatch.setattr(Training, "_step", interrupted)
    code, out, err = call(*words(lms, "--steps", "6"))
    assert code == 130, err
    assert "memory.safetensors stays the finished one of an earlier call" in out.replace("\n", " ")
    assert load_prompt("memory.safetensors").info.cost["steps"] == 4


def test_ctrl_c_between_answers_keeps_those_that_are_there(
    call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make, made = Teacher._make, []

    def interrupted(teacher: Teacher, *given: Any) -> None:
        made.append(given)
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        make(teacher, *given)

    monkeypatch.setattr(Teacher, "_make", interrupted)
    code, out, err = call(*words(lms, "--answer-batch", "6"))
    assert code == 130, err
    assert "the questions and answers so far are kept" in out
    assert len(list((tmp_path / "memory.distill" / "answers").iterdir())) == 1
    made.append(())
    assert call(*words(lms, "--answer-batch", "6"))[0] == 0
    assert len(made) == 2 + 1 + 2  # the first batch was not made again


def test_another_lm_asks_at_an_endpoint(
    call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")

    def asked(number: int, request: dict[str, Any]) -> Answer:
        assert [turn["role"] for turn in request["messages"]] == ["system", "user"]
        assert request["messages"][0]["content"] == TEXT
        if number == 2:
            return fault(400, "too long")
        return completion(f"What is the {number}th word of it?" if number % 3 else "No question.")

    more = ["--num-questions", "12", "--ask-model", "big", "--ask-url"]
    with serving(asked) as server:
        code, _out, err = call(*words(lms, *more, server.url, questions=False))
        assert code == 0, err
        kept = Path("memory.distill/questions.jsonl").read_text()
        assert "What is the 1th word of it?" in kept
        served = len(server.requests)
        assert call(*words(lms, *more, server.url, questions=False))[0] == 0
        assert len(server.requests) == served  # nothing is asked again
        code, _out, err = call(*words(lms, *more[:2], questions=False))
        assert code == 2
        assert "set of questions" in err
        server.rule = lambda number, request: fault(401, "no such key")
        code, _out, err = call(*words(lms, *more, server.url, "--work", "w", "-o", "w.safetensors", questions=False))
        assert code == 1
        assert "no such key" in err
        assert "the same command goes on" in err


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(
    call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("openai")

    def hangs(number: int, request: dict[str, Any]) -> Answer:
        os.kill(os.getpid(), signal.SIGINT)
        return Answer(delay=30.0)

    more = ["--num-questions", "12", "--ask-model", "big", "--ask-url"]
    with serving(hangs) as server:
        code, out, err = call(*words(lms, *more, server.url, questions=False))
    assert code == 130, err
    assert "the same command goes on" in out


def test_a_date_in_the_chat_template_stays_that_of_the_first_day(
    call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(lms["gpt2"], tmp_path / "dated")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dated")
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} tea{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "dated")
    code, out, err = call(*words({"gpt2": tmp_path / "dated"}))
    assert code == 0, err
    assert "the slots keep 20" in out
    kept = tmp_path / "memory.distill" / "distill.json"
    before = json.loads(kept.read_text())
    kept.write_text(json.dumps({**before, "day": "2001-02-03"}))  # as if it had been begun then
    code, out, err = call(*words({"gpt2": tmp_path / "dated"}))
    assert code == 0, err
    assert "the slots keep 2001-02-03" in out


MISTAKES = {
    "two askers": (["--ask-model", "big"], "--questions are the questions, and --ask-model would write others"),
    "no asker": (["--ask-url", "http://x/v1"], "--ask-url is the server of --ask-model"),
    "slots": (["--slots", "400"], "--slots 400: the text has only"),
    "one slot": (["--slots", "1"], "--slots 1: keys and values at position 0"),
    "no number": (["--slots", "few"], "--slots 'few': give whole numbers"),
    "kind": (["--kind", "kvs"], "--kind 'kvs' is not known"),
    "query": (["--query", "Q:"], "write {input} once"),
    "chat": (["--template", "chat"], "has no chat template; give plain"),
    "window": (["--answer-tokens", "250"], "do not fit the LM's window of 256"),
    "nothing": (["--text", "nowhere.txt"], "nowhere.txt: no such file"),
    "empty text": (["--text", "empty.txt"], "empty.txt: is empty or only white space"),
    "empty questions": (["--questions", "empty.txt"], "empty.txt: holds no query"),
    "held out": (["--held-out", "16"], "of 16 different questions 16 cannot be held out"),
    "folder": (["-o", "nowhere/x.safetensors"], "does not exist; make it first"),
    "lm": (["--lm", "./nowhere"], "no such folder"),
    "dtype": (["--dtype", "int8"], "dtype"),
    "seed": (["--seed", "-1"], "--seed -1: give a whole number from 0"),
    "start": (["--start", "last"], "--start 'last' is not known"),
    "start of vectors": (["--start", "matching", "--kind", "embeddings"], "--start matching is for keys and values"),
    "start of absolute positions": (["--start", "matching"], "positions are not rotary"),
    "rate": (["--lr", "inf"], "--lr inf: give a finite number"),
    "long text beside it": (["--beside", "long.txt"], "long.txt: a text of 400 tokens, a question of"),
    "no file": (["-o", "."], ".: is a folder; name a file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(
    name: str, call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "long.txt").write_text("cat " * 400)
    more, message = MISTAKES[name]
    code, _, err = call(*words(lms, *more))
    assert (code, err.count("error:")) == (2, 1), err
    assert message in " ".join(err.split())


def test_mistakes_about_texts_and_models(
    call: Callable[..., tuple[int, str, str]], lms: dict[str, Path], tmp_path: Path
) -> None:
    code, _, err = call(*words(lms, kind="t5"))
    assert code == 2
    assert "is an encoder-decoder" in err
    (tmp_path / "few.txt").write_text(QUESTIONS[1])
    code, _, err = call(*words(lms, "--questions", "few.txt"))
    assert (code, "two different questions are needed" in err) == (2, True)
    assert call(*words(lms))[0] == 0  # nothing was answered for the few
    (tmp_path / "text.txt").write_text("cat tea owl")
    code, _, err = call(*words(lms, "--slots", "2"))
    assert code == 2
    assert "memory.distill: its questions and answers were made with another text" in err
    for answers in Path("memory.distill/answers").iterdir():
        answers.unlink()
    code, _, err = call(*words(lms, "--slots", "2"))
    assert (code, "were made with another text" in err) == (2, True)  # slots of the text are there
    (tmp_path / "memory.distill" / "distill.json").write_text("[1]")
    code, _, err = call(*words(lms, "--slots", "2"))
    assert (code, "distill.json: is damaged" in err) == (2, True)
    code, _, err = call(*words(lms, "--ask-model", "", questions=False))
    assert (code, "'' is no name of a model" in err) == (2, True)
    code, _, err = call(*words(lms, "--slots", "2", "--work", "other", "--force", questions=False))
    assert code == 2
    assert "the text has 3 words, too few to ask questions about" in err
    (tmp_path / "text.txt").write_text(TEXT)
    code, _, err = call(*words(lms, "--work", "third", "--force", "--num-questions", "40", questions=False))
    assert code in (0, 2)  # a random LM may write a question mark
    assert code == 0 or "give questions of your own" in err


def test_python(lms: dict[str, Path], tmp_path: Path) -> None:
    found = promptcomp.distill(str(lms["gpt2"]), TEXT, slots="4", questions=QUESTIONS, steps=2, kind="embeddings")
    assert isinstance(found[4].generate("cat tea", max_new_tokens=2), str)
    assert found[4].info.held_out["cartridge"]["kl"] > 0
    with pytest.raises(ConfigError, match="'step' is no setting; did you mean 'steps'"):
        promptcomp.distill(str(lms["gpt2"]), TEXT, step=2)
    with pytest.raises(ConfigError, match="'num_questions' is for questions that an LM asks"):
        promptcomp.distill(str(lms["gpt2"]), TEXT, questions=QUESTIONS, num_questions=8)


def test_a_text_that_changes_nothing_has_no_gap_to_close(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    lm = save_lm(tmp_path / "lm", "llama")
    model = AutoModelForCausalLM.from_pretrained(lm)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    model.save_pretrained(lm)
    asked = ("--text", "text.txt", "--questions", "questions.txt", "--slots", "4", "--steps", "1")
    code, out, err = call("distill", "--lm", "lm", *asked, "-o", "a.safetensors")
    assert code == 0, err
    assert "where there is none: the text changes no prediction." in " ".join((out + err).split())
    assert all("gap_closed" not in row for row in load_prompt("a.safetensors").info.held_out.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": None}, "a text must be a text, not NoneType"),
        ({"questions": "cat tea"}, "give questions as a list of texts"),
        ({"questions": [1, 2]}, "a question must be a text, not int"),
        ({"beside": ["cat"]}, "`beside` as a dictionary"),
        ({"steps": 2.5}, "--steps 2.5: give a whole number"),
        ({"steps": 0}, "--steps 0: give a whole number from 1"),
        ({"lr": "1e-2"}, "--lr '1e-2': give a number"),
        ({"batch_size": True}, "--batch_size True: give a whole number"),
    ],
)
def test_values_of_python_are_checked(lms: dict[str, Path], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        promptcomp.distill(lms["gpt2"], **{"text": TEXT, "questions": QUESTIONS, "slots": 4, **settings})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_model_in_training_mode_comes_back_so(tmp_path: Path, dtype: torch.dtype) -> None:
    lm = save_lm(tmp_path / "lm", "llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lm, dtype=dtype).train(), AutoTokenizer.from_pretrained(lm)
    asked = iter(QUESTIONS)
    found = promptcomp.distill(model, TEXT, tokenizer=tokenizer, slots=4, questions=asked, steps=np.int64(2))[4]
    assert all(each.training for each in model.modules())
    assert found.info.settings["start"].startswith("attention matching")
    assert math.isfinite(found.info.held_out["cartridge"]["kl"])


def test_in_a_chat_the_slots_stand_where_the_system_turn_stood(lms: dict[str, Path]) -> None:
    model, tokenizer = (auto.from_pretrained(lms["gpt2"]) for auto in (AutoModelForCausalLM, AutoTokenizer))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ; ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant :' }}{% endif %}"
    )
    trains = [parameter.requires_grad for parameter in model.parameters()]
    settings = {"slots": 4, "questions": QUESTIONS, "steps": 1, "query": "ask {input}", "tokenizer": tokenizer}
    info = promptcomp.distill(model, TEXT, **settings)[4].info
    assert info.query == " ; user : ask {input} ; assistant :"
    turns = [{"role": "system", "content": TEXT}, {"role": "user", "content": "ask cat"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    query = tokenizer(info.query.replace("{input}", "cat"), add_special_tokens=False).input_ids
    assert info.source_tokens + len(query) == len(tokenizer(whole, add_special_tokens=False).input_ids)
    assert [parameter.requires_grad for parameter in model.parameters()] == trains
    assert not info.trims
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "(m['content'] | trim)")
    assert promptcomp.distill(model, TEXT, **{**settings, "query": None})[4].info.trims


def test_the_distance_has_a_gradient_in_the_trained_slots_alone(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    answers = answered(lm, tmp_path / "work")
    lm.requires_grad_(False)
    cartridge = Cartridge(first_slots(lm, CONTEXT, 5, "kv"), torch.float32)
    total, _ = divergence(lm, cartridge.memory(), answers)
    total.backward()
    assert all(slot.grad is not None and slot.grad.abs().sum() > 0 for slot in cartridge.slots)
    assert all(slot.shape[2] == 4 for slot in cartridge.slots)
