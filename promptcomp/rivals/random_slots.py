"""A control: vectors that nobody has trained, as many as the method's memory has slots."""

from __future__ import annotations

from typing import ClassVar, Literal

from promptcomp.rivals.rival import Made, Reading, Rival, Setting


class RandomSlots(Rival):
    """Vectors with the spread of the LM's token embeddings, the same for every context."""

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

        if (own := reading.own) is None:
            return Made(None)
        table = token_table(reading.lm.hf)
        slots, width = own.mask.shape[1], table.weight.shape[1]
        drawn = torch.randn(slots, width, generator=torch.Generator().manual_seed(self.seed))
        vectors = drawn.to(table.weight) * (embedding_scale(table) * table.weight.std())
        real = own.num_slots[:, None]
        mask = torch.arange(slots, device=own.mask.device) >= slots - real
        return Made(SoftPrompt(vectors.expand(len(mask), -1, -1), mask))
