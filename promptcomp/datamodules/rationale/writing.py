"""How an example with a rationale is written: inputs with task markers, targets, token budgets, and the way back.

Markers and blanks are the original's (google-research/distilling-step-by-step): "predict: " and "explain: " in front of
the input, targets ended by the end-of-sequence token. The single-target forms and their separator are ours: the paper
gives none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from promptcomp.batch import ANSWER, RATIONALE, EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.templates import starts_words
from promptcomp.datamodules.plans import within
from promptcomp.datamodules.rationale.rationale_config import RationaleConfig
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.sources.rationale_records import SEGMENT
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.datamodules.tokens import TokenCache
from promptcomp.language_model import text_of


@dataclass(frozen=True, slots=True)
class Texts:
    """One task of one row in words."""

    context: str
    query: str
    target: str
    role: int


class Writer:
    """Writes rows as contexts with queries and targets."""

    def __init__(self, config: RationaleConfig, reader: Reader, cache: TokenCache) -> None:
        """
        Raises:
            ConfigError: the budgets do not fit the LM's window or leave nothing of an input, the tokenizer has no
                end-of-sequence token, or it does not keep the separator.
        """
        tokenizer, query_in_encoder = reader.tokenizer, reader.query_in_encoder
        if tokenizer.eos_token_id is None:
            raise ConfigError("rationale data needs a tokenizer with an end-of-sequence token; this one has none")
        self.config = config
        self.cache = cache
        self.input_budget = config.budget(reader.window)
        """Maximum number of tokens of an input."""
        self._tokenizer = tokenizer
        self._eos: int = tokenizer.eos_token_id
        ends = adds_eos(tokenizer) if config.input_eos is None else config.input_eos
        self._query_end: tuple[int, ...] = (self._eos,) if ends else ()
        apart = query_in_encoder or bool(self._query_end) or config.markers == "suffix"
        line_end = "\n" if self.cache("\n") else " =>"
        self.input_end = ("" if apart else line_end) if config.input_end is None else config.input_end
        """Text behind the input."""
        begins_word = query_in_encoder or self.input_end.endswith("\n") or starts_words(tokenizer)
        self._space = " " * (not begins_word if config.target_space is None else config.target_space)
        if config.in_one_target:
            self._check_separator()
        alone = max(self._size(self.texts(RationaleRow("", "", ""), "", role)) for role in (ANSWER, RATIONALE))
        if alone >= self.input_budget:
            raise ConfigError(
                f"data.max_input_tokens = {self.input_budget}: what is written around an input takes {alone} tokens, "
                "so nothing is left for it; use more"
            )

    def _check_separator(self) -> None:
        separator = self.config.separator
        ids = list(self.cache(f"a {separator} a"))
        if separator not in text_of(self._tokenizer, ids):
            raise ConfigError(
                f"data.separator = {separator!r}: the LM's tokenizer does not keep it, so a label could not be cut out "
                "of an answer; choose other characters"
            )

    # ---- texts

    def input_text(self, row: RationaleRow) -> str:
        """The input, with the teacher's rationale where it is read."""
        text = row.input.replace(SEGMENT, str(self._tokenizer.eos_token))
        if self.config.targets == "label_from_rationale" and row.llm_rationale.strip():
            text = f"{text} {self.config.rationale_marker} {row.llm_rationale}"
        return text + self.input_end

    def texts(self, row: RationaleRow, label: str, role: int) -> Texts:
        """One task of a row with the given label."""
        config = self.config
        marker = config.rationale_marker if role == RATIONALE else config.label_marker
        context, query = "", self.input_text(row)
        if config.markers == "prefix":
            query = f"{marker} {query}"
        elif config.markers == "suffix":
            context, query = query, f" {marker}"
        target = self.target_text(row, label, role)
        return Texts(context, query, self._space + target, role)

    def target_text(self, row: RationaleRow, label: str, role: int) -> str:
        """What is to be written."""
        config = self.config
        if role == RATIONALE:
            return row.llm_rationale
        if not config.in_one_target or not row.llm_rationale.strip():
            return label
        first, second = (row.llm_rationale, label) if config.targets == "rationale_then_label" else (label, "")
        return f"{first} {config.separator} {second or row.llm_rationale}"

    def answer_of(self, text: str) -> str:
        """The label in a generated text: behind the last separator, before the first one, or all of it."""
        separator = self.config.separator
        if self.config.targets == "rationale_then_label":
            return text.rpartition(separator)[2].strip() if separator in text else ""
        if self.config.targets == "label_then_rationale":
            return text.partition(separator)[0].strip()
        return text.strip()

    # ---- ids

    def encode(
        self, row: RationaleRow, label: str, roles: Sequence[int], example: int = 0, options: Sequence[str] = ()
    ) -> EncodedContext:
        """A row with one query for each role, which has one target, or one for each of the options."""
        tasks, queries = [self.texts(row, label, role) for role in roles], list[EncodedQuery]()
        for task in tasks:
            ids = [(*each, self._eos) for each in self.option_ids(options)] or [self.target_ids(task.target, task.role)]
            targets = tuple(EncodedTarget(each, choice, task.role) for choice, each in enumerate(ids))
            queries.append(EncodedQuery(self.query_ids(task), targets, example))
        return EncodedContext(self.context_ids(tasks[0]), tuple(queries))

    def option_ids(self, options: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of the label task's options within their budget, without their end."""
        return [self.target_ids(self._space + option, ANSWER)[:-1] for option in options]

    def context_ids(self, task: Texts) -> tuple[int, ...]:
        """Ids of the input where the markers follow it, cut on the right in front of its end."""
        room = self.input_budget - len(self.cache(task.query)) - len(self._query_end)
        return tuple(within(self.cache(task.context), room, len(self.cache(self.input_end))))

    def query_ids(self, task: Texts) -> tuple[int, ...]:
        """Ids of a query: with its input cut on the right in front of its end, or of the marker alone."""
        closing = 0 if task.context else len(self.cache(self.input_end))
        ids = within(self.cache(task.query), self.input_budget - len(self._query_end), closing)
        return (*ids, *self._query_end)

    def target_ids(self, text: str, role: int) -> tuple[int, ...]:
        """Ids of a target, cut on the right, and its end."""
        return (*self.cache(text)[: self.target_budget(role) - 1], self._eos)

    def target_budget(self, role: int) -> int:
        """Maximum number of tokens of a target with its end."""
        config = self.config
        if role == RATIONALE:
            return config.max_rationale_tokens
        return config.max_label_tokens + (config.max_rationale_tokens if config.in_one_target else 0)

    def lost_tokens(self, row: RationaleRow, label: str, roles: Sequence[int]) -> tuple[int, int]:
        """Tokens over the budgets: of the input, and of the targets."""
        of_input = of_targets = 0
        for task in (self.texts(row, label, role) for role in roles):
            of_input = max(of_input, self._size(task) - self.input_budget)
            of_targets += max(0, len(self.cache(task.target)) + 1 - self.target_budget(task.role))
        return of_input, of_targets

    def _size(self, task: Texts) -> int:
        """Tokens of what is read, whole."""
        return len(self.cache(task.context)) + len(self.cache(task.query)) + len(self._query_end)

    def may_lose(self, row: RationaleRow) -> bool:
        """Whether a row is so long that it might be cut (a token is at least one byte)."""
        config = self.config
        markers = len(config.label_marker) + len(config.rationale_marker) + len(self.input_end) + 8
        read = len(self.input_text(row).encode()) + markers > self.input_budget
        labels = max(len(row.label.encode()), len(row.llm_label.encode()))
        rationale = len(row.llm_rationale.encode()) + len(config.separator)
        return read or labels + 4 > config.max_label_tokens or rationale + 4 > config.max_rationale_tokens

    def all_texts(self, row: RationaleRow, label: str, roles: Sequence[int]) -> Iterator[str]:
        """Everything of a row that is tokenised."""
        for role in roles:
            task = self.texts(row, label, role)
            yield from (task.context, task.query, task.target)


def adds_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer ends a text by itself (T5: yes; GPT-2, Llama: no)."""
    return tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
