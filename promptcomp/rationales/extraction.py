"""One call of `promptcomp rationales`: which texts are wanted, asking for those that are not there yet, the rows."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from promptcomp.chat import AskingEstimate, AskingSession, Prices
from promptcomp.config import ConfigError
from promptcomp.datamodules.rationale.row_selection import agree
from promptcomp.datamodules.sources.rationale_parsing import STATUSES
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.evaluation.bootstrap import wilson
from promptcomp.files import write_atomic
from promptcomp.rationales.completions import Completion, RationaleRequest, open_completions, request_key
from promptcomp.rationales.rationale_job import RationaleJob, default_output, pick_template, writing_of
from promptcomp.rationales.reading import Verdict, majority, read

_MEANING = {
    "ok": "read as it stands",
    "repaired": "read, though cut or not quite in form",
    "empty": "no text",
    "no_marker": "the rationale does not end",
    "two_markers": "two conclusions",
    "empty_label": "no label",
    "out_of_set": "label is none of the options",
    "not_an_equation": "label has no value",
}


class Extraction(AskingSession[Completion]):
    """Rows, their requests, the record, and what is still to be asked. Use as a context manager.

    Raises:
        ConfigError: data, template, settings or record cannot be used.
    """

    name = "rationales"
    marks = ("cut", "refused")
    made = "texts were written in this call"

    def __init__(self, job: RationaleJob) -> None:
        self.job = job
        self.template = pick_template(job.template, job.data)
        self.writing = writing_of(job, self.template)
        self.answer_tokens = self.writing.max_tokens // 2
        source = job.data.source()
        if job.split not in source.splits:
            raise ConfigError(f"--split {job.split!r} is unknown; the data has {', '.join(source.splits)}")
        self.rows: list[RationaleRow] = list(source.rows(job.split)[: job.rows])
        if not self.rows:
            raise ConfigError(f"the {job.split} split has no rows")
        self.requests = [[self._request(row, sample) for sample in range(job.samples)] for row in self.rows]
        self.output = job.output or default_output(job)
        self.record = open_completions(self.output.with_name(f"{self.output.stem}.completions.jsonl"))
        self.todo = self._todo()
        self.kept = len({request.key for own in self.requests for request in own}) - len(self.todo)
        """Different texts that earlier calls have brought."""

    def _request(self, row: RationaleRow, sample: int) -> RationaleRequest:
        text, messages = self.template.text(row), tuple(self.template.messages(row))
        key = request_key(self.job.teacher, messages if self.job.chat else text, self.writing, sample, self.job.seed)
        return RationaleRequest(key, row.id, self.job.split, sample, text, messages)

    def _todo(self) -> list[RationaleRequest]:
        """Each text once, however many rows want it."""
        wanted: dict[str, RationaleRequest] = {}
        for own in self.requests:
            for request in own:
                found = self.record.entries.get(request.key)
                if found is None or (found.error is not None and self.job.retry_refused):
                    wanted.setdefault(request.key, request)
        return list(wanted.values())

    def estimate(self, prices: Prices) -> AskingEstimate:
        """Requests to come, about how many prompt tokens, at most how many new tokens, and what that costs."""
        calls, prompt = len(self.todo), sum(request.prompt_tokens for request in self.todo)
        most = self.writing.max_tokens * calls
        cost = prices.cost(prompt, most)
        price = "" if cost is None else f", at most about {cost:,.2f} at the given prices"
        text = f"{calls:,} requests, about {prompt:,} prompt tokens and at most {most:,} new ones{price}"
        return AskingEstimate(calls, cost, text)

    def marks_of(self, answer: Completion) -> list[str]:
        return ["cut"] * answer.cut + ["refused"] * (answer.error is not None)

    # ---- what came of it

    def completions(self, number: int) -> list[Completion]:
        """What there is for row `number`, refused requests included."""
        found = (self.record.entries.get(request.key) for request in self.requests[number])
        return [completion for completion in found if completion is not None]

    def verdict(self, number: int) -> Verdict | None:
        """What the teacher says about row `number`; None: nothing."""
        row = self.rows[number]
        answers = [read(self.template, c.text, row) for c in self.completions(number) if c.error is None]
        return majority(answers, self.metric) if answers else None

    @property
    def metric(self) -> str:
        """How labels are compared."""
        return "equation" if self.template.equation else self.job.data.metric

    def is_right(self, row: RationaleRow, verdict: Verdict) -> bool | None:
        """Whether the teacher's label is the data set's; None: the row has none."""
        return agree(verdict.parsed.label, row.label, self.metric) if row.label.strip() else None

    def write(self, prices: Prices) -> dict[str, Any]:
        """Write the rows (those that the teacher was asked about) and the report, and give back the report.

        Raises:
            ConfigError: a file cannot be written.
        """
        lines = [self._line(number) for number in range(len(self.rows)) if self.completions(number)]
        write_atomic(self.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        report = self.report(prices)
        write_atomic(self.output.with_name(f"{self.output.stem}.report.json"), json.dumps(report, indent=2) + "\n")
        return report

    def _line(self, number: int) -> dict[str, Any]:
        row, verdict = self.rows[number], self.verdict(number)
        line: dict[str, Any] = {"id": row.id, "input": row.input, "label": row.label}
        if row.options:
            line["options"] = list(row.options)
        if verdict is None:
            return {**line, "llm_label": "", "llm_rationale": "", "teacher": self.job.teacher, "parse_status": "empty"}
        return {
            **line,
            "llm_label": verdict.parsed.label,
            "llm_rationale": verdict.parsed.rationale,
            "teacher": self.job.teacher,
            "parse_status": verdict.parsed.status,
            "llm_correct": self.is_right(row, verdict),
            "votes": verdict.votes,
            "answers": verdict.answers,
            "template_sha256": self.template.sha256,
        }

    def report(self, prices: Prices) -> dict[str, Any]:
        """Everything that was found, for machines. Accuracy counts rows without a readable label as wrong."""
        verdicts = [self.verdict(number) for number in range(len(self.rows))]
        found = [(row, verdict) for row, verdict in zip(self.rows, verdicts, strict=True) if verdict is not None]
        statuses: Counter[str] = Counter(verdict.parsed.status for _, verdict in found)
        right = [self.is_right(row, verdict) for row, verdict in found]
        labelled = [value for value in right if value is not None]
        used = {c.key: c for number in range(len(self.rows)) for c in self.completions(number)}.values()
        prompt, completion = sum(c.prompt_tokens or 0 for c in used), sum(c.completion_tokens or 0 for c in used)
        voted = [verdict.votes / verdict.answers for _, verdict in found]
        return {
            "teacher": self.job.teacher,
            "models": sorted({c.model for c in used if c.model}),
            "split": self.job.split,
            "rows": len(self.rows),
            "answered": len(found),
            "refused": sum(v is None and bool(self.completions(i)) for i, v in enumerate(verdicts)),
            "missing": sum(not self.completions(number) for number in range(len(self.rows))),
            "parsed": {status: statuses[status] for status in STATUSES if statuses[status]},
            "teacher_correct": sum(labelled),
            "labelled": len(labelled),
            "teacher_accuracy": sum(labelled) / len(labelled) if labelled else None,
            "teacher_accuracy_ci": wilson(sum(labelled), len(labelled)),
            "samples": self.job.samples,
            "temperature": self.writing.temperature,
            "agreement": sum(voted) / len(voted) if voted and self.job.samples > 1 else None,
            "cut": sum(c.cut for c in used),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "cost": prices.cost(prompt, completion),
            "template_sha256": self.template.sha256,
            "output": str(self.output),
            "completions": str(self.record.path),
        }


def print_report(report: dict[str, Any], kept: int, console: Console) -> None:
    """What the teacher's texts came to, and where they are."""
    table = Table(title=f"{report['teacher']} on {report['rows']:,} rows of {report['split']}", title_justify="left")
    table.add_column("parsed")
    table.add_column("rows", justify="right")
    table.add_column("meaning")
    for status, count in report["parsed"].items():
        table.add_row(status, f"{count:,}", _MEANING[status])
    for name, meaning in (("refused", "the teacher could not be asked"), ("missing", "not asked yet")):
        if report[name]:
            table.add_row(name, f"{report[name]:,}", meaning)
    console.print(table)
    for line in _lines(report, kept):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(report: dict[str, Any], kept: int) -> list[str]:
    lines = []
    if report["teacher_accuracy"] is not None:
        low, high = report["teacher_accuracy_ci"]
        share = f"{report['teacher_accuracy']:.1%} [{low:.1%}, {high:.1%}]"
        lines.append(f"Teacher accuracy: {share} ({report['teacher_correct']:,} of {report['labelled']:,}).")
    if report["agreement"] is not None:
        lines.append(f"Of {report['samples']} samples {report['agreement']:.0%} vote for the label that was kept.")
    if report["cut"]:
        lines.append(f"{report['cut']:,} texts ended at the limit of tokens (--max-tokens).")
    cost = "" if report["cost"] is None else f", cost {report['cost']:,.4f}"
    tokens = f"{report['prompt_tokens']:,} prompt and {report['completion_tokens']:,} new tokens{cost}"
    lines.append(f"{tokens}; {kept:,} texts kept from earlier.")
    return [*lines, f"Rows: {report['output']}", f"Texts: {report['completions']}"]
