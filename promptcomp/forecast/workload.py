"""What a training step reads on one device: lengths from the data section's budgets, rows as the LM packs them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from promptcomp.experiment import Experiment
from promptcomp.forecast.activations import Rows
from promptcomp.forecast.placement import Layout
from promptcomp.language_model.packing import MAX_ROW_TOKENS
from promptcomp.lightning_modules.base import CompressionModule, Pass


@dataclass(frozen=True, slots=True)
class Work:
    """What a device reads at a time; lengths in tokens."""

    context: int
    example: int
    """A query with its target."""
    target: int
    """The target alone; as long as the example where that is not known."""
    queries: int
    """Of one context."""
    contexts: int

    def of(self, each: Pass) -> Work:
        """What one pass reads."""
        if not each.reconstructs:
            return self
        return replace(self, example=self.context + 1, target=self.context, queries=1)


def work_of(experiment: Experiment, module: CompressionModule, layout: Layout) -> Work:
    """What a device reads at a time."""
    context, example, target = experiment.data.lengths(module.lm.window)
    contexts = max(1, experiment.trainer.batch_size // (layout.accumulate * layout.devices))
    return Work(context, example, target, experiment.data.training_queries, contexts)


def rows_of(module: CompressionModule, each: Pass, work: Work) -> tuple[Rows, Rows | None]:
    """The sequences of a pass, as promptcomp.language_model packs them."""
    work = work.of(each)
    length, rows = math.ceil(each.length), math.ceil(each.tokens / each.length) * work.contexts
    if each.model.config.is_encoder_decoder and each.model.get_output_embeddings() is None:
        return Rows(rows, length), Rows(rows, module.num_memory_slots(length) + 1)  # a distiller's decoder reads slots
    if each.model.config.is_encoder_decoder:
        if module.lm.query_in_encoder:
            count = work.contexts * work.queries
            return Rows(count, max(1, length - _known_target(work))), Rows(count, work.target + 1)
        tree = work.queries * work.example + 1
        split = math.ceil(tree / (MAX_ROW_TOKENS // 2)) if work.queries > 1 else 1
        read = Rows(work.contexts, max(1, length - work.example))
        return read, Rows(work.contexts * split, math.ceil(tree / split))
    if each.model.get_output_embeddings() is None:  # a distiller: chunks of a context
        return Rows(rows, length), None
    front, tree = length - work.example, work.queries * work.example
    split = math.ceil(tree / MAX_ROW_TOKENS) if work.queries > 1 else 1
    return Rows(work.contexts * split, front + math.ceil(tree / split)), None


def _known_target(work: Work) -> int:
    return work.target if work.target < work.example else 0


def label_positions(module: CompressionModule, each: Pass, work: Work) -> int:
    """Positions of a micro-batch at which a pass makes logits."""
    work = work.of(each)
    everywhere = module.compared == "all" and not module.lm.query_in_encoder
    length = work.example if everywhere else work.target
    return work.contexts * work.queries * length
