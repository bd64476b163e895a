"""From rows to token ids: separators, direct and channel order, the per-example cap and the budget of demonstrations.

A row is written in two parts, tokenised apart and put together: input then output (direct), or output then input
(channel: the model is asked how probable the input is after each label; Min et al. 2022, arXiv 2108.04106). A separator
is tokenised together with the text it precedes, because a byte-level BPE must see " yes", not " " and "yes".
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from promptcomp.datamodules.icl_config import Scoring, SeparatorName, Truncation
from promptcomp.datamodules.tokens import TokenCache


@dataclass(frozen=True, slots=True)
class Separator:
    """What is written around the two parts of a row."""

    before_example: str = ""
    """In front of every example but the first (the query follows the demonstrations, so it has it too)."""
    after_first: str = ""
    before_second: str = ""
    after_example: str = ""
    """After each demonstration."""
    collapse: bool = False
    """Whether separators around an empty part shrink, as MetaICL's newlines (and not its spaces) do."""


SEPARATORS: dict[SeparatorName, Separator] = {
    "none": Separator(),
    "space": Separator(before_example=" ", before_second=" "),
    "newlines": Separator(before_example="\n\n\n", before_second="\n", collapse=True),
    "arrow": Separator(after_first=" =>", after_example=" \n"),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """Ids of the two parts of an example; `cut` counts tokens that did not fit the per-example cap."""

    first: array[int]
    second: array[int]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.first) + len(self.second)


@dataclass(frozen=True, slots=True)
class Renderer:
    """Writes and tokenises rows.

    `output_space` puts a space in front of every output (direct) that no separator ending in white space precedes;
    byte-level vocabularies need it (MEND: true for GPT-2, false for Llama).
    """

    cache: TokenCache
    separator: Separator
    scoring: Scoring
    output_space: bool
    max_example_tokens: int

    def texts(self, input_text: str, output: str, *, first: bool, demonstration: bool = False) -> tuple[str, str]:
        """Both parts of an example as they are tokenised.

        Args:
            input_text: The row's input.
            output: The row's output, or the option to be scored.
            first: Whether nothing precedes the example.
            demonstration: Whether the example is closed by the separator that follows demonstrations.
        """
        rule = self.separator
        one, two = (input_text, output) if self.scoring == "direct" else (output, input_text)
        before = "" if first else rule.before_example
        between = rule.before_second if two or not rule.collapse else ""
        if rule.collapse and self.scoring == "direct" and not one:
            before = before[:-1]
        if rule.collapse and self.scoring == "channel" and not one:
            between = ""
        if self.output_space and self.scoring == "direct" and two and not (between + two)[0].isspace():
            between += " "
        after = rule.after_example if demonstration else ""
        return before + one + rule.after_first, between + two + after

    def fit(self, first: array[int], second: array[int], longest_second: int | None = None) -> Parts:
        """Cut the input (only the output if nothing else helps) so that the example keeps to `max_example_tokens`.

        Args:
            first: Ids of the first part.
            second: Ids of the second part.
            longest_second: Tokens to reserve for the second part (the longest option), so that all options of a query
                see the same input.
        """
        cap = self.max_example_tokens
        reserved = max(len(second), longest_second or 0)
        if len(first) + (reserved if self.scoring == "direct" else len(second)) <= cap:
            return Parts(first, second)
        if self.scoring == "direct":
            room = max(cap - reserved, 1 if len(first) else 0)
            kept_first = first[:room]
            kept_second = second[: cap - len(kept_first)]
        else:
            kept_first = first[: cap - 1] if len(second) else first[:cap]
            kept_second = second[: cap - len(kept_first)]
        cut = len(first) + len(second) - len(kept_first) - len(kept_second)
        return Parts(kept_first, kept_second, cut)

    def option_ids(self, option: str, *, first: bool) -> tuple[int, ...]:
        """Ids of an option as a query has them, within the per-example cap: what the model tells options apart by."""
        one, two = self.texts("x", option, first=first)
        return tuple(self.cache(two if self.scoring == "direct" else one)[: self.max_example_tokens - 1])

    def demonstration(self, input_text: str, output: str, *, first: bool) -> Parts:
        """Ids of one demonstration, within the per-example cap."""
        one, two = self.texts(input_text, output, first=first, demonstration=True)
        return self.fit(self.cache(one), self.cache(two))


def assemble(
    demonstrations: Sequence[Parts], budget: int | None, truncation: Truncation
) -> tuple[list[int], list[int]]:
    """Join demonstrations within a token budget.

    Args:
        demonstrations: In the order of the context.
        budget: Most tokens of the context; None: no limit.
        truncation: "whole_demonstrations" stops before the first one that does not fit. "reference" is MEND's rule:
            that one joins with its first part cut to what is left. "left" keeps the last `budget` tokens (MetaICL).

    Returns:
        The context's ids, and the number of its tokens after each demonstration (the borders).
    """
    ids: list[int] = []
    borders: list[int] = []
    for parts in demonstrations:
        if budget is not None and truncation == "whole_demonstrations" and len(ids) + len(parts) > budget:
            break
        # MEND compares strictly: a demonstration that would fill the budget to the last token counts as too long
        if budget is not None and truncation == "reference" and len(ids) + len(parts) >= budget:
            room = budget - len(ids) - len(parts.second) - 1
            if room >= 0:
                ids.extend([*parts.first[:room], *parts.second])
                borders.append(len(ids))
            break
        ids.extend(parts.first)
        ids.extend(parts.second)
        borders.append(len(ids))
    if budget is not None and truncation == "left" and len(ids) > budget:
        surplus = len(ids) - budget
        return ids[surplus:], [border - surplus for border in borders if border > surplus]
    return ids, borders
