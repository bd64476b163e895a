"""Generated answers: ROUGE equal to rouge_score, exact match, the records, and the split's summary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from promptcomp.config import ConfigError
from promptcomp.evaluation.predictions import Prediction, add_texts, read_predictions, write_predictions
from promptcomp.evaluation.summarize import summarise
from promptcomp.evaluation.texts import ROUGE, Rouge, same_label, text_metrics

SENTENCE = "the cats were running quickly past Dr. Smith's 3 houses; he ran. Running! happily? e.g. flies\nstudies U.S."
WORDS = SENTENCE.split(" ")


def some_text(draw: np.random.Generator, most: int = 30) -> str:
    return " ".join(draw.choice(WORDS, size=int(draw.integers(most))))


def make(number: int, kind: str = "free_form", **changes) -> Prediction:
    rows = ("no_prompt", "method", "full_prompt")
    fields = {
        "split": "seen", "example": number, "task": "t", "kind": kind, "seed": None, "context": number // 2, "gold": 0,
        "options": ("a b",), "scores": dict.fromkeys(rows, (-1.0,)), "prediction": dict.fromkeys(rows),
        "correct": dict.fromkeys(rows), "loss": dict.fromkeys(rows, 1.0), "gold_tokens": 3,
    }  # fmt: skip
    return Prediction(**(fields | changes))


def answered(count: int = 8) -> list[Prediction]:
    """The method is right on every second example, the full prompt always, no prompt never."""
    rows = {"no_prompt": lambda i: "c", "method": lambda i: "a  b" if i % 2 else "a c", "full_prompt": lambda i: "a b"}
    collected = {row: {i: (text(i), row == "no_prompt" and i == 0) for i in range(count)} for row, text in rows.items()}
    questions = {i: (f"do {i}", "x", "a b") for i in range(count)}
    return add_texts([make(i) for i in range(count)], collected, questions, Rouge())


def test_rouge_equals_the_package_on_texts_with_one_sentence_a_line():
    draw = np.random.default_rng(0)
    rouge, package = Rouge(), RougeScorer(list(ROUGE), use_stemmer=True)
    for _ in range(60):
        text, reference = some_text(draw), some_text(draw)
        expected = package.score(rouge.by_line(reference), rouge.by_line(text))
        assert rouge.scores(text, reference) == {name: expected[name].fmeasure for name in ROUGE}


def test_all_but_rouge_lsum_do_not_look_at_sentences():
    draw = np.random.default_rng(1)
    rouge, package = Rouge(), RougeScorer(list(ROUGE), use_stemmer=True)
    for _ in range(30):
        text, reference = some_text(draw), some_text(draw)
        expected = package.score(reference, text)
        found = rouge.scores(text, reference)
        assert all(found[name] == expected[name].fmeasure for name in ("rouge1", "rouge2", "rougeL"))


def test_hand_checked_rouge():
    found = Rouge().scores("the cats ran. A dog sat.", "A dog sat. The cat ran.")
    assert found["rouge1"] == pytest.approx(1.0)  # "cats" is stemmed
    assert found["rouge2"] == pytest.approx(4 / 5)  # all but the pair across the border of sentences
    assert found["rougeL"] == pytest.approx(3 / 6)
    assert found["rougeLsum"] == pytest.approx(1.0)  # the order of sentences does not matter
    assert set(Rouge().scores("", "a b").values()) == {0.0}
    assert set(Rouge().scores("?!", "?!").values()) == {0.0}  # no letters or digits


def test_sentences_know_common_abbreviations_and_need_no_download():
    lines = Rouge().by_line("Dr. Smith has 3.5 kg, e.g. flour. He bakes!\nEvery day? Yes").split("\n")
    assert lines == ["Dr. Smith has 3.5 kg, e.g. flour.", "He bakes!", "Every day?", "Yes"]


def test_a_missing_sentence_model_is_named(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ConfigError, match="punkt_tab"):
        Rouge("nltk")


def test_exact_match_and_agreement():
    assert same_label(" a\n b ", "a b")
    assert not same_label("A b", "a b")
    assert same_label("", "")
    assert text_metrics("a c", "a b", "a c", Rouge())["agreement"] == 1.0
    assert "agreement" not in text_metrics("a c", "a b", None, Rouge())


def test_a_split_with_answers_is_summed_up_by_them(tmp_path: Path):
    predictions = answered()
    result = summarise(predictions, "task", resamples=100)
    assert (result.metric, result.method, result.full_prompt, result.no_prompt) == ("exact_match", 0.5, 1.0, 0.0)
    assert result.retained == 0.5
    assert result.generated == 8
    assert result.unfinished == {"no_prompt": 1, "method": 0, "full_prompt": 0}
    assert result.rows["method"]["agreement"].value == 0.0  # "a  b" is not the string "a b"
    assert "agreement" not in result.rows["full_prompt"]
    assert result.tasks[0].metric == "exact_match"
    assert result.rows["method"]["rougeL"].value == pytest.approx((0.5 + 1.0) / 2)
    assert summarise(predictions, "rougeL", resamples=100).tasks[0].metric == "rougeL"
    assert summarise(predictions, "loss", resamples=100).metric == "loss"
    assert summarise([make(i) for i in range(4)], "rougeL", resamples=100).metric == "loss"
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions(tmp_path / "p.jsonl") == predictions
    line = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[1])
    assert (line["instruction"], line["input"], line["reference"], line["texts"]["method"]) == (
        "do 1",
        "x",
        "a b",
        "a  b",
    )


def test_lines_without_answers_have_no_keys_for_them(tmp_path: Path):
    write_predictions(tmp_path / "p.jsonl", [make(0)])
    assert not {"texts", "reference", "metrics", "instruction"} & set(json.loads((tmp_path / "p.jsonl").read_text()))
    assert read_predictions(tmp_path / "p.jsonl") == [make(0)]
