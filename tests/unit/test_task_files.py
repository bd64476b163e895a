"""Tasks in files of rows: one prompt for a task, passages cut from questions, choices, and files with mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from promptcomp.config import ConfigError, build
from promptcomp.datamodules.instruction.instruction_config import InstructionsData, TaskFilesData
from promptcomp.datamodules.instruction.instruction_module import InstructionDataModule
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.sections import Reader
from tests.data_sections import byte_tokenizer, validate

CANARY = "a canary\n-----\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks as BIG-Bench Hard has them: one with two labels, one with an answer of its own for every question."""
    for task, answers in {"turn": ["Yes", "No"], "sort": [f"w{i}" for i in range(12)]}.items():
        rows = [{"input": f"{task} {i}?", "target": answers[i % len(answers)]} for i in range(12)]
        write(tmp_path / "tasks" / f"{task}.json", json.dumps({"canary": "x", "examples": rows}))
        write(tmp_path / "prompts" / f"{task}.txt", f"{CANARY}Do {task}.\n\nQ: a?\nA: b\n")
    write(tmp_path / "prompts" / "other.txt", "no task")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text, encoding="utf-8")


def section(folder: Path, **options: Any) -> TaskFilesData:
    defaults: dict[str, Any] = {
        "folder": folder,
        "rows": "tasks/{task}.json",
        "prompt": "prompts/{task}.txt",
        "prompt_after": "-----",
        "columns": {"output": "target", "source": None},
        "most_outputs": 3,
        "template": "plain",
        "query": "Q: {input}",
        "answer": "So it is {output}.",
        "dev_examples": 2,
        "test_examples": 3,
    }
    return build(TaskFilesData, defaults | options, source="test")


def module(config: Any) -> InstructionDataModule:
    found = config.build(Reader(byte_tokenizer(), 0, 1, 4096))
    assert isinstance(found, InstructionDataModule)
    return found


def text(ids: Any) -> str:
    return str(byte_tokenizer().decode(list(ids)))


def test_choices_that_look_alike_are_warned_of(folder: Path) -> None:
    rows = [{"input": f"turn {i}?", "target": ["Yes", "yes", "yes ", "No"][i % 4]} for i in range(12)]
    write(folder / "tasks" / "turn.json", json.dumps(rows))
    found = [problem for problem in validate(section(folder)) if "look alike" in problem.message]
    assert [str(each) for each in found] == [
        f"{folder / 'tasks' / 'turn.json'}: 'yes' and 'Yes' look alike, but are different labels"
    ]
    assert not [each for each in validate(section(folder, most_outputs=0)) if "look alike" in each.message]


def test_a_tasks_prompt_is_the_context_of_its_questions(folder: Path) -> None:
    data = module(section(folder))
    assert {split: len(data.rows(split)) for split in data.source.splits} == {"train": 14, "dev": 4, "test": 6}
    contexts = data.eval_contexts("test")
    sort, turn = (contexts.whole(i) for i in range(2))
    assert text(turn.ids) == "Do turn.\n\nQ: a?\nA: b"
    assert text(turn.queries[0].ids).startswith("\nQ: turn ")
    written = [text(target.ids) for target in turn.queries[0].targets]
    assert written == ["So it is No.</s>", "So it is Yes.</s>"]
    assert [target.choice for target in turn.queries[0].targets] == [0, 1]
    assert [len(query.targets) for query in sort.queries] == [1, 1, 1]  # more outputs than most_outputs
    asked = data.examples("test")
    assert [(e.task, e.kind) for e in asked] == [("sort", "free_form")] * 3 + [("turn", "multi_choice")] * 3
    assert all(e.options[e.gold] == e.output for e in asked)
    assert contexts.targets(1) == [2, 2, 2]
    train = [data.train_context(Draw(i, i)) for i in range(14)]
    assert all(len(query.targets) == 1 for each in train for query in each.queries)
    splits = [{(row.source, row.input) for row in data.rows(split)} for split in data.source.splits]
    assert not splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2]
    assert not [p for p in validate(section(folder), byte_tokenizer()) if p.severity == "error"]


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("First a. So it is wrong. So it is Yes.\nQ: more", "Yes"),
        ("So it is 3.5.", "3.5"),
        (" Yes ", "Yes"),
        ("So it is", ""),
    ],
)
def test_the_answer_in_a_chain_of_thought(folder: Path, written: str, answer: str) -> None:
    assert module(section(folder)).answer_of(written) == answer


def test_outputs_that_cannot_be_read_back_from_an_answer_are_told(folder: Path) -> None:
    def told(**changes: Any) -> list[str]:
        return [text for text in module(section(folder, **changes)).notes() if "cannot be read back" in text]

    assert not told()
    assert not told(answer="{output} END")
    assert module(section(folder, answer="{output} END")).answer_of("Yes END") == "Yes"
    assert told(answer="Yes: {output} Yes: ")


def test_passages_are_cut_from_questions(tmp_path: Path) -> None:
    passage = "Rain is wet.\nVery."
    rows = [
        {"input": f"{passage}\nQuestion: what {i}?", "output": "wet", "options": ["dry", "wet"]} for i in range(3)
    ] + [{"input": f"What {i}?\nText: Snow {i} is cold.", "output": "cold", "options": []} for i in range(3)]
    write(tmp_path / "data/a/a_1.jsonl", "".join(json.dumps({"task": "a", **row}) + "\n" for row in rows))
    split = [r"(?P<instruction>.+)\n(?P<input>Question: .+)", r"(?P<input>[^\n]+)\nText: (?P<instruction>.+)"]
    options = {"rows": "data/{task}/{task}_1.jsonl", "prompt": None, "columns": {}, "most_outputs": 0}
    config = section(tmp_path, split=split, dev_examples=0, **options)
    data = module(config)
    rows_of = {row.instruction: row for name in ("train", "test") for row in data.rows(name)}
    assert rows_of[passage].input.startswith("Question: what")
    assert rows_of[passage].options == ("dry", "wet")
    assert rows_of["Snow 1 is cold."].input == "What 1?"
    assert not rows_of["Snow 1 is cold."].options
    train, test = ({row.instruction for row in data.rows(name)} for name in ("train", "test"))
    assert not train & test  # a passage is in one split only
    bad = section(tmp_path, split=split[:1], **options)
    with pytest.raises(ConfigError, match=r"a_1\.jsonl:4: no expression of data\.split matches 'input': 'What 0"):
        bad.source().rows("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["turn", "gone"]}, r"data\.tasks: no such file: .*gone\.json"),
        ({"rows": "none/{task}.json"}, r"data\.rows: no file .*none"),
        ({"prompt_after": "====="}, r"sort\.txt: there is no prompt behind the line '====='"),
        ({"prompt": "prompt.txt"}, r"prompt should hold \{task\}"),
        ({"prompt": None, "split": ["("]}, r"split: '\(' is no regular expression"),
        ({"prompt": None, "split": ["(?P<input>.)"]}, r"should have the groups"),
        ({"split": ["x"]}, r"give one"),
        ({"query": "Q:"}, r"query should hold \{input\} once"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        section(folder, **options).source().rows("train")


def test_an_output_among_the_options(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", json.dumps({"instruction": "x", "output": "c", "options": ["a", "b"]}) + "\n")
    config = section(tmp_path, rows="{task}.jsonl", prompt=None, columns={})
    with pytest.raises(ConfigError, match=r"a\.jsonl:1: the output 'c' is not among the options"):
        config.source().rows("train")


def test_white_space_makes_no_other_option(tmp_path: Path) -> None:
    outputs = ["y0", "y1 ", "y1"] * 3
    for name, options in (("given", {"options": ["y0", "y1"]}), ("made", {})):
        rows = [{"instruction": f"q{i}", "input": "x", "target": each, **options} for i, each in enumerate(outputs)]
        write(tmp_path / "tasks" / f"{name}.json", json.dumps(rows))
    config = section(tmp_path, prompt=None, prompt_after="")
    assert validate(config) == []
    found = {(row.output, row.options) for row in config.source().rows("train")}
    assert found == {("y0", ("y0", "y1")), ("y1", ("y0", "y1"))}
    rows = [{"instruction": "q", "input": "x", "target": "y1", "options": ["y1", "y1 "]}]
    write(tmp_path / "tasks" / "twice.json", json.dumps(rows))
    assert "'options' has an option twice: ['y1', 'y1 ']" in [problem.message for problem in validate(config)]


def test_lines_of_a_prompt_end_at_line_ends_alone(folder: Path) -> None:
    write(folder / "prompts" / "turn.txt", CANARY + "one\x0ctwo\u2028three\n")
    rows = section(folder).source().rows("test")
    assert {row.instruction for row in rows if row.source == "turn"} == {"one\x0ctwo\u2028three"}


def test_several_files_of_a_split(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", json.dumps({"instruction": name, "output": name}) + "\n")
    files = {"train": [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], "test": tmp_path / "b.jsonl"}
    data = module(InstructionsData(files=files, dev_examples=0))
    assert [(row.instruction, row.source) for row in data.rows("train")] == [("a", "a"), ("b", "b")]
    with pytest.raises(ConfigError, match=r"no such file: .*c\.jsonl; name only those you have: \{train: a\.jsonl"):
        InstructionsData(files={"train": [tmp_path / "a.jsonl", tmp_path / "c.jsonl"]}).check_places()


def test_tasks_that_a_choice_drops(folder: Path) -> None:
    choice = folder / "choice.yaml"
    write(choice, "keep: [sort]\ndrop: [turn]\n")
    data = module(section(folder, task_choice=choice))
    assert {row.source for split in data.source.splits for row in data.rows(split)} == {"sort"}
    write(choice, "drop: 7\n")
    with pytest.raises(ConfigError, match=r"data\.task_choice: .*choice\.yaml has no list 'drop'"):
        module(section(folder, task_choice=choice)).rows("test")


def test_a_choice_of_other_data_is_an_error(folder: Path) -> None:
    choice = folder / "choice.yaml"
    write(choice, "keep: [elsewhere]\ndrop: [nowhere]\n")
    assert any("names no task of this data" in each.message for each in validate(section(folder, task_choice=choice)))
    write(choice, "keep: []\ndrop: [sort, turn]\n")
    assert any("drops every task" in each.message for each in validate(section(folder, task_choice=choice)))
    choice.unlink()
    assert any("no such file for data.task_choice" in e.message for e in validate(section(folder, task_choice=choice)))


def test_rows_without_outputs_are_answered_by_the_lm(folder: Path) -> None:
    rows = [{"input": f"sort {i}?", "options": ["a", "b"]} | ({"target": "a"} if i % 2 else {}) for i in range(12)]
    write(folder / "tasks/sort.json", json.dumps(rows))
    with pytest.raises(ConfigError, match=r"sort\.json:1: .*None.* is not among the options"):
        section(folder).source().rows("train")
    source = section(folder, targets="teacher").source()
    found = [row for split in source.splits for row in source.rows(split) if row.source == "sort"]
    assert sorted({(row.output, row.options) for row in found}) == [("", ()), ("a", ("a", "b"))]


def test_files_that_are_no_tasks(folder: Path) -> None:
    write(folder / "tasks/._turn.json", "what an archive of another system leaves")
    (folder / "tasks/old.json").mkdir()
    assert sorted(section(folder).files()) == ["sort", "turn"]
    (folder / "tasks").rename(folder / "tasks [1]")
    assert sorted(section(folder, rows="tasks [1]/{task}.json").files()) == ["sort", "turn"]


def test_options_that_the_lm_cannot_tell_apart(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "\n": 2, "turn": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    found = [each for each in validate(section(folder), tokenizer) if each.severity == "error"]
    assert [each.file for each in found] == ["task turn"] * 2  # dev and test
    assert "the options 'No', 'Yes' are unknown to the LM's tokenizer" in found[0].message
    cut = [e.message for e in validate(section(folder, max_target_tokens=4), byte_tokenizer()) if e.severity == "error"]
    assert cut == ["the options 'No' and 'Yes' are the same 4 tokens to the LM"] * 2


def test_a_task_with_one_question_is_named_once(folder: Path) -> None:
    write(folder / "tasks/turn.json", json.dumps([{"input": "one", "target": "No"}]))
    (found,) = (each for each in validate(section(folder)) if each.severity == "error")
    assert "data.dev_examples = 2: task 'turn': " in found.message
    assert found.message.endswith("set data.dev_examples=0, or name the other tasks in data.tasks")


def test_a_prompt_that_cannot_be_read_is_named_with_its_line(folder: Path) -> None:
    (folder / "prompts/turn.txt").write_bytes(b"-----\ncaf\xe9")
    found = next(each for each in validate(section(folder)) if "UTF-8" in each.message)
    assert (Path(found.file).name, found.line) == ("turn.txt", 2)


def test_windows_line_ends_change_no_prompt(folder: Path) -> None:
    before = section(folder).source().rows("train")[0].instruction
    for prompt in (folder / "prompts").glob("*.txt"):
        prompt.write_bytes(prompt.read_bytes().replace(b"\n", b"\r\n"))
    assert section(folder).source().rows("train")[0].instruction == before
    assert "\n" in before
