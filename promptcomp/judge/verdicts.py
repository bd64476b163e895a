"""The chat with the judge about one pair: ask, read the answer, ask again, and at last a line of judgements.jsonl.

What the judge reads is a text file with the parts `--- system ---`, `--- user ---` and `--- again ---` (said after an
answer that cannot be read); in the first two `{question}`, `{answer_a}`, `{answer_b}`, `{reference}` stand for texts.

An answer is a JSON object with `reason` and `choice`, alone, fenced, or inside other words. The first line of the file
tells which judge gave the judgements, every other line is one judgement.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from promptcomp.chat.answer_file import FileHeader, KeptAnswer, now
from promptcomp.chat.client import Message
from promptcomp.chat.replies import Reply, without_thoughts
from promptcomp.chat.session import BYTES_PER_TOKEN
from promptcomp.config import ConfigError
from promptcomp.files import read_text
from promptcomp.judge.pairs import Pair

PARTS = ("system", "user", "again")
_NEEDED = ("question", "answer_a", "answer_b")
_NAMES = re.compile(r"\{(question|answer_a|answer_b|reference)\}")
_HEADER = re.compile(r"^--- (\w+) ---[ \t]*\n", re.MULTILINE)
_EMPTY = "[the answer is empty]"


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """The words around two answers."""

    system: str
    user: str
    again: str

    @property
    def sha256(self) -> str:
        """Identity of the prompt: judgements made with another are not mixed with these."""
        return hashlib.sha256("\0".join((self.system, self.user, self.again)).encode()).hexdigest()

    def messages(self, pair: Pair, swapped: bool) -> list[Message]:
        """The chat that asks for one judgement.

        Args:
            pair: the question and both answers.
            swapped: show the answer of side B as answer A.
        """
        first, second = (pair.text_b, pair.text_a) if swapped else (pair.text_a, pair.text_b)
        texts = {
            "question": pair.question,
            "answer_a": first.strip() or _EMPTY,
            "answer_b": second.strip() or _EMPTY,
            "reference": (pair.reference or "").strip() or "[there is none]",
        }

        def fill(part: str) -> str:  # in one pass: a text that holds "{answer_b}" stays as it is
            return _NAMES.sub(lambda found: texts[found[1]], part)

        return [{"role": "system", "content": fill(self.system)}, {"role": "user", "content": fill(self.user)}]


def load_prompt(path: Path | None = None) -> JudgePrompt:
    """The prompt in a file; None: the one that ships with the package.

    Raises:
        ConfigError: the file cannot be read, or lacks a part or a placeholder.
    """
    path = path or Path(str(resources.files("promptcomp.judge") / "prompt.txt"))
    text, name = read_text(path, "judge prompt"), str(path)
    pieces = _HEADER.split(text.replace("\r\n", "\n"))
    parts = dict(zip(pieces[1::2], (piece.strip() for piece in pieces[2::2]), strict=True))
    missing = [part for part in PARTS if not parts.get(part)]
    if missing or set(parts) - set(PARTS):
        found = ", ".join(parts) or "none"
        raise ConfigError(
            f"{name}: a judge prompt has the parts '--- system ---', '--- user ---', '--- again ---'"
            f" each on a separate line with text below; found: {found}"
        )
    for placeholder in _NEEDED:
        if f"{{{placeholder}}}" not in parts["user"] + parts["system"]:
            raise ConfigError(f"{name}: the judge must be shown {{{placeholder}}}; put it into the user part")
    return JudgePrompt(parts["system"], parts["user"], parts["again"])


Choice = Literal["A", "B", "tie"]
Winner = Literal["a", "b", "tie"]

_CHOICES: dict[str, Choice] = {"a": "A", "b": "B", "tie": "tie"}
_FENCE = re.compile(r"\A```[\w-]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)  # line breaks inside a text are no reason to ask again
_TOKENS_PER_MESSAGE = 5


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """A judge's answer that could be read."""

    reason: str
    choice: Choice
    """By the order in which the answers were shown."""


def parse_answer(text: str) -> ReadAnswer | None:
    """The judgement in a judge's words; None if there is none, or if there are two that differ.

    A reasoning model's `<think>...</think>` is left aside. The object may have further keys.
    """
    text = without_thoughts(text).strip()
    fenced = _FENCE.match(text)
    if fenced:
        text = fenced[1].strip()
    found = {}
    for value in _objects(text):
        reason, choice = value.get("reason"), value.get("choice")
        known = _CHOICES.get(choice.strip().lower()) if isinstance(choice, str) else None
        if isinstance(reason, str) and known is not None:
            found[known] = ReadAnswer(reason.strip(), known)
    return next(iter(found.values())) if len(found) == 1 else None


def _objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a text, in order."""
    values, start = [], text.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError:
            end = start + 1
        except RecursionError:  # no judgement is nested a thousand deep, and trying each brace would take long
            break
        else:
            values.append(value)
        start = text.find("{", end)
    return values


class JudgementHeader(FileHeader):
    """First line: the judge. Judgements of another judge, prompt or answer length do not go into the same file."""

    format: str = "promptcomp-judgements"
    judge: str
    """The judge's model; `local:PATH` for a model that runs here."""
    prompt_sha256: str
    max_tokens: int
    """Maximum number of tokens of an answer."""
    a: str
    """Sides when the file was begun, for people."""
    b: str
    url: str | None = None
    """Endpoint when the file was begun."""
    created: str = ""

    def identity(self) -> dict[str, object]:
        prompt = self.prompt_sha256[:12]
        return {"judge": self.judge, "judge prompt (sha256)": prompt, "--max-tokens": self.max_tokens}


class Judgement(KeptAnswer):
    """One example as the judge saw it; the key is of the judge, the prompt, the example, both texts and their order."""

    name: ClassVar[str] = "judgement"
    again: ClassVar[str] = "judged"

    example: str
    swapped: bool
    """Side b was shown first, as answer A."""
    choice: Choice | None
    """By the order shown; null: malformed or refused."""
    winner: Winner | None
    """The same by side."""
    reason: str = ""
    answers: tuple[str, ...] = ()
    """The judge's words, one text for each attempt."""
    attempts: int


class Exchange:
    """One pair before the judge.

    Args:
        pair: the question and both answers.
        swapped: side b is shown first.
        prompt: the words around them.
        header: which judge.
        attempts: most times to ask when the answer cannot be read.
    """

    def __init__(self, pair: Pair, swapped: bool, prompt: JudgePrompt, header: JudgementHeader, attempts: int) -> None:
        self.pair = pair
        self.swapped = swapped
        self._prompt = prompt
        self._attempts = attempts
        self._messages = prompt.messages(pair, swapped)
        self._replies: list[Reply] = []
        identity = [header.judge, header.prompt_sha256, header.max_tokens, pair.split, pair.example, self._messages]
        self.key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def messages(self) -> list[Message]:
        """What to ask now; an empty answer is asked for as if for the first time."""
        answer = self._replies[-1].text if self._replies else ""
        if not answer.strip():
            return self._messages
        again: list[Message] = [{"role": "assistant", "content": answer}]
        return [*self._messages, *again, {"role": "user", "content": self._prompt.again}]

    local_prompt = messages  # a local judge is shown the same chat

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the question takes."""
        return sum(_TOKENS_PER_MESSAGE + len(m["content"].encode()) // BYTES_PER_TOKEN for m in self.messages)

    length = prompt_tokens

    def take(self, reply: Reply) -> Judgement | None:
        """Read an answer; None: ask again."""
        self._replies.append(reply)
        answer = parse_answer(reply.text)
        if answer is None and len(self._replies) < self._attempts:
            return None
        return self._judgement(answer, cut=reply.finish_reason == "length" and answer is None, model=reply.model)

    def refuse(self, error: str) -> Judgement:
        """The line for a request that the judge's server refuses."""
        return self._judgement(None, error=error)

    def _judgement(self, answer: ReadAnswer | None, **given: Any) -> Judgement:
        winners: dict[Choice, Winner] = {"A": "a", "B": "b", "tie": "tie"}
        if self.swapped:
            winners |= {"A": "b", "B": "a"}
        return Judgement(
            key=self.key,
            split=self.pair.split,
            example=self.pair.example,
            swapped=self.swapped,
            choice=answer.choice if answer else None,
            winner=winners[answer.choice] if answer else None,
            reason=answer.reason if answer else "",
            answers=tuple(reply.text for reply in self._replies),
            attempts=len(self._replies),
            prompt_tokens=_sum([reply.prompt_tokens for reply in self._replies]),
            completion_tokens=_sum([reply.completion_tokens for reply in self._replies]),
            time=now(),
            **given,
        )


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
