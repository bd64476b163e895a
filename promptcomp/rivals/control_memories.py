"""Controls: memories that say nothing of the context, another context's or vectors that nobody has trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from promptcomp.rivals.rival import Made, Reading, Rival, Setting

if TYPE_CHECKING:
    from promptcomp.batch import Context


class Shuffled(Rival):
    """A control, the method's memory of another context: it shows what any memory says (the form of an answer)."""

    title: ClassVar[str] = "another context's memory"
    is_control: ClassVar[bool] = True

    name: Literal["shuffled"] = "shuffled"

    def memory(self, reading: Reading, setting: Setting) -> Made:
        """The method's memory of one of the split's other contexts, chosen by the context's tokens alone."""
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


class RandomSlots(Rival):
    """A control, vectors with the spread of the LM's token embeddings, the same for every context."""

    title: ClassVar[str] = "random slots"
    is_control: ClassVar[bool] = True

    name: Literal["random"] = "random"
    seed: int = 0
    """Seed of the vectors."""

    def memory(self, reading: Reading, setting: Setting) -> Made:
        """Soft prompts, also where the method's memory is of another kind."""
        import torch

        from promptcomp.language_model import embedding_scale, token_table
        from promptcomp.memory import SoftPrompt

        if (own := reading.own) is None or not own.mask.shape[1]:
            return Made(None)
        table = token_table(reading.lm.hf)
        slots, width = own.mask.shape[1], table.weight.shape[1]
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.stack([torch.randn(width, generator=generator) for _ in range(slots)]).flip(0)  # as slots are
        vectors = drawn.to(table.weight) * (embedding_scale(table) * table.weight.std())
        real = own.num_slots[:, None]
        mask = torch.arange(slots, device=own.mask.device) >= slots - real
        return Made(SoftPrompt(vectors.expand(len(mask), -1, -1), mask))
