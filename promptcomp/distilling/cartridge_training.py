"""Training a cartridge: Adam on the slots alone, the best on held-out questions kept, resumable at every save.

Order is a function of (seed, step), so that a training that was killed goes on with the same losses. What it has taken,
and how often the cartridge has to be used to pay, is counted here too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from promptcomp.config import ConfigError
from promptcomp.distilling.cartridge import Agreement, Cartridge, TeacherAnswer, agreement, divergence
from promptcomp.distilling.self_study import KeptQuestion, hash_of
from promptcomp.documents import parse_json
from promptcomp.errors import Exit, RunFailed
from promptcomp.evaluation.flops import break_even, decoder_flops, decoder_request_flops, read_flops
from promptcomp.files import replacing
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules.method_config import OptimConfig
from promptcomp.lightning_modules.optim import learning_rate_factor

SAVE_SECONDS = 15.0
"""A training is saved as often as this, and at every look at the held-out questions."""
_WARMUP = 10
_MOMENTS = ("exp_avg", "exp_avg_sq")
_BACKWARD = 2
"""A frozen LM's backward pass takes as much as its forward pass: gradients of activations, none of weights."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What decides about a training, apart from its answers."""

    steps: int
    lr: float
    batch_size: int
    eval_every: int
    seed: int


@dataclass(slots=True)
class TrainingHistory:
    """How far a training is; its state file says it too."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """KL a position of each step."""
    looks: list[tuple[int, Agreement]] = field(default_factory=list)
    """Steps with their agreement on the held-out questions; the first one, of step 0, is that of the start."""
    best_step: int = 0
    seconds: float = 0.0

    @property
    def best(self) -> Agreement:
        """That of the step that is kept."""
        return dict(self.looks)[self.best_step]


class Training:
    """A cartridge and its answers.

    Args:
        lm: frozen, in eval mode.
        cartridge: with the slots to start with.
        plan: how it is trained.
        train: answers to train on.
        held: answers that choose the step.
        place: the state file; one that is there is gone on from.

    Raises:
        ConfigError: the state cannot be read.
    """

    def __init__(
        self,
        lm: LanguageModel,
        cartridge: Cartridge,
        plan: TrainingPlan,
        train: Sequence[TeacherAnswer],
        held: Sequence[TeacherAnswer],
        place: Path,
    ) -> None:
        self.lm, self.cartridge, self.plan, self.train, self.held = lm, cartridge, plan, train, held
        self.progress = TrainingHistory()
        self._place = place
        self._optimizer = torch.optim.Adam(cartridge.slots, lr=plan.lr)
        self._best = self._slots()
        if place.exists():
            self._load()

    def run(self, stopped: Callable[[], bool], seen: Callable[[TrainingHistory], None]) -> bool:
        """Train to the last step; whether it came so far. The cartridge then has the slots of the best step.

        Args:
            stopped: whether to end after this step.
            seen: told after every step and look.

        Raises:
            RunFailed: the loss is no number.
        """
        progress, plan, saved = self.progress, self.plan, time.monotonic()
        start = saved - progress.seconds
        if not progress.looks:
            self._look()
            seen(progress)
        while progress.step < plan.steps and not stopped():
            progress.losses.append(self._step())
            progress.step += 1
            progress.seconds = time.monotonic() - start
            if progress.step % plan.eval_every == 0 or progress.step == plan.steps:
                self._look()
            elif time.monotonic() - saved < SAVE_SECONDS and not stopped():
                seen(progress)
                continue
            progress.seconds, saved = time.monotonic() - start, time.monotonic()
            self._save()
            seen(progress)
        with torch.no_grad():
            for slot, best in zip(self.cartridge.slots, self._best, strict=True):
                slot.copy_(best)
        return progress.step == plan.steps

    def _step(self) -> float:
        plan, step = self.plan, self.progress.step
        part = [self.train[number] for number in chosen(len(self.train), plan.batch_size, step, plan.seed)]
        optim = OptimConfig(lr=plan.lr, schedule="cosine", warmup_steps=min(_WARMUP, plan.steps // 5))
        self._optimizer.param_groups[0]["lr"] = plan.lr * learning_rate_factor(step, plan.steps, optim)
        total, agrees = divergence(self.lm, self.cartridge.memory(), part)
        loss = total / len(agrees)
        if not torch.isfinite(loss):
            raise RunFailed(f"the loss of step {step + 1} is {loss.item()}; give a lower --lr", Exit.NOT_FINITE)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def _look(self) -> None:
        """Measure on the held-out questions, and keep the slots where they are the best so far."""
        progress = self.progress
        found = agreement(self.lm, self.cartridge.memory(), self.held, 2 * self.plan.batch_size)
        if not progress.looks or found.kl < progress.best.kl:
            progress.best_step, self._best = progress.step, self._slots()
        progress.looks.append((progress.step, found))

    def _slots(self) -> list[Tensor]:
        return [slot.detach().clone() for slot in self.cartridge.slots]

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {}
        for number, (slot, best) in enumerate(zip(self.cartridge.slots, self._best, strict=True)):
            state = self._optimizer.state[slot]
            # a slot that gets no gradient has no moments (HRM reads most of its layers without one)
            moments = {name: state.get(name, torch.zeros_like(best)) for name in _MOMENTS}
            parts = {"now": slot.detach(), "best": best, **moments}
            tensors |= {f"{name}.{number}": tensor.cpu().contiguous() for name, tensor in parts.items()}
        with replacing(self._place) as partial:
            save_file(tensors, partial, metadata={"progress": json.dumps(asdict(self.progress))})

    def _load(self) -> None:
        try:
            with safe_open(self._place, "pt") as file:
                self.progress = _read_progress(parse_json(file.metadata()["progress"]))
                for number, slot in enumerate(self.cartridge.slots):
                    parts = {name: file.get_tensor(f"{name}.{number}").to(slot) for name in ("now", "best", *_MOMENTS)}
                    moments = {name: parts[name].clone() for name in _MOMENTS}
                    self._optimizer.state[slot] = {"step": torch.tensor(float(self.progress.step)), **moments}
                    self._best[number] = parts["best"].clone()
                    with torch.no_grad():
                        slot.copy_(parts["now"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{self._place}: no state of this training ({error}); remove the file to train anew"
            ) from None


def _read_progress(found: Mapping[str, object]) -> TrainingHistory:
    progress = TrainingHistory(**found)  # type: ignore[arg-type]
    progress.looks = [(step, Agreement(*values)) for step, values in progress.looks]
    return progress


def chosen(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The questions of a step: one random order of all `count` after the other, cut into batches."""
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: np.random.default_rng((seed, hash_of("order"), epoch)).permutation(count)
        for epoch in {place // count for place in places}
    }
    return [int(orders[place // count][place % count]) for place in places]


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
