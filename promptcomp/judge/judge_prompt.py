"""What the judge reads: a text file with three parts, filled with one pair of answers.

`--- system ---`, `--- user ---` and `--- again ---` (said after an answer that cannot be read) start the parts. In the
first two, `{question}`, `{answer_a}`, `{answer_b}` and, if wanted, `{reference}` stand for texts.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from promptcomp.chat import Message
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

    def ask_again(self, messages: list[Message], answer: str) -> list[Message]:
        """The same chat after an answer that cannot be read; an empty answer is asked for as if for the first time."""
        if not answer.strip():
            return messages
        return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": self.again}]


def load_prompt(path: Path | None = None) -> JudgePrompt:
    """The prompt in a file; None: the one that ships with the package.

    Raises:
        ConfigError: the file cannot be read, or lacks a part or a placeholder.
    """
    if path is None:
        text, name = (
            resources.files("promptcomp.judge").joinpath("prompt.txt").read_text(encoding="utf-8"),
            "prompt.txt",
        )
    else:
        text, name = read_text(path, "judge prompt"), str(path)
    pieces = _HEADER.split(text.replace("\r\n", "\n"))
    parts = dict(zip(pieces[1::2], (piece.strip() for piece in pieces[2::2]), strict=True))
    missing = [part for part in PARTS if not parts.get(part)]
    if missing or set(parts) - set(PARTS):
        found = ", ".join(parts) or "none"
        raise ConfigError(
            f"{name}: a judge prompt has the parts '--- system ---', '--- user ---', '--- again ---'"
            f" each on a line of its own with text below; found: {found}"
        )
    for placeholder in _NEEDED:
        if f"{{{placeholder}}}" not in parts["user"] + parts["system"]:
            raise ConfigError(f"{name}: the judge must be shown {{{placeholder}}}; put it into the user part")
    return JudgePrompt(parts["system"], parts["user"], parts["again"])
