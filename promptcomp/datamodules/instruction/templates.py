"""Templates of instruction data: what is written around an instruction, its input and its output.

A row becomes three pieces of text that are tokenised apart: the context (what is compressed), the query behind it and
the target. `alpaca_gist` is the template of Mu et al. 2023 (arXiv 2304.08467); its pieces end where the gist tokens
stand, so that text on either side never shares a token with the other.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from promptcomp.datamodules.instruction.chat_templates import chat_template
from promptcomp.datamodules.instruction.instruction_config import CustomTemplate, TemplateName

_WORD_START = "\u2581"  # how SentencePiece writes the space in front of a word


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
    trims: bool = False
    """Whether instruction, input and output lose the white space around them."""
    trims_context: bool = False
    """Whether the context loses the white space at its end."""
    dated: bool = False
    """Whether it writes the day of the run."""

    def context_text(self, instruction: str) -> str:
        """The context of an instruction."""
        text = self.context.replace("{instruction}", instruction.strip() if self.trims else instruction)
        return text.rstrip() if self.trims_context else text

    def query_text(self, input_text: str) -> str:
        """The query of an input, which may be empty."""
        if not input_text:
            return self.empty_query
        return self.query.replace("{input}", input_text.strip() if self.trims else input_text)

    def output_text(self, output: str) -> str:
        """The target of an output, without what closes it."""
        return self.output.replace("{output}", output.strip() if self.trims else output)


def make_template(
    wanted: TemplateName | CustomTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    query_in_encoder: bool = False,
    writes_bos: bool = False,
    date: datetime.date | None = None,
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
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if wanted == "chat":
        parts = chat_template(tokenizer, writes_bos, date)
        return Template(
            parts.context,
            parts.query,
            parts.empty_query,
            "{output}",
            parts.end_ids or end,
            trims=parts.trims,
            dated=parts.dated,
        )
    if isinstance(wanted, CustomTemplate):
        return Template(
            wanted.context, wanted.query, wanted.empty_query, wanted.output, end, closes_query=query_in_encoder
        )
    words_start_alone = starts_words(tokenizer)
    space = "" if words_start_alone or query_in_encoder else " "
    if wanted == "plain":
        return Template("{instruction}", "\n{input}\n", "\n", "{output}", end, closes_query=query_in_encoder)
    if query_in_encoder:
        return Template(
            "Instruction: {instruction}",
            "\nInput: {input}",
            "",
            "{output}",
            end,
            context_end=_lone_word_start(tokenizer) if words_start_alone else (),
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


def _lone_word_start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the release's T5 tokenizer makes of the line end in front of the gist tokens (newer ones drop it)."""
    found = tokenizer.get_vocab().get(_WORD_START)
    return () if found is None else (found,)


def starts_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins every text with the start of a word (SentencePiece's dummy prefix)."""
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = tokenizer.convert_ids_to_tokens(ids[:1])
    return bool(first) and str(first[0]).startswith(_WORD_START)
