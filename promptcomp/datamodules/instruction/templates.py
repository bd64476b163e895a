"""Templates of instruction data: the text around an instruction, its input and its output.

A row becomes three pieces of text that are tokenised apart: the context (what is compressed), the query behind it and
the target. `alpaca_gist` is the template of Mu et al. 2023 (arXiv 2304.08467); its pieces end where the gist tokens
stand, so that text on either side never shares a token with the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime

from transformers import PreTrainedTokenizerBase

from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import Trims
from promptcomp.datamodules.instruction.instruction_config import CustomTemplate, TemplateName
from promptcomp.plain import trimmed

_INSTRUCTION, _INPUT, _ANSWER, _NEXT = "INSTRUCTION7f3a", "INPUT7f3a", "ANSWER7f3a", "NEXT7f3a"
_TEXT = "a \"b\" & <c> 'd'\n\n  {e}"
"""Which no template may change."""
_DIRECTIVES = [f"%{flag}{letter}" for flag in ("", "-") for letter in "aAbBcdDeFGHIjmMpRSTuUVwWxXyY"]
"""What a template can ask of a day."""
_TWO_DAYS = (datetime(2001, 1, 2, 3, 4, 5), datetime(2012, 11, 23, 14, 15, 16))
"""They differ in all of it."""
_OWN = "give your own template (data.template={context: ..., query: ..., empty_query: ...})"
_Messages = list[dict[str, str]]
_Render = Callable[..., str | None]


@dataclass(frozen=True, slots=True)
class Template:
    """Text of the three pieces of a row, ready for one tokenizer."""

    context: str
    """With `{instruction}` once."""
    query: str
    """With `{input}` once."""
    empty_query: str
    output: str
    """With `{output}` once."""
    end_ids: tuple[int, ...]
    """Tokens that close an answer (and a query that an encoder reads)."""
    context_end: tuple[int, ...] = ()
    """Tokens behind the text of every context."""
    closes_query: bool = False
    """Whether a query ends in `end_ids`, as encoders expect of what they read."""
    trims: Trims = False
    """Where an input loses the white space around it; an output loses all where an input loses some."""
    trims_instruction: Trims = False
    trims_context: bool = False
    """Whether the context loses the white space at its end."""
    dated: bool = False
    """Whether it writes the day of the run."""

    def context_text(self, instruction: str) -> str:
        """The context of an instruction."""
        text = self.context.replace("{instruction}", trimmed(instruction, self.trims_instruction))
        return text.rstrip() if self.trims_context else text

    def query_text(self, input_text: str) -> str:
        """The query of an input, which may be empty."""
        own = trimmed(input_text, self.trims)
        return self.query.replace("{input}", own) if own else self.empty_query

    def output_text(self, output: str) -> str:
        """The target of an output, without what closes it."""
        return self.output.replace("{output}", output.strip() if self.trims else output)


def chat_template(tokenizer: PreTrainedTokenizerBase, writes_bos: bool, day: date | None = None) -> Template:
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
    render = _renderer(tokenizer, day)
    apart = _has_system(render)
    asked = _asked(apart, _INPUT)
    whole = render(asked, told=True)
    if whole is None or not 0 <= whole.find(_INSTRUCTION) < whole.find(_INPUT):
        raise ConfigError(
            "data.template = chat: the tokenizer's chat template does not write the instruction before the input; "
            + _OWN
        )
    context, between, after = _cut(whole)
    bos = tokenizer.bos_token
    one, other = (_renderer(tokenizer, each) for each in _TWO_DAYS)
    dated = one(asked) != other(asked) and day is None
    one = render if one(asked) is None else one  # on one day: the next second may be of another
    if one(_asked(apart, _TEXT, _TEXT)) != _TEXT.join(_cut(str(one(asked)))):
        raise ConfigError(
            "data.template = chat: the tokenizer's chat template writes a text twice, or otherwise than it stands in "
            f"the data; {_OWN}"
        )

    def trims(written: Callable[[str], _Messages], text: str) -> Trims:
        left, right = (one(written(each)) == one(asked) for each in (f" {text}", f"{text} "))
        return (left and right) or ("left" if left else "right" if right else False)

    return Template(
        context=(context.removeprefix(bos) if writes_bos and isinstance(bos, str) else context) + "{instruction}",
        query=between + "{input}" + after,
        empty_query=_empty_query(render, context, apart) or between.removesuffix("\n\n" * (not apart)) + after,
        output="{output}",
        end_ids=_end_ids(tokenizer, render, asked) or _eos(tokenizer),
        trims=trims(lambda text: _asked(apart, text), _INPUT),
        trims_instruction=trims(lambda text: _asked(apart, _INPUT, text), _INSTRUCTION),
        dated=dated,
    )


def _cut(whole: str) -> tuple[str, str, str]:
    """What a template writes in front of the instruction, between it and the input, and behind that."""
    context, _, rest = whole.partition(_INSTRUCTION)
    between, _, after = rest.partition(_INPUT)
    return context, between, after


def _eos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token that closes an answer in the tokenizer's chat template; none where it has no template or token."""
    if not tokenizer.chat_template:
        return ()
    render = _renderer(tokenizer)
    return _end_ids(tokenizer, render, _asked(_has_system(render), _INPUT))


def _renderer(tokenizer: PreTrainedTokenizerBase, day: date | None = None) -> _Render:
    """What writes conversations with a tokenizer's chat template, on a certain day; None where it refuses one."""

    def render(messages: _Messages, ask: bool = True, told: bool = False) -> str | None:
        try:
            template = ("" if day is None else _fixed_day(day)) + tokenizer.get_chat_template()
            return str(
                tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=ask
                )
            )
        except Exception as error:  # a template is a program of its author: it may raise anything
            if told:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise ConfigError(
                    f"data.template = chat: the tokenizer's chat template fails: {reason}; {_OWN}"
                ) from None
            return None

    return render


def _fixed_day(day: date) -> str:
    """A macro in place of the function that tells templates today's date, however they call it."""
    parts = json.dumps([[directive, day.strftime(directive)] for directive in _DIRECTIVES])
    replaced = "{% set day.text = day.text | replace(directive, part) %}"
    return (
        "{% macro strftime_now(format) %}{% set day = namespace(text=format) %}"
        f"{{% for directive, part in {parts} %}}{replaced}{{% endfor %}}{{{{ day.text }}}}{{% endmacro %}}\n"
    )


def _asked(system: bool, input_text: str, instruction: str = _INSTRUCTION) -> _Messages:
    """Messages for an input; `system`: the instruction has a turn of its own."""
    if system:
        return [{"role": "system", "content": instruction}, {"role": "user", "content": input_text}]
    return [{"role": "user", "content": f"{instruction}\n\n{input_text}"}]


def _has_system(render: _Render) -> bool:
    """Whether the template writes a system turn, which the instruction then has to itself."""
    return _INSTRUCTION in (render(_asked(True, _INPUT)) or "")


def _empty_query(render: _Render, context: str, apart: bool) -> str | None:
    """What follows an instruction without an input, if the template takes one; None: leave the turn empty."""
    role = "system" if apart else "user"
    text = render([{"role": role, "content": _INSTRUCTION}])
    if text is None or not text.startswith(context + _INSTRUCTION):
        return None
    return text.removeprefix(context + _INSTRUCTION)


def _end_ids(tokenizer: PreTrainedTokenizerBase, render: _Render, messages: _Messages) -> tuple[int, ...]:
    """The token that the template writes behind an answer; none where it closes an answer with ordinary text.

    Found by writing an answer, the last one or (for templates that close turns only when another follows) one with a
    turn behind it.
    """
    answered = [*messages, {"role": "assistant", "content": _ANSWER}]
    # no text: the special tokens, and those that were added to the vocabulary
    markers = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    for conversation, least in ((answered, 1), ([*answered, {"role": "user", "content": _NEXT}], 2)):
        _, answer, rest = (render(conversation, False) or "").rpartition(_ANSWER)
        closing = rest.partition(_NEXT)[0].lstrip() if answer else ""  # a template may leave answers out
        ids = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
        if ids and ids[0] in markers and sum(i in markers for i in ids) >= least:  # a lone one opens the next turn
            return (int(ids[0]),)
    return ()


_WORD_START = "\u2581"  # how SentencePiece writes the space in front of a word


def make_template(
    wanted: TemplateName | CustomTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    query_in_encoder: bool = False,
    writes_bos: bool = False,
    date: date | None = None,
) -> Template:
    """The template for one tokenizer.

    Args:
        wanted: A name or the user's own strings.
        tokenizer: The LM's tokenizer.
        query_in_encoder: An encoder reads the query: it then ends in EOS, and nothing asks for the output.
        writes_bos: The LM puts BOS in front of every context itself, so the template must not.
        date: The day that a chat template may write; None: today.

    Raises:
        ConfigError: the tokenizer has no chat template, or one that does not keep the instruction apart.
    """
    if wanted == "chat":
        return chat_template(tokenizer, writes_bos, date)
    end = _eos(tokenizer)
    if isinstance(wanted, CustomTemplate):
        return Template(
            wanted.context, wanted.query, wanted.empty_query, wanted.output, end, closes_query=query_in_encoder
        )
    words_start_alone = starts_words(tokenizer)
    space = "" if words_start_alone or query_in_encoder else " "
    if wanted == "plain":
        return Template("{instruction}", "\n{input}\n", "\n", "{output}", end, closes_query=query_in_encoder)
    if query_in_encoder:
        # what the release's T5 tokenizer makes of the line end in front of the gist tokens (newer ones drop it)
        lone_start = tokenizer.get_vocab().get(_WORD_START) if words_start_alone else None
        return Template(
            "Instruction: {instruction}",
            "\nInput: {input}",
            "",
            "{output}",
            end,
            context_end=() if lone_start is None else (lone_start,),
            closes_query=True,
            trims_context=True,
        )
    # tokenizers that begin every piece with a word lose the line ends around gist tokens in the release
    border = "" if words_start_alone else "\n"
    return Template(
        "Instruction: {instruction}",
        f"{border}Input: {{input}}\nOutput:",
        f"{border}Output:",
        f"{space}{{output}}",
        end,
        trims_context=True,
    )


def starts_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins every text with the start of a word (SentencePiece's dummy prefix)."""
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = tokenizer.convert_ids_to_tokens(ids[:1])
    return bool(first) and str(first[0]).startswith(_WORD_START)
