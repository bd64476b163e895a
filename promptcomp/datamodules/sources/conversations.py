"""Conversations as instruction rows: ShareGPT's `conversations` and the `messages` of chat files.

The system turn is the instruction, the first user turn the input and the assistant's reply to it the output; without a
system turn the user turn is the instruction. Later turns are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Names of the column with the turns."""
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
}


class BadConversation(ValueError):
    """Turns that are no question with its answer; the message says why."""


def column_with_turns(record: Mapping[str, Any]) -> str | None:
    """The column that holds a record's turns, if there is one."""
    return next((name for name in CONVERSATIONS if isinstance(record.get(name), list)), None)


def first_exchange(turns: list[Any], system: Any = None) -> tuple[str, str, str, int]:
    """Instruction, input and output of a conversation, and how many turns are left out.

    Args:
        turns: Each with `role` and `content` or, as ShareGPT has it, with `from` and `value`.
        system: The system turn, where it stands outside of the turns.

    Raises:
        BadConversation: it does not begin with a user turn and an answer (after a system turn), or one is no text.
    """
    if isinstance(system, str) and system.strip():
        turns = [{"role": "system", "content": system}, *turns]
    first = [_role(turn, number) for number, turn in enumerate(turns[:3], start=1)]
    for shape in (["user", "assistant"], ["system", "user", "assistant"]):
        if first[: len(shape)] == shape:
            texts = [_text(turn, number) for number, turn in enumerate(turns[: len(shape)], start=1)]
            instruction, given, output = texts if len(texts) == 3 else (texts[0], "", texts[1])
            return instruction, given, output, len(turns) - len(shape)
    found = ", ".join(first) or "nothing"
    raise BadConversation(f"begins with {found}; expected user, assistant or system, user, assistant")


def _role(turn: Any, number: int) -> str:
    if not isinstance(turn, Mapping):
        raise BadConversation(f"turn {number} is {type(turn).__name__}, expected an object with 'role' and 'content'")
    name = turn.get("role", turn.get("from"))
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    return role or repr(name)


def _text(turn: Mapping[str, Any], number: int) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise BadConversation(f"turn {number} is {type(content).__name__}, expected text")
    return content
