"""MetaICL's folder layout, a user's tables, one Hugging Face dataset: which tasks and rows they give."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from promptcomp.config import ConfigError, build, dump
from promptcomp.datamodules import DATASETS
from promptcomp.datamodules.icl_config import HFData, MetaICLData, TableData
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.sources.metaicl_folder import MetaICLSource
from promptcomp.datamodules.sources.rows import JsonlRows, hold_out
from promptcomp.datamodules.sources.task_tables import TableSource
from promptcomp.datamodules.tasks import Row, Task
from promptcomp.toy.icl_world import toy_tokenizer
from tests.data_sections import show, validate

Record = dict[str, Any]


def write_lines(path: Path, records: list[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def record(task: str, i: int, options: list[str] | None = None) -> Record:
    options = ["no", "yes"] if options is None else options
    output = options[i % len(options)] if options else f"free {i}"
    return {"task": task, "input": f"{task} lion {i}", "output": output, "options": options}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four training tasks (one free-form) and two test tasks with two data seeds, in MetaICL's layout."""
    for task in ("a", "b", "c", "free"):
        rows = [record(task, i, [] if task == "free" else None) for i in range(20)]
        write_lines(tmp_path / "data" / task / f"{task}_16384_100_train.jsonl", rows)
    for task in ("t", "u"):
        for seed in (13, 100):
            stem = tmp_path / "data" / task / f"{task}_4_{seed}"
            write_lines(Path(f"{stem}_train.jsonl"), [record(task, i + seed) for i in range(4)])
            write_lines(Path(f"{stem}_dev.jsonl"), [record(task, i + 1000) for i in range(3)])
            write_lines(Path(f"{stem}_test.jsonl"), [record(task, i + 2000) for i in range(5)])
    partition = {"train": ["a", "b", "c", "free"], "test": ["t", "u"], "unseen_domain_test": ["u"]}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.json").write_text(json.dumps(partition))
    return tmp_path


def metaicl(root: Path, **options: Any) -> MetaICLData:
    return MetaICLData(
        **{"folder": root, "partition": "mine", "seeds": (100, 13), "test_k": 4, "num_demonstrations": 4, **options}
    )


# ---- MetaICL


def test_metaicl_tasks(folder: Path) -> None:
    source = MetaICLSource(metaicl(folder))
    assert source.splits == ("train", "dev", "test", "unseen_domain_test")
    train, dev, test = (source.tasks(split) for split in ("train", "dev", "test"))
    assert len(train) == 3
    assert len(dev) == 1
    assert {task.name for task in (*train, *dev)} == {"a", "b", "c", "free"}
    assert dev[0].kind == "classification", "a task that can be scored is held out"
    assert [(task.name, task.seed) for task in test] == [("t", 100), ("t", 13), ("u", 100), ("u", 13)]
    assert [row.input for row in test[1].demonstrations] == [f"t lion {i + 13}" for i in range(4)]
    assert len(test[1].queries) == 5
    assert {task.kind for task in train} == {"classification", "free_form"}
    assert train[0].demonstrations is train[0].queries
    assert [task.name for task in source.tasks("unseen_domain_test")] == ["u", "u"]


def test_metaicl_selection_on_target_tasks(folder: Path) -> None:
    source = MetaICLSource(metaicl(folder, dev="target_dev"))
    assert len(source.tasks("train")) == 4
    assert [(task.name, task.seed, len(task.queries)) for task in source.tasks("dev")] == [("t", 100, 3), ("u", 100, 3)]
    assert MetaICLSource(metaicl(folder, dev="none")).splits == ("train", "test", "unseen_domain_test")


def test_kinds_may_come_from_files(folder: Path) -> None:
    (folder / "config" / "tasks").mkdir()
    (folder / "config" / "tasks" / "t.json").write_text('{"task_type": "multi-choice"}')
    assert MetaICLSource(metaicl(folder)).tasks("test")[0].kind == "multi_choice"
    (folder / "tasks.json").write_text('{"t": {"kind": "free-form"}}')
    assert MetaICLSource(metaicl(folder)).tasks("test")[0].kind == "free_form"
    (folder / "tasks.json").write_text('{"t": {"kind": "essay"}}')
    with pytest.raises(ConfigError, match=r"tasks\.json: task kind 'essay' is unknown"):
        MetaICLSource(metaicl(folder)).tasks("test")


def test_metaicl_end_to_end(folder: Path) -> None:
    config = metaicl(folder, eval_queries_per_context=1, max_example_tokens=32)
    dm = config.build(Reader(toy_tokenizer(), seed=0, batch_size=2, window=128))
    batch = next(iter(dm.train_dataloader()))
    assert len(batch.context.ids) == 2
    assert len(dm.examples("test")) == 20
    assert sum(len(batch.target_ids) for batch in dm.eval_dataloader("test")) == 40
    assert dm.val_dataloader() is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "yours"}, r"data\.partition 'yours': no file .*; known: mine"),
        ({"folder": Path("/nowhere")}, r"data\.folder: no such file or folder: /nowhere"),
        ({"test_k": 16}, r"t_16_100_test\.jsonl: no such file"),
        ({"seeds": [100, 13, 100]}, "seeds: 100 occurs twice"),
    ],
)
def test_metaicl_missing_parts(folder: Path, options: Record, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MetaICLSource(build(MetaICLData, metaicl(folder).model_dump() | options)).tasks("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a file of MetaICL, not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"train": ["a"]}', "'test' should be a list"),
    ],
)
def test_bad_partition_files(folder: Path, content: str, message: str) -> None:
    (folder / "config" / "mine.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"mine\.json: {message}"):
        MetaICLSource(metaicl(folder))


def test_rows_stay_in_the_file_and_travel_to_workers(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [record("a", i) for i in range(5)])
    path.write_text(path.read_text().replace("\n", "\n\n", 2).rstrip("\n"))  # blank lines, and no newline at the end
    rows = JsonlRows(path)
    assert len(rows) == 5
    assert rows[4] == Row("a lion 4", "no", ("no", "yes"))
    assert rows[-1] == rows[4]
    assert [row.input for row in rows[1:3]] == ["a lion 1", "a lion 2"]
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)  # noqa: S301 (what a worker process does)


def test_hold_out_depends_on_names_alone() -> None:
    tasks = [Task(f"task {i}", "free_form" if i < 3 else "classification", (), ()) for i in range(20)]
    train, dev = hold_out(tasks, 0.2, "data")
    again = hold_out(tasks[::-1], 0.2, "data")
    assert {task.name for task in dev} == {task.name for task in again[1]}
    assert len(dev) == 4
    assert len(train) == 16
    assert all(task.kind == "classification" for task in dev)
    with pytest.raises(ConfigError, match="with one training task, none can be held out"):
        hold_out(tasks[:1], 0.2, "data")


def test_hold_out_takes_tasks_with_all_their_seeds() -> None:
    tasks = [Task(f"task {i}", "classification", (), (), seed) for i in range(4) for seed in (13, 21)]
    train, dev = hold_out(tasks, 0.25, "data")
    assert [task.seed for task in dev] == [13, 21]
    assert len(train) == 6
    with pytest.raises(ConfigError, match="with one training task, none can be held out"):
        hold_out(tasks[:2], 0.2, "data")


# ---- tables


def test_table_with_its_own_columns(tmp_path: Path) -> None:
    lines = ["question,answer,choices,subject"]
    lines += [f"lion {i},{'yes' if i % 2 else 'no'},no|yes,{'first' if i < 6 else 'second'}" for i in range(12)]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    columns = {"input": "question", "output": "answer", "options": "choices", "task": "subject"}
    config = build(TableData, {"train": [str(path)], "test": [str(path)], "columns": columns, "dev_share": 0.5})
    source = TableSource(config)
    assert source.splits == ("train", "dev", "test")
    assert sorted(task.name for split in ("train", "dev") for task in source.tasks(split)) == ["first", "second"]
    (first, _) = source.tasks("test")
    assert first.queries is first.demonstrations
    assert first.queries[1] == Row("lion 1", "yes", ("no", "yes"))


def test_table_with_splits_and_seeds(tmp_path: Path) -> None:
    rows = [{**record("t", i), "split": "train", "seed": seed} for i in range(3) for seed in ("13", "21")]
    rows += [{**record("t", i), "split": "test"} for i in range(10, 14)]
    source = TableSource(TableData(test=(write_lines(tmp_path / "mine.jsonl", rows),)))
    assert source.splits == ("test",)
    tasks = source.tasks("test")
    assert [(task.seed, len(task.demonstrations), len(task.queries)) for task in tasks] == [(13, 3, 4), (21, 3, 4)]


def test_queries_without_a_seed_are_asked_behind_every_pool(tmp_path: Path) -> None:
    """Also where one of the pools has no seed; a pool whose seed no query has is warned of."""
    shown = [{**record("t", i), "split": "train", "seed": seed} for i in range(3) for seed in (None, 13)]
    asked = [{**record("t", i), "split": "test", "seed": None} for i in range(10, 14)]
    config = TableData(test=(write_lines(tmp_path / "mine.jsonl", [*shown, *asked]),))
    assert [task.seed for task in TableSource(config).tasks("test")] == [None, 13]
    write_lines(tmp_path / "mine.jsonl", [*shown, *({**row, "seed": 13} for row in asked)])
    assert [task.seed for task in TableSource(config).tasks("test")] == [13]
    found = [str(problem) for problem in validate(config)]
    assert (
        "data: task 't': the demonstrations without a seed are not shown, as all its queries have other seeds" in found
    )


def test_white_space_around_the_items_of_a_cell_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("input,output,options\nlion,yes,no | yes\npear,no,no|yes \n", encoding="utf-8")
    (task,) = TableSource(TableData(test=(tmp_path / "mine.csv",))).tasks("test")
    assert [row.options for row in task.queries] == [("no", "yes")] * 2
    assert task.kind == "classification"


def test_class_labels_beside_a_column_of_lists(tmp_path: Path) -> None:
    """Older versions of `datasets` write the feature of such a column as a list."""
    text = {"dtype": "string", "_type": "Value"}
    features = {"words": [text], "input": text, "output": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = pa.table({"words": [["a"]] * 3, "input": ["lion", "pear", "saw"], "output": [0, 1, 0]})
    known = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(known, tmp_path / "mine.parquet")
    (task,) = TableSource(TableData(test=(tmp_path / "mine.parquet",))).tasks("test")
    assert [row.output for row in task.queries] == ["no", "yes", "no"]


def test_table_with_a_file_of_demonstrations(tmp_path: Path) -> None:
    shown = write_lines(tmp_path / "shown.jsonl", [record("t", i) for i in range(3)])
    asked = write_lines(tmp_path / "asked.jsonl", [record("t", i) for i in range(10, 15)])
    (task,) = TableSource(TableData(test=(asked,), demonstrations=(shown,))).tasks("test")
    assert (len(task.demonstrations), len(task.queries)) == (3, 5)
    other = write_lines(tmp_path / "other.jsonl", [record("x", i) for i in range(3)])
    with pytest.raises(ConfigError, match="task 't' has queries and no demonstrations"):
        TableSource(TableData(test=(asked,), demonstrations=(other,))).tasks("test")


def test_each_task_says_which_of_its_rows_are_shown(tmp_path: Path) -> None:
    rows = [{**record("a", i), "split": ("train", "test")[i % 2]} for i in range(6)]
    path = write_lines(tmp_path / "rows.jsonl", [*rows, *(record("b", i) for i in range(5))])
    first, second = TableSource(TableData(test=(path,))).tasks("test")
    assert (first.name, len(first.demonstrations), len(first.queries)) == ("a", 3, 3)
    assert (second.name, len(second.queries)) == ("b", 5)
    assert second.demonstrations is second.queries


def test_names_are_the_same_whatever_white_space_is_around_them(tmp_path: Path) -> None:
    rows = [{**record("t", i), "task": " t"[i % 2 :], "split": ("Train ", "test")[i // 4]} for i in range(8)]
    (task,) = TableSource(TableData(test=(write_lines(tmp_path / "rows.jsonl", rows),))).tasks("test")
    assert (task.name, len(task.demonstrations), len(task.queries)) == ("t", 4, 4)


def test_files_of_one_name_are_not_mixed_into_one_task(tmp_path: Path) -> None:
    a, b = (
        write_lines(tmp_path / name / "rows.jsonl", [{**record("", i), "input": f"{name} {i}"} for i in range(4)])
        for name in ("a", "b")
    )
    (problem,) = [each for each in validate(TableData(test=(a, b))) if each.severity == "error"]
    assert problem.file == str(b)
    assert problem.message.startswith(f"a task is named after its file, and {a} is task 'rows' already")
    train = validate(TableData(train=(a,), test=(b,), dev_share=0))
    assert [each.message for each in train] == ["task 'rows' is both a train and a test task"]
    for path in (a, b):
        write_lines(path, [record("t", i) for i in range(4)])
    (task,) = TableSource(TableData(test=(a, b))).tasks("test")
    assert (task.name, len(task.queries)) == ("t", 8)
    with pytest.raises(ConfigError, match=r"test: .*rows\.jsonl occurs twice"):
        build(TableData, {"test": [str(a), str(a.parent / ".." / "a" / "rows.jsonl")]})


def test_without_demonstrations_one_row_is_a_task(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [record("t", 0)])
    assert [p.severity for p in validate(TableData(test=(path,)))] == ["error"]
    assert validate(TableData(test=(path,), num_demonstrations=0)) == []


def test_rows_of_a_pool_are_no_queries_beside_a_file_of_demonstrations(tmp_path: Path) -> None:
    shown = write_lines(tmp_path / "shown.jsonl", [record("t", i) for i in range(3)])
    rows = [{**record("t", i), "split": ("train", "test")[i % 2]} for i in range(10, 15)]
    asked = write_lines(tmp_path / "asked.jsonl", rows)
    (task,) = TableSource(TableData(test=(asked,), demonstrations=(shown,))).tasks("test")
    assert (len(task.demonstrations), [row.input for row in task.queries]) == (3, ["t lion 11", "t lion 13"])


def test_options_from_outputs(tmp_path: Path) -> None:
    rows = [{"input": f"lion {i}", "output": "b" if i % 2 else "a"} for i in range(6)]
    path = write_lines(tmp_path / "letters.jsonl", rows)
    (free,) = TableSource(TableData(test=(path,))).tasks("test")
    assert (free.name, free.kind) == ("letters", "free_form")
    (task,) = TableSource(TableData(test=(path,), options_from_outputs=True)).tasks("test")
    assert task.kind == "classification"
    assert task.queries[0].options == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"input": "x", "output": "y"}\n\n{"input": "x"}\n', r"t\.jsonl:3: 'output' is missing"),
        ("t.jsonl", b'{"input": "x", "output": ""}\n', r"t\.jsonl:1: 'output' is empty"),
        ("t.jsonl", b'{"input": 3, "output": "y"}\n', r"t\.jsonl:1: 'input' is int, expected text"),
        (
            "t.jsonl",
            b'{"input": "x", "output": "y", "options": "y"}\n',
            r"t\.jsonl:1: 'options' is not a list of texts",
        ),
        ("t.jsonl", b'{"input": "x", "output": "y", "options": ["a"]}\n', r"t\.jsonl:1: 'output' 'y' is not among"),
        ("t.jsonl", b'{"input": "x", "output": "y", "seed": "one"}\n', r"t\.jsonl:1: 'seed' 'one' is no whole number"),
        ("t.jsonl", b'["x", "y"]\n', r"t\.jsonl:1: expected an object .* found list"),
        ("t.jsonl", b'{"input": "x", "output": "y"}\n{"input": \n', r"t\.jsonl:2: not valid JSON"),
        ("t.jsonl", b'{"input": "\xff"}\n', r"t\.jsonl:1: not UTF-8 text"),
        ("t.jsonl", b"", r"t\.jsonl: the file has no rows"),
        ("t.jsonl", b'{"input": "x", "output": "y"}\n', "task 't' has one row and so no demonstration"),
        ("t.csv", b"input,answer\nx,y\n", r"t\.csv:1: no column 'output'; the columns are input, answer"),
        ("t.csv", b"input,output\nx,y\nx,y,z\n", r"t\.csv:3: more cells than the 2 columns"),
        ("t.csv", b"input,output\nx\n", r"t\.csv:2: 'output' is missing"),
        ("t.csv", b"input,output\nx,y\nz,\xff\n", r"t\.csv:3: not UTF-8 text"),
        ("t.csv", b'input,output\nx,"y" y\n', r"t\.csv:2: not valid CSV"),
        ("t.xlsx", b"", r"t\.xlsx: a file of rows should end in"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    config = TableData(test=(path,))
    with pytest.raises(ConfigError, match=message):
        TableSource(config).tasks("test")
    assert any(problem.severity == "error" for problem in validate(config))


def test_missing_table() -> None:
    with pytest.raises(ConfigError, match=r"gone\.csv: no such file"):
        TableSource(TableData(test=(Path("gone.csv"),))).tasks("test")


# ---- one dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """MEND's layout: every row has task, seed (text) and split."""
    import datasets

    train = [{**record(task, i), "seed": "100", "split": "train"} for task in "abc" for i in range(8)]
    test = []
    for seed in ("13", "21"):
        for split, count in (("train", 4), ("dev", 2), ("test", 3)):
            test += [{**record("t", i), "seed": seed, "split": split} for i in range(count)]
    splits = {"meta_train": train, "meta_eval": test}
    found = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    found.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def hub(dataset: Path, **options: Any) -> HFData:
    tree = {"path": str(dataset), "test_split": "meta_eval", "num_demonstrations": 4, **options}
    return build(HFData, tree)


def test_one_dataset(dataset: Path, tmp_path: Path) -> None:
    source = hub(dataset).source()
    assert sorted(task.name for split in ("train", "dev") for task in source.tasks(split)) == ["a", "b", "c"]
    tasks = source.tasks("test")
    assert [(t.name, t.seed, len(t.demonstrations), len(t.queries)) for t in tasks] == [
        ("t", 13, 4, 3),
        ("t", 21, 4, 3),
    ]
    assert tasks[0].queries[1] == Row("t lion 1", "yes", ("no", "yes"))
    partition = tmp_path / "some.json"
    partition.write_text('{"train": ["a", "b"], "test": ["t"]}')
    source = hub(dataset, partition=str(partition), dev="target_dev", seeds=[21]).source()
    assert [task.name for task in source.tasks("train")] == ["a", "b"]
    assert [(task.seed, len(task.queries)) for task in source.tasks("dev")] == [(21, 2)]
    partition.write_text('{"train": ["a", "B", "d"], "test": ["t", "u"]}')
    for split, lost in (
        ("train", r"'train' .* split meta_train of .* lacks: 'B', 'd'; did you mean 'b'"),
        ("test", "'u'"),
    ):
        with pytest.raises(ConfigError, match=lost):
            hub(dataset, partition=str(partition)).source().tasks(split)
    assert len([each for each in validate(hub(dataset, partition=str(partition))) if each.severity == "error"]) == 2
    (warning,) = validate(hub(dataset))
    assert warning.message.startswith("test: 6 queries have the input and output of a demonstration")
    assert warning.severity == "warning"


def test_one_dataset_with_mistakes(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'meta'; it has meta_train, meta_eval"):
        hub(dataset, test_split="meta").source().tasks("test")
    columns = {"input": "question"}
    with pytest.raises(ConfigError, match=r"split meta_eval\): no column 'question'; the columns are"):
        hub(dataset, columns=columns).source().tasks("test")
    with pytest.raises(ConfigError, match=r"\(split meta_eval\) has the seed 7; there are 13, 21"):
        hub(dataset, seeds=[13, 7]).source().tasks("test")
    with pytest.raises(ConfigError, match=r"columns\.task and columns\.split must be named"):
        hub(dataset, columns={"task": None})


def test_a_row_of_one_dataset_says_its_split(tmp_path: Path) -> None:
    import datasets

    splits = ("train", None, "test", "validation", " Test", "TRAIN")
    rows = [{**record("t", i), "split": split} for i, split in enumerate(splits)]
    datasets.DatasetDict({"set": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "saved"))
    config = hub(tmp_path / "saved", train_split="set", test_split="set")
    assert [(problem.line, problem.message) for problem in validate(config)] == [
        (2, "'split' is missing"),
        (4, "'split' is 'validation', expected train, dev, test"),
    ]


# ---- the registry


def test_every_section_round_trips_and_is_described(tmp_path: Path) -> None:
    needed: dict[str, Record] = {
        "metaicl": {"folder": str(tmp_path), "partition": "mine"},
        "hf_icl": {"path": "somewhere"},
        "table_icl": {"test": ["mine.csv"]},
        "text": {"paths": ["mine.txt"]},
        "alpaca_plus": {"folder": str(tmp_path)},
        "instructions": {"files": {"train": "mine.jsonl"}},
        "task_files": {"folder": str(tmp_path)},
        "rationale_folder": {"folder": str(tmp_path), "task": "cqa"},
        "rationale_files": {"test": ["mine.jsonl"]},
        "rationale_hf": {"path": "somewhere"},
    }
    for name, section in DATASETS.items():
        config = build(section, {"name": name, **needed.get(name, {})})
        assert build(section, yaml.safe_load(dump(config))) == config


def test_show(folder: Path) -> None:
    config = metaicl(folder, max_example_tokens=8, max_context_tokens=12, separator="none")
    for split in ("train", "dev", "test"):
        rows = show(config, toy_tokenizer(), split, 3)
        assert len(rows) == 3
        for row in rows:
            assert sum(len(piece.split()) for piece in row.demonstrations) == row.context_tokens <= 12
            assert row.dropped == 4 - len(row.demonstrations) > 0
            assert row.options[row.gold]
            assert len(row.target_tokens) == len(row.options) == (1 if split == "train" else 2)
