"""Tasks in a file of rows each, with one prompt for a task or a context in every row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.instruction_config import TaskFilesData
from promptcomp.datamodules.sources.instruction_sources import HeldOutSource, good_instructions, held_out
from promptcomp.datamodules.sources.records import Asked, Found, Problem, Record, collecting, tell
from promptcomp.datamodules.sources.row_files import check_file, read_records
from promptcomp.datamodules.sources.rows import option_problems, spellings
from promptcomp.datamodules.tasks import InstructionRow
from promptcomp.evaluation.texts import label_of, same_label
from promptcomp.files import read_text
from promptcomp.plain import shown


class TaskFilesSource(HeldOutSource):
    """Lists the rows of all tasks; dev and test are cut from each."""

    config: TaskFilesData

    def _read(self, split: str, found: Found = None) -> Sequence[InstructionRow]:
        if split not in self._tables:
            rows: list[InstructionRow] = []
            for task, (path, prompt) in self.config.files().items():
                with collecting(found, str(prompt)):
                    context = None if prompt is None else self._context(prompt)
                    with collecting(found, str(path)):
                        rows += self._task(task, path, context, found)
            self._tables[split] = rows
        return self._tables[split]

    def _context(self, prompt: Path) -> str:
        check_file(prompt)
        text = read_text(prompt, "prompt").replace("\r\n", "\n")
        if not (context := _behind(text, self.config.prompt_after)).strip():
            where = f" behind the line {self.config.prompt_after!r}" if self.config.prompt_after else ""
            raise ConfigError(f"{prompt}: there is no prompt{where}")
        return context

    def _task(self, task: str, path: Path, context: str | None, found: Found) -> list[InstructionRow]:
        config, answers = self.config, self.config.asks is None
        read = _Records(config, context)
        how = config.columns, config.allow_empty_instruction, found, self._notes, answers, self._named
        rows = good_instructions(read(path), task, str(path), *how)
        outputs = tuple(sorted({label_of(row.output) for row in rows if row.output or answers}))
        few = outputs if len(outputs) <= config.most_outputs else ()
        for _, text in spellings(few):
            tell(Problem(str(path), None, text, "warning"), found)
        choices = [tuple(dict.fromkeys(read.options.get(place, few))) for place in range(len(rows))]
        return [
            replace(row, source=task, output=same[0], options=own)
            if len(own) > 1 and (same := [option for option in own if same_label(option, row.output)])
            else replace(row, source=task)
            for row, own in zip(rows, choices, strict=True)
        ]

    def _held_out(self, rows: Sequence[InstructionRow], left: list[int], count: int, split: str) -> list[int]:
        by, tasks = "row" if self.config.prompt else self.config.hold_out, dict[str, list[int]]()
        for place in left:
            tasks.setdefault(rows[place].source, []).append(place)
        return sorted(place for name, own in tasks.items() for place in held_out(rows, own, count, split, by, name))


class _Records:
    """Records of a file with the context of each."""

    def __init__(self, config: TaskFilesData, context: str | None) -> None:
        self._config, self._context, self._answers = config, context, config.asks is None
        self._split = [re.compile(pattern, re.DOTALL) for pattern in config.split]
        self.options: dict[int, Sequence[str]] = {}
        """Options of the good rows that have some, by their places among these."""

    def __call__(self, path: Path) -> Iterator[Record]:
        columns, options, good = self._config.columns, self._config.options, 0
        needed = (columns.output,) if self._answers else ()
        named = (columns.input, columns.output, options, *(() if self._makes_context else (columns.instruction,)))
        asked = Asked(needed, tuple(name for name in named if name), lists=(options,) if options else ())
        for record in read_records(path, asked):
            problem, content = record.problem, dict(record.content)
            if problem is None and self._makes_context:
                problem = self._give_context(content)
            own = content.get(options) if options else None
            if problem is None and own is not None and not _are_texts(own):
                problem = f"{options!r} should be a list of texts"
            output = content.get(columns.output)
            if problem is None and own and (output or self._answers):
                if twice := option_problems(tuple(dict.fromkeys(own)), options or ""):
                    problem = twice[0]
                elif not isinstance(output, str) or not any(same_label(output, option) for option in own):
                    problem = f"the output {shown(output)} is not among the options"
            if own and problem is None:
                self.options[good] = own
            good += problem is None
            yield replace(record, content=content, problem=problem)

    @property
    def _makes_context(self) -> bool:
        return self._context is not None or bool(self._split)

    def _give_context(self, content: dict[str, Any]) -> str | None:
        """Put the context, and the input without it, where columns are read; what is wrong, in words."""
        columns = self._config.columns
        if self._context is not None:
            content[columns.instruction] = self._context
            return None
        text = content.get(columns.input or "input")
        if not isinstance(text, str):
            return f"{columns.input!r} is missing or no text"
        match = next((found for pattern in self._split if (found := pattern.fullmatch(text))), None)
        if match is None:
            return f"no expression of data.split matches {columns.input!r}: {text[:60]!r}"
        content[columns.instruction], content[columns.input or "input"] = match["instruction"], match["input"]
        return None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _behind(text: str, line: str) -> str:
    """What follows the last such line of a text; all of it where there is none to look for.

    Without the line a text has nothing behind it.
    """
    if not line:
        return text.strip()
    lines = text.split("\n")
    places = [place for place, each in enumerate(lines) if each.strip() == line.strip()]
    return "\n".join(lines[places[-1] + 1 :]).strip() if places else ""
