"""Asking a teacher for rationales: templates, reading, votes, the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from promptcomp.chat.answer_file import AnswerFile
from promptcomp.chat.local_lm import shared_prefix
from promptcomp.chat.replies import cut_at
from promptcomp.chat.session import Writing
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.sources.rationale_parsing import Parsed
from promptcomp.datamodules.sources.rationale_records import SEGMENT
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.rationales import RationaleOptions
from promptcomp.rationales.extraction import HEADER, Completion, majority, read, request_key
from promptcomp.rationales.rationale_job import (
    PromptTemplate,
    default_output,
    load_data,
    load_template,
    pick_template,
    rows_of,
    shipped_templates,
    writing_of,
)

OWN: dict[str, Any] = {
    "marker": "So:",
    "query": "Q: {input}\nA:",
    "answer": " {rationale} So: {label}.",
    "stop": ["\nQ:"],
    "demonstrations": [{"input": "a {label}", "rationale": "because", "label": "yes"}],
}


def _template(**changes: Any) -> PromptTemplate:
    return build(PromptTemplate, {**OWN, **changes})


def _row(text: str = "x", label: str = "yes", options: tuple[str, ...] = ("yes", "no")) -> RationaleRow:
    return RationaleRow("1", text, label, options=options)


@pytest.mark.parametrize("name", sorted(shipped_templates()))
def test_shipped_templates_read_their_own_demonstrations(name: str) -> None:
    template = load_template(name)
    assert len(template.demonstrations) >= 5
    for shown in template.demonstrations:
        text = template.answer.replace("{rationale}", shown.rationale).replace("{label}", shown.label)
        options = [line[4:] for line in shown.input.splitlines() if line[:1] == "(" and line[2:4] == ") "]
        row = RationaleRow("1", "", "", options=tuple(options))
        parsed = read(template, text + "\n\n" + template.query, row)
        assert (parsed.status, parsed.rationale) == ("ok", shown.rationale)
        assert parsed.label == (shown.label[4:] if name == "cqa" else shown.label)


def test_every_format_has_a_template() -> None:
    assert set(shipped_templates()) == {"cqa", "svamp", "esnli", "anli1", "asdiv", "gsm8k"}


def test_text_and_chat() -> None:
    template = _template(instruction="Do it.")
    row = _row("{rationale}?")
    assert template.text(row) == "Do it.\n\nQ: a {label}\nA: because So: yes.\n\nQ: {rationale}?\nA:"
    roles = [(message["role"], message["content"]) for message in template.messages(row)]
    assert roles == [
        ("system", "Do it."),
        ("user", "Q: a {label}\nA:"),
        ("assistant", "because So: yes."),
        ("user", "Q: {rationale}?\nA:"),
    ]


def test_premise_and_hypothesis() -> None:
    template = load_template("esnli")
    assert template.text(_row(f"p{SEGMENT}h")).endswith("\n\nPremise: p\nHypothesis: h\nReasonings:")
    with pytest.raises(ConfigError, match="asks for a premise"):
        template.text(_row("p h"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query": "Q:"}, "query must hold"),
        ({"query": "{input} {label}"}, "query must hold"),
        ({"answer": "{label} So:"}, "answer must hold"),
        ({"answer": "{rationale} {label}"}, "the marker 'So:'"),
        ({"marker": None}, "give either parse"),
        ({"marker": "  "}, "give either parse"),
        ({"parse": "cqa"}, "give either parse"),
        ({"parse": "cqqa", "marker": None}, "parse"),
        ({"stop": [""]}, "empty text"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"demonstrations": [{"rationale": "r", "label": "l"}]}, "demonstration 1 lacks input"),
        ({"demonstration": []}, "did you mean 'demonstrations'"),
    ],
)
def test_template_mistakes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _template(**changes)


def test_template_names() -> None:
    with pytest.raises(ConfigError, match="--template 'nope' is not known"):
        load_template("nope")
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_template("nope.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" r So: yes.\nQ: more So: no", ("r", "yes", "ok")),
        ("<think>So: no</think> r So: Yes", ("r", "yes", "repaired")),
        ("r So: maybe.", ("r", "", "out_of_set")),
        ("<think> r So: yes. Or is it", ("", "", "empty")),
        ("r So:", ("r", "", "empty_label")),
        ("r", ("", "", "no_marker")),
        ("", ("", "", "empty")),
        ("r So: yes So: yes", ("r", "yes", "two_markers")),
        ("r So: yes So: no", ("r", "", "two_markers")),
    ],
)
def test_reading_by_marker(text: str, expected: tuple[str, str, str]) -> None:
    parsed = read(_template(), text, _row())
    assert (parsed.rationale, parsed.label, parsed.status) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("40.", ("40", "ok")),
        ("$1,200", ("1200", "repaired")),
        ("9**9**9", ("", "not_an_equation")),
        ("__import__('os')", ("", "not_an_equation")),
        ("((1", ("", "not_an_equation")),
        ("1+" * 5_000_000, ("", "not_an_equation")),
    ],
)
def test_reading_numbers_runs_nothing(label: str, expected: tuple[str, str]) -> None:
    parsed = read(load_template("gsm8k"), f"r The answer is {label}", _row(options=()))
    assert (parsed.label, parsed.status) == expected


def test_cut_at_the_first_stop() -> None:
    assert cut_at("a\nQ: b\nP: c", ("\nP:", "\nQ:")) == "a"
    assert cut_at("a", ("b",)) == "a"


def test_majority_vote() -> None:
    wrong, first, second, failed = (
        Parsed("w", "( 2 )", "ok"),
        Parsed("", "( 1 + 2 )", "ok"),
        Parsed("s", "3", "ok"),
        Parsed("f", "", "no_marker"),
    )
    verdict = majority([wrong, failed, first, second], "equation")
    assert (verdict.parsed, verdict.votes, verdict.answers) == (second, 2, 4)
    assert majority([wrong, second], "equation").parsed == wrong
    assert majority([failed], "equation").votes == 0
    assert majority([first, second, wrong], "exact_match").votes == 1


def test_keys_know_what_matters() -> None:
    greedy, sampled = Writing(8, ("Q",)), Writing(8, ("Q",), 0.7)
    assert request_key("t", "p", greedy, 0, 0) == request_key("t", "p", greedy, 1, 5)
    keys = {
        request_key("t", "p", greedy, 0, 0),
        request_key("u", "p", greedy, 0, 0),
        request_key("t", "q", greedy, 0, 0),
        request_key("t", "p", Writing(9, ("Q",)), 0, 0),
        request_key("t", "p", sampled, 0, 0),
        request_key("t", "p", sampled, 1, 0),
        request_key("t", "p", sampled, 0, 1),
    }
    assert len(keys) == 7


def test_shared_prefix_leaves_every_row_a_token() -> None:
    assert shared_prefix([(1, 2, 3), (1, 2, 4), (1, 2, 3, 5)]) == (1, 2)
    assert shared_prefix([(1, 2), (1, 2, 3)]) == (1,)
    assert shared_prefix([(1, 2), (1, 2)]) == (1,)
    assert shared_prefix([(1,), (2,)]) == ()


def test_record_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "a.completions.jsonl"
    with AnswerFile(path, HEADER, Completion) as record:
        record.append(Completion(key="k", id="1", split="train", text="t\n"))
        with pytest.raises(ConfigError, match="another process"):
            AnswerFile(path, HEADER, Completion)
    with path.open("ab") as file:
        file.write(b'{"key": "l", "id"')
    with AnswerFile(path, HEADER, Completion) as record:
        assert list(record.entries) == ["k"]
        record.append(Completion(key="m", id="2", split="train"))
    with AnswerFile(path, HEADER, Completion) as record:
        assert list(record.entries) == ["k", "m"]
    path.write_text(path.read_text() + "nonsense\n")
    with pytest.raises(ConfigError, match="line 4: not a completion"):
        AnswerFile(path, HEADER, Completion)
    path.write_text("my notes")
    with pytest.raises(ConfigError, match="not a file of completions"):
        AnswerFile(path, HEADER, Completion)
    path.write_text('{"format":"prom')
    with AnswerFile(path, HEADER, Completion) as record:
        assert not record.entries


def test_data_and_template_are_found(tmp_path: Path) -> None:
    data = load_data(None, None, ["data.name=rationale_folder", f"data.folder={tmp_path}", "data.task=cqa"])
    assert data.model_dump()["teacher"] == "none"
    assert pick_template(None, data).parse == "cqa"
    toy = load_data("step_by_step", None, ["data.world.pool_rows=8"])
    with pytest.raises(ConfigError, match="no template of its own"):
        pick_template(None, toy)
    assert default_output(toy, "local:/m/x y", "train") == Path("rationales/toy_rationales-train-x_y.jsonl")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "name the data"),
        (["optim.lr=1"], "only data"),
        (["data.name=toy_icl"], "has no rationales"),
        (["data.name=rationale_file"], "did you mean 'rationale_files'"),
    ],
)
def test_data_mistakes(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_data(None, None, overrides)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("{input: questoin}", "'questoin' is missing; the columns are id, question, answer"),
        (
            "{input: question, label: grade}",
            r"data\.columns\.label: no row has a column 'grade'; the others are answer",
        ),
    ],
)
def test_a_column_that_no_row_has_is_told_with_those_there_are(tmp_path: Path, columns: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "question": "q", "answer": "a"}\n')
    overrides = ["data.name=rationale_files", f"data.test=[{path}]", f"data.columns={columns}"]
    with pytest.raises(ConfigError, match=words):
        rows_of(load_data(None, None, overrides), "test")


def test_temperatures() -> None:
    template = _template()
    assert writing_of(RationaleOptions(), template).temperature == 0
    assert writing_of(RationaleOptions(samples=3), template).temperature == 0.7
    with pytest.raises(ConfigError, match="are all the same"):
        writing_of(RationaleOptions(samples=3, temperature=0.0), template)
