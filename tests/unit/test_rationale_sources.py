"""Files with rationales: layouts, joins, formats, parsers, and what is said about bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from promptcomp.config import ConfigError, build
from promptcomp.datamodules.rationale.rationale_config import RationaleFilesData, RationaleFolderData, RationaleHFData
from promptcomp.datamodules.sources.rationale_parsing import Parsed, ParsedTask, parse
from promptcomp.datamodules.sources.rationale_records import FORMATS, SEGMENT, BadRow
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.evaluation.texts import same_value, value_of
from tests.data_sections import module_of, show, validate
from tests.parity.golden_step_by_step import tokenizer


def _write(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def _questions(count: int) -> list[dict[str, str]]:
    return [{"input": f"how much is {i} and 1?", "label": f"( {i}.0 + 1.0 )"} for i in range(count)]


def _folder(root: Path, chunks: tuple[int, ...] = (12, 8), rows: int = 20) -> RationaleFolderData:
    """SVAMP in the original's layout; every fifth completion has no marker."""
    numbers = {"train": rows, "test": 4}
    for split, count in numbers.items():
        _write(root / "svamp" / f"svamp_{split}.json", _questions(count))
        texts = [f"So {i} + 1.{' The answer is' if i % 5 else ''} ({i} + 1).\n\nQ: next" for i in range(count)]
        start = 0
        for number, size in enumerate(chunks if split == "train" else (4,)):
            path = root / "svamp" / "llm" / f"{split}_CoT_{number}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(texts[start : start + size]), encoding="utf-8")
            start += size
    return build(RationaleFolderData, {"folder": str(root), "task": "svamp"})


def test_original_layout(tmp_path: Path) -> None:
    config = _folder(tmp_path)
    assert config.metric == "equation"
    source = config.source()
    rows = source.rows("train")
    assert source.splits == ("train", "test")
    assert rows[13] == RationaleRow(
        "train-13", "how much is 13 and 1?", "( 13.0 + 1.0 )", "(13 + 1)", "So 13 + 1.", "ok", "palm"
    )
    assert (rows[5].llm_label, rows[5].llm_rationale, rows[5].parse_status) == ("", "", "no_marker")


def test_what_was_lost_is_told(tmp_path: Path) -> None:
    config = _folder(tmp_path)
    told = module_of(config, tokenizer()).notes()
    assert told[0] == "teacher labels: 14 of 18 right (77.78%)"
    assert told[1] == "teacher texts that were not read cleanly: no_marker 4 (ok 14)"
    assert told[-1] == "training rows: 18 of 18"
    tasks = [row.task for row in show(config, tokenizer(), "train", 32)]
    assert (tasks.count("rationale_folder, label"), tasks.count("rationale_folder, rationale")) == (18, 14)
    assert {problem.severity for problem in validate(config)} == {"warning"}
    assert "data: train: teacher texts that were not read cleanly: no_marker 4 (ok 16)" in map(str, validate(config))


def test_a_valid_file_is_the_dev_split(tmp_path: Path) -> None:
    config = _folder(tmp_path).model_copy(update={"teacher": "none"})
    _write(tmp_path / "svamp" / "svamp_valid.json", _questions(3))
    source = config.source()
    assert source.splits == ("train", "dev", "test")
    assert len(source.rows("dev")) == 3


def test_gpt_neox_files(tmp_path: Path) -> None:
    config = _folder(tmp_path).model_copy(update={"teacher": "gpt_neox"})
    path = tmp_path / "gpt-neox" / "svamp" / "test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(["R. The answer is (1 + 1)."] * 4), encoding="utf-8")
    assert config.source().rows("test")[0].llm_label == "(1 + 1)"
    with pytest.raises(ConfigError, match=r"gpt-neox/svamp/train\.json: no such file"):
        config.source().rows("train")


@pytest.mark.parametrize(("chunks", "rows"), [((12, 7), 20), ((12, 8), 19)])
def test_other_than_as_many_completions_as_rows(tmp_path: Path, chunks: tuple[int, ...], rows: int) -> None:
    config = _folder(tmp_path, chunks, 20)
    _write(tmp_path / "svamp" / "svamp_train.json", _questions(rows))
    with pytest.raises(ConfigError, match=f"{sum(chunks)} completions for the {rows} rows .*joined by position"):
        config.source().rows("train")
    assert any("joined by position" in problem.message for problem in validate(config))


def test_a_missing_chunk(tmp_path: Path) -> None:
    config = _folder(tmp_path)
    (tmp_path / "svamp" / "llm" / "train_CoT_0.json").unlink()
    with pytest.raises(ConfigError, match=r"train_CoT_0\.json is missing"):
        config.source().rows("train")
    (tmp_path / "svamp" / "llm" / "train_CoT_1.json").unlink()
    with pytest.raises(ConfigError, match=r"data\.teacher=none"):
        config.source().rows("train")


def test_files_joined_by_id(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "input": f"question {i}", "label": "yes"} for i in range(4)]
    work = [{"id": "r2 ", "llm_label": "no", "llm_rationale": "because", "teacher": "t", "parse_status": "repaired"}]
    work.append({"id": "r9", "llm_label": "no"})
    config = RationaleFilesData(
        train=(_write(tmp_path / "train.jsonl", rows),),
        test=(_write(tmp_path / "test.jsonl", [{**rows[0], "llm_rationale": "so"}]),),
        rationales=(_write(tmp_path / "work.jsonl", work),),
    )
    train = config.source().rows("train")
    assert train[2] == RationaleRow("r2", "question 2", "yes", "no", "because", "repaired", "t")
    assert not train[1].llm_rationale
    found = validate(config)
    assert [problem for problem in found if problem.severity == "error"] == []  # no work for test rows is needed
    assert any("1 inputs of the test split are in train too" in problem.message for problem in found)
    assert any("1 of 2 ids belong to no row of the data (such as 'r9')" in problem.message for problem in found)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_may_hold_lines_or_a_list(tmp_path: Path, indent: int | None) -> None:
    rows = [{"id": f"r{i}", "input": f"question {i}", "label": "yes"} for i in range(3)]
    work = [{"id": "r2", "llm_label": "no"}]
    lines, as_list = tmp_path / "lines.json", tmp_path / "list.json"
    lines.write_text("\n".join(map(json.dumps, rows)))
    as_list.write_text(json.dumps(rows, indent=indent))
    (tmp_path / "work.json").write_text(json.dumps(work, indent=indent))
    for path in (lines, as_list):
        found = RationaleFilesData(test=(path,), rationales=(tmp_path / "work.json",)).source().rows("test")
        assert [(row.input, row.llm_label) for row in found][1:] == [("question 1", ""), ("question 2", "no")]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_may_hold_its_rows_in_an_object(tmp_path: Path, indent: int | None) -> None:
    rows = [{"id": f"r{i}", "input": f"question {i}", "label": "yes", "options": ["yes", "no"]} for i in range(2)]

    def read(tree: Any) -> list[str]:
        (tmp_path / "rows.json").write_text(json.dumps(tree, indent=indent))
        return [row.input for row in RationaleFilesData(test=(tmp_path / "rows.json",)).source().rows("test")]

    assert read({"version": 1, "teacher": "t", "data": rows}) == ["question 0", "question 1"]
    with pytest.raises(ConfigError, match=r"expected one list of rows, found dict with the keys 'train', 'test'$"):
        read({"train": rows, "test": rows})
    if indent is None:
        assert read(rows[0]) == ["question 0"]  # the only line, with a list of options


def test_labels_of_a_teacher_may_be_numbers(tmp_path: Path) -> None:
    rows = [{"id": str(i), "input": f"question {i}", "label": i} for i in range(3)]
    for i, label in enumerate((2, 2.5)):
        rows[i]["llm_label"] = label
    files = (_write(tmp_path / "test.jsonl", rows),)
    work = (_write(tmp_path / "work.jsonl", [{"id": "1", "llm_label": 0}, {"id": "2", "llm_label": 1.5}]),)

    def labels(**options: Any) -> list[str]:
        return [row.llm_label for row in RationaleFilesData(test=files, **options).source().rows("test")]

    assert labels() == ["2", "2.5", ""]
    _write(tmp_path / "test.jsonl", [{**row, "label": float(i)} for i, row in enumerate(rows)])
    assert [row.label for row in RationaleFilesData(test=files).source().rows("test")] == ["0", "1", "2"]
    _write(tmp_path / "test.jsonl", rows)
    assert labels(rationales=work) == ["2", "0", "1.5"]
    assert labels(rationales=work, columns={"label_names": ("a", "b", "c")}) == ["c", "a", "1.5"]
    for name, bad in (("test", {**rows[0], "llm_label": True}), ("work", {"id": "0", "llm_label": [1]})):
        _write(tmp_path / f"{name}.jsonl", [bad])
        with pytest.raises(ConfigError, match=rf"{name}\.jsonl:1: 'llm_label' is (bool|list), expected text"):
            labels(rationales=work if name == "work" else ())
        _write(tmp_path / "test.jsonl", rows)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ([{"id": "x"}], r"none of the ids belongs to a row of the data \(such as 'r0'\)"),
        ([{"id": "r1"}, {"id": "r1", "llm_label": "no"}], r"work\.jsonl:2: the id 'r1' occurs twice"),
    ],
)
def test_work_that_cannot_be_joined(tmp_path: Path, work: list[Any], message: str) -> None:
    rows = [{"id": f"r{i}", "input": f"question {i}", "label": "yes"} for i in range(4)]
    paths = {name: (_write(tmp_path / f"{name}.jsonl", each),) for name, each in {"test": rows, "work": work}.items()}
    with pytest.raises(ConfigError, match=message):
        RationaleFilesData(test=paths["test"], rationales=paths["work"]).source().check()


def test_ids_of_several_splits_are_warned_of(tmp_path: Path) -> None:
    rows = [{"id": i, "input": f"question {i}", "label": "yes"} for i in range(4)]
    paths = {name: (_write(tmp_path / f"{name}.jsonl", rows[:count]),) for name, count in (("train", 4), ("test", 2))}
    work = _write(tmp_path / "work.jsonl", [{"id": i, "llm_rationale": "because"} for i in range(4)])
    found = [problem.message for problem in validate(RationaleFilesData(**paths, rationales=(work,), dev_share=0))]
    assert any(text.startswith("2 of 4 ids name a row in each of several splits (such as '0')") for text in found)


def test_a_row_keeps_what_the_work_on_it_lacks(tmp_path: Path) -> None:
    row = {"id": "a", "input": "q", "label": "yes", "llm_label": "no", "llm_rationale": "so", "teacher": "t"}
    work = _write(tmp_path / "work.jsonl", [{"id": "a", "llm_rationale": "because"}])
    config = RationaleFilesData(test=(_write(tmp_path / "test.jsonl", [row]),), rationales=(work,))
    assert config.source().rows("test") == [RationaleRow("a", "q", "yes", "no", "because", "ok", "t")]


def test_rows_to_test_on_have_a_label(tmp_path: Path) -> None:
    path = _write(tmp_path / "test.jsonl", [{"input": "p", "label": "yes"}, {"input": "q"}])
    found = [str(problem) for problem in validate(RationaleFilesData(test=(path,)))]
    assert f"{path}:2: the label is missing, and test rows need one" in found


def test_numbers_of_labels_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("input,label\np,1\nq,no\n", encoding="utf-8")
    config = build(RationaleFilesData, {"test": [str(path)], "columns": {"label_names": ["no", "yes"]}})
    assert [row.label for row in config.source().rows("test")] == ["yes", "no"]
    path.write_text("input,label\np,2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'label' 2 has no name in columns\.label_names"):
        config.source().rows("test")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "a", "label": "x"}, "'input' is missing"),
        ({"id": "a", "input": "q", "label": ["x"]}, "'label' is list, expected text"),
        ({"id": "a", "input": "q", "label": "x", "options": ["y", "z"]}, "not among the options"),
        ({"id": "a", "input": "q", "label": "x", "parse_status": "fine"}, "none of ok, repaired"),
        ({"id": "a", "input": " ", "label": "x"}, "the input is empty"),
        ({"id": "b", "input": "q", "label": "x"}, "the id 'b' occurs twice"),
        ("text", "expected an object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, record: Any, message: str) -> None:
    path = _write(tmp_path / "rows.jsonl", [{"id": "b", "input": "p", "label": "x"}, record])
    config = RationaleFilesData(test=(path,))
    with pytest.raises(ConfigError, match=message):
        config.source().rows("test")
    assert any(message in problem.message for problem in validate(config))


@pytest.mark.parametrize(
    ("format_name", "record", "label"),
    [
        ("cqa", {"question": "q", "choices": ["no", "yes "], "answer": "yes"}, "yes "),
        ("cqa", {"question": "q", "choices": ["yes ", "yes"], "answer": "yes"}, "yes"),
        ("cqa", {"question": "q", "choices": [f"c{i}" for i in range(27)], "answer": "c1"}, None),
        ("esnli", {"premise": "p", "hypothesis": "h", "label": 1.0}, "neutral"),
        ("esnli", {"premise": "p", "hypothesis": "h", "label": "2"}, "contradiction"),
        ("esnli", {"premise": "p", "hypothesis": "h", "label": True}, None),
        ("svamp", {"input": None, "Body": "b", "Question": "q", "Equation": "1 + 2"}, "1 + 2"),
        ("asdiv", {"input": None, "Body": "b", "Question": "q", "Answer": "7 (pears)"}, "7"),
    ],
)
def test_cells_of_formats(tmp_path: Path, format_name: str, record: Any, label: str | None) -> None:
    """Numbers as floats or as texts of a CSV, null, white space, and more choices than letters."""
    config = RationaleFilesData(test=(_write(tmp_path / "rows.jsonl", [record]),), format=format_name)
    if label is None:
        with pytest.raises(ConfigError, match=r"27 texts, and there are 26 letters|'label' True is none of"):
            config.source().rows("test")
    else:
        assert [row.label for row in config.source().rows("test")] == [label]


def test_gsm8k(tmp_path: Path) -> None:
    answer = "Half is 48/2=<<48/2=24>>24.\nTogether 1,072.\n#### 1,072"
    path = _write(tmp_path / "g.jsonl", [{"question": "How many?", "answer": answer}])
    config = build(RationaleFilesData, {"test": [str(path)], "format": "gsm8k"})
    (row,) = config.source().rows("test")
    assert (row.label, row.llm_rationale) == ("1072", "Half is 48/2=24.\nTogether 1,072.")
    assert (row.llm_label, row.teacher, config.metric) == ("1072", "human", "equation")


def test_a_dataset_by_column_map(tmp_path: Path) -> None:
    rows = {"premise": ["it rains", "it snows"], "hypothesis": ["wet", "dry"], "gold": [0, 1], "why": ["a", "b"]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows), "test": datasets.Dataset.from_dict(rows)}) \
        .save_to_disk(tmp_path / "set")  # fmt: skip
    columns = {
        "input": "{premise} then {hypothesis}",
        "label": "gold",
        "label_names": ["yes", "no"],
        "llm_rationale": "why",
    }
    config = build(RationaleHFData, {"path": str(tmp_path / "set"), "columns": columns})
    row = config.source().rows("train")[1]
    assert (row.id, row.input, row.label, row.llm_rationale) == ("train-1", "it snows then dry", "no", "b")
    assert row.options == ("yes", "no")
    wrong = build(RationaleHFData, {"path": str(tmp_path / "set"), "columns": {"input": "{premiss}"}})
    with pytest.raises(ConfigError, match="premiss"):
        wrong.source().rows("train")


def test_formats() -> None:
    choices = ["bank", "river"]
    found = FORMATS["cqa"].read({"question": "Where?", "choices": choices, "answer": "river"})
    assert found.input == "Where?\nAnswer Choices:\n(a) bank\n(b) river"
    nli = {"premise": "A dog.", "hypothesis": "A cat.", "label": 2, "explanation_1": "They differ.", "reason": "No."}
    assert FORMATS["esnli"].read(nli).input == f"A dog.{SEGMENT}A cat."
    assert (FORMATS["anli1"].read(nli).label, FORMATS["anli1"].read(nli).rationale) == ("contradiction", "No.")
    asdiv = {"Body": "He has 9.", "Question": "How many?", "Answer": "9 (apples)", "Formula": "9=9"}
    assert FORMATS["asdiv"].read(asdiv).label == "9"
    assert FORMATS["svamp"].read({**asdiv, "Equation": "( 9.0 )"}).input == "He has 9.\nHow many?"
    for name, record in (("esnli", {**nli, "label": -1}), ("cqa", {"question": "q", "answer": "a"}), ("gsm8k", nli)):
        with pytest.raises(BadRow):
            FORMATS[name].read(record)


def test_premise_and_hypothesis_meet_at_an_end_token(tmp_path: Path) -> None:
    nli = {"premise": "a dog", "hypothesis": "a cat", "label": 2}
    config = build(RationaleFilesData, {"test": [str(_write(tmp_path / "n.jsonl", [nli]))], "format": "esnli"})
    (shown,) = show(config, tokenizer(), "test", 1)
    assert shown.query == "predict: a dog</s> a cat</s>"


@pytest.mark.parametrize(
    ("task", "completion", "expected"),
    [
        ("cqa", "R. So the answer is (b) Beach.", ("R.", "beach", "ok")),
        ("cqa", "R. So the answer is Beach.", ("R.", "beach", "repaired")),
        ("cqa", "R. So the answer is (z) hill.", ("R.", "", "out_of_set")),
        ("cqa", "So the answer is (a). So the answer is (a).", ("", "bank", "two_markers")),
        ("cqa", "  \nQ: next", ("", "", "empty")),
        ("svamp", "R. The answer is (1,000 + 2).", ("R.", "(1000 + 2)", "repaired")),
        ("svamp", "R. The answer is (175, 5).", ("R.", "", "not_an_equation")),
        ("svamp", "R. The answer is (9**9**9).", ("R.", "", "not_an_equation")),
        ("svamp", "R. The answer is", ("R.", "", "empty_label")),
        ("asdiv", "R. The answer is 5.", ("R.", "5", "repaired")),
        ("esnli", "R.\nAnswer: entailment\n\nPre", ("R.", "entailment", "ok")),
        ("esnli", "R.\nAnswer: entail", ("R.", "entailment", "repaired")),
        ("esnli", "R.\nAnswer: N/A", ("R.", "", "out_of_set")),
        ("anli1", "R. So the answer is neutral", ("R.", "neutral", "ok")),
        ("anli1", "No conclusion", ("", "", "no_marker")),
    ],
)
def test_strict_parsers(task: ParsedTask, completion: str, expected: tuple[Any, ...]) -> None:
    assert parse(task, completion, options=("bank", "beach")) == Parsed(*expected)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "__import__('os').system('echo')",
        pytest.param("(" * 1000, id="brackets"),
        "((1 + 2)",
        pytest.param("1+" * 5_000_000 + "1", id="10 MB"),
        pytest.param("9" * 499, id="no float"),
        "1/0",
        "1e308*1e308",
        "[1][0]",
        "1 if 1 else 2",
        "",
        "٣",
    ],
)
def test_nothing_but_arithmetic_has_a_value(text: str) -> None:
    assert value_of(text) is None
    assert not same_value(text, text)


def test_equal_values() -> None:
    assert same_value("( 84.0 / 2.0 )", "42")
    assert same_value("1/3", "0.33333333")
    assert not same_value("1/3", "0.33")
    assert value_of("-(2 - 5)*1e1") == 30.0
