"""What a cartridge has taken, and how often it has to be used to pay."""

from __future__ import annotations

from collections.abc import Sequence

from promptcomp.distilling.cartridge import TeacherAnswer
from promptcomp.distilling.cartridge_training import TrainingHistory, TrainingPlan
from promptcomp.distilling.self_study import KeptQuestion
from promptcomp.evaluation.flops import break_even, decoder_flops, decoder_request_flops, read_flops
from promptcomp.language_model import LanguageModel

_BACKWARD = 2
"""A frozen LM's backward pass takes as much as its forward pass: gradients of activations, none of weights."""


def cost_of(
    lm: LanguageModel,
    context: int,
    slots: int,
    kind: str,
    asked: Sequence[KeptQuestion],
    train: Sequence[TeacherAnswer],
    held: Sequence[TeacherAnswer],
    plan: TrainingPlan,
    progress: TrainingHistory,
    start_reads: int,
) -> dict[str, float]:
    """Counts and FLOPs of questions, answers, steps and looks; those of the first two are charged to every budget.

    `context` is the number of the context's positions (BOS is one), `asked` what the LM has asked itself,
    `start_reads` how often the context is read for what training starts with.
    """
    cost, answers = lm.cost, [*train, *held]
    teacher = read_flops(cost, context)
    for each in asked:
        read, written = each.prompt_tokens or 0, each.completion_tokens or 0
        teacher += decoder_request_flops(cost, read=read, seen=context, new_tokens=written) if read else 0.0
    for answer in answers:
        teacher += decoder_request_flops(cost, read=len(answer.query), seen=context, new_tokens=len(answer.labels))
    step = _BACKWARD * plan.batch_size * _pass(lm, train, slots, kind)
    flops = (
        start_reads * read_flops(cost, context)
        + progress.step * step
        + len(progress.looks) * len(held) * _pass(lm, held, slots, kind)
    )
    per_use, query = behind(lm, slots, kind, answers), behind(lm, 0, "kv", answers, context)
    anew = behind(lm, context - lm.num_bos, "embeddings", answers)
    first = {"prompt": break_even(flops + teacher, per_use, 0.0, anew)[0]}
    first["prefix_cache"] = break_even(flops + teacher, per_use, read_flops(cost, context), query)[0]
    return {
        "questions": len(answers),
        "held_out_questions": len(held),
        "answer_tokens": sum(len(answer.labels) for answer in answers),
        "steps": progress.step,
        "teacher_flops": teacher,
        "train_flops": flops,
        "flops": flops + teacher,
        **{f"uses_against_{name}": uses for name, uses in first.items() if uses is not None},
    }


def behind(
    lm: LanguageModel, slots: int, kind: str, answers: Sequence[TeacherAnswer], cached: int | None = None
) -> float:
    """Mean FLOPs of reading a question and writing its answer behind slots: cached (kv), or read with it."""
    seen = (slots if kind == "kv" else 0) if cached is None else cached
    read = 0 if kind == "kv" else slots + (lm.num_bos if slots else 0)
    whole = [
        decoder_request_flops(lm.cost, read=read + len(answer.query), seen=seen, new_tokens=len(answer.labels))
        for answer in answers
    ]
    return sum(whole) / len(whole)


def _pass(lm: LanguageModel, answers: Sequence[TeacherAnswer], slots: int, kind: str) -> float:
    """Mean FLOPs of a question with its answer in one forward pass, with logits at the answer."""
    whole = 0.0
    for answer in answers:
        new, labels = len(answer.query) + len(answer.labels), len(answer.labels)
        front = 0 if kind == "kv" else slots
        whole += decoder_flops(lm.cost, new + front, slots - front) + (labels - 1) * lm.cost.head
    return whole / len(answers)
