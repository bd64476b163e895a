"""One call of `promptcomp rationales`: which texts are wanted, asking for those that are not there yet, the rows.

One file of completions may hold those of several prompts, settings and teachers. Several answers are read by
self-consistency (Wang et al. 2023, arXiv 2203.11171); the rationale kept is the first one of the majority.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from rich import box
from rich.console import Console

from promptcomp.chat.answer_file import AnswerFile, FileHeader, KeptAnswer, now
from promptcomp.chat.client import Message
from promptcomp.chat.replies import Reply, cut_at, without_thoughts
from promptcomp.chat.session import BYTES_PER_TOKEN, AskingSession, Prices, Writing
from promptcomp.config import ConfigError
from promptcomp.datamodules.rationale.rationale_config import RationaleConfig
from promptcomp.datamodules.sources.rationale_parsing import STATUSES, Parsed, ParseStatus, concluded, parse
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.evaluation.bootstrap import wilson
from promptcomp.evaluation.formatting import value_text
from promptcomp.evaluation.texts import agree, value_of
from promptcomp.files import write_atomic
from promptcomp.rationales import RationaleOptions
from promptcomp.rationales.rationale_job import PromptTemplate, default_output, pick_template, rows_of, writing_of
from promptcomp.terminal import plain_table


class Completion(KeptAnswer):
    """One text; the key is of the teacher, the prompt and the way of writing."""

    name: ClassVar[str] = "completion"
    again: ClassVar[str] = "asked"
    id: str
    """The row it was first asked for."""
    sample: int = 0
    text: str = ""
    """The whole answer, as it came."""


@dataclass(frozen=True, slots=True)
class RationaleRequest:
    """One text that is wanted."""

    key: str
    id: str
    split: str
    sample: int
    local_prompt: str
    """For a plain LM."""
    messages: tuple[Message, ...]
    """For a chat model."""

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the prompt takes."""
        return len(self.local_prompt.encode()) // BYTES_PER_TOKEN

    @property
    def length(self) -> int:
        """Characters."""
        return len(self.local_prompt)

    def take(self, reply: Reply) -> Completion:
        """The line for an answer; whatever it says, it is not asked for again."""
        counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        return self._line(text=reply.text, cut=reply.finish_reason == "length", model=reply.model, **counts)

    def refuse(self, error: str) -> Completion:
        """The line for a request that the teacher refuses."""
        return self._line(error=error)

    def _line(self, **given: Any) -> Completion:
        return Completion(key=self.key, id=self.id, split=self.split, sample=self.sample, time=now(), **given)


def request_key(teacher: str, prompt: object, writing: Writing, sample: int, seed: int) -> str:
    """Equal for requests whose answers may stand for each other; the seed counts only where there is chance."""
    chance = [seed, sample] if writing.temperature > 0 else []
    identity = [teacher, prompt, writing.max_tokens, list(writing.stop), writing.temperature, *chance]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


HEADER = FileHeader(format="promptcomp-completions")
"""First line of the file of completions."""
_MEANING = {
    "ok": "read unchanged",
    "repaired": "read, although cut off or not fully in the expected form",
    "empty": "no text",
    "no_marker": "the rationale does not end",
    "two_markers": "two conclusions",
    "empty_label": "no label",
    "out_of_set": "label is none of the options",
    "not_an_equation": "label has no value",
    "refused": "the teacher could not be asked",
    "missing": "not asked yet",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a teacher's answers to one example come to."""

    parsed: Parsed
    votes: int
    """Answers with this label."""
    answers: int
    """All answers."""


def read(template: PromptTemplate, text: str, row: RationaleRow) -> Parsed:
    """One answer. What a reasoning model thought before it (`<think>`) is left aside.

    Args:
        template: how the teacher was asked.
        text: the whole answer.
        row: the example; its options are the labels that count.
    """
    text = cut_at(without_thoughts(text), template.stop)
    if template.parse is not None:
        return parse(template.parse, text, options=row.options)
    marker = re.escape(str(template.marker).strip())
    return concluded(text, marker, lambda answer: _label(answer, row.options, template.equation))


def _label(answer: str, options: Sequence[str], equation: bool) -> tuple[str, ParseStatus]:
    line = answer.lstrip(": ").partition("\n")[0].strip().removesuffix(".").strip()
    if not line:
        return "", "empty_label"
    if equation:
        plain = line.replace(",", "").replace("$", "").removesuffix("%").strip()
        if value_of(plain) is None:
            return "", "not_an_equation"
        return plain, "ok" if plain == line else "repaired"
    if not options or line in options:
        return line, "ok"
    near = [option for option in options if agree(option, line, "exact_match")]
    return (near[0], "repaired") if near else ("", "out_of_set")


def majority(answers: Sequence[Parsed], metric: str) -> Verdict:
    """The label that most answers give, with the first of their rationales; of two as frequent the earlier.

    Args:
        answers: at least one.
        metric: how labels are compared: "equation" (by value) or as text.
    """
    groups: list[list[Parsed]] = []
    for answer in (each for each in answers if each.label.strip()):
        own = [group for group in groups if agree(group[0].label, answer.label, metric)]
        if own:
            own[0].append(answer)
        else:
            groups.append([answer])
    if not groups:
        return Verdict(answers[0], 0, len(answers))
    best = max(groups, key=len)  # the first of equals
    return Verdict(next((a for a in best if a.rationale), best[0]), len(best), len(answers))


class Extraction(AskingSession[Completion]):
    """Rows, their requests, the record, and what is still to be asked. Use as a context manager.

    Args:
        data: whose rows.
        teacher: who is asked: the endpoint's model, or `local:PATH`.
        chat: the teacher reads turns and not one text.
        options: which rows, and how.

    Raises:
        ConfigError: data, template, settings or record cannot be used.
    """

    name = "rationales"
    marks = ("cut", "refused")
    made = "texts were written in this call"

    def __init__(self, data: RationaleConfig, teacher: str, chat: bool, options: RationaleOptions) -> None:
        self.data, self.teacher, self.chat, self.options = data, teacher, chat, options
        self.template = pick_template(options.template, data)
        self.writing = writing_of(options, self.template)
        self.answer_tokens = self.writing.max_tokens // 2
        self.rows = rows_of(data, options.split)[: options.rows]
        self.requests = [[self._request(row, sample) for sample in range(options.samples)] for row in self.rows]
        self.output = options.output or default_output(data, teacher, options.split)
        if self.output.exists() and not self.output.is_file():
            raise ConfigError(f"{self.output}: is no file; name one with --output")
        completions = self.output.with_name(f"{self.output.stem}.completions.jsonl")
        is_data = any(place.resolve() == self.output.resolve() for place in data.places())
        if is_data or (self.output.exists() and not completions.exists()):
            why = "is a file of the data" if is_data else "exists already, and no earlier call of this command wrote it"
            raise ConfigError(f"{self.output}: {why}; name another file with --output")
        self.record = AnswerFile(completions, HEADER, Completion)
        texts: dict[str, RationaleRequest] = {}
        for request in chain.from_iterable(self.requests):
            texts.setdefault(request.key, request)  # each text once, however many rows want it
        self.todo = [request for request in texts.values() if self._is_open(request)]
        self.kept = len(texts) - len(self.todo)
        """Different texts that earlier calls have brought."""

    def _request(self, row: RationaleRow, sample: int) -> RationaleRequest:
        text, messages = self.template.text(row), tuple(self.template.messages(row))
        key = request_key(self.teacher, messages if self.chat else text, self.writing, sample, self.options.seed)
        return RationaleRequest(key, row.id, self.options.split, sample, text, messages)

    def _is_open(self, request: RationaleRequest) -> bool:
        found = self.record.entries.get(request.key)
        return found is None or (found.error is not None and self.options.retry_refused)

    def estimate(self, prices: Prices) -> tuple[str, float | None]:
        """Requests to come, about how many prompt tokens, at most how many new tokens, and what that costs."""
        calls, prompt = len(self.todo), sum(request.prompt_tokens for request in self.todo)
        most = self.writing.max_tokens * calls
        cost = prices.cost(prompt, most)
        price = "" if cost is None else f", at most about {cost:,.2f} at the given prices"
        return f"{calls:,} requests, about {prompt:,} prompt tokens and at most {most:,} new ones{price}", cost

    def marks_of(self, answer: Completion) -> list[str]:
        return ["cut"] * answer.cut + ["refused"] * (answer.error is not None)

    def write(self, prices: Prices) -> dict[str, Any]:
        """Write the rows (those that the teacher was asked about) and the report, and give back the report.

        Accuracy counts rows without a readable label as wrong.

        Raises:
            ConfigError: a file cannot be written.
        """
        metric = "equation" if self.template.equation else self.data.metric
        used: dict[str, Completion] = {}
        lines: list[dict[str, Any]] = []
        for row, requests in zip(self.rows, self.requests, strict=True):
            own = [self.record.entries[each.key] for each in requests if each.key in self.record.entries]
            if not own:
                continue
            used |= {completion.key: completion for completion in own}
            line: dict[str, Any] = {"id": row.id, "input": row.input, "label": row.label}
            line |= {"options": list(row.options)} if row.options else {}
            line |= {"llm_label": "", "llm_rationale": "", "teacher": self.teacher, "parse_status": "empty"}
            lines.append(line)
            answers = [read(self.template, each.text, row) for each in own if each.error is None]
            if not answers:
                continue
            verdict = majority(answers, metric)
            line |= {
                "llm_label": verdict.parsed.label,
                "llm_rationale": verdict.parsed.rationale,
                "parse_status": verdict.parsed.status,
                "llm_correct": agree(verdict.parsed.label, row.label, metric) if row.label.strip() else None,
                "votes": verdict.votes,
                "answers": verdict.answers,
                "template_sha256": self.template.sha256,
            }
        write_atomic(self.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        answered = [line for line in lines if "votes" in line]
        statuses = Counter(line["parse_status"] for line in answered)
        right = [line["llm_correct"] for line in answered if line["llm_correct"] is not None]
        voted = [line["votes"] / line["answers"] for line in answered]
        report = {
            "teacher": self.teacher,
            "split": self.options.split,
            "rows": len(self.rows),
            "answered": len(answered),
            "refused": len(lines) - len(answered),
            "missing": len(self.rows) - len(lines),
            "parsed": {status: statuses[status] for status in STATUSES if statuses[status]},
            "teacher_correct": sum(right),
            "labelled": len(right),
            "teacher_accuracy": sum(right) / len(right) if right else None,
            "teacher_accuracy_ci": wilson(sum(right), len(right)),
            "samples": self.options.samples,
            "temperature": self.writing.temperature,
            "agreement": sum(voted) / len(voted) if voted and self.options.samples > 1 else None,
            **self.spent(used.values(), prices),
            "template_sha256": self.template.sha256,
            "output": str(self.output),
            "completions": str(self.record.path),
        }
        write_atomic(self.output.with_name(f"{self.output.stem}.report.json"), json.dumps(report, indent=2) + "\n")
        return report


def print_report(report: dict[str, Any], kept: int, console: Console) -> None:
    """What the teacher's texts came to, and where they are."""
    counts = {**report["parsed"], "refused": report["refused"], "missing": report["missing"]}
    rows = [(name, f"{count:,}", _MEANING[name]) for name, count in counts.items() if count]
    title = f"{report['teacher']} on {report['rows']:,} rows of {report['split']}"
    columns = ("parsed", "rows", "meaning")
    console.print(plain_table(columns, rows, right=("rows",), title=title, box=box.HEAVY_HEAD, pad_edge=True))
    for line in _lines(report, kept):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(report: dict[str, Any], kept: int) -> list[str]:
    lines = []
    if report["teacher_accuracy"] is not None:
        share = value_text(report["teacher_accuracy"], report["teacher_accuracy_ci"], ".1%", ".1%")
        lines.append(f"Teacher accuracy: {share} ({report['teacher_correct']:,} of {report['labelled']:,}).")
    if report["agreement"] is not None:
        lines.append(f"Of {report['samples']} samples {report['agreement']:.0%} vote for the label that was kept.")
    if report["cut"]:
        lines.append(f"{report['cut']:,} texts ended at the limit of tokens (--max-tokens).")
    cost = "" if report["cost"] is None else f", cost {report['cost']:,.4f}"
    tokens = f"{report['prompt_tokens']:,} prompt and {report['completion_tokens']:,} new tokens{cost}"
    lines.append(f"{tokens}; {kept:,} texts kept from earlier.")
    return [*lines, f"Rows: {report['output']}", f"Texts: {report['completions']}"]
