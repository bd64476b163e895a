"""Files and data sets with rationales: the original's folders, id-keyed rows, and any Hugging Face data set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from promptcomp.config import ConfigError
from promptcomp.datamodules.rationale.rationale_config import RationaleFilesData, RationaleFolderData, RationaleHFData
from promptcomp.datamodules.sources.arrow import open_table
from promptcomp.datamodules.sources.rationale_parsing import STATUSES, parse
from promptcomp.datamodules.sources.rationale_records import BadRow, RationaleColumns, RecordReader
from promptcomp.datamodules.sources.records import (
    Asked,
    Found,
    NotHere,
    Problem,
    Record,
    half_character,
    has_errors,
    kind_of_rows,
    name_in,
    no_rows,
    read_json,
    read_records,
    tell,
    tell_error,
)
from promptcomp.datamodules.tasks import RationaleRow, RationaleSource

_WORK = Asked(("id",), ("llm_label", "llm_rationale", "teacher", "parse_status"))


def joined(rows: Sequence[RationaleRow], paths: Sequence[Path], found: Found = None) -> Sequence[RationaleRow]:
    """The rows with a teacher's work from other files, joined by id; rows that are not in them stay as they are.

    Raises:
        ConfigError: a file is missing or bad, or none of its ids belongs to a row.
    """
    if not paths:
        return rows
    work: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        for record in read_records(path, _WORK, kind_of_rows(path)):
            problems = record.problems(_work_problems(record.content))
            for problem in problems:
                tell(problem, found)
            if not problems:
                work[str(name_in(record.content["id"]))] = record.content
    if rows and not any(row.id in work for row in rows):
        names = ", ".join(map(str, paths))
        tell(Problem(names, None, f"none of the ids belongs to a row of the data (such as {rows[0].id!r})"), found)
    return [_with_work(row, work[row.id]) if row.id in work else row for row in rows]


def _with_work(row: RationaleRow, record: Mapping[str, Any]) -> RationaleRow:
    return replace(
        row,
        llm_label=record.get("llm_label") or "",
        llm_rationale=record.get("llm_rationale") or "",
        parse_status=record.get("parse_status") or "ok",
        teacher=record.get("teacher") or "",
    )


def _work_problems(record: Mapping[str, Any]) -> list[str]:
    try:
        if name_in(record.get("id")) is None:
            return ["expected an object with an 'id'"]
    except ValueError:
        return [f"'id' is {type(record['id']).__name__}, expected text or a whole number"]
    for name in ("llm_label", "llm_rationale", "teacher", "parse_status"):
        if not isinstance(record.get(name), str | None):
            return [f"{name!r} is {type(record[name]).__name__}, expected text"]
    status = record.get("parse_status") or "ok"
    return [] if status in STATUSES else [f"'parse_status' {status!r} is none of {', '.join(STATUSES)}"]


def read_rows(
    records: Iterable[Record], reader: RecordReader, split: str, where: str, found: Found, start: int = 0
) -> list[RationaleRow]:
    """The rows of a file or table; `start` rows of the split were read before.

    Raises:
        ConfigError: a bad row, or none, unless `found` collects that.
    """
    rows: list[RationaleRow] = []
    seen = False
    for record in records:
        seen, problem = True, record.problem
        try:
            if problem is None:
                row = reader.row(record.content, start + len(rows), split)
                rows.append(replace(row, where=f"{record.file}:{record.line}"))
        except BadRow as error:
            problem = str(error)
        if problem is not None:
            tell(Problem(record.file, record.line, problem), found)
    if not seen:
        tell(no_rows(where), found)
    return rows


def unique(rows: list[RationaleRow], found: Found) -> list[RationaleRow]:
    """The rows, whose ids must differ."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            tell(Problem.at(row.where, f"the id {row.id!r} occurs twice"), found)
        seen.add(row.id)
    return rows


def text_list(path: Path) -> list[str]:
    """The texts in a JSON list.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{path}: expected a JSON list of texts")
    if half_character(found):
        raise ConfigError(f"{path}: a text has half a character (one of a surrogate pair)")
    return found


class _FileSource(RationaleSource):
    """What the sources of files share: every split is read once, and inputs are compared between splits."""

    def __init__(self) -> None:
        self._splits: dict[str, Sequence[RationaleRow]] = {}

    def rows(self, split: str, found: Found = None) -> Sequence[RationaleRow]:
        """The rows of a split, with the teacher's work.

        Raises:
            ConfigError: the split is unknown, a file is missing or bad, or a row is (unless that is collected).
        """
        if split not in self._splits:
            if split not in self.splits:
                raise ConfigError(f"split {split!r} is unknown; there are {', '.join(self.splits)}")
            self._splits[split] = self._read(split, found)
        return self._splits[split]

    @abstractmethod
    def _read(self, split: str, found: Found) -> Sequence[RationaleRow]: ...

    def check(self, found: Found = None) -> None:
        """Read every split, and warn of inputs that occur twice.

        Raises:
            ConfigError: the first bad row or file, unless they are collected.
        """
        inputs: dict[str, set[str]] = {}
        for split in self.splits:
            try:
                rows = self.rows(split, found)
                inputs[split] = {row.input for row in rows}
                if len(inputs[split]) < len(rows):
                    text = f"{len(rows) - len(inputs[split])} rows of the {split} split have the input of another one"
                    tell(Problem("data", None, text, "warning"), found)
            except ConfigError as error:
                tell_error(error, found)
        for split in inputs:
            if split != "train" and (shared := inputs[split] & inputs.get("train", set())):
                text = f"{len(shared)} inputs of the {split} split are in train too"
                tell(Problem("data", None, text, "warning"), found)


class FolderSource(_FileSource):
    """The original's layout."""

    def __init__(self, config: RationaleFolderData) -> None:
        """
        Raises:
            ConfigError: there is no such folder.
        """
        super().__init__()
        if not config.folder.is_dir():
            raise NotHere(f"data.folder {config.folder}: no such folder")
        self.config = config
        human = config.teacher == "human"
        self._reader = RecordReader(RationaleColumns(llm_label=None, llm_rationale=None), config.task, human)

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", "dev" where there is a file of it, and "test"."""
        return ("train", *(["dev"] if self.path("dev").is_file() else []), "test")

    def path(self, split: str) -> Path:
        """The file with the rows of a split."""
        task = self.config.task
        return self.config.folder / task / f"{task}_{_original_name(split)}.json"

    def _read(self, split: str, found: Found) -> Sequence[RationaleRow]:
        """The teacher's texts are joined by their position."""
        config, path = self.config, self.path(split)
        rows = unique(read_rows(self._records(path), self._reader, split, str(path), found), found)
        if config.teacher in ("human", "none"):
            return rows
        texts, where = self._completions(split)
        if len(texts) != len(rows) and not has_errors(found):
            message = (
                f"{len(texts)} completions for the {len(rows)} rows of {path}; they are joined by position, so none"
            )
            tell(Problem(str(where), None, f"{message} may be missing"), found)
        return [self._with_teacher(row, text) for row, text in zip(rows, texts, strict=False)]

    def _records(self, path: Path) -> Iterator[Record]:
        return read_records(path, self._reader.asked(), ".jsonl")

    def _with_teacher(self, row: RationaleRow, text: str) -> RationaleRow:
        config = self.config
        style: Literal["palm", "gpt_neox"] = "gpt_neox" if config.teacher == "gpt_neox" else "palm"
        read = parse(config.task, text, mode=config.parsing, style=style, options=row.options)
        return replace(
            row, llm_label=read.label, llm_rationale=read.rationale, parse_status=read.status, teacher=config.teacher
        )

    def _completions(self, split: str) -> tuple[list[str], Path]:
        """The teacher's texts of a split, and where they are."""
        config, name = self.config, _original_name(split)
        if config.teacher == "gpt_neox":
            path = config.folder / "gpt-neox" / config.task / f"{name}.json"
            return text_list(path), path
        folder = config.folder / config.task / "llm"
        numbers = sorted(_chunk_number(path) for path in folder.glob(f"{name}_CoT_*.json"))
        if not numbers:
            raise ConfigError(
                f"{folder}: no {name}_CoT_<i>.json with the teacher's texts; without a teacher set data.teacher=none"
            )
        missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
        if missing:
            raise ConfigError(f"{folder}: {name}_CoT_{missing[0]}.json is missing, but there is a later one")
        chunks = [text_list(folder / f"{name}_CoT_{number}.json") for number in numbers]
        return [text for chunk in chunks for text in chunk], folder


class FilesSource(_FileSource):
    """Files of rows."""

    def __init__(self, config: RationaleFilesData) -> None:
        super().__init__()
        self.config = config
        self._reader = RecordReader(config.columns, config.format, config.human_rationales)

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "dev" where files are named, and "test"."""
        config = self.config
        return (*(["train"] if config.train else []), *(["dev"] if config.dev else []), "test")

    def _read(self, split: str, found: Found) -> Sequence[RationaleRow]:
        rows: list[RationaleRow] = []
        for path in {"train": self.config.train, "dev": self.config.dev, "test": self.config.test}[split]:
            records = read_records(path, self._reader.asked(), kind_of_rows(path))
            rows += read_rows(records, self._reader, split, str(path), found, start=len(rows))
        return joined(unique(rows, found), self.config.rationales, found)


class HubSource(_FileSource):
    """A Hugging Face data set."""

    def __init__(self, config: RationaleHFData) -> None:
        super().__init__()
        self.config = config
        self._reader = RecordReader(config.columns, config.format, config.human_rationales)

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "dev" where they are named, and "test"."""
        config = self.config
        return (*(["train"] if config.train_split else []), *(["dev"] if config.dev_split else []), "test")

    def _read(self, split: str, found: Found) -> Sequence[RationaleRow]:
        config = self.config
        name = {"train": config.train_split, "dev": config.dev_split, "test": config.test_split}[split]
        table = open_table(config.path, config.config, str(name), self._reader.asked())
        rows = read_rows(table.records(), self._reader, split, table.where, found)
        return joined(unique(rows, found), config.rationales, found)


def _original_name(split: str) -> str:
    return "valid" if split == "dev" else split


def _chunk_number(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    if not number.isdecimal():
        raise ConfigError(f"{path}: expected a number behind CoT_")
    return int(number)
