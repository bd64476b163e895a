"""Every reader of rows meets every fault of a file: the rows are read right, or refused with file and line.

Whatever `data validate` calls an error stops `fit` and its dry run with the same words, and the reverse.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from promptcomp.config import ConfigError, build
from promptcomp.datamodules import DATASETS
from promptcomp.datamodules.sections import DataConfig
from promptcomp.datamodules.sources.records import Asked
from promptcomp.datamodules.sources.row_files import read_records
from promptcomp.datamodules.tokens import TokenCache
from promptcomp.judge.pairs import read_side
from promptcomp.prompts.sources import read_queries, read_rows
from tests.data_sections import byte_tokenizer, module_of, validate

Row = dict[str, Any]
Lines = list[bytes]


@dataclass(frozen=True)
class Section:
    """A section that reads a file of rows."""

    row: Callable[[int], Row]
    text: str
    """The key of a text in a row."""
    tree: Row
    """Its configuration; FILE and FOLDER stand for the paths."""
    file: str = "rows.jsonl"

    def config(self, folder: Path, lines: Lines) -> DataConfig:
        """The section with these lines as its file."""
        path = folder / self.file
        if path.suffix == ".json":  # a list of rows
            lines = [b"[" + b",\n".join(lines).removeprefix(b"\xef\xbb\xbf") + b"]"]
        path.write_bytes(b"\n".join(lines) + b"\n")
        if self.tree["name"] == "metaicl":
            _metaicl_folder(folder, path)
        tree = json.loads(json.dumps(self.tree).replace("FILE", str(path)).replace("FOLDER", str(folder)))
        return build(DATASETS[tree["name"]], tree)


def _metaicl_folder(folder: Path, path: Path) -> None:
    (folder / "config").mkdir()
    (folder / "config" / "mine.json").write_text('{"train": ["t"], "test": ["t"]}')
    (folder / "data" / "t").mkdir(parents=True)
    for name in ("16384_100_train", "16_100_train", "16_100_test"):
        (folder / "data" / "t" / f"t_{name}.jsonl").write_bytes(path.read_bytes())


def _labelled(i: int) -> Row:
    return {"input": f"lion {i}", "output": "yes" if i % 2 else "no", "options": ["no", "yes"]}


def _instruction(i: int) -> Row:
    return {"instruction": f"say {i}", "input": "x", "output": f"word {i}"}


def _conversation(i: int) -> Row:
    return {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "yes"}]}


SECTIONS = {
    "table_icl": Section(_labelled, "input", {"name": "table_icl", "test": ["FILE"]}),
    "metaicl": Section(
        _labelled,
        "input",
        {"name": "metaicl", "folder": "FOLDER", "partition": "mine", "seeds": [100], "dev": "none"},
    ),
    "instructions": Section(
        _instruction, "instruction", {"name": "instructions", "files": {"train": "FILE"}, "dev_examples": 0}
    ),
    "conversations": Section(
        _conversation, "messages", {"name": "instructions", "files": {"train": "FILE"}, "dev_examples": 0}
    ),
    "alpaca_plus": Section(
        _instruction,
        "instruction",
        {"name": "alpaca_plus", "folder": "FOLDER", "files": {"seen": "seen.json"}},
        "seen.json",
    ),
    "rationale_files": Section(
        lambda i: {"input": f"what {i}", "label": "yes", "llm_rationale": "so"},
        "input",
        {"name": "rationale_files", "test": ["FILE"], "targets": "label"},
    ),
    "rationale_format": Section(
        lambda i: {"question": f"what {i}", "answer": "because #### 4"},
        "question",
        {"name": "rationale_files", "test": ["FILE"], "format": "gsm8k", "targets": "label"},
    ),
    "text": Section(
        lambda i: {"text": f"a document of some length {i}"},
        "text",
        {"name": "text", "paths": ["FILE"], "dev_documents": 1},
    ),
}


def _dump(row: Row, extra: str = "") -> bytes:
    """A row as JSON, with more of its text behind its own keys."""
    text = json.dumps(row)
    return (f"{text[:-1]}, {extra}}}" if extra else text).encode()


def _elsewhere(extra: str) -> Callable[[list[Row], str], Lines]:
    return lambda rows, _: [_dump(row, extra) for row in rows]


def _second(line: Callable[[Row, str], bytes]) -> Callable[[list[Row], str], Lines]:
    return lambda rows, text: [_dump(rows[0]), line(rows[1], text), *map(_dump, rows[2:])]


READ: dict[str, Callable[[list[Row], str], Lines]] = {
    "byte order mark": lambda rows, _: [b"\xef\xbb\xbf" + _dump(rows[0]), *map(_dump, rows[1:])],
    "integer of 5,000 digits elsewhere": _elsewhere(f'"n": {"9" * 5000}'),
    "infinity elsewhere": _elsewhere('"n": 1e400, "m": NaN'),
    "half a character elsewhere": _elsewhere(r'"n": "\ud83d"'),
    "a key twice elsewhere": _elsewhere('"n": 1, "n": 2'),
    "CRLF and a pair of surrogates": lambda rows, _: [_dump(row, r'"n": "\ud83d\ude00"') + b"\r" for row in rows],
}
REFUSED: dict[str, tuple[Callable[[list[Row], str], Lines], str]] = {
    "half a character": (
        _second(lambda row, text: json.dumps({**row, text: ["HALF"]}).replace("HALF", r"a \ud83d b").encode()),
        "half a character",
    ),
    "a key twice": (_second(lambda row, text: _dump(row, f'"{text}": "again"')), "occurs twice"),
    "a key twice within": (
        _second(lambda row, text: _dump({**row, text: "IN"}).replace(b'"IN"', b'[{"a": 1, "a": 2}]')),
        "has the key 'a' twice",
    ),
    "deep nesting": (_second(lambda *_: b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
    "nesting in what is asked": (
        _second(lambda row, text: _dump({**row, text: "DEEP"}).replace(b'"DEEP"', b"[" * 700 + b"]" * 700)),
        "nested too deeply",
    ),
    "no object": (_second(lambda *_: b'"text"'), "expected an object"),
    "NUL bytes": (_second(lambda *_: b"\0" * 8), "not valid JSON"),
    "Latin-1": (_second(lambda *_: b'{"n": "caf\xe9"}'), "not UTF-8 text"),
    "UTF-16": (lambda rows, _: ["\n".join(map(json.dumps, rows)).encode("utf-16")], "not UTF-8 text"),
    "a number": (_second(lambda row, text: _dump({**row, text: 3})), "'{text}'"),
    "nothing": (lambda *_: [], "has no "),
}


def errors_of(config: DataConfig) -> list[str]:
    """The errors of `data validate`, the first of which is what `fit` raises."""
    errors = [problem for problem in validate(config) if problem.severity == "error"]
    raised = None
    try:
        module_of(config).check()
    except ConfigError as error:
        raised = str(error)
    assert (raised is None) == (not errors), (raised, errors)
    assert raised is None or raised in (str(errors[0]), errors[0].message)
    assert raised is None or "\n" not in raised
    return [str(problem) for problem in errors]


@pytest.mark.parametrize("fault", READ)
@pytest.mark.parametrize("name", SECTIONS)
def test_what_does_not_matter_is_read(tmp_path: Path, name: str, fault: str) -> None:
    section = SECTIONS[name]
    config = section.config(tmp_path, READ[fault]([section.row(i) for i in range(6)], section.text))
    assert errors_of(config) == []
    assert sum(each.rows or 0 for each in module_of(config).all_counts(with_tokens=True)) >= 6


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("name", SECTIONS)
def test_what_cannot_be_read_is_refused_with_file_and_line(tmp_path: Path, name: str, fault: str) -> None:
    section = SECTIONS[name]
    make, message = REFUSED[fault]
    config = section.config(tmp_path, make([section.row(i) for i in range(6)], section.text))
    first, *_ = errors_of(config)
    assert message.format(text=section.text) in first or (name == "alpaca_plus" and "not valid JSON" in first)
    assert str(tmp_path) in first
    if fault not in ("nothing", "UTF-16"):
        assert ":2: " in first or section.file.endswith(".json")


@pytest.mark.parametrize("name", SECTIONS)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, name: str) -> None:
    section = SECTIONS[name]
    config = section.config(tmp_path, [_dump(section.row(i)) for i in range(6)])
    for path in [*tmp_path.glob("*.json*"), *tmp_path.glob("data/t/*")]:
        path.unlink()
        os.mkfifo(path)
    assert any("not a file" in error or "no such file" in error for error in errors_of(config))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_other_readers_take_the_same_files(tmp_path: Path, suffix: str) -> None:
    upper = tmp_path / f"rows{suffix.upper()}"
    rows = [{"id": str(i), "instruction": "say", "input": f"i{i}", "text": "t", "output": "o"} for i in range(3)]
    _table(upper, rows)
    assert [row.input for row in read_rows(upper)] == ["i0", "i1", "i2"]
    assert [query.id for query in read_queries(upper)] == ["0", "1", "2"]
    assert len(read_side(upper).items) == 3
    for read in (read_rows, read_queries, read_side):
        bad = tmp_path / f"{read.__name__}.jsonl"
        bad.write_bytes(_dump(rows[0]) + b"\n" + rb'{"id": "7", "input": "\ud83d", "output": "o"}')
        with pytest.raises(ConfigError, match=r"(:|line )2: 'input' has half a character"):
            read(bad)


def _table(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    kind = path.suffix.lower()
    if kind == ".jsonl":
        path.write_bytes(b"\n".join(map(_dump, rows)))
    elif kind == ".csv":
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)


# ---- tables

ASKED = Asked(("a", "b"), ("c",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,b\n1,2,3\n", r"t\.CSV:1: the column 'b' occurs twice"),
        (b"a;b\n1;2\n", r"t\.CSV:1: the only column is 'a;b': separated by semicolons\? save it .* JSON lines"),
        (b"\na\tb\n1\t2\n", r"t\.CSV:2: the only column is 'a\\tb': separated by tabs\? name it \.tsv$"),
        (b"x|y\n1|2\n", r"t\.CSV:1: no column 'a'; the columns are x\|y"),
        (b"", r"t\.CSV:1: no column 'a'; the columns are none"),
        (b"PK\x03\x04\xff", r"t\.CSV:1: not UTF-8 text but a ZIP archive or an Excel file"),
        (b"\x1f\x8b\x08\x00", r"t\.CSV:1: not UTF-8 text but a compressed file"),
        (b"a,b\n1,2\n" + "3,é\n".encode("latin-1"), r"t\.CSV:3: not UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), r"t\.CSV:1: not UTF-8 text but UTF-16"),
        (b'a,b\n1,"2\n', r"t\.CSV:2: not valid CSV"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.CSV").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(read_records(tmp_path / "t.CSV", ASKED))


def test_odd_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.TSV"
    path.write_bytes(b'\xef\xbb\xbf\na\tb\tn\tn\n"two\nlines"\t' + b"x" * 140_000 + b"\t1\t1\n3\t4\n")
    first, second = read_records(path, ASKED)
    assert (first.line, first.content["a"], len(first.content["b"])) == (3, "two\nlines", 140_000)
    assert (second.line, second.content["b"]) == (5, "4")


def test_parquet_reads_what_is_asked_for_and_names_rows_it_cannot(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    late = pa.array([0, 253402300800], pa.timestamp("s"))  # the first second of the year 10000
    nested = pa.array([[{"x": [1]}], None])
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"a": ["1", "2"], "b": ["3", "4"], "late": late, "deep": nested}), path)
    assert [record.content for record in read_records(path, ASKED)] == [{"a": "1", "b": "3"}, {"a": "2", "b": "4"}]
    good, bad = read_records(path, Asked(("a", "late")))
    assert good.problem is None
    assert bad.line == 2
    assert str(bad.problem).startswith("'late' cannot be read")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        list(read_records(path, ASKED))


@pytest.mark.parametrize("value", ["null", "[1]", "{}", "NaN", "9" * 5000])
def test_templates_are_filled_with_texts_and_numbers_alone(tmp_path: Path, value: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"a": "x", "b": 1.5, "label": "y"}}\n{{"a": "x", "b": {value}, "label": "y"}}\n')
    tree = {"name": "rationale_files", "test": [str(path)], "targets": "label", "columns": {"input": "{a} {b}"}}
    (error,) = errors_of(build(DATASETS["rationale_files"], tree))
    assert error.startswith(f"{path}:2: ")
    assert "expected text or a finite number" in error


def test_class_labels_are_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"input": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"input": ["a", "b", "c"], "label": [1, 0, -1]}
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.to_parquet(str(tmp_path / "t.parquet"))
    datasets.DatasetDict({"test": saved}).save_to_disk(str(tmp_path / "saved"))
    columns = {"label_names": ["never", "always"]}
    trees: list[Row] = [
        {"name": "rationale_files", "test": [str(tmp_path / "t.parquet")]},
        {"name": "rationale_hf", "path": str(tmp_path / "saved"), "train_split": None},
    ]
    for tree in trees:
        section = DATASETS[tree["name"]]
        module = module_of(build(section, {**tree, "targets": "label"}))
        assert [example.output for example in module.examples("test")] == ["yes", "no", ""]
        module = module_of(build(section, {**tree, "targets": "label", "columns": columns}))
        assert [error.message for error in module.problems() if error.severity == "error"][:1] == [
            "'label' -1 has no name in columns.label_names"
        ]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0.0, None, 1.0], None),
        ([0, 1, 7], "'label' has the class label 7, and 2 classes have names"),
        ([0.5, 1.0, 0.0], "'label' has a class label that is no whole number"),
    ],
)
def test_class_labels_are_whole_numbers_that_have_names(tmp_path: Path, labels: list[Any], told: str | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pa.table({"input": ["a", "b", "c"], "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "t.parquet")
    config = build(DATASETS["rationale_files"], {"test": [str(tmp_path / "t.parquet")], "targets": "label"})
    if told is None:
        assert [row.label for row in config.source().rows("test")] == ["no", "", "yes"]
    else:
        with pytest.raises(ConfigError, match=f"t.parquet: {told}"):
            config.source().rows("test")


def test_no_script_of_a_data_set_runs(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    trees: list[Row] = [
        {"name": "hf_icl", "path": str(folder)},
        {"name": "text", "hub": str(folder)},
        {"name": "instructions", "dataset": str(folder)},
        {"name": "rationale_hf", "path": str(folder), "targets": "label"},
    ]
    for tree in trees:
        first, *_ = errors_of(build(DATASETS[tree["name"]], tree))
        assert "cannot be loaded" in first
    assert not (tmp_path / "ran").exists()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words between blanks; all but a few are unknown."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "=>": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize(
    ("given", "output", "settings", "message"),
    [
        ("a", " ", {}, ":2: the output has no token"),
        (" ", "b", {"separator": "none"}, ":2: the input has no token"),
        (" ", "b", {"scoring": "channel"}, ":2: the input has no token"),
        (" ", "b", {}, None),
    ],
)
def test_pieces_without_a_token_are_refused(
    tmp_path: Path, given: str, output: str, settings: Row, message: str | None
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n".join(map(_dump, [{"input": "a", "output": "b"}, {"input": given, "output": output}] * 2)))
    tree = {"name": "table_icl", "train": [str(path)], "test": [str(path)], "dev_share": 0, **settings}
    errors = [str(each) for each in validate(build(DATASETS["table_icl"], tree), word_tokenizer())]
    assert message is None or f"{path}{message}" in "\n".join(errors)
    module = module_of(build(DATASETS["table_icl"], tree), word_tokenizer())
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        module.check()


def test_an_input_without_a_token_is_none(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n".join(_dump({"instruction": "a", "input": each, "output": "b"}) for each in ("", " ")))
    tree = {"name": "instructions", "files": {"test": str(path)}, "template": "plain"}
    template = {"context": "{instruction}", "query": "{input}", "empty_query": "=>", "output": "{output}"}
    module = module_of(build(DATASETS["instructions"], {**tree, "template": template}), word_tokenizer())
    queries = [query.ids for query in module.eval_contexts("test").whole(0).queries]
    assert queries == [(4,), (4,)]


def test_texts_that_the_tokenizer_does_not_know_are_told(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n".join(_dump({"input": f"where is {i}", "output": "late"}) for i in range(3)))
    tree = {"name": "table_icl", "train": [str(path)], "test": [str(path)], "dev_share": 0}
    config = build(DATASETS["table_icl"], tree)
    told = [each.message for each in validate(config, word_tokenizer())]
    assert any(re.match(r"train: \d\d% of the tokens are unknown .*<unk>", each) for each in told)
    assert any(each.startswith("test: 100% of the tokens are unknown") for each in told)
    assert not any("unknown" in str(each) for each in validate(config))


@pytest.mark.parametrize("lower", [False, True])
def test_outputs_that_the_tokenizer_cannot_write_are_told(tmp_path: Path, lower: bool) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n".join(_dump({"instruction": f"say {i}", "output": "Paris"}) for i in range(3)))
    tokenizer = byte_tokenizer()
    if lower:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tree = {"name": "instructions", "files": {"test": str(path)}}
    told = [each.message for each in validate(build(DATASETS["instructions"], tree), tokenizer)]
    message = "test: the LM's tokenizer writes 3 of the 3 outputs that were looked at otherwise ('Paris' as 'paris')"
    assert any(each.startswith(message) for each in told) == lower


def test_messages_show_the_beginning_of_long_labels(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(_dump({"input": "a", "output": "x" * 10**5, "options": ["y" * 10**5, "z"]}))
    first, *_ = errors_of(build(DATASETS["table_icl"], {"name": "table_icl", "test": [str(path)]}))
    assert "is not among the options" in first
    assert len(first) < 1000
    path.write_bytes(b'[{"input": "a", "output": "b"},\n{"input": "a", "output": "c"}]')
    first, *_ = errors_of(build(DATASETS["table_icl"], {"name": "table_icl", "test": [str(path)]}))
    assert first.endswith("a file with one list of rows should end in .json")


def test_a_label_that_holds_the_separator_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(_dump({"input": "a", "label": "b | c", "llm_rationale": "so"}))
    tree = {"name": "rationale_files", "test": [str(path)], "targets": "rationale_then_label", "separator": "|"}
    (error,) = errors_of(build(DATASETS["rationale_files"], tree))
    assert error == f"{path}:1: the label holds data.separator = '|'; choose characters that no label has"


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_in_texts_are_the_same_ids_alone_and_among_many(split: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.split_special_tokens = split
    text, alone, among = "a</s>b", TokenCache(tokenizer), TokenCache(tokenizer)
    among.add([text, *map(str, range(300))])
    assert alone(text) == among(text)
    assert len(alone(text)) == (6 if split else 3)
