"""A tokenizer's chat template, cut into the text around an instruction, an input and an answer."""

from __future__ import annotations

from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

from promptcomp.config import ConfigError

_INSTRUCTION, _INPUT, _ANSWER = "INSTRUCTION7f3a", "INPUT7f3a", "ANSWER7f3a"
_Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class ChatParts:
    """The pieces of a chat template; see `templates.Template`."""

    context: str
    query: str
    empty_query: str
    end_ids: tuple[int, ...]
    trims: bool


def chat_template(tokenizer: PreTrainedTokenizerBase, writes_bos: bool) -> ChatParts:
    """Cut a chat template where the instruction ends.

    The instruction is the system turn and the input the user turn; where the template knows no system turn, both
    stand in the user turn with an empty line between them.

    Args:
        tokenizer: Has the template.
        writes_bos: Whether to leave out a BOS token that the template writes, because the LM writes one.

    Raises:
        ConfigError: there is no chat template, or it does not write the instruction before the input.
    """
    if not tokenizer.chat_template:
        raise ConfigError("data.template = chat: the tokenizer has no chat template; use alpaca_gist or your own")
    turns, apart = _turns(tokenizer)
    whole = _render(tokenizer, turns(_INPUT))
    if whole is None or not 0 <= whole.find(_INSTRUCTION) < whole.find(_INPUT):
        raise ConfigError(
            "data.template = chat: the tokenizer's chat template does not write the instruction before the input; "
            "give your own template (data.template={context: ..., query: ..., empty_query: ...})"
        )
    context, _, rest = whole.partition(_INSTRUCTION)
    between, _, after = rest.partition(_INPUT)
    padded = _render(tokenizer, turns(f" {_INPUT} "))
    bos = tokenizer.bos_token
    return ChatParts(
        context=(context.removeprefix(bos) if writes_bos and isinstance(bos, str) else context) + "{instruction}",
        query=between + "{input}" + after,
        empty_query=_empty_query(tokenizer, context, apart) or between.removesuffix("\n\n" * (not apart)) + after,
        end_ids=_end_ids(tokenizer, turns(_INPUT)),
        trims=padded is not None and f" {_INPUT} " not in padded,
    )


class _Turns:
    """Messages for an input."""

    def __init__(self, system: bool) -> None:
        self._system = system

    def __call__(self, input_text: str) -> _Messages:
        if self._system:
            return [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": input_text}]
        return [{"role": "user", "content": f"{_INSTRUCTION}\n\n{input_text}"}]


def _turns(tokenizer: PreTrainedTokenizerBase) -> tuple[_Turns, bool]:
    """How messages are made, and whether the instruction has a turn of its own."""
    text = _render(tokenizer, _Turns(True)(_INPUT))
    has_system = text is not None and _INSTRUCTION in text
    return _Turns(has_system), has_system


def _render(tokenizer: PreTrainedTokenizerBase, messages: _Messages, *, ask: bool = True) -> str | None:
    """The text of a conversation; None where the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    except jinja2.TemplateError:
        return None


def _empty_query(tokenizer: PreTrainedTokenizerBase, context: str, apart: bool) -> str | None:
    """What follows an instruction without an input, if the template takes one; None: leave the turn empty."""
    role = "system" if apart else "user"
    text = _render(tokenizer, [{"role": role, "content": _INSTRUCTION}])
    if text is None or not text.startswith(context + _INSTRUCTION):
        return None
    return text.removeprefix(context + _INSTRUCTION)


def _end_ids(tokenizer: PreTrainedTokenizerBase, messages: _Messages) -> tuple[int, ...]:
    """The special token that the template writes behind an answer, if it writes one."""
    text = _render(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}], ask=False)
    closing = "" if text is None else text.partition(_ANSWER)[2]
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
    return tuple(ids[:1]) if ids and ids[0] in tokenizer.all_special_ids else ()
