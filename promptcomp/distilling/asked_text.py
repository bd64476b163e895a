"""The text of a cartridge as the LM reads it, and the questions behind it: template, tokens, what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime

import torch
from rich.console import Console

from promptcomp.batch import Context
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import PromptFormat
from promptcomp.datamodules.instruction.instruction_config import TemplateName
from promptcomp.datamodules.instruction.templates import Template, make_template
from promptcomp.distilling import DistillOptions
from promptcomp.distilling.cartridge import bos_slots
from promptcomp.distilling.work_folder import WorkFolder
from promptcomp.evaluation.formatting import many
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.plain import say
from promptcomp.prompts.prompt_files import PromptReader
from promptcomp.prompts.sources import whole


class AskedText:
    """A text in the template of its LM.

    Args:
        lm: that reads it.
        name: of the LM, as messages say it.
        text: the context.
        options: `template` and `query`, and what must fit.
        folder: which knows the day that a template has written before.
        console: for the day that it writes now.

    Raises:
        ConfigError: the LM has no tokenizer, or no chat template where one is asked for.
    """

    def __init__(
        self,
        lm: LanguageModel,
        name: LanguageModelConfig,
        text: str,
        options: DistillOptions,
        folder: WorkFolder,
        console: Console,
    ) -> None:
        self.text, self._lm, self._name, self._kind = text, lm, name, options.kind
        self.day: str | None = None
        """What the template writes in front of the text."""
        self._template = template = self._open(options.template, folder, console)
        end = lm.tokenizer.eos_token_id  # type: ignore[union-attr]  # a template needs a tokenizer
        stops = tuple(dict.fromkeys((*template.end_ids, *(() if end is None else (int(end),)))))
        self.plain = PromptReader(lm, PromptFormat(template.query, template.empty_query, stops, template.trims))
        """Of requests to the LM."""
        query = template.query if options.query is None else self._own_query(options.query)
        trims = template.trims and options.query is None
        self.reader = PromptReader(lm, PromptFormat(query, template.empty_query, stops, trims))
        """Of questions."""
        self.ids = self._ids_of(text)

    @property
    def context(self) -> Context:
        """The text, one row."""
        return self._row(self.ids)

    def context_of(self, text: str) -> Context:
        """Another text in its place, one row."""
        return self._row(self._ids_of(text))

    def queries(self, questions: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens behind the text."""
        return [self.reader.query_ids(question) for question in questions]

    def check_slots(self, budgets: Sequence[int]) -> None:
        """
        Raises:
            ConfigError: the text is empty, or shorter than a cartridge of it.
        """
        room = len(self.ids) + bos_slots(self._lm, self._kind)
        if not self.text.strip():
            raise ConfigError("the text is empty or only white space; there is nothing to distill")
        if (most := max(budgets)) > room:
            raise ConfigError(
                f"--slots {most}: the text has only {many(room, 'position')} for the LM; give at most so many"
            )

    def check_window(
        self, queries: Sequence[Sequence[int]], new_tokens: int, others: Mapping[str, Context] | None = None
    ) -> None:
        """
        Raises:
            ConfigError: the longest question and its answer do not fit the LM's window behind the text, or behind
                another one (`others`, by their names).
        """
        window, longest = self._lm.window, max(map(len, queries), default=1)
        lengths = {"a text": len(self.ids)}
        lengths |= {f"{name}: a text": int(other.mask.sum()) for name, other in (others or {}).items()}
        for what, length in lengths.items():
            if window is not None and length + self._lm.num_bos + longest + new_tokens > window:
                raise ConfigError(
                    f"{what} of {length} tokens, a question of {longest} and an answer of {new_tokens} do not fit the "
                    f"LM's window of {window}; shorten the text or the question, or lower --answer-tokens"
                )

    def _ids_of(self, text: str) -> tuple[int, ...]:
        shown = self._template.context_text(whole(text, "a text"))
        written = self._lm.tokenizer(shown, add_special_tokens=False, verbose=False)  # type: ignore[misc]
        return (*written["input_ids"], *self._template.context_end)

    def _row(self, ids: Sequence[int]) -> Context:
        row = torch.tensor([ids], dtype=torch.long, device=self._lm.hf.device)
        return Context(row, torch.ones_like(row, dtype=torch.bool), row.new_zeros(1))

    def _open(self, wanted: str, folder: WorkFolder, console: Console) -> Template:
        tokenizer, writes_bos = self._lm.tokenizer, bool(self._lm.num_bos)
        if tokenizer is None:
            raise ConfigError(f"{self._name.path}: has no tokenizer beside the weights")
        has_chat = bool(tokenizer.chat_template)
        if wanted == "chat" and not has_chat:
            raise ConfigError(f"--template chat: the tokenizer of {self._name.path} has no chat template; give plain")
        self._is_chat = has_chat and wanted != "plain"
        chosen: TemplateName = "chat" if self._is_chat else "plain"
        template = make_template(chosen, tokenizer, writes_bos=writes_bos)
        if not template.dated:
            return template
        # on other days the same command goes on with the first one's
        self.day = folder.day() or datetime.now(UTC).astimezone().date().isoformat()
        say(
            console,
            f"the chat template writes a date in front of the text: the slots keep {self.day} (--template plain "
            "writes none)",
        )
        return make_template(chosen, tokenizer, writes_bos=writes_bos, date=date.fromisoformat(self.day))

    def _own_query(self, query: str) -> str:
        """In a chat it stands in the user's turn; otherwise it is all that stands behind the text."""
        return self._template.query.replace("{input}", query) if self._is_chat else query
