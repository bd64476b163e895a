"""A text becomes a cartridge: questions, answers behind the whole text, training, a file, and what it keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from promptcomp.chat.client import Endpoint
from promptcomp.chat.replies import Reply
from promptcomp.config import ConfigError
from promptcomp.distilling import RATES, ROWS, DistillOptions
from promptcomp.distilling.asked_text import AskedText
from promptcomp.distilling.beside import Beside
from promptcomp.distilling.cartridge import Cartridge, TeacherAnswer, agreement
from promptcomp.distilling.cartridge_training import Training, TrainingHistory, TrainingPlan, cost_of
from promptcomp.distilling.self_study import KeptQuestion, ask_endpoint, different, held_out, study
from promptcomp.distilling.teacher_answers import Interrupted, Teacher
from promptcomp.distilling.work_folder import WorkFolder
from promptcomp.evaluation.formatting import many
from promptcomp.language_model import LanguageModel, LanguageModelConfig, text_of
from promptcomp.language_model.lm_config import place_of
from promptcomp.language_model.loading import multiplies_bfloat16, open_architecture, pick_device, settings_hash
from promptcomp.language_model.parts import lent
from promptcomp.memory import memory_to
from promptcomp.plain import say
from promptcomp.prompts.artifact import text_hash, tokenizer_hash, weights_hash
from promptcomp.prompts.prompt_files import CompressedPrompt, describe_prompt
from promptcomp.prompts.sources import whole
from promptcomp.run.opening import quiet
from promptcomp.run.stage import WorkStage
from promptcomp.stopping import Stop

_SHOWN = 3
"""Held-out questions whose answers are shown."""
_LARGE = 50_000_000
"""Weights of an LM from which the time of its products is what counts."""
_SMOOTHING = 0.9
"""Of the loss that is shown."""


class TwoAnswers(NamedTuple):
    """A held-out question, answered behind the whole text and behind the cartridge, by at most `answer_tokens` each."""

    question: str
    whole: str
    cartridge: str


@dataclass(frozen=True, slots=True)
class Distilled:
    """A cartridge, finished or as far as it came."""

    prompt: CompressedPrompt
    progress: TrainingHistory
    finished: bool
    examples: tuple[TwoAnswers, ...] = ()
    """Of a finished one."""


class DistillStage(WorkStage):
    """One part of the work."""

    _loss: float | None = None

    def trained(self, progress: TrainingHistory) -> None:
        """A step of a training, or a look at the held-out questions."""
        if progress.losses:
            last = progress.losses[-1]
            self._loss = last if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * last
        step, found = progress.looks[-1]
        loss = "" if self._loss is None else f"KL {self._loss:.3f}, "
        state = f"{loss}held out {found.kl:.3f}, top-1 {found.top1:.2f}"
        self.at(progress.step, state, always=step == progress.step)


class DistillStopped(Exception):
    """A person has stopped it.

    Args:
        message: what is kept, and how it goes on.
        found: the cartridges by their slots, the last one as far as it came.
    """

    def __init__(self, message: str, found: Mapping[int, Distilled]) -> None:
        super().__init__(message)
        self.found = found


def open_causal(config: LanguageModelConfig, device: str) -> LanguageModel:
    """The LM of a cartridge.

    Raises:
        ConfigError: it cannot be read, or is an encoder-decoder.
    """
    place = pick_device(device)
    with quiet():
        _check_family(config, bool(open_architecture(config).is_encoder_decoder))
        return LanguageModel.from_config(config).to(place)


def _check_family(config: LanguageModelConfig, is_encoder_decoder: bool) -> None:
    if is_encoder_decoder:
        raise ConfigError(
            f"{config.path}: is an encoder-decoder, and cartridges are made for decoder-only LMs; name one of those"
        )


class DistillJob:
    """One text and the LM that is to answer about it. Settings that do not fit them are told before any work.

    Args:
        lm: on its device; it is not changed.
        name: of the LM, as files say it.
        text: the context.
        questions: the user's; None: self-study.
        options: how.
        folder: open.
        console: for progress.
        beside: other texts by their names, compared with the cartridges.

    Raises:
        ConfigError: the text, the questions or the options do not fit the LM or each other.
    """

    def __init__(
        self,
        lm: LanguageModel,
        name: LanguageModelConfig,
        text: str,
        questions: Sequence[str] | None,
        options: DistillOptions,
        folder: WorkFolder,
        console: Console,
        beside: Mapping[str, str] | None = None,
    ) -> None:
        _check_family(name, lm.family != "decoder")
        if isinstance(questions, str) or not isinstance(beside or {}, Mapping):
            raise ConfigError("give questions as a list of texts, and `beside` as a dictionary of texts by their names")
        questions = None if questions is None else [whole(each, "a question") for each in questions]
        self.lm, self.name, self.options, self.folder = lm, name, options, folder
        self.budgets = options.budgets()
        self._stop, self._console = Stop(), console
        self.text = AskedText(lm, name, text, options, folder, console)
        if taken := [name for name in beside or {} if name in ROWS]:
            raise ConfigError(f"beside: {taken[0]!r} is the name of another row; give the text another one")
        self._others = {name: self.text.context_of(other) for name, other in (beside or {}).items()}
        self._asked: Sequence[KeptQuestion] = ()
        self._teacher = Teacher(lm, lambda: lm.encode(self.text.context), self._stop.is_set)
        self.text.check_slots(self.budgets)
        self._given = None if questions is None else different(questions)
        asked = () if self._given is None else self.text.queries(self._given)
        self.text.check_window(asked, options.answer_tokens, self._others)
        self._hashes = weights_hash(lm.hf), tokenizer_hash(self.text.reader.tokenizer)
        folder.settle(self._identity())

    def run(self, outputs: Mapping[int, Path]) -> dict[int, Distilled]:
        """Make the cartridges, the one with the first number of slots first.

        Args:
            outputs: files by slots; each is written as soon as its cartridge is there, or is stopped where no finished
                one was made before.

        Raises:
            DistillStopped: a signal came; what is finished is kept, and the same call goes on.
            ConfigError: self-study failed, or there are too few questions.
        """
        found: dict[int, Distilled] = {}
        hf = self.lm.hf
        exact = hf.device.type == "cpu" and hf.dtype == torch.float32
        if exact and hf.num_parameters() > _LARGE and multiplies_bfloat16():
            say(self._console, "note: this CPU multiplies bfloat16: --dtype bfloat16 takes about half the time")
        with self._stop.installed(), lent(self.lm):
            self.lm.eval().requires_grad_(False)
            try:
                questions = self._study() if self._given is None else self._given
                queries = self.text.queries(questions)
                out = held_out(len(queries), self.options.held_out, self.options.seed)
                answers = self._answers(queries)
            except Interrupted:
                raise DistillStopped(
                    f"stopped; the questions and answers so far are kept in {self.folder.path}, and the same command "
                    "goes on",
                    found,
                ) from None
            train = [answer for number, answer in enumerate(answers) if number not in set(out)]
            held = [answers[number] for number in out]
            beside = Beside(
                self.lm,
                self.text.context,
                self._others,
                self.options.rivals,
                lambda memory: agreement(self.lm, memory, held, self.options.answer_batch),
            )
            for slots in self.budgets:
                found[slots] = self._train(slots, train, held, beside, [questions[number] for number in out])
                made, output = found[slots], outputs.get(slots)
                if output is not None and not made.finished and self.folder.has_finished(output):
                    del found[slots]
                    kept = f"; {output} stays the finished one of an earlier call"
                    raise DistillStopped(self._how_far(slots, made.progress) + kept, found)
                if output is not None:
                    made.prompt.save(output, force=True)
                    self.folder.wrote(output, made.finished)
                if not made.finished:
                    raise DistillStopped(self._how_far(slots, made.progress), found)
        return found

    def _identity(self) -> dict[str, str]:
        """What questions and answers depend on."""
        options, format_ = self.options, self.text.reader.format
        asked: object = [options.ask_model or "self-study", options.num_questions, options.temperature, options.seed]
        parts = {
            "text": self.text.text,
            "LM": self._hashes,
            "architecture of the LM": settings_hash(self.lm.text_config),
            "format of questions": [format_.query, format_.empty_query, format_.stop_ids, self.text.ids],
            "set of questions": asked if self._given is None else self._given,
        }
        found = {name: text_hash(json.dumps(part)) for name, part in parts.items()}
        if self.text.day is not None:
            found["day"] = self.text.day
        return found | {"--answer-tokens": str(options.answer_tokens), "--answer-batch": str(options.answer_batch)}

    # ---- what is asked and answered

    def _study(self) -> list[str]:
        reader, options = self.text.plain, self.options

        def ask(requests: Sequence[str], most: int, seed: int) -> list[Reply]:
            generator = torch.Generator(self.lm.hf.device).manual_seed(seed)
            ids = [reader.query_ids(request) for request in requests]
            self.text.check_window(ids, most)
            drawn: dict[str, Any] = {"temperature": options.temperature, "generator": generator}
            written = self._teacher.write(ids, reader.format.stop_ids, most, **drawn)
            texts = [text_of(reader.tokenizer, each) for each in written]
            return [
                Reply(text, len(request), len(answer), None, None)
                for text, request, answer in zip(texts, ids, written, strict=True)
            ]

        def ask_another(requests: Sequence[str], most: int, seed: int) -> list[Reply]:
            endpoint = Endpoint(str(options.ask_model), options.ask_url, options.ask_key_env)
            replies = ask_endpoint(endpoint, self.text.text, requests, most, options.temperature, self._stop.is_set)
            if replies is None:
                raise Interrupted
            return replies

        with DistillStage(self._console, "questions", options.num_questions) as bar:
            found, self._asked = study(
                self.folder.questions,
                self.text.text,
                options.num_questions,
                options.seed,
                ask_another if options.ask_model else ask,
                bar.at,
            )
        self.text.check_window(self.text.queries(found), options.answer_tokens, self._others)
        return found

    def _answers(self, queries: Sequence[tuple[int, ...]]) -> list[TeacherAnswer]:
        options, stops = self.options, self.text.reader.format.stop_ids
        with DistillStage(self._console, "answers", len(queries)) as bar:
            return self._teacher.answers(
                queries, stops, options.answer_tokens, self.folder, options.answer_batch, bar.more
            )

    # ---- training

    def _train(
        self,
        slots: int,
        train: Sequence[TeacherAnswer],
        held: Sequence[TeacherAnswer],
        beside: Beside,
        asked: Sequence[str],
    ) -> Distilled:
        options, rate = self.options, self.options.lr
        if rate is None:
            rate = RATES[options.kind, self._given is not None]
        plan = TrainingPlan(options.steps, rate, options.batch_size, options.eval_every, options.seed)
        start = beside.start(slots, options.kind, options.start)
        if start.instead is not None:
            say(self._console, f"{many(slots, 'slot')} start as the text's first tokens: {start.instead}")
        place = self.folder.training(slots, options.kind, {**asdict(plan), "held_out": len(held), "start": start.name})
        cartridge = Cartridge(start.memory, self.lm.hf.dtype)
        training = Training(self.lm, cartridge, plan, train, held, place)
        with DistillStage(self._console, f"train {many(slots, 'slot')}", plan.steps) as bar:
            finished = training.run(self._stop.is_set, bar.trained)
        progress = training.progress
        context = len(self.text.ids) + self.lm.num_bos
        cost = cost_of(self.lm, context, slots, options.kind, self._asked, train, held, plan, progress, start.reads)
        with torch.no_grad():
            memory = memory_to(cartridge.memory().map(torch.Tensor.detach), "cpu")
        none, whole = beside.bounds()
        first = beside.row(memory, dict(progress.looks)[0])
        nothing, own, all_of_it = ROWS
        rows = {nothing: none, start.name: first, own: beside.row(memory, progress.best)}
        rows |= {**(self._compared(slots, beside, start.name) if finished else {}), all_of_it: whole}
        finished = finished and not self._stop.is_set()
        teacher = self._teacher.seconds + sum(each.seconds for each in self._asked)
        seconds = {"seconds": progress.seconds + teacher, "teacher_seconds": teacher}
        asked_by = "given" if self._given is not None else "self-study"
        info = describe_prompt(
            self.text.reader,
            memory,
            self.text.text,
            self._hashes,
            method="cartridge",
            lm=self.name.model_copy(update={"path": place_of(self.name.path)}),
            source_tokens=len(self.text.ids),
            settings={"slots": options.kind, "start": start.name, "questions": asked_by, **asdict(plan)},
            cost={**cost, **seconds},
            held_out=rows,
        )
        prompt = CompressedPrompt(memory, info, reader=self.text.reader)
        return Distilled(prompt, progress, finished, self._examples(prompt, asked, held) if finished else ())

    def _examples(
        self, prompt: CompressedPrompt, asked: Sequence[str], held: Sequence[TeacherAnswer]
    ) -> tuple[TwoAnswers, ...]:
        questions = list(asked[:_SHOWN])
        whole = [text_of(self.text.reader.tokenizer, answer.labels) for answer in held]
        own = prompt.generate(questions, max_new_tokens=self.options.answer_tokens)
        return tuple(TwoAnswers(*each) for each in zip(questions, whole, own, strict=False))

    def _compared(self, slots: int, beside: Beside, start: str) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        known = set(beside.missing)
        rivals = {name: rival for name, rival in beside.rivals_of(slots, self.options.kind).items() if name != start}
        with DistillStage(self._console, f"compare {many(slots, 'slot')}", len(rivals) + len(self._others)) as bar:
            for name, row in beside.rows(rivals):
                found |= {} if row is None else {name: row}
                bar.more(1)
                if self._stop.is_set():
                    break
        for name in beside.missing.keys() - known:
            say(self._console, f"{name}: no row, as {beside.missing[name]}")
        return found

    def _how_far(self, slots: int, progress: TrainingHistory) -> str:
        left = self.budgets[self.budgets.index(slots) + 1 :]
        rest = f"; not begun: {', '.join(map(str, left))} slots" if left else ""
        return (
            f"stopped after step {progress.step} of {self.options.steps} with {many(slots, 'slot')}{rest}; the "
            f"best so far (step {progress.best_step}, KL {progress.best.kl:.3f}) is kept, and the same command goes on"
        )
