"""What rows mean: labels, options, names, seeds, conversations, chat templates, and what a run says that it read."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from tokenizers import AddedToken

from promptcomp.config import ConfigError, build
from promptcomp.datamodules import DATASETS
from promptcomp.datamodules.icl import ICLDataModule
from promptcomp.datamodules.instruction.instruction_config import InstructionColumns
from promptcomp.datamodules.instruction.templates import chat_template, turn_end
from promptcomp.datamodules.sections import DataConfig
from promptcomp.datamodules.sources.instruction_sources import BadConversation, RowsInMemory, first_exchange
from promptcomp.evaluation.predictions import make_predictions
from promptcomp.toy.icl_world import toy_tokenizer
from tests.classification import accuracy, macro_f1
from tests.data_sections import byte_tokenizer, module_of, show, validate

Row = dict[str, Any]


def table(folder: Path, rows: list[Row], **options: Any) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build(DATASETS["table_icl"], {"test": [str(path)], "num_demonstrations": 2, **options})


def errors(config: DataConfig, tokenizer: Any = None) -> list[str]:
    found = validate(config, tokenizer)
    return [f"{p.line}: {p.message}" for p in found if p.severity == "error"]


def row(i: int, output: str = "", options: list[str] | None = None, **more: Any) -> Row:
    options = ["no", "yes"] if options is None else options
    return {"input": f"lion {i}", "output": output or options[i % len(options)], "options": options, **more}


# ---- labels


def test_white_space_makes_no_other_label_for_any_metric(tmp_path: Path) -> None:
    written, gold = ["yes", "no", " yes ", "not  so"], ["yes ", "no", "yes", " not so"]
    assert accuracy(written, gold) == macro_f1(written, gold) == macro_f1(written, gold, "metaicl") == 1.0
    rows = [{"input": f"lion {i}", "output": ("yes", "yes ", " yes", "no")[i % 4]} for i in range(8)]
    config = table(tmp_path, rows, options_from_outputs=True)
    module = module_of(config)
    examples = module.examples("test")
    assert {example.options for example in examples} == {("no", "yes")}
    scores = {(example.number, choice): (choice - 2.0, 1) for example in examples for choice in (0, 1)}
    right = sum(bool(p.correct["method"]) for p in make_predictions("test", examples, {"method": scores}))
    assert right == sum(example.output == "yes" for example in examples) == 6
    assert "'yes ' and 'yes' are one label: white space does not count" in [p.message for p in validate(config)]


@pytest.mark.parametrize("options_from_outputs", [False, True])
@pytest.mark.parametrize("white", [" ", "\n", "\u00a0", "\u3000"])
def test_spellings_of_one_label_are_warned_of(tmp_path: Path, white: str, options_from_outputs: bool) -> None:
    rows = [{"input": f"lion {i}", "output": f"yes{white if i == 2 else ''}"} for i in range(4)]
    found = validate(table(tmp_path, rows, options_from_outputs=options_from_outputs))
    assert [p.line for p in found if "are one label" in p.message] == [3]


@pytest.mark.parametrize(
    "other", ["Caf\u00e9", "cafe\u0301", "\uff43\uff41\uff46\u00e9", "caf\u00e9\u200b", "\ufeffcaf\u00e9"]
)
def test_labels_that_look_alike_are_two_and_warned_of(tmp_path: Path, other: str) -> None:
    rows = [{"input": f"lion {i}", "output": other if i == 2 else "caf\u00e9"} for i in range(4)]
    config = table(tmp_path, rows, options_from_outputs=True)
    assert [p.line for p in validate(config) if "look alike, but are different labels" in p.message] == [3]
    assert {example.options for example in module_of(config).examples("test")} == {tuple(sorted(("caf\u00e9", other)))}


def test_an_output_is_the_option_that_it_equals(tmp_path: Path) -> None:
    config = table(tmp_path, [row(0, "yes "), *(row(i) for i in range(1, 5))])
    assert errors(config) == []
    assert {example.output for example in module_of(config).examples("test")} <= {"no", "yes"}
    assert any("in white space alone" in problem.message for problem in validate(config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["yes", "yes "], "has an option twice"),
        (["yes", " "], "has an empty option"),
        (["a" * 50 + "b", "a" * 50 + "c"], "are the same 23 tokens to the LM"),
    ],
)
def test_options_that_are_the_same_are_named_before_training(tmp_path: Path, options: list[str], message: str) -> None:
    config = table(tmp_path, [*(row(i) for i in range(4)), row(9, options[0], options)], max_example_tokens=24)
    first, *_ = errors(config)
    assert first.startswith("5: ")
    assert message in first


@pytest.mark.parametrize("options", [["qq", "ww", "ee"], ["qq", "yes"]])
def test_options_that_the_vocabulary_does_not_have_are_named(tmp_path: Path, options: list[str]) -> None:
    config = table(tmp_path, [row(i, options=options) for i in range(6)])
    first, *_ = errors(config, toy_tokenizer())
    assert "the options 'qq'" in first
    assert "unknown to the LM's tokenizer (<unk>)" in first


def test_published_choices_that_are_the_same_are_a_warning_and_a_remark(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.json").write_text('{"train": ["t"], "test": ["t"]}')
    (tmp_path / "data" / "t").mkdir(parents=True)
    rows = [row(i, options=["x" * 50 + "a", "x" * 50 + "b", str(i)]) for i in range(6)]
    for name in ("16384_100_train", "16_100_train", "16_100_test"):
        text = "".join(json.dumps(each) + "\n" for each in rows)
        (tmp_path / "data" / "t" / f"t_{name}.jsonl").write_text(text)
    tree = {"folder": str(tmp_path), "partition": "mine", "seeds": [100], "dev": "none", "max_example_tokens": 20}
    module = module_of(build(DATASETS["metaicl"], tree))
    found = [problem for problem in module.problems() if "same 19 tokens" in problem.message]
    assert [(problem.line, problem.severity) for problem in found] == [(i, "warning") for i in range(1, 7)]
    odd, shown = module.notes()
    assert odd == "6 rows have options that the LM cannot distinguish (see promptcomp data validate)"
    assert shown.startswith("test: 6 queries have the input and output of a demonstration of their task")


def test_one_number_in_two_spellings_is_told(tmp_path: Path) -> None:
    rows = [{"input": f"lion {i}", "output": ("1", "0", "1.0", "0.5", "west")[i]} for i in range(5)]
    found = [(p.line, p.message) for p in validate(table(tmp_path, rows, options_from_outputs=True))]
    assert found == [(3, "'1.0' and '1' look alike, but are different labels")]


def test_labels_of_one_task_in_two_files_are_compared(tmp_path: Path) -> None:
    for name, outputs in (("shown", ("yes", "no")), ("asked", ("Yes", "no"))):
        lines = [json.dumps({"input": f"{name} {i}", "output": outputs[i % 2], "task": "t"}) for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = {"demonstrations": [str(tmp_path / "shown.jsonl")], "test": [str(tmp_path / "asked.jsonl")]}
    config = build(DATASETS["table_icl"], {**files, "columns": {"task": "task"}, "num_demonstrations": 2})
    found = [(Path(p.file).name, p.line) for p in validate(config) if "'yes' and 'Yes' look alike" in p.message]
    assert found == [("shown.jsonl", 1), ("shown.jsonl", 3)]


def test_queries_that_are_training_rows_are_a_warning_and_a_remark(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row(i)) + "\n" for i in (0, 1, 2, 9)))
    config = table(tmp_path, [row(i) for i in range(6)], train=[str(train)], dev_share=0)
    expected = "test: 3 queries are training rows too (same input and output)"
    assert [(problem.message, problem.severity) for problem in validate(config)] == [(expected, "warning")]
    module = module_of(config)
    module.check()
    assert module.notes() == [expected]


def test_a_row_without_options_is_no_choice(tmp_path: Path) -> None:
    config = table(tmp_path, [row(0), row(1), {"input": "lion 2", "output": "west"}])
    (warning,) = [problem for problem in validate(config) if "options" in problem.message]
    assert (warning.line, warning.severity) == (3, "warning")
    examples = module_of(config).examples("test")
    assert {example.input: example.kind for example in examples} == {
        **dict.fromkeys(("lion 0", "lion 1"), "multi_choice"),
        "lion 2": "free_form",
    }


def test_one_output_is_one_option(tmp_path: Path) -> None:
    config = table(tmp_path, [{"input": f"lion {i}", "output": "west"} for i in range(3)], options_from_outputs=True)
    assert [str(problem.message) for problem in validate(config)] == ["there is only one option"]


# ---- names and seeds


def test_zero_is_a_name_like_one(tmp_path: Path) -> None:
    config = table(tmp_path, [row(i, task=i % 2, split=(i // 2) % 2) for i in range(8)])
    module = module_of(config)
    assert isinstance(module, ICLDataModule)
    assert [task.name for task in module.source.tasks("test")] == ["0", "1"]


def test_sources_are_named_as_tasks_are() -> None:
    row = {"instruction": "say it", "output": "one"}
    rows = RowsInMemory(train=[{**row, "source": name} for name in (0, "0 ", " wiki", "", None)]).rows("train")
    assert [each.source for each in rows] == ["0", "0", "wiki", "rows", "rows"]
    with pytest.raises(ConfigError, match=r"rows\[0\]: 'source' is float, expected text or a whole number"):
        RowsInMemory(train=[{**row, "source": 1.5}])


@pytest.mark.parametrize("seed", [1.2, "1.2", True, -1, float("inf"), float("nan"), [1], "one", "1_0"])
def test_seeds_are_whole_numbers(tmp_path: Path, seed: Any) -> None:
    first, *_ = errors(table(tmp_path, [row(0), row(1, seed=seed), row(2)]))
    assert first.startswith("2: 'seed'")


def test_seeds_written_as_texts_or_with_a_point_are_read(tmp_path: Path) -> None:
    rows = [row(i, seed=seed) for i in range(4) for seed in (7, "7", 7.0)]
    (task,) = module_of(table(tmp_path, rows)).source.tasks("test")  # type: ignore[attr-defined]
    assert task.seed == 7


@pytest.mark.parametrize("name", [1.5, True, ["a"], {"a": 1}])
def test_tasks_are_named_by_texts_or_whole_numbers(tmp_path: Path, name: Any) -> None:
    first, *_ = errors(table(tmp_path, [row(0), row(1, task=name)]))
    assert first.startswith("2: 'task' is ")


# ---- columns


@pytest.mark.parametrize("key", ["options", "task", "seed", "split"])
def test_a_column_that_is_named_has_to_be_there(tmp_path: Path, key: str) -> None:
    rows = [row(i) for i in range(4)]
    message = "None: no row has a column 'Input'; did you mean 'input'?"
    assert errors(table(tmp_path, rows, columns={key: "Input"})) == [message]
    assert errors(table(tmp_path, [*rows, {**row(4), "Input": None}], columns={key: "Input"})) == []


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_the_input_of_an_instruction_is_not_left_out_for_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    lines = {
        "jsonl": ['{"instruction": "say it", "text": "one", "output": "two"}'] * 2,
        "csv": ["instruction,text,output", "say it,one,two"],
    }
    path.write_text("\n".join(lines[suffix]))
    tree = {"name": "instructions", "files": {"test": str(path)}, "columns": {"input": "txt"}}
    assert errors(build(DATASETS["instructions"], tree)) == ["None: no row has a column 'txt'; did you mean 'text'?"]
    given = [{"instruction": "say it", "text": "one", "output": "two"}]
    with pytest.raises(ConfigError, match="no row has a column 'txt'"):
        RowsInMemory(InstructionColumns(input="txt"), train=given)
    assert RowsInMemory(InstructionColumns(input="text"), train=given).rows("train")[0].input == "one"


def test_tables_in_memory_are_read_like_files() -> None:
    texts = {"instruction": ["say it", "again"], "input": ["", ""], "output": ["one", "two"]}
    far = pa.array([253_402_300_800_000] * 2, pa.timestamp("ms"))  # the year 10000
    table, twice = pa.table({**texts, "when": far}), pa.table([*texts.values(), ["no", "no"]], names=[*texts, "output"])
    for rows in (table, table.to_batches()[0], datasets.Dataset(table)):
        assert [row.output for row in RowsInMemory(train=rows).rows("train")] == ["one", "two"]
    with pytest.raises(ConfigError, match=r"rows\[0\]: 'input' cannot be read"):
        RowsInMemory(train=pa.table({**texts, "input": far}))
    with pytest.raises(ConfigError, match="rows: the column 'output' occurs twice"):
        RowsInMemory(train=twice)
    labelled = datasets.Dataset.from_dict({**texts, "output": [0, 1]}).cast_column(
        "output", datasets.ClassLabel(names=["no", "yes"])
    )
    assert [row.output for row in RowsInMemory(train=labelled).rows("train")] == ["no", "yes"]
    turns = np.array([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], dtype=object)
    assert RowsInMemory(train=[{"messages": turns}]).rows("train")[0].output == "b"  # as pandas reads Parquet


def test_the_rationales_of_a_column_are_not_left_out_for_its_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "one", "label": "two", "why": "so"}\n')
    tree = {"name": "rationale_files", "test": [str(path)], "columns": {"llm_rationale": "whys"}}
    config = build(DATASETS["rationale_files"], tree)
    assert errors(config) == ["None: no row has a column 'whys'; did you mean 'why'?"]


# ---- what is asked


@pytest.mark.parametrize(("count", "shown"), [(20, 16), (20, 2), (10, 16), (2, 4)])
def test_every_row_of_a_table_is_asked(tmp_path: Path, count: int, shown: int) -> None:
    module = module_of(table(tmp_path, [row(i) for i in range(count)], num_demonstrations=shown))
    assert sorted(example.input for example in module.examples("test")) == sorted(row(i)["input"] for i in range(count))
    (counts,) = module.all_counts(with_tokens=True)
    assert (counts.rows, counts.asked, counts.tasks) == (count, count, 1)
    assert counts.shown == counts.contexts * min(shown, count - 1)
    assert counts.tokens is not None
    assert f"{count} queries asked" in str(counts)


def test_inputs_and_answers_are_never_glued_by_default(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"input": "what is wrong", "label": "billing"}\n')
    tree = {"test": [str(tmp_path / "r.jsonl")], "targets": "label"}
    for more in ({}, {"markers": "suffix"}):
        (shown,) = show(build(DATASETS["rationale_files"], {**tree, **more}), byte_tokenizer(), "test", 1)
        assert not (shown.query + shown.options[0]).startswith(("predict: what is wrongb", "predict: what is wrong b"))
        assert "predict:b" not in shown.query + shown.options[0]
    config = table(tmp_path, [row(i) for i in range(4)])
    (shown, *_) = show(config, byte_tokenizer(), "test", 4)
    assert "".join(shown.demonstrations).count(" => ") == 2
    assert shown.query.endswith(" =>")


# ---- conversations


def _turn(role: str, content: Any, sharegpt: bool = False) -> Row:
    return {"from": role, "value": content} if sharegpt else {"role": role, "content": content}


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        ([_turn("user", "a"), _turn("assistant", "b")], ("a", "", "b", 0)),
        ([_turn("system", "s"), _turn("user", "a"), _turn("assistant", "b")], ("s", "a", "b", 0)),
        ([_turn("system", " "), _turn("user", "a"), _turn("assistant", "b")], ("a", "", "b", 0)),
        ([_turn("human", "a", True), _turn("gpt", "b", True), _turn("human", "c", True)], ("a", "", "b", 1)),
        ([_turn("user", [{"type": "text", "text": "a"}]), _turn("assistant", "b")], ("a", "", "b", 0)),
    ],
)
def test_the_first_exchange_is_read(turns: list[Any], found: tuple[str, str, str, int]) -> None:
    assert first_exchange(turns) == found


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "begins with nothing"),
        ([_turn("gpt", "b", True)], "begins with assistant"),
        ([_turn("tool", "b")], "begins with 'tool'"),
        ([_turn("user", "a"), _turn("assistant", None)], "turn 2 is NoneType"),
        ([_turn("user", [{"type": "image"}]), _turn("assistant", "b")], "turn 1 is list"),
        (["hello"], "turn 1 is str"),
        ([_turn("user", [{"type": "text", "text": 5}]), _turn("assistant", "b")], "turn 1 is list"),
    ],
)
def test_other_conversations_are_refused(turns: list[Any], message: str) -> None:
    with pytest.raises(BadConversation, match=message):
        first_exchange(turns)


@pytest.mark.parametrize("system", [5, [{"type": "image"}], {"text": "s"}])
def test_a_system_prompt_beside_the_turns_that_is_no_text_is_refused(system: Any) -> None:
    turns = [_turn("user", "a"), _turn("assistant", "b")]
    with pytest.raises(BadConversation, match="turn 1 is"):
        first_exchange(turns, system)
    assert first_exchange(turns, [{"type": "text", "text": "s"}]) == ("s", "a", "b", 0)
    assert first_exchange(turns, " ") == first_exchange(turns, None) == ("a", "", "b", 0)


def test_files_of_conversations_say_what_is_left_out(tmp_path: Path) -> None:
    turns = [_turn("human", "a", True), _turn("gpt", "b", True), _turn("human", "c", True), _turn("gpt", "d", True)]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([{"id": 1, "system": "s", "conversations": turns}, {"conversations": turns[1:]}]))
    config = build(DATASETS["instructions"], {"files": {"test": str(path)}})
    assert errors(config)[0].startswith("2: 'conversations' begins with assistant")
    path.write_text(json.dumps([{"system": "s", "conversations": turns}]))
    module = module_of(config)
    (example,) = module.examples("test")
    assert (example.instruction, example.input, example.output) == ("s", "a", "b")
    assert "1 of 1 rows have turns after the first answer, which are not read" in module.notes()[0]


# ---- chat templates

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPEN_ENDED = "{% for m in messages %}{% if not loop.first %}</t>{% endif %}<|im_start|>{{ m.content }}{% endfor %}"
BY_WORDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }} " + CHATML
NO_ANSWERS = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'assistant' }}").replace("<|im_end|>", "")


_ALL = "{{ m.content | trim }}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
FIRST = "{{ messages[0].content + '\n\n' if loop.first }}"
TRIMMING = {
    "nothing": CHATML,
    "all": CHATML.replace("{{ m.content }}", _ALL),
    "the end": CHATML.replace("{{ m.content }}", "{{ m.content.rstrip() }}"),
    "the user's turn": CHATML.replace("{{ m.content }}", "{{ m.content | trim if m.role == 'user' else m.content }}"),
    "one turn for both": NO_SYSTEM + CHATML.replace("{{ m.content }}", _ALL),
    "the input behind the instruction": CHATML.replace("messages %}", "messages[1:] %}").replace(
        "{{ m.content }}", FIRST + _ALL
    ),
}


@pytest.mark.parametrize("what", TRIMMING)
def test_white_space_is_taken_where_the_template_takes_it(what: str) -> None:
    tokenizer = byte_tokenizer(TRIMMING[what])
    template = chat_template(tokenizer, writes_bos=False)
    for instruction, given in (
        ("Indent it.", "  return x\n"),
        ("  Say it\n", "\n a  b"),
        ("{input}", "{instruction} <&>"),
    ):
        turns = [{"role": "system", "content": instruction}, {"role": "user", "content": given}]
        if what == "one turn for both":
            turns = [{"role": "user", "content": f"{instruction}\n\n{given}"}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert template.context_text(instruction) + template.query_text(given) == whole


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("m.content", "m.content | e"),
        CHATML.replace("m.content", "m.content | tojson"),
        "{{ messages[0].content }}\n" + CHATML,
        CHATML + "{{ messages[-1].content }}",
    ],
)
def test_templates_that_change_or_repeat_texts_are_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="writes a text twice, or otherwise than it stands in the data"):
        chat_template(byte_tokenizer(template), writes_bos=False)


@pytest.mark.parametrize(
    ("template", "closer"),
    [(CHATML, "<|im_end|>"), (OPEN_ENDED, "</t>"), (BY_WORDS, None), (NO_ANSWERS, None), (DATED, "<|im_end|>")],
)
def test_a_turn_ends_as_its_template_ends_it(tmp_path: Path, template: str, closer: str | None) -> None:
    tokenizer = byte_tokenizer(template)
    tokenizer.backend_tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.add_tokens(["</t>"])
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in tokenizer.all_special_ids
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "Answer shortly", "input": "hello there", "output": "hi"}\n')
    tree = {"files": {"test": str(path)}, "template": "chat", "template_date": "2024-07-26"}
    module = module_of(build(DATASETS["instructions"], tree), tokenizer)
    end = tokenizer.eos_token_id if closer is None else tokenizer.convert_tokens_to_ids(closer)
    assert turn_end(tokenizer) == (() if closer is None else (end,))
    (batch,) = module.eval_dataloader("test")
    assert int(batch.target_ids[0, -1]) == end
    assert {*module.prompt_format().stop_ids} == {end, tokenizer.eos_token_id}


def test_a_date_in_the_template_is_said_or_fixed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "Answer shortly", "input": "hello there", "output": "hi"}\n')
    tree = {"files": {"test": str(path)}, "template": "chat"}
    config, fixed = (
        build(DATASETS["instructions"], {**tree, **more}) for more in ({}, {"template_date": "2024-07-26"})
    )
    for wrong in ("tomorrow", "26.7.2024", 20240726):
        with pytest.raises(ConfigError, match=r"template_date = .*: Input should be a date as YYYY-MM-DD"):
            build(DATASETS["instructions"], {**tree, "template_date": wrong})
    assert any("template_date" in problem.message for problem in validate(config, byte_tokenizer(DATED)))
    assert "inserts today's date" in module_of(config, byte_tokenizer(DATED)).notes()[0]
    assert module_of(config, byte_tokenizer(CHATML)).notes() == []
    module = module_of(fixed, byte_tokenizer(DATED))
    assert module.notes() == []
    (shown,) = show(fixed, byte_tokenizer(DATED), "test", 1)
    assert shown.demonstrations[0].startswith("26 Jul 2024 ")


@pytest.mark.parametrize(
    "written",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{{ strftime_now(format='%d %b %Y') }}",
        "{% set f = '%d %b %Y' %}{{ strftime_now(f) if strftime_now is defined }}",
        "{% macro day() %}{{ strftime_now('%d ' ~ '%b %Y') }}{% endmacro %}{{ day() }}",
        "{{ strftime_now('%-d %B') }}",
    ],
)
def test_a_date_is_found_however_the_template_asks_for_it(written: str) -> None:
    tokenizer = byte_tokenizer(f"{written}\n{CHATML}")
    assert chat_template(tokenizer, False).dated
    parts = chat_template(tokenizer, False, date(2024, 7, 26))
    assert not parts.dated
    assert parts.context.startswith(("26 Jul 2024\n<|im_start|>system", "26 July\n<|im_start|>system"))
