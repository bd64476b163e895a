"""Files and data sets with rationales: the original's folders, id-keyed rows, and any Hugging Face data set."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from promptcomp.config import ConfigError
from promptcomp.datamodules.rationale.rationale_config import RationaleFilesData, RationaleFolderData, RationaleHFData
from promptcomp.datamodules.sections import check_split
from promptcomp.datamodules.sources.arrow import open_table
from promptcomp.datamodules.sources.rationale_parsing import STATUSES, parse
from promptcomp.datamodules.sources.rationale_records import (
    BadRow,
    RationaleColumns,
    RecordReader,
    is_number,
    label_of_number,
)
from promptcomp.datamodules.sources.records import (
    Asked,
    Found,
    Named,
    Problem,
    Record,
    collecting,
    good_records,
    has_errors,
    name_in,
    tell,
    text_problems,
)
from promptcomp.datamodules.sources.row_files import half_character, kind_of_rows, read_json, read_records
from promptcomp.datamodules.tasks import RationaleRow, RationaleSource

_WORK = Asked(("id",), ("llm_label", "llm_rationale", "teacher", "parse_status"))


def read_work(paths: Sequence[Path], found: Found, names: Sequence[str] = ()) -> dict[str, Mapping[str, Any]]:
    """What a teacher wrote, by the ids of rows; `names` of labels that are numbers.

    Raises:
        ConfigError: a file is missing or bad, or an id occurs twice (unless that is collected).
    """
    work: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        for record in good_records(read_records(path, _WORK, kind_of_rows(path)), _work_problems, found):
            name = str(name_in(record.content["id"]))
            if name in work:
                tell(Problem(record.file, record.line, f"the id {name!r} occurs twice"), found)
            work[name], label = record.content, record.content.get("llm_label")
            if is_number(label):
                work[name] = {**record.content, "llm_label": label_of_number(label, names)}
    return work


def _with_work(row: RationaleRow, record: Mapping[str, Any]) -> RationaleRow:
    """The row with what a teacher wrote; it keeps what the record does not have."""
    texts: dict[str, Any] = {name: record[name] for name in _WORK.optional if record.get(name) is not None}
    return replace(row, **{**texts, "parse_status": texts.get("parse_status") or "ok"})


def _work_problems(record: Mapping[str, Any]) -> list[str]:
    try:
        if name_in(record.get("id")) is None:
            return ["expected an object with an 'id'"]
    except ValueError:
        return [f"'id' is {type(record['id']).__name__}, expected text or a whole number"]
    status = record.get("parse_status") or "ok"
    unknown = [] if status in STATUSES else [f"'parse_status' {status!r} is none of {', '.join(STATUSES)}"]
    texts = [name for name in _WORK.optional if name != "llm_label" or not is_number(record.get(name))]
    return (text_problems(record, (), texts) or unknown)[:1]


def read_rows(
    records: Iterable[Record],
    reader: RecordReader,
    split: str,
    where: str,
    found: Found,
    start: int = 0,
    named: Named | None = None,
) -> list[RationaleRow]:
    """The rows of a file or table; `start` rows of the split were read before, `named` is shown every row.

    Raises:
        ConfigError: a bad row, or none, unless `found` collects that.
    """
    rows: list[RationaleRow] = []

    def wrong(content: Mapping[str, Any]) -> list[str]:
        try:
            rows.append(reader.row(content, start + len(rows), split))
        except BadRow as error:
            return [str(error)]
        return []

    for record in good_records(records, wrong, found, where, named=named):
        rows[-1] = replace(rows[-1], where=f"{record.file}:{record.line}")
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
            check_split(split, self.splits)
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
            with collecting(found):
                rows = self.rows(split, found)
                inputs[split] = {row.input for row in rows}
                if len(inputs[split]) < len(rows):
                    text = f"{len(rows) - len(inputs[split])} rows of the {split} split have the input of another one"
                    tell(Problem("data", None, text, "warning"), found)
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
        config.check_places()
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
        rows = unique(
            read_rows(read_records(path, self._reader.asked(), ".jsonl"), self._reader, split, str(path), found), found
        )
        if config.teacher in ("human", "none"):
            return rows
        texts, where = self._completions(split)
        if len(texts) != len(rows) and not has_errors(found):
            message = (
                f"{len(texts)} completions for the {len(rows)} rows of {path}; they are joined by position, so none"
            )
            tell(Problem(str(where), None, f"{message} may be missing"), found)
        return [self._with_teacher(row, text) for row, text in zip(rows, texts, strict=False)]

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


class TableRationales(_FileSource):
    """Files of rows, or the splits of a Hugging Face data set."""

    def __init__(self, config: RationaleFilesData | RationaleHFData) -> None:
        super().__init__()
        self.config = config
        self._reader = RecordReader(config.columns, config.format, config.human_rationales)
        self._named = self._reader.named()
        self._work: Mapping[str, Mapping[str, Any]] | None = None

    def _read(self, split: str, found: Found) -> Sequence[RationaleRow]:
        rows: list[RationaleRow] = []
        for records, where in self._tables(split):
            rows += read_rows(records, self._reader, split, where, found, len(rows), self._named)
        if self._work is None:
            self._work = read_work(self.config.rationales, found, self._reader.names)
        work = self._work
        return [_with_work(row, work[row.id]) if row.id in work else row for row in unique(rows, found)]

    def check(self, found: Found = None) -> None:
        """See the base class; a teacher's work has to belong to some row of the data.

        Raises:
            ConfigError: the first bad row or file, unless they are collected.
        """
        super().check(found)
        if has_errors(found):
            return
        self._named.check(found)
        if not self.config.rationales:
            return
        ids = Counter(row.id for split in self.splits for row in self.rows(split))
        work, names = self._work or {}, ", ".join(map(str, self.config.rationales))
        if not any(name in ids for name in work):
            tell(
                Problem(names, None, f"none of the ids belongs to a row of the data (such as {next(iter(ids))!r})"),
                found,
            )
        elif lost := [name for name in work if name not in ids]:
            text = f"{len(lost)} of {len(work)} ids belong to no row of the data (such as {lost[0]!r})"
            tell(Problem(names, None, text, "warning"), found)
        if twice := [name for name in work if ids[name] > 1]:
            text = f"{len(twice)} of {len(work)} ids name a row in each of several splits (such as {twice[0]!r})"
            tell(Problem(names, None, f"{text}, and all of them get this teacher's work", "warning"), found)

    def check_columns(self) -> None:
        """See the base class."""
        self._named.check(None)

    def _tables(self, split: str) -> Iterator[tuple[Iterator[Record], str]]:
        """The records of a split's files or of its table, and where they stand."""
        config, asked = self.config, self._reader.asked()
        if isinstance(config, RationaleHFData):
            table = open_table(config.path, config.config, getattr(config, f"{split}_split"), asked)
            yield table.records(), table.where
        else:
            for path in getattr(config, split):
                yield read_records(path, asked, kind_of_rows(path)), str(path)


def _original_name(split: str) -> str:
    return "valid" if split == "dev" else split


def _chunk_number(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    if not number.isdecimal():
        raise ConfigError(f"{path}: expected a number behind CoT_")
    return int(number)
