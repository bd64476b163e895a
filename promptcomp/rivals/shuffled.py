"""A control: the method's memory of another context of the same split."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from promptcomp.rivals.rival import Made, Reading, Rival, Setting

if TYPE_CHECKING:
    from promptcomp.batch import Context


class Shuffled(Rival):
    """Tells what a memory says of its context from what any memory does (the form of an answer, the kind of task)."""

    title: ClassVar[str] = "another context's memory"
    is_control: ClassVar[bool] = True

    name: Literal["shuffled"] = "shuffled"

    def memory(self, reading: Reading, setting: Setting) -> Made:
        """The memory of one of the setting's other contexts, chosen by the context's tokens alone."""
        others = setting.memory_of_others
        if others is None:
            return Made(None)
        known = _tokens(setting.others)
        chosen = []
        for ids in _tokens(reading.tokens):
            different = [number for number, other in enumerate(known) if other != ids]
            chosen.append(different[sum(ids) % len(different)])
        return Made(others.rows(reading.tokens.task.new_tensor(chosen)))


def _tokens(context: Context) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(context.ids, context.mask, strict=True)]
