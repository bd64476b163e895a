"""The judge's parts: texts, pairs, order, answers, record, win rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptcomp.chat.answer_file import AnswerFile
from promptcomp.chat.replies import Reply
from promptcomp.errors import ConfigError
from promptcomp.evaluation.bootstrap import wilson
from promptcomp.judge.judging import summarise
from promptcomp.judge.pairs import Pair, choose, is_swapped, match, read_side
from promptcomp.judge.verdicts import Exchange, Judgement, JudgementHeader, load_prompt, parse_answer

GOOD = '{"reason": "because", "choice": "A"}'


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        (GOOD, "A"),
        ('{"reason": "because", "choice": "b"}', "B"),
        ('{"choice": " Tie ", "reason": "", "more": 1}', "tie"),
        (f"```json\n{GOOD}\n```", "A"),
        (f"```\n{GOOD}```", "A"),
        (f"My judgement: {GOOD} I hope this helps.", "A"),
        (f'<think>{{"reason": "x", "choice": "B"}} no</think>{GOOD}', "A"),
        ('{"reason": "two\nlines", "choice": "A"}', "A"),
        (f"{{not this}} {GOOD}", "A"),
        (f"{GOOD}\n{GOOD}", "A"),
        ('{"answer": 1} ' + GOOD, "A"),
        ('{"reason": "I would write {\\"choice\\": \\"B\\"} but", "choice": "A"}', "A"),
        (GOOD + '{"reason": "no", "choice": "B"}', None),
        ('{"reason": "because", "choice": "C"}', None),
        ('{"reason": "because", "choice": 1}', None),
        ('{"choice": "A"}', None),
        ('["A"]', None),
        ("A", None),
        ("", None),
        (f"<think>At first {GOOD}, but then", None),
        ('{"reason": "because", "cho', None),
        ('{"a":' * 100_000, None),
    ],
)
def test_answers(text: str, choice: str | None) -> None:
    answer = parse_answer(text)
    assert (answer.choice if answer else None) == choice


def _line(example: int, text: str, **changes: Any) -> dict[str, Any]:
    line = {
        "split": "unseen",
        "example": example,
        "context": example // 2,
        "instruction": f"Do {example // 2}",
        "input": f"in {example}",
        "texts": {"method": text, "full_prompt": f"full {example}", "no_prompt": None},
        "reference": "gold",
        "scores": {},
    }
    return {**line, **changes}


def _run(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return folder


def test_runs_are_matched_by_split_and_example(tmp_path: Path) -> None:
    run_a = _run(tmp_path / "a", [_line(i, f"a{i}") for i in range(4)] + [_line(0, "x", split="seen")])
    run_b = _run(tmp_path / "b", [_line(i, f"b{i}") for i in (3, 1, 7)] + [_line(9, "x", texts=None)])
    matched = match(read_side(run_a), read_side(run_b))
    assert [(p.example, p.text_a, p.text_b) for p in matched.pairs] == [("1", "a1", "b1"), ("3", "a3", "b3")]
    assert (matched.only_a, matched.only_b) == (3, 1)
    assert matched.pairs[0].question == "Do 0\n\nin 1"
    assert (matched.pairs[0].reference, matched.pairs[0].context) == ("gold", "0")
    with pytest.raises(ConfigError, match="no texts for split 'human'"):
        match(read_side(run_a), read_side(run_b), ["human"])


def test_a_run_against_its_own_full_prompt(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", [_line(i, f"a{i}") for i in range(2)])
    matched = match(read_side(run), read_side(run, "full_prompt"))
    assert [p.text_b for p in matched.pairs] == ["full 0", "full 1"]
    with pytest.raises(ConfigError, match="with itself"):
        match(read_side(run), read_side(run))
    with pytest.raises(ConfigError, match="no texts of row 'no_prompt'"):
        read_side(run, "no_prompt")
    with pytest.raises(ConfigError, match="row 'full' is not known"):
        read_side(run, "full")
    line = _line(0, "a")
    line["texts"] = {**line["texts"], "truncate_tail": "short"}
    rival = _run(tmp_path / "b", [line])
    assert [p.text_b for p in match(read_side(rival), read_side(rival, "truncate_tail")).pairs] == ["short"]
    with pytest.raises(ConfigError, match="full_prompt, truncate_tail"):
        read_side(rival, "truncate_head")


def test_other_questions_are_refused(tmp_path: Path) -> None:
    run_a = _run(tmp_path / "a", [_line(i, "a") for i in range(3)])
    run_b = _run(tmp_path / "b", [_line(i, "b", input="other" if i == 2 else f"in {i}") for i in range(3)])
    with pytest.raises(ConfigError, match="differs in 1 of 3 shared examples, first in split 'unseen', example 2"):
        match(read_side(run_a), read_side(run_b))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": None}, "holds no generated texts; `promptcomp evaluate"),
        ({"instruction": None}, "line 1: has no 'instruction' and 'input'"),
    ],
)
def test_runs_without_what_is_needed(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_side(_run(tmp_path / "a", [_line(0, "a", **changes)]))
    assert words in str(error.value)


def test_tables(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('\ufeffid,instruction,input,text\n1,Say,"x, y","two\nlines"\n2,Say,,hm\n', encoding="utf-8")
    side = read_side(table)
    assert [(key, item.input, item.text) for key, item in side.items.items()] == [
        (("all", "1"), "x, y", "two\nlines"),
        (("all", "2"), "", "hm"),
    ]
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"id": 2, "instruction": "Say", "input": "", "text": "no", "split": "all"}\n\n', encoding="utf-8")
    assert [p.text_b for p in match(side, read_side(lines)).pairs] == ["no"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.jsonl", "", "holds no examples"),
        ("t.jsonl", "{", "line 1: not valid JSON"),
        ("t.jsonl", "[]", "line 1: expected an object"),
        ("t.jsonl", '{"id": 1, "text": "x"}', "line 1: no instruction, input"),
        ("t.jsonl", '{"id": 1, "instruction": "", "input": 3, "text": "x"}', "line 1: 'input' is no text"),
        ("t.csv", "id,instruction,input,text\n1,a,b\n", "line 2: no text"),
        ("t.csv", "id,instruction,input,text\n1,a,b,c\n1,a,b,c\n", "line 3: example 1 of split 'all' occurs twice"),
        ("t.csv", 'id,instruction,input,text\n1,a,b,"c\n', "not valid CSV"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_side(tmp_path / name)
    assert words in str(error.value)


def _pairs(count: int, split: str = "s") -> list[Pair]:
    return [Pair(split, str(i), f"q{i}", "", f"a{i}", f"b{i}", None, str(i)) for i in range(count)]


def test_the_order_is_a_fair_coin_of_seed_split_and_example() -> None:
    drawn = [is_swapped(42, "seen", str(i)) for i in range(2000)]
    assert drawn == [is_swapped(42, "seen", str(i)) for i in range(2000)]
    assert abs(np.mean(drawn) - 0.5) < 0.04
    assert drawn != [is_swapped(43, "seen", str(i)) for i in range(2000)]
    assert drawn != [is_swapped(42, "unseen", str(i)) for i in range(2000)]


def test_more_examples_keep_the_fewer() -> None:
    pairs = _pairs(20) + _pairs(3, "t")
    few, more = choose(pairs, 5, 1), choose(pairs, 9, 1)
    assert (len(few), len(more)) == (8, 12)
    assert set(few) < set(more)
    assert choose(pairs, None, 1) == pairs


def test_the_prompt_shows_texts_as_they_are(tmp_path: Path) -> None:
    pair = Pair("s", "1", "Use {answer_b}", "{question} \\1", "{answer_b}", "  ", None, "1")
    system, user = load_prompt().messages(pair, swapped=False)
    assert system["content"].startswith("You compare")
    assert "<task>\nUse {answer_b}\n\n{question} \\1\n</task>" in user["content"]
    assert "<answer_a>\n{answer_b}\n</answer_a>" in user["content"]
    assert "<answer_b>\n[the answer is empty]\n</answer_b>" in user["content"]
    own = tmp_path / "p.txt"
    own.write_text(
        "--- system ---\nS\n--- user ---\n{question}|{answer_a}|{answer_b}|{reference}\n--- again ---\nX\n", "utf-8"
    )
    prompt = load_prompt(own)
    assert prompt.messages(_pairs(1)[0], swapped=True)[1]["content"] == "q0|b0|a0|[there is none]"
    assert prompt.sha256 != load_prompt().sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Judge!", "found: none"),
        ("--- system ---\na\n--- user ---\nb\n", "found: system, user"),
        ("--- system ---\na\n--- user ---\n{question}{answer_a}\n--- again ---\nc\n", "must be shown {answer_b}"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_prompt(tmp_path / "p.txt")
    assert words in str(error.value)


def _header(**changes: Any) -> JudgementHeader:
    values = {"judge": "m", "prompt_sha256": "p" * 64, "max_tokens": 300, "a": "a", "b": "b", **changes}
    return JudgementHeader.model_validate(values)


def _exchange(pair: Pair, swapped: bool = False, attempts: int = 2) -> Exchange:
    return Exchange(pair, swapped, load_prompt(), _header(), attempts)


def _reply(text: str, prompt: int | None = None, completion: int | None = None, reason: str = "stop") -> Reply:
    return Reply(text, prompt, completion, reason, None)


def _judged(exchange: Exchange, choice: str) -> Judgement:
    judgement = exchange.take(_reply(json.dumps({"reason": "r", "choice": choice}), 10, 2))
    assert judgement is not None
    return judgement


def test_an_exchange_asks_again_and_then_gives_up() -> None:
    exchange = _exchange(_pairs(1)[0], swapped=True)
    assert len(exchange.messages) == 2
    assert exchange.take(_reply("what?", 10, 2)) is None
    assert [message["role"] for message in exchange.messages] == ["system", "user", "assistant", "user"]
    judgement = exchange.take(_reply("eh", 20, None, "length"))
    assert judgement is not None
    assert (judgement.choice, judgement.winner, judgement.attempts, judgement.cut) == (None, None, 2, True)
    assert (judgement.answers, judgement.prompt_tokens, judgement.completion_tokens) == (("what?", "eh"), 30, None)


def test_winners_are_told_by_side() -> None:
    for swapped, choice, winner in ((False, "A", "a"), (True, "A", "b"), (True, "B", "a"), (True, "tie", "tie")):
        assert _judged(_exchange(_pairs(1)[0], swapped), choice).winner == winner


def test_keys_depend_on_all_that_decides() -> None:
    pair = _pairs(1)[0]
    other = Pair("s", "0", "q0", "", "a0", "b0!", None, "0")
    keys = {_exchange(pair).key, _exchange(pair, True).key, _exchange(other).key}
    keys.add(Exchange(pair, False, load_prompt(), _header(judge="n"), 2).key)
    assert len(keys) == 4
    assert _exchange(pair).key == _exchange(pair, attempts=5).key


def test_the_record_survives_a_torn_line(tmp_path: Path) -> None:
    path, lines = tmp_path / "new" / "j.jsonl", [_judged(_exchange(pair), "A") for pair in _pairs(3)]
    with AnswerFile(path, _header(), Judgement) as record:
        for line in lines:
            record.append(line)
    whole = path.read_bytes()
    for cut in range(1, 60, 7):
        path.write_bytes(whole[:-cut])
        with AnswerFile(path, _header(), Judgement) as record:
            assert list(record.entries) == [line.key for line in lines[:2]]
            record.append(lines[2])
        assert path.read_bytes() == whole


def test_a_torn_header_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    for start in (b"", b'{"for', b'{"format":"promptcomp-judgements","ver'):
        path.write_bytes(start)
        with AnswerFile(path, _header(), Judgement) as record:
            record.append(_judged(_exchange(_pairs(1)[0]), "A"))
        with AnswerFile(path, _header(), Judgement) as record:
            assert len(record.entries) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge": "n"}, "another judge: m, now n"),
        ({"prompt_sha256": "q" * 64}, "another judge prompt"),
        ({"max_tokens": 9}, "another --max-tokens: 300, now 9"),
    ],
)
def test_other_judges_are_not_mixed(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "j.jsonl"
    AnswerFile(path, _header(), Judgement).__exit__()
    with AnswerFile(path, _header(**changes), Judgement):
        pass  # nothing was judged yet: the file is the new judge's
    with AnswerFile(path, _header(), Judgement) as record:
        record.append(_judged(_exchange(_pairs(1)[0]), "A"))
    before = path.read_bytes()
    with pytest.raises(ConfigError) as error:
        AnswerFile(path, _header(**changes), Judgement)
    assert words in str(error.value)
    assert "name a new file with -o" in str(error.value)
    assert path.read_bytes() == before


def test_files_that_are_no_records_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("dear diary\nno line end", "x", '{"format": "other"}\n'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="not a file of judgements"):
            AnswerFile(path, _header(), Judgement)
        assert path.read_text(encoding="utf-8") == text
    with pytest.raises(ConfigError, match="cannot be written"):
        AnswerFile(tmp_path, _header(), Judgement)


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with AnswerFile(path, _header(), Judgement) as record:
        record.append(_judged(_exchange(_pairs(1)[0]), "A"))
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(ConfigError, match="line 3: not a judgement"):
        AnswerFile(path, _header(), Judgement)


def test_two_processes_do_not_share_a_record(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with AnswerFile(path, _header(), Judgement), pytest.raises(ConfigError, match="another process"):
        AnswerFile(path, _header(), Judgement)


def _summary(choices: list[tuple[bool, str | None]], **changes: Any) -> Any:
    pairs, judgements = [], {}
    for pair, (swapped, choice) in zip(_pairs(len(choices)), choices, strict=True):
        exchange = _exchange(pair, swapped, attempts=1)
        pairs.append((pair, exchange))
        line = exchange.take(_reply("?")) if choice is None else _judged(exchange, choice)
        assert line is not None
        judgements[line.key] = line
    values = {"malformed": "drop", "seed": 0, **changes}
    return summarise("s", pairs, judgements, values["malformed"], values["seed"])


def test_win_rate_and_position() -> None:
    found = _summary([(False, "A"), (True, "A"), (True, "B"), (False, "tie"), (True, None)])
    assert (found.count, found.wins, found.losses, found.ties, found.malformed) == (4, 2, 1, 1, 1)
    assert found.win_rate == 2.5 / 4
    assert found.first_rate == 2 / 3
    assert (found.win_rate_shown_first, found.win_rate_shown_second) == (0.75, 0.5)
    as_ties = _summary([(False, "A"), (True, None)], malformed="tie")
    assert (as_ties.count, as_ties.win_rate, as_ties.ties, as_ties.malformed) == (2, 0.75, 0, 1)


def test_identical_and_missing_pairs() -> None:
    first, second, third = _pairs(3)
    exchange = _exchange(first)
    judgement = _judged(exchange, "A")
    pairs = [(first, exchange), (second, None), (third, _exchange(third))]
    found = summarise("s", pairs, {judgement.key: judgement}, "drop", 0)
    assert (found.count, found.win_rate, found.identical, found.ties, found.missing) == (2, 0.75, 1, 1, 1)
    nothing = summarise("s", pairs[2:], {}, "drop", 0)
    assert (nothing.count, nothing.win_rate, nothing.win_rate_ci, nothing.first_rate) == (0, None, None, None)


def test_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(40):
        drawn = generator.random(120)
        found = _summary([(False, "A" if d < 0.5 else "B" if d < 0.8 else "tie") for d in drawn], seed=trial)
        low, high = found.win_rate_ci
        hits += low <= 0.6 <= high
    assert hits >= 35
    low, high = _summary([(False, "A")] * 30).win_rate_ci
    assert (low, high) == pytest.approx((0.8865, 1.0), abs=1e-3)


def test_wilson() -> None:
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3: 81 of 263 and 15 of 148
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 0) is None
