"""Instruction data: templates, budgets, shared contexts, held-out rows, and files with something wrong."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path
from typing import Any

import pytest

from promptcomp.config import ConfigError, build
from promptcomp.datamodules.instruction.instruction_config import (
    AlpacaPlusData,
    CustomTemplate,
    InstructionConfig,
    InstructionsData,
)
from promptcomp.datamodules.instruction.instruction_module import InstructionDataModule
from promptcomp.datamodules.instruction.templates import make_template
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.sources.instruction_sources import HeldOutSource, held_out
from promptcomp.datamodules.tasks import InstructionRow, InstructionSource
from tests.data_sections import byte_tokenizer, validate

CHATML = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"
)
ROWS = [
    InstructionRow("Add them.", "1 2", "3", "a"),
    InstructionRow("Say hi.", "", "hi", "b"),
    InstructionRow("Add them.", "2 2", "4", "a"),
    InstructionRow("Repeat.", "x" * 30, "y" * 30, "b"),
]


class Rows(InstructionSource):
    """Rows in memory."""

    def __init__(self, **splits: list[InstructionRow]) -> None:
        self._rows = splits

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._rows)

    def rows(self, split: str) -> list[InstructionRow]:
        return self._rows[split]


def module(source: Any = None, *, window: int | None = None, **options: Any) -> Any:
    config = InstructionConfig.model_validate(options)
    source = source or Rows(train=ROWS, seen=ROWS)
    return InstructionDataModule(config, source, Reader(byte_tokenizer(), 0, 2, window=window))


def texts(dm: InstructionDataModule, split: str, row: InstructionRow) -> tuple[str, str, str]:
    encoded = dm.encode(split, [row], [0])
    query = encoded.queries[0]
    pieces = (encoded.ids, query.ids, query.targets[0].ids)
    return tuple(dm.tokenizer.decode(list(ids)) for ids in pieces)  # type: ignore[return-value]


def test_alpaca_template_of_a_byte_level_vocabulary() -> None:
    dm = module()
    assert texts(dm, "seen", ROWS[0]) == ("Instruction: Add them.", "\nInput: 1 2\nOutput:", " 3</s>")
    assert texts(dm, "seen", ROWS[1]) == ("Instruction: Say hi.", "\nOutput:", " hi</s>")
    spaced = InstructionRow("Add \n", "{input} {instruction}", "{output}")
    assert texts(dm, "seen", spaced) == (
        "Instruction: Add",
        "\nInput: {input} {instruction}\nOutput:",
        " {output}</s>",
    )
    form = dm.prompt_format()
    assert form.query.replace("{input}", "1 2") == "\nInput: 1 2\nOutput:"
    assert form.stop_ids == (dm.tokenizer.eos_token_id,)
    assert dm.context_ids("Say hi.") == dm.encode("seen", [ROWS[1]], [0]).ids


def test_own_and_plain_templates() -> None:
    dm = module()
    plain = make_template("plain", dm.tokenizer)
    assert plain.query_text("x") == "\nx\n"
    own = CustomTemplate(query="<{input}>", empty_query="<>", output="={output}")
    assert make_template(own, dm.tokenizer).output_text("x") == "=x"
    with pytest.raises(ValueError, match=r"should hold \{input\} once"):
        CustomTemplate(query="nothing", empty_query="")


def chat(template: str, **options: Any) -> InstructionDataModule:
    config = InstructionConfig(template="chat")
    source = Rows(train=ROWS, seen=ROWS)
    return InstructionDataModule(config, source, Reader(byte_tokenizer(template), 0, 2, **options))


def test_chat_template_with_a_system_turn() -> None:
    dm = chat(CHATML)
    assert texts(dm, "seen", ROWS[0]) == (
        "<|start|>system\nAdd them.",
        "<|end|>\n<|start|>user\n1 2<|end|>\n<|start|>assistant\n",
        "3<|end|>",
    )
    assert texts(dm, "seen", ROWS[1])[1] == "<|end|>\n<|start|>assistant\n"
    assert dm.prompt_format().trims
    blank = InstructionRow("Add them.", " \n", "3")  # the template would drop the white space
    assert texts(dm, "seen", blank)[1] == "<|end|>\n<|start|>assistant\n"
    ends = [dm.tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "</s>")]
    assert list(dm.prompt_format().stop_ids) == ends


def test_chat_template_without_a_system_turn() -> None:
    doubled, single = chat(NO_SYSTEM, writes_bos=False), chat(NO_SYSTEM, writes_bos=True)
    assert texts(doubled, "seen", ROWS[0]) == ("<s>[user]Add them.", "\n\n1 2[answer]", "3</s>")
    assert texts(single, "seen", ROWS[0])[0] == "[user]Add them."  # the LM writes BOS itself
    assert texts(single, "seen", ROWS[1])[1] == "[answer]"
    with pytest.raises(ConfigError, match="no chat template"):
        chat("")


def test_pieces_over_their_budgets_lose_the_end_of_their_text_only() -> None:
    dm = module(max_context_tokens=18, max_query_tokens=24, max_target_tokens=10)
    context, query, target = texts(dm, "seen", InstructionRow("Go" * 50, "z" * 99, "w" * 99))
    assert context == "Instruction: GoGoG"
    assert query == "\nInput: zzzzzzzz\nOutput:"
    assert target == " wwwwwwwww"  # nothing says that the answer ends here
    long = dm.long_rows("seen")
    assert (long.rows, long.long, long.contexts, long.queries, long.targets) == (4, (0, 1, 2, 3), 4, 1, 1)
    assert "4 of the 4 rows" in dm.notes()[0]
    assert "cut on the right" in dm.notes()[0]


def test_long_rows_are_skipped_or_refused() -> None:
    skipping = module(max_target_tokens=10, too_long="skip")
    assert skipping.num_train_items() == 3
    assert [info.output for info in skipping.examples("seen")] == ["3", "hi", "4"]
    refusing = module(max_target_tokens=10, too_long="error")
    with pytest.raises(ConfigError, match="too_long = error: train: 1 of the 4 rows"):
        refusing.num_train_items()


def test_budgets_are_checked() -> None:
    with pytest.raises(ConfigError, match="exceed the LM's window of 700"):
        module(window=700)
    with pytest.raises(ConfigError, match=r"exceed the LM's window of 800 \(split seen"):
        module(window=800, split_limits={"seen": {"max_context_tokens": 600}})
    with pytest.raises(ConfigError, match="no split 'humans'"):
        module(split_limits={"humans": {"max_context_tokens": 6}})
    with pytest.raises(ConfigError, match="max_context_tokens = 5: the template alone needs 12"):
        module(max_context_tokens=5)
    with pytest.raises(ConfigError, match="no token"):
        module(template={"query": "{input}", "empty_query": ""})


def test_rows_of_one_instruction_share_its_compression() -> None:
    dm = module(queries_per_context=2)
    assert dm.groups("train") == ((0, 2), (1,), (3,))
    assert dm.num_train_items() == 3
    context = dm.train_context(Draw(0, 0))
    assert len(context.queries) == 2
    (length,) = dm.train_lengths([Draw(0, 0)])
    assert length == len(context.ids) + 2 * max(len(q.ids) + len(q.targets[0].ids) for q in context.queries)
    assert [info.context for info in dm.examples("seen")] == [0, 1, 0, 2]
    found = sorted(int(n) for batch in dm.eval_dataloader("seen") for n in batch.example)
    assert found == [0, 1, 2, 3]
    apart = module(eval_queries_per_context=1)
    assert [info.context for info in apart.examples("seen")] == [0, 2, 1, 3]
    assert dm.task_names == ("a", "b")


def test_tasks_with_the_same_instruction_have_contexts_of_their_own() -> None:
    """They may have prompts of their own (prompt tuning), and are averaged apart."""
    rows = [*ROWS, InstructionRow("Add them.", "5 5", "10", "b")]
    dm = module(Rows(train=rows, seen=rows))
    assert [info.context for info in dm.examples("seen")] == [0, 1, 0, 2, 3]
    contexts = dm.eval_contexts("seen")
    assert [dm.task_names[contexts.whole(number).task] for number in range(4)] == ["a", "b", "b", "b"]


def test_the_same_rows_are_evaluated_whatever_the_seed() -> None:
    many = [InstructionRow(f"do {i}", "", str(i)) for i in range(50)]
    chosen = [info.output for info in module(Rows(seen=many), max_eval_examples=5).examples("seen")]
    assert chosen == [info.output for info in module(Rows(seen=many), max_eval_examples=5).examples("seen")]
    assert len(chosen) == 5
    assert chosen == sorted(chosen, key=int)


def test_blank_instructions() -> None:
    blank = Rows(seen=[InstructionRow(" ", "a", "b")])
    with pytest.raises(ConfigError, match="empty instruction"):
        next(iter(module(blank).eval_dataloader("seen")))
    batch = next(iter(module(blank, allow_empty_instruction=True).eval_dataloader("seen")))
    assert batch.context.ids.shape[0] == 1


def test_calibration_has_no_meaning() -> None:
    with pytest.raises(ConfigError, match="pmi"):
        module().null_dataloader("seen")


# ---- files


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]", encoding="utf-8")
    return path


def records(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"do {i // 2}", "input": str(i), "output": "x", "source": "alpaca"} for i in range(count)]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix in (".json", ".jsonl"):
        write(path, records(6))
    else:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        table = pa.Table.from_pylist(records(6))
        (pa.csv.write_csv if suffix == ".csv" else pa.parquet.write_table)(table, path)
    source = HeldOutSource(InstructionsData(files={"train": path}, dev_examples=2, test_examples=2))
    assert source.splits == ("train", "dev", "test")
    parts = {split: [row.input for row in source.rows(split)] for split in source.splits}
    assert sorted(functools.reduce(operator.iadd, parts.values(), [])) == [str(i) for i in range(6)]
    instructions = [{row.instruction for row in source.rows(split)} for split in source.splits]
    assert not set.intersection(*instructions)
    assert validate(InstructionsData(files={"train": path}, dev_examples=2)) == []


def test_other_columns_and_a_dataset(tmp_path: Path) -> None:
    import datasets

    rows = [{"prompt": f"p{i}", "answer": str(i)} for i in range(4)]
    datasets.DatasetDict({"all": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "ds"))
    columns = {"instruction": "prompt", "input": None, "output": "answer", "source": None}
    config = InstructionsData.model_validate(
        {"dataset": str(tmp_path / "ds"), "dataset_splits": {"test": "all"}, "columns": columns}
    )
    source = HeldOutSource(config)
    assert source.splits == ("test",)
    assert [row.output for row in source.rows("test")] == ["0", "1", "2", "3"]
    assert validate(config) == []


def test_what_a_dataset_alone_has_is_refused_beside_files() -> None:
    for name, value in (("dataset_config", "en"), ("dataset_splits", {"train": "other"})):
        with pytest.raises(ConfigError, match=f"{name} is of a dataset, and `files` names files"):
            build(InstructionsData, {"files": {"train": "a.jsonl"}, name: value})


def test_holding_out() -> None:
    rows = [InstructionRow("same", str(i), "") for i in range(5)]
    with pytest.raises(ConfigError, match="hold_out=row"):
        held_out(rows, range(5), 2, "dev", "instruction")
    chosen = held_out(rows, range(5), 2, "dev", "row")
    assert len(chosen) == 2
    again = held_out(rows[::-1], range(5), 2, "dev", "row")
    assert {rows[i].input for i in chosen} == {rows[::-1][i].input for i in again}  # the text decides, not the place


def test_absent_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "alpaca_plus_validation_seen.json", records(2))
    with pytest.raises(ConfigError, match=r"alpaca_plus_train.json.*name only those you have: {seen: alpaca"):
        HeldOutSource(AlpacaPlusData(folder=tmp_path))
    files = {"seen": "alpaca_plus_validation_seen.json"}
    assert HeldOutSource(AlpacaPlusData(folder=tmp_path, files=files)).splits == ("seen",)


def test_problems_are_told_with_their_place(tmp_path: Path) -> None:
    good = {"instruction": "a", "input": "", "output": "b"}
    bad = [
        good,
        {"instruction": "a"},
        {**good, "output": 3},
        {**good, "instruction": " "},
        good,
        {**good, "output": ""},
    ]
    path = write(tmp_path / "bad.jsonl", [*bad])
    with path.open("ab") as file:
        file.write(b'\n{"instruction": \xff}\n{"instruction"\n')
    found = [str(problem).removeprefix(f"{path}:") for problem in validate(InstructionsData(files={"train": path}))]
    assert found[0] == "2: 'output' is missing"
    assert found[1] == "3: 'output' is int, expected text"
    assert found[2].startswith("4: 'instruction' is empty")
    assert found[3] == "5: the same instruction, input and output as in line 1"
    assert found[4] == "6: the output is empty"
    assert found[5].startswith("7: not UTF-8 text")
    assert found[6].startswith("8: not valid JSON")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"instruction": "\xff"}]', "x.json:1: not UTF-8"),
        (b'{"instruction": "a"}\n{"instruction": "b"}', "should end in .jsonl"),
        (b'{"a": 1}', "expected one list of rows, found dict with the keys 'a'"),
        (b'{"rows": [{}], "rows": [{}]}', "x.json: the key 'rows' occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "no rows"),
    ],
)
def test_bad_json_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        HeldOutSource(InstructionsData(files={"test": path})).rows("test")


def test_validate_with_a_tokenizer_tells_long_shared_and_special_rows(tmp_path: Path) -> None:
    rows = records(6)
    rows[0]["input"] = "text with <|end|> in it"
    rows[1]["output"] = "long " * 100
    train, test = write(tmp_path / "train.json", rows), write(tmp_path / "test.json", rows[2:3])
    config = InstructionsData(files={"train": train, "test": test}, dev_examples=0)
    found = [problem.message for problem in validate(config, byte_tokenizer())]
    assert any("1 of 1 test rows are training rows too" in message for message in found)
    assert any("1 train rows contain '<|end|>'" in message for message in found)
    assert any("train: 1 of the 6 rows checked are over a token budget (1 by their output)" in m for m in found)
