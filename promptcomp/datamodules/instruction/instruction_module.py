"""Instruction data: an instruction as the context, its input as the query and the answer as the target.

Rows come from any `InstructionSource`; what is written around them is in templates.py, how they are cut to their
budgets in encoding.py. Where this differs from gisting's released code is listed in docs/data.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import Counts, ExampleInfo, PromptFormat
from promptcomp.datamodules.instruction.encoding import InstructionEncoder, LongRows, find_long_rows
from promptcomp.datamodules.instruction.instruction_config import InstructionConfig
from promptcomp.datamodules.instruction.templates import make_template
from promptcomp.datamodules.sampler import Draw, EvalContexts, EvalPart
from promptcomp.datamodules.sections import Reader, check_split
from promptcomp.datamodules.sources.records import Found, Problem, collecting, tell
from promptcomp.datamodules.tasks import InstructionRow, InstructionSource
from promptcomp.datamodules.taught import TaughtAnswer, TaughtDataModule
from promptcomp.datamodules.tokens import same_options
from promptcomp.evaluation.texts import same_label
from promptcomp.plain import shown

_CHOICE_STREAM = 11
_LOOKED_AT = 20_000  # rows of a split that are tokenised at the start of a run to tell how many are cut
DATED = (
    "the chat template inserts today's date, so contexts differ from day to day; set data.template_date=YYYY-MM-DD to "
    "keep them the same"
)
_SAMPLED_SOURCES = 10_000  # training rows that are asked for their source; generated rows cost time


class InstructionDataModule(TaughtDataModule):
    """Rows with instructions as batches of contexts, queries and targets. Evaluation has one target to a query."""

    answers_are_generated = True

    config: InstructionConfig
    source: InstructionSource

    def __init__(self, config: InstructionConfig, source: InstructionSource, reader: Reader) -> None:
        """
        Raises:
            ConfigError: the budgets do not fit the window or the template, or the tokenizer has no chat template.
        """
        super().__init__(config, source, reader)
        config.check_window(source.splits, reader.window)
        writes_bos, bos = reader.writes_bos, self.tokenizer.bos_token_id
        if writes_bos is None:
            writes_bos = bos is not None and self.tokenizer("a").input_ids[:1] == [bos]
        self.template = make_template(
            config.template,
            self.tokenizer,
            query_in_encoder=reader.query_in_encoder,
            writes_bos=writes_bos,
            date=config.template_date,
        )
        self.template = replace(
            self.template,
            query=self.template.query.replace("{input}", config.query),
            output=self.template.output.replace("{output}", config.answer),
        )
        self._encoders = {
            split: InstructionEncoder(self.template, self.cache, config.limits(split)) for split in source.splits
        }
        self._rows: dict[str, Sequence[InstructionRow]] = {}
        self._long: dict[str, LongRows] = {}
        self._groups: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._places: dict[str, Sequence[int]] = {}

    # ---- rows

    def rows(self, split: str) -> Sequence[InstructionRow]:
        """All rows of a split, those that are too long included.

        Raises:
            ConfigError: the split is unknown, or a file is missing or bad.
        """
        check_split(split, self.source.splits)
        if split not in self._rows:
            rows, out = self.source.rows(split), self.config.dropped_tasks()
            self._rows[split] = [row for row in rows if row.source not in out] if out else rows
        return self._rows[split]

    def encoder(self, split: str) -> InstructionEncoder:
        """What writes the rows of a split."""
        return self._encoders[split]

    def long_rows(self, split: str) -> LongRows:
        """Which rows of a split are over a token budget."""
        if split not in self._long:
            self._long[split] = find_long_rows(split, self.rows(split), self._encoders[split])
        return self._long[split]

    def check_rows(self, found: Found) -> None:
        """See the base class."""
        if self.config.task_choice is not None:
            with collecting(found):
                self.config.check_choice(
                    {row.source for split in self.source.splits for row in self.source.rows(split)}
                )
        for split in self.source.splits:
            with collecting(found):
                self.places(split)
                self._check_options(split, found)
        if found is not None:
            found += [Problem("data", None, text, "warning") for text in self._oddities()]

    def _check_options(self, split: str, found: Found) -> None:
        seen: set[tuple[str, ...]] = set()
        for row in map(self.rows(split).__getitem__, self.places(split) if split != "train" else ()):
            if len(row.options) < 2 or row.options in seen:
                continue
            seen.add(row.options)
            for tokens_of in (self.cache, self._encoders[split].target):  # by themselves, and as they are compared
                if message := same_options(row.options, [*map(tokens_of, row.options)], self.tokenizer):
                    tell(Problem.at(f"task {row.source}", message), found)
                    break

    def _oddities(self) -> Iterator[str]:
        """What only shows when splits are compared and tokenised: shared rows, special tokens as text, long rows."""
        yield from self.source.notes()
        if self.template.dated:
            yield DATED
        special = sorted({str(token) for token in self.tokenizer.all_special_tokens if token})
        trained: set[tuple[str, str]] = set()
        for split in sorted(self.source.splits, key=lambda name: name != "train"):
            rows, is_train = self.rows(split), split == "train"
            shared, found = 0, Counter[str]()
            for row in rows:  # once, as rows may be made when they are asked for
                asked = row.instruction, row.input
                shared += not is_train and asked in trained
                if is_train:
                    trained.add(asked)
                found.update(token for token in special if any(token in text for text in (*asked, row.output)))
            if unread := self._unread(split):
                yield unread
            if shared:
                yield f"{shared} of {len(rows)} {split} rows are training rows too (same instruction and input)"
            for token, count in sorted(found.items()):
                yield f"{count} {split} rows contain {token!r}, which the tokenizer reads as a special token"
            if (long := self.long_rows(split)).long and self.config.too_long != "error":
                yield long.describe(self.config.too_long)

    def count(self, split: str) -> Counts:
        """See the base class."""
        is_train = split == "train"
        rows, places = self.rows(split), self.places(split)
        sources = {rows[place].source for place in places[:: max(1, len(places) // _SAMPLED_SOURCES)]}
        contexts = self.num_train_items() if is_train else len(self.groups(split))
        asked = None if is_train else len(places)
        return Counts(split, rows=len(rows), tasks=len(sources), contexts=contexts, asked=asked)

    def notes(self) -> list[str]:
        """A sentence for every split with rows over a budget; of many rows that are cut, only some are looked at."""
        said = [*self.source.notes(), *([DATED] if self.template.dated else [])]
        found = []
        for split in self.source.splits:
            rows = self.rows(split)
            if self.config.too_long == "cut" and split not in self._long and len(rows) > _LOOKED_AT:
                found.append(find_long_rows(split, rows[:: -(-len(rows) // _LOOKED_AT)], self._encoders[split]))
            else:
                found.append(self.long_rows(split))
            said += [unread] if (unread := self._unread(split)) else []
        return said + [long.describe(self.config.too_long) for long in found if long.long]

    def places(self, split: str) -> Sequence[int]:
        """Places of the rows of a split that are used, in the order of the source."""
        if split not in self._places:
            count: int = len(self.rows(split))
            used: Sequence[int] = range(count)
            if self.config.too_long == "error" and self.long_rows(split).long:
                raise ConfigError(
                    f"data.too_long = error: {self.long_rows(split).describe('error')}; raise the budgets, or choose "
                    "cut or skip"
                )
            if self.config.too_long == "skip":
                skipped = set(self.long_rows(split).long)
                used = [place for place in used if place not in skipped] if skipped else used
            if split != "train":
                used = self._chosen(split, used)
            if not used:
                raise ConfigError(f"the {split} split has no rows" + (" within the token budgets" if count else ""))
            self._places[split] = used
        return self._places[split]

    def _chosen(self, split: str, used: Sequence[int]) -> Sequence[int]:
        config = self.config
        most = config.max_dev_examples if split == "dev" else config.max_eval_examples
        if most is None or len(used) <= most:
            return used
        order = np.random.default_rng((config.eval_seed, _CHOICE_STREAM)).permutation(len(used))
        return [used[int(i)] for i in sorted(order[:most])]

    def groups(self, split: str) -> Sequence[tuple[int, ...]]:
        """Numbers (among the used rows) of the rows of a task that share one compression, in the order of the first
        ones."""
        if split not in self._groups:
            is_train = split == "train"
            most = self.config.queries_per_context if is_train else self.config.eval_queries_per_context
            rows, by_instruction = self.rows(split), dict[tuple[str, str], list[int]]()
            for number, row in enumerate(map(rows.__getitem__, self.places(split))):
                by_instruction.setdefault((row.instruction, row.source), []).append(number)
            self._groups[split] = tuple(
                tuple(members[start : start + (most or len(members))])
                for members in by_instruction.values()
                for start in range(0, len(members), most or len(members))
            )
        return self._groups[split]

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        """Numbers of the sources by name."""
        names: list[str] = []
        if "train" in self.source.splits:
            train = self.rows("train")
            names += [train[i].source for i in range(0, len(train), max(1, len(train) // _SAMPLED_SOURCES))]
        for split in self.eval_splits:
            rows = self.rows(split)
            names += [rows[place].source for place in self.places(split)]
        return {name: number for number, name in enumerate(dict.fromkeys(names))}

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the rows' sources."""
        return tuple(self._numbers)

    # ---- training

    def num_train_items(self) -> int:
        """Training rows; groups of rows of one instruction with `queries_per_context` > 1."""
        if "train" not in self.source.splits:
            return 0
        return len(self.places("train")) if self.config.queries_per_context == 1 else len(self.groups("train"))

    def _train_rows(self, draw: Draw) -> list[InstructionRow]:
        rows, places = self.rows("train"), self.places("train")
        if self.config.queries_per_context == 1:
            return [rows[places[draw.index]]]
        return [rows[places[number]] for number in self.groups("train")[draw.index]]

    def train_context(self, draw: Draw) -> EncodedContext:
        """The rows of a draw."""
        rows = self._train_rows(draw)
        return self.encode("train", rows, [0] * len(rows))

    def train_texts(self, draw: Draw) -> Iterable[str]:
        """See the base class."""
        return self._encoders["train"].texts(self._train_rows(draw))

    def encode(self, split: str, rows: Sequence[InstructionRow], numbers: Iterable[int]) -> EncodedContext:
        """Rows of one instruction as a context with a query for each.

        Args:
            split: Whose budgets hold.
            rows: At least one; all have the same instruction.
            numbers: The example number of each row.

        Raises:
            ConfigError: the instruction is blank and `allow_empty_instruction` is off.
        """
        encoder, instruction = self._encoders[split], rows[0].instruction
        if not instruction.strip() and not self.config.allow_empty_instruction:
            raise ConfigError(
                f"split {split}: a row has an empty instruction (input {rows[0].input[:60]!r}); "
                "correct the data or set data.allow_empty_instruction=true"
            )
        queries = tuple(
            EncodedQuery(
                encoder.query(row.input),
                tuple(EncodedTarget(encoder.target(text), i) for i, text in enumerate(self._choices(split, row))),
                number,
            )
            for row, number in zip(rows, numbers, strict=True)
        )
        return EncodedContext(encoder.context(instruction), queries, self._numbers.get(rows[0].source, 0))

    def answer_target(self, split: str, query: EncodedQuery, answer: TaughtAnswer) -> tuple[int, ...]:
        """With its end, where it has come to one."""
        return (*answer.ids, *(self.template.end_ids if answer.ended else ()))[: self.config.limits(split)[2]]

    @staticmethod
    def _choices(split: str, row: InstructionRow) -> tuple[str, ...]:
        """The targets of a row: its output, in evaluation all its options."""
        return (row.options if split != "train" else ()) or (row.output,)

    # ---- text from outside

    def answer_of(self, text: str) -> str:
        """The output without what `answer` writes around it: what stands behind the last words in front of it, to the
        end of that line."""
        before, _, after = (part.strip() for part in self.config.answer.partition("{output}"))
        if before and before in text:
            text = text.rpartition(before)[2].strip().partition("\n")[0]
        elif before:
            return text.strip()
        return text.strip().removesuffix(after).strip()

    def _unread(self, split: str) -> str | None:
        """Rows whose right answer, written as it should be, is read as another one; None: there is none."""
        if split == "train" or self.config.answer == "{output}":
            return None
        outputs = [self.rows(split)[place].output for place in self.places(split)]
        wrong = [each for each in outputs if not same_label(self.answer_of(self.template.output_text(each)), each)]
        found = f"{split}: {len(wrong)} of {len(outputs)} rows have outputs that cannot be read back from an answer"
        return f"{found} as data.answer = {self.config.answer!r} writes it: {shown(wrong[0], 60)}" if wrong else None

    def prompt_format(self) -> PromptFormat:
        """The format of a query after an instruction; an answer ends with its end token."""
        template = self.template
        closing = str(self.tokenizer.decode(list(template.end_ids))) if template.closes_query else ""
        stop_ids = tuple(dict.fromkeys((*template.end_ids, *self.end_ids)))
        return PromptFormat(template.query + closing, template.empty_query + closing, stop_ids, template.trims)

    def context_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an instruction, whatever its length."""
        return (*self.cache(self.template.context_text(text)), *self.template.context_end)

    # ---- evaluation

    def examples(self, split: str) -> Sequence[ExampleInfo]:
        """The rows of an evaluation split as free-form examples; rows of one instruction share a context number.

        Raises:
            ConfigError: the split is unknown or has no rows.
        """
        check_split(split, self.eval_splits)
        rows, places = self.rows(split), self.places(split)
        context_of = {number: context for context, group in enumerate(self.groups(split)) for number in group}
        return [
            ExampleInfo(
                number=number,
                task=row.source,
                kind="multi_choice" if row.options else "free_form",
                seed=None,
                context=context_of[number],
                gold=row.options.index(row.output) if row.options else 0,
                options=row.options or (row.output,),
                input=row.input,
                output=row.output,
                instruction=row.instruction,
            )
            for number, row in enumerate(rows[place] for place in places)
        ]

    def eval_contexts(self, split: str) -> EvalContexts:
        """The contexts of an evaluation split.

        Raises:
            ConfigError: the split is unknown.
        """
        check_split(split, self.eval_splits)
        groups, encoder = self.groups(split), self._encoders[split]
        rows, places = self.rows(split), self.places(split)
        encoder.add(rows[place] for place in places)

        def length(context: int) -> int:
            return len(encoder.context(rows[places[groups[context][0]]].instruction))

        def encode(part: EvalPart) -> EncodedContext:
            numbers = groups[part.context][part.start : part.stop]
            return self.encode(split, [rows[places[number]] for number in numbers], numbers)

        def targets(context: int) -> Sequence[int]:
            return [len(self._choices(split, rows[places[number]])) for number in groups[context]]

        return EvalContexts(len(groups), length, targets, encode)
