"""NAME.completions.jsonl: every text a teacher wrote is on disk before the next thing happens.

The first line names the format, every other line is one completion with a key made of everything that was asked. Lines
are only ever added, so one file may hold completions of several prompts, settings and teachers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from promptcomp.chat import BYTES_PER_TOKEN, AnswerFile, FileHeader, KeptAnswer, Message, Reply, Writing, now


class Completion(KeptAnswer):
    """One text; the key is of the teacher, the prompt and the way of writing."""

    id: str
    """The row it was first asked for."""
    sample: int = 0
    text: str = ""
    """The whole answer, as it came."""


@dataclass(frozen=True, slots=True)
class RationaleRequest:
    """One text that is wanted."""

    key: str
    id: str
    split: str
    sample: int
    local_prompt: str
    """For a plain LM."""
    messages: tuple[Message, ...]
    """For a chat model."""

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the prompt takes."""
        return len(self.local_prompt.encode()) // BYTES_PER_TOKEN

    @property
    def length(self) -> int:
        """Characters."""
        return len(self.local_prompt)

    def take(self, reply: Reply) -> Completion:
        """The line for an answer; whatever it says, it is not asked for again."""
        return Completion(
            key=self.key,
            id=self.id,
            split=self.split,
            sample=self.sample,
            text=reply.text,
            cut=reply.finish_reason == "length",
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            model=reply.model,
            time=now(),
        )

    def refuse(self, error: str) -> Completion:
        """The line for a request that the teacher refuses."""
        return Completion(key=self.key, id=self.id, split=self.split, sample=self.sample, error=error, time=now())


def request_key(teacher: str, prompt: object, writing: Writing, sample: int, seed: int) -> str:
    """Equal for requests whose answers may stand for each other; the seed counts only where there is chance."""
    chance = [seed, sample] if writing.temperature > 0 else []
    identity = [teacher, prompt, writing.max_tokens, list(writing.stop), writing.temperature, *chance]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def open_completions(path: Path) -> AnswerFile[Completion]:
    """The file of completions; see `AnswerFile`."""
    in_use = "writes into this file; wait, or name another"
    header = FileHeader(format="promptcomp-completions")
    return AnswerFile(path, header, Completion, name="completion", again="asked", in_use=in_use)
