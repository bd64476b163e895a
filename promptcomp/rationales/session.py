"""One call of `promptcomp rationales`: which texts are wanted, asking for those that are not there yet, the rows."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.rationale.row_selection import agree
from promptcomp.datamodules.sources.rationale_parsing import STATUSES
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.endpoints import AskingSession, ChatClient, Prices
from promptcomp.evaluation.bootstrap import wilson
from promptcomp.files import write_atomic
from promptcomp.rationales.asking import (
    LocalModel,
    Request,
    Seen,
    ask_endpoint,
    ask_local,
    request_key,
)
from promptcomp.rationales.job import Job, default_output, pick_template, writing_of
from promptcomp.rationales.reading import Verdict, majority, read
from promptcomp.rationales.record import Completion, Record


class Extraction(AskingSession[Request, Completion]):
    """Rows, their requests, the record, and what is still to be asked. Use as a context manager.

    Raises:
        ConfigError: data, template, settings or record cannot be used.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.template = pick_template(job.template, job.data)
        self.writing = writing_of(job, self.template)
        source = job.data.source()
        if job.split not in source.splits:
            raise ConfigError(f"--split {job.split!r} is unknown; the data has {', '.join(source.splits)}")
        self.rows: list[RationaleRow] = list(source.rows(job.split)[: job.rows])
        if not self.rows:
            raise ConfigError(f"the {job.split} split has no rows")
        self.requests = [[self._request(row, sample) for sample in range(job.samples)] for row in self.rows]
        self.output = job.output or default_output(job)
        self.record: Record = Record(self.output.with_name(f"{self.output.stem}.completions.jsonl"))
        self.todo = self._todo()
        self.kept = len({request.key for own in self.requests for request in own}) - len(self.todo)
        """Different texts that earlier calls have brought."""

    def _request(self, row: RationaleRow, sample: int) -> Request:
        text, messages = self.template.text(row), tuple(self.template.messages(row))
        key = request_key(self.job.teacher, messages if self.job.chat else text, self.writing, sample, self.job.seed)
        return Request(key, row.id, self.job.split, sample, text, messages)

    def _todo(self) -> list[Request]:
        """Each text once, however many rows want it."""
        wanted: dict[str, Request] = {}
        for own in self.requests:
            for request in own:
                found = self.record.entries.get(request.key)
                if found is None or (found.error is not None and self.job.retry_refused):
                    wanted.setdefault(request.key, request)
        return list(wanted.values())

    def estimate(self, prices: Prices) -> tuple[int, int, int, float | None]:
        """Requests to come, about how many prompt tokens, at most how many new tokens, and what that costs."""
        prompt = sum(request.prompt_tokens for request in self.todo)
        most = self.writing.max_tokens * len(self.todo)
        return len(self.todo), prompt, most, prices.cost(prompt, most)

    async def _ask(self, client: ChatClient, concurrency: int, seen: Seen) -> None:
        await ask_endpoint(self.todo, client, self.record, self.writing, concurrency, seen)

    def ask_local(self, model: LocalModel, batch_size: int, seen: Seen) -> None:
        """Have a local model write what is left.

        Raises:
            AskingStopped: a person stopped it; what was written is kept.
        """
        ask_local(self.todo, model, self.record, self.writing, batch_size, seen)

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
