"""Cartridges: the slots of ONE prompt, trained until the frozen LM answers behind them as it does behind the prompt.

Eyuboglu et al. 2025, "Cartridges: Lightweight and general-purpose long context representations via self-study",
https://arxiv.org/abs/2506.06266. Nothing heavy is imported here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from typer import Option

from promptcomp.errors import ConfigError, check_fields

KINDS = ("kv", "embeddings")
TEMPLATES = ("auto", "chat", "plain")
ROWS = ("no context", "cartridge", "the whole text")
"""Names of rows that there always are."""
STARTS = ("auto", "matching", "first")
RATES = {("kv", True): 2e-2, ("kv", False): 5e-3, ("embeddings", True): 1e-2, ("embeddings", False): 5e-3}
"""Learning rates by the kind of slots, and whether the questions are given: those that an LM asks itself vary more."""


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """How a prompt becomes a cartridge."""

    slots: Annotated[str, Option(help="Slots; several (64,16,4) make one file each, from the same answers.")] = "64"
    kind: Annotated[str, Option(help="What a slot is: kv (keys and values of every layer) or embeddings.")] = "kv"
    start: Annotated[
        str,
        Option(
            help="What kv slots start as: matching (attention matching of the text), first (its first tokens), auto."
        ),
    ] = "auto"
    num_questions: Annotated[int, Option(min=4, help="Questions that the LM asks itself (without --questions).")] = 128
    held_out: Annotated[
        int | None, Option(min=1, help="Questions that are not trained on; default: a quarter, at most 32.")
    ] = None
    answer_tokens: Annotated[int, Option(min=1, help="Most tokens of an answer.")] = 32
    template: Annotated[str, Option(help="chat, plain, or auto: chat where the tokenizer has a chat template.")] = (
        "auto"
    )
    query: Annotated[
        str | None, Option(help="What a question is written as, with {input} where it goes: 'Q: {input} A:'.")
    ] = None
    steps: Annotated[int, Option(min=1, help="Optimiser steps for each number of slots.")] = 100
    lr: Annotated[
        float | None,
        Option(min=0, help="Highest learning rate; default: 0.02 (embeddings: 0.01), in self-study 0.005."),
    ] = None
    batch_size: Annotated[int, Option(min=1, max=10_000, help="Questions in a step.")] = 8
    eval_every: Annotated[int, Option(min=1, help="Steps between two looks at the held-out questions.")] = 10
    answer_batch: Annotated[int, Option(min=1, help="Questions that are answered at a time.")] = 16
    temperature: Annotated[float, Option(min=0, help="Of the questions that the LM asks itself.")] = 0.7
    ask_model: Annotated[
        str | None, Option(help="Another LM asks: the name of a model at an OpenAI-compatible endpoint.")
    ] = None
    ask_url: Annotated[str | None, Option(help="Its server, up to /v1; default: OPENAI_BASE_URL, else OpenAI.")] = None
    ask_key_env: Annotated[str, Option(help="Environment variable that holds its key.")] = "OPENAI_API_KEY"
    seed: Annotated[int, Option(help="Of the questions, their order, and which are held out.")] = 0
    rivals: Annotated[
        bool, Option("--rivals", help="Compare with what needs no training at the same size: evict, quantize, ...")
    ] = False

    def budgets(self) -> tuple[int, ...]:
        """The numbers of slots, after a look at all options.

        Raises:
            ConfigError: names the first option with a mistake.
        """
        check_fields(self, "--{}")
        for option, value, known in (
            ("kind", self.kind, KINDS),
            ("template", self.template, TEMPLATES),
            ("start", self.start, STARTS),
        ):
            if value not in known:
                raise ConfigError(f"--{option} {value!r} is not known; choose {', '.join(known)}")
        if self.start == "matching" and self.kind != "kv":
            raise ConfigError("--start matching is for keys and values; give --kind kv, or --start first")
        if self.query is not None and self.query.count("{input}") != 1:
            raise ConfigError(f"--query {self.query!r}: write {{input}} once, where the question goes")
        words = [word.strip() for word in self.slots.split(",") if word.strip()]
        if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
            raise ConfigError(f"--slots {self.slots!r}: give whole numbers of at least 1, for example 64,16")
        found = tuple(dict.fromkeys(int(word) for word in words))
        if self.kind == "kv" and 1 in found:
            raise ConfigError(
                "--slots 1: keys and values at position 0 stay as they are, so that nothing would be trained; give at "
                "least 2, or --kind embeddings"
            )
        if self.ask_model is None and self.ask_url is not None:
            raise ConfigError("--ask-url is the server of --ask-model; give that too")
        if self.ask_model is not None:
            from promptcomp.chat.client import Endpoint

            Endpoint(self.ask_model, self.ask_url, self.ask_key_env)
        for option, number in (("lr", self.lr), ("temperature", self.temperature)):
            if number is not None and not math.isfinite(number):
                raise ConfigError(f"--{option} {number}: give a finite number")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed {self.seed}: give a whole number from 0 to {2**32 - 1}")
        if self.lr == 0:
            raise ConfigError("--lr 0 trains nothing; leave it out for the default")
        return found
