"""The talk with the judge about one pair: ask, read the answer, ask again, and at last a line for the record."""

from __future__ import annotations

import hashlib
import json

from promptcomp.endpoints import BYTES_PER_TOKEN, Message, now
from promptcomp.judge.answers import Answer, parse_answer
from promptcomp.judge.pairs import Pair
from promptcomp.judge.prompt import JudgePrompt
from promptcomp.judge.record import Header, Judgement

_TOKENS_PER_MESSAGE = 5


class Exchange:
    """One pair before the judge.

    Args:
        pair: the question and both answers.
        swapped: side b is shown first.
        prompt: the words around them.
        header: which judge.
        attempts: most times to ask when the answer cannot be read.
    """

    def __init__(self, pair: Pair, swapped: bool, prompt: JudgePrompt, header: Header, attempts: int) -> None:
        self.pair = pair
        self.swapped = swapped
        self._prompt = prompt
        self._attempts = attempts
        self._messages = prompt.messages(pair, swapped)
        self._answers: list[str] = []
        self._tokens: list[tuple[int | None, int | None]] = []
        identity = [header.judge, header.prompt_sha256, header.max_tokens, pair.split, pair.example, self._messages]
        self.key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def messages(self) -> list[Message]:
        """What to ask now."""
        return self._prompt.ask_again(self._messages, self._answers[-1]) if self._answers else self._messages

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the question takes."""
        return sum(_TOKENS_PER_MESSAGE + len(m["content"].encode()) // BYTES_PER_TOKEN for m in self.messages)

    def take(
        self,
        text: str,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        *,
        cut: bool = False,
        model: str | None = None,
    ) -> Judgement | None:
        """Read an answer; None: ask again."""
        self._answers.append(text)
        self._tokens.append((prompt_tokens, completion_tokens))
        answer = parse_answer(text)
        if answer is None and len(self._answers) < self._attempts:
            return None
        return self._judgement(answer, cut=cut and answer is None, model=model)

    def refuse(self, error: str) -> Judgement:
        """The line for a request that the judge's server refuses."""
        return self._judgement(None, error=error)

    def _judgement(
        self, answer: Answer | None, *, cut: bool = False, model: str | None = None, error: str | None = None
    ) -> Judgement:
        first, second = ("b", "a") if self.swapped else ("a", "b")
        winners = {None: None, "A": first, "B": second, "tie": "tie"}
        choice = answer.choice if answer else None
        return Judgement.model_validate(
            {
                "key": self.key,
                "split": self.pair.split,
                "example": self.pair.example,
                "swapped": self.swapped,
                "choice": choice,
                "winner": winners[choice],
                "reason": answer.reason if answer else "",
                "answers": tuple(self._answers),
                "attempts": len(self._answers),
                "prompt_tokens": _sum([tokens[0] for tokens in self._tokens]),
                "completion_tokens": _sum([tokens[1] for tokens in self._tokens]),
                "cut": cut,
                "error": error,
                "model": model,
                "time": now(),
            }
        )


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
