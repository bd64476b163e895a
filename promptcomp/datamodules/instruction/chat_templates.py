"""A tokenizer's chat template: the text around an instruction, an input and an answer, and what closes a turn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime

from transformers import PreTrainedTokenizerBase

from promptcomp.config import ConfigError

_INSTRUCTION, _INPUT, _ANSWER, _NEXT = "INSTRUCTION7f3a", "INPUT7f3a", "ANSWER7f3a", "NEXT7f3a"
_DIRECTIVES = [f"%{flag}{letter}" for flag in ("", "-") for letter in "aAbBcdDeFGHIjmMpRSTuUVwWxXyY"]
"""What a template can ask of a day."""
_TWO_DAYS = (datetime(2001, 1, 2, 3, 4, 5), datetime(2012, 11, 23, 14, 15, 16))
"""They differ in all of it."""
_Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class ChatParts:
    """The pieces of a chat template; see `templates.Template`."""

    context: str
    query: str
    empty_query: str
    end_ids: tuple[int, ...]
    trims: bool
    dated: bool


def chat_template(tokenizer: PreTrainedTokenizerBase, writes_bos: bool, day: date | None = None) -> ChatParts:
    """Cut a chat template where the instruction ends.

    The instruction is the system turn and the input the user turn; where the template knows no system turn, both
    stand in the user turn with an empty line between them.

    Args:
        tokenizer: Has the template.
        writes_bos: Whether to leave out a BOS token that the template writes, because the LM writes one.
        day: The date that the template may write; None: today.

    Raises:
        ConfigError: there is no chat template, or it does not write the instruction before the input.
    """
    if not tokenizer.chat_template:
        raise ConfigError("data.template = chat: the tokenizer has no chat template; use alpaca_gist or your own")
    render = Renderer(tokenizer, day)
    turns, apart = _turns(render)
    whole = render(turns(_INPUT))
    if whole is None or not 0 <= whole.find(_INSTRUCTION) < whole.find(_INPUT):
        raise ConfigError(
            "data.template = chat: the tokenizer's chat template does not write the instruction before the input; "
            "give your own template (data.template={context: ..., query: ..., empty_query: ...})"
        )
    context, _, rest = whole.partition(_INSTRUCTION)
    between, _, after = rest.partition(_INPUT)
    padded = render(turns(f" {_INPUT} "))
    bos = tokenizer.bos_token
    dates = {Renderer(tokenizer, each)(turns(_INPUT)) for each in _TWO_DAYS}
    return ChatParts(
        context=(context.removeprefix(bos) if writes_bos and isinstance(bos, str) else context) + "{instruction}",
        query=between + "{input}" + after,
        empty_query=_empty_query(render, context, apart) or between.removesuffix("\n\n" * (not apart)) + after,
        end_ids=_end_ids(tokenizer, render, turns(_INPUT)),
        trims=padded is not None and f" {_INPUT} " not in padded,
        dated=len(dates) > 1 and day is None,
    )


def turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token that closes an answer in the tokenizer's chat template; none where it has no template or token."""
    if not tokenizer.chat_template:
        return ()
    render = Renderer(tokenizer, None)
    return _end_ids(tokenizer, render, _turns(render)[0](_INPUT))


class Renderer:
    """Writes conversations with a tokenizer's chat template, on a certain day."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: date | None) -> None:
        self._tokenizer, self._day = tokenizer, day

    def __call__(self, messages: _Messages, *, ask: bool = True) -> str | None:
        """The text of a conversation; None where the template refuses it."""
        try:
            template = self._tokenizer.get_chat_template()
            if self._day is not None:
                template = _fixed_day(self._day) + template
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=ask
                )
            )
        except Exception:  # a template is a program of its author: it may raise anything
            return None


def _fixed_day(day: date) -> str:
    """A macro in place of the function that tells templates today's date, however they call it."""
    parts = json.dumps([[directive, day.strftime(directive)] for directive in _DIRECTIVES])
    replaced = "{% set day.text = day.text | replace(directive, part) %}"
    return (
        "{% macro strftime_now(format) %}{% set day = namespace(text=format) %}"
        f"{{% for directive, part in {parts} %}}{replaced}{{% endfor %}}{{{{ day.text }}}}{{% endmacro %}}\n"
    )


class _Turns:
    """Messages for an input."""

    def __init__(self, system: bool) -> None:
        self._system = system

    def __call__(self, input_text: str) -> _Messages:
        if self._system:
            return [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": input_text}]
        return [{"role": "user", "content": f"{_INSTRUCTION}\n\n{input_text}"}]


def _turns(render: Renderer) -> tuple[_Turns, bool]:
    """How messages are made, and whether the instruction has a turn of its own."""
    text = render(_Turns(True)(_INPUT))
    has_system = text is not None and _INSTRUCTION in text
    return _Turns(has_system), has_system


def _empty_query(render: Renderer, context: str, apart: bool) -> str | None:
    """What follows an instruction without an input, if the template takes one; None: leave the turn empty."""
    role = "system" if apart else "user"
    text = render([{"role": role, "content": _INSTRUCTION}])
    if text is None or not text.startswith(context + _INSTRUCTION):
        return None
    return text.removeprefix(context + _INSTRUCTION)


def _end_ids(tokenizer: PreTrainedTokenizerBase, render: Renderer, messages: _Messages) -> tuple[int, ...]:
    """The token that the template writes behind an answer; none where it closes an answer with ordinary text.

    Found by writing an answer, the last one or (for templates that close turns only when another follows) one with a
    turn behind it.
    """
    answered = [*messages, {"role": "assistant", "content": _ANSWER}]
    markers = _markers(tokenizer)
    for conversation, least in ((answered, 1), ([*answered, {"role": "user", "content": _NEXT}], 2)):
        _, answer, rest = (render(conversation, ask=False) or "").rpartition(_ANSWER)
        closing = rest.partition(_NEXT)[0].lstrip() if answer else ""  # a template may leave answers out
        ids = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
        if ids and ids[0] in markers and sum(i in markers for i in ids) >= least:  # a lone one opens the next turn
            return (int(ids[0]),)
    return ()


def _markers(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are no text: the special ones, and those that were added to the vocabulary."""
    return {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
