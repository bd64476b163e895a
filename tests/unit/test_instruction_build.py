"""Building Alpaca+: the published rules, by hand and as properties of random rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from promptcomp.commands.data import data_build_alpaca_plus
from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.instruction_config import AlpacaPlusData
from promptcomp.datamodules.sources.alpaca_plus import AlpacaPlus, build_alpaca_plus, check_overlaps
from promptcomp.datamodules.sources.instruction_sources import HeldOutSource
from promptcomp.datamodules.tasks import InstructionRow

Triple = tuple[str, str, str]
SELF = [
    ("add", "1 2", "3"),  # seen: two instances, the first has an input
    ("hello", "", "hi"),  # one instance
    ("add", "2 2", "4"),
    ("empty first", "", "a"),  # the first instance has no input
    ("empty first", "x", "b"),
    ("add", "1 2", "three"),  # the (instruction, input) of a seen row: kept out of training
    ("add", "2 2", "four"),  # a second time
    ("sort", "b a", "a b"),
    ("sort", "c a", "a c"),
]
ALPACA = [
    ("hello", "you", "hi you"),  # the instruction is known
    ("name it", "", "x"),  # no input
    ("name it", "z", "y"),  # now known
    ("paint", "red", "ok"),  # unseen
    ("dance", "now", "ok"),
    ("dance", "now", "ok"),  # training rows of Alpaca stay as they are
]


def rows(triples: list[Triple]) -> list[InstructionRow]:
    return [InstructionRow(*triple) for triple in triples]


def triples(found: list[InstructionRow]) -> list[Triple]:
    return [(row.instruction, row.input, row.output) for row in found]


def test_by_hand() -> None:
    found = build_alpaca_plus(rows(SELF), rows(ALPACA), rows([("plan", "", "ok")]), num_seen=1, num_unseen=1)
    assert triples(found.seen) == [("add", "1 2", "3")]
    assert triples(found.unseen) == [("paint", "red", "ok")]
    by_self = [row for row in found.train if row.source == "self_instruct"]
    assert triples(by_self) == [SELF[2], SELF[1], SELF[3], SELF[4], SELF[7], SELF[8]]
    assert triples([row for row in found.train if row.source == "alpaca"]) == [*ALPACA[:3], *ALPACA[4:]]
    assert triples(found.human) == [("plan", "", "ok")]


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match="only 2 rows qualify for the seen split, not 5; use --seen 2"):
        build_alpaca_plus(rows(SELF), rows(ALPACA), [], 5, 1)
    with pytest.raises(ConfigError, match="no training row has the seen instruction 'one'"):
        build_alpaca_plus(rows([("one", "1", "a"), ("one", "1", "b")]), rows(ALPACA), [], 1, 1)
    with pytest.raises(ConfigError, match="a training row has the unseen instruction 'dance'"):
        build_alpaca_plus(rows(SELF), rows([*ALPACA[4:5], ("dance", "later", "ok")]), [], 1, 1)
    row = InstructionRow("a", "b", "c", "alpaca")
    with pytest.raises(ConfigError, match="row of the unseen split is a training row too"):
        check_overlaps(AlpacaPlus([row], [], [row], []))


@pytest.mark.parametrize("seed", range(20))
def test_splits_of_random_rows_do_not_overlap(seed: int) -> None:
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(12)]
    mine = rows([(draw.choice(words), draw.choice(["", "a", "b", "c"]), str(i)) for i in range(60)])
    alpaca = rows([(f"{draw.choice(words)}{draw.choice('xyz')}", draw.choice(["", "a"]), str(i)) for i in range(40)])
    try:
        found = build_alpaca_plus(mine, alpaca, [], 3, 1)
    except ConfigError:
        return  # the rules cannot be kept with these rows, and that is said
    train = {(row.instruction, row.input) for row in found.train}
    assert not train & {(row.instruction, row.input) for row in (*found.seen, *found.unseen)}
    trained = {row.instruction for row in found.train}
    assert {row.instruction for row in found.seen} <= trained
    assert not {row.instruction for row in found.unseen} & trained
    by_self = [(row.instruction, row.input) for row in found.train if row.source == "self_instruct"]
    assert len(by_self) == len(set(by_self))
    kept = len(found.unseen) + sum(row.source == "alpaca" for row in found.train)
    assert kept == len(alpaca)


def test_files_are_written_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("instruction", "input", "output")
    (tmp_path / "alpaca.json").write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in ALPACA]))
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in SELF]
    (tmp_path / "self.jsonl").write_text("\n".join(lines))
    task = {"instruction": "plan", "instances": [{"input": "", "output": "ok"}, {"input": "x", "output": "y"}]}
    (tmp_path / "user.jsonl").write_text(json.dumps(task))
    paths = (tmp_path / "alpaca.json", tmp_path / "self.jsonl", tmp_path / "user.jsonl", tmp_path / "out")
    data_build_alpaca_plus(*paths, 1, 1, False, True)
    printed = json.loads(capsys.readouterr().out)
    assert {split: found["rows"] for split, found in printed.items()} == {
        "train": 11,
        "seen": 1,
        "unseen": 1,
        "human": 2,
    }
    source = HeldOutSource(AlpacaPlusData(folder=tmp_path / "out", dev_examples=0))
    assert [row.output for row in source.rows("human")] == ["ok", "y"]
    with pytest.raises(ConfigError, match="already"):
        data_build_alpaca_plus(*paths, 1, 1, False, True)
    data_build_alpaca_plus(*paths, 1, 1, True, False)
    assert "self instruct" in capsys.readouterr().out
    (tmp_path / "user.jsonl").write_text('{"instruction": "plan"}')
    with pytest.raises(ConfigError, match=r"user\.jsonl:1: 'instances' is missing"):
        data_build_alpaca_plus(*paths, 1, 1, True, False)
