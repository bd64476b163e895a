"""Distilling step-by-step (Hsieh et al., Findings of ACL 2023, https://arxiv.org/abs/2305.02301).

A small student learns two tasks over the same inputs, named by a marker: the label, and the rationale that a large
LM gave for it. L = alpha * L_label + (1 - alpha) * L_rationale (the released code), or L_label + lambda * L_rationale
(the paper); each L is a mean over all target tokens of its own task in the batch. At test time only the label is asked.

Variants, all off by default:
- `weighting: uncertainty`: sum_i L_i / (2 s_i^2) + log s_i with learned s_i (Kendall et al. 2018,
  https://arxiv.org/abs/1705.07115, as used for multi-task weighting).
- `mutual_information`: + beta * L_mi (Chen et al. 2024, https://arxiv.org/abs/2403.03348; see losses).
- `teacher`: + teacher_weight * D, tau^2 KL(p_T || p_S) of a white-box teacher on the target tokens, both at temperature
  tau (Hinton et al. 2015, https://arxiv.org/abs/1503.02531); with `jsd_beta` the generalised Jensen-Shannon divergence,
  and with `on_policy_share` on answers that the student draws itself in that share of the steps (GKD, Agarwal et al.
  2024, https://arxiv.org/abs/2306.13649; no gradient through the drawing).
Filters, teacher labels and single-task targets are the data section's part.

The two tasks are arranged to pad little: an encoder reads both tasks' inputs in one pass, then the decoder runs once
for the labels and once for the rationales; a decoder-only student reads both in one packed row, and the input only
once where the markers follow it.
"""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from promptcomp.batch import ANSWER, RATIONALE, Batch, Context, pad
from promptcomp.language_model import LanguageModel, Logits, at_least_float32
from promptcomp.lightning_modules.base import Counts, LossTerm, Pass, WholeContext, check_same_tokenizer
from promptcomp.lightning_modules.objective import jensen_shannon, kl_divergence, mutual_information
from promptcomp.lightning_modules.step_by_step_config import FinetuneConfig, StepByStepConfig
from promptcomp.memory import EncoderStates, Memory

NAMES = {ANSWER: "label", RATIONALE: "rationale"}


class TaskLogits(NamedTuple):
    """Logits of one task of a batch, one row for each target token."""

    values: Tensor  # [E, V]
    label: Tensor  # [E]
    example: Tensor  # [E] row of the batch's contexts

    def nll(self) -> Tensor:
        """Sum of the negative log likelihoods."""
        return torch.nn.functional.cross_entropy(at_least_float32(self.values), self.label, reduction="sum")


class Finetune(WholeContext):
    """See FinetuneConfig. Nothing is compressed: the rationale is learned instead of written."""

    method: FinetuneConfig | StepByStepConfig
    answer_term: ClassVar[str] = "label"

    def compress(self, context: Context) -> Memory | None:
        """The input, where the queries are markers behind it; nothing where the queries hold it."""
        return super().compress(context) if context.ids.shape[1] else None


class StepByStep(Finetune):
    """Distilling step-by-step: labels and rationales as two tasks (see the module docstring)."""

    method: StepByStepConfig

    def build(self) -> None:
        """The teacher, and the learned weights."""
        method = self.method
        if method.weighting == "uncertainty":
            self.log_scales = nn.Parameter(torch.zeros(2))
        self._drawn: deque[Batch] = deque()  # one for each micro-batch whose counts are known and losses are not
        if method.teacher is not None:
            self.teacher = self.open_lm(method.teacher).requires_grad_(False).eval()
            check_same_tokenizer(self.lm, self.teacher, f"method.teacher.path = {method.teacher.path!r}")

    def counts(self, batch: Batch) -> Counts:
        """Scored tokens of each task, and what the variants count; answers that the student draws are drawn now."""
        method, scored = self.method, self.lm.scored_tokens(batch)
        tokens = {role: scored[batch.role == role].sum() for role in NAMES}
        found: dict[str, Tensor | int] = {NAMES[role]: count for role, count in tokens.items()}
        if method.weighting == "uncertainty":
            found["log_scale"] = 1
        if method.mutual_information:
            found["mutual_information"] = self._pairs(batch)
        if self.teacher is not None and self._draws_this_step():
            self._drawn.append(self._with_drawn_rationales(batch))
            found["on_policy"] = self.lm.scored_tokens(self._drawn[-1]).sum()
        elif self.teacher is not None:
            found["teacher"] = tokens[ANSWER] + tokens[RATIONALE]
        return found

    def _pairs(self, batch: Batch) -> Tensor:
        """Examples that have a label and a rationale, a scalar."""
        example = batch.context_of[batch.query_of]
        scored = (self.lm.scored_tokens(batch) > 0).long()
        has = scored.new_zeros(2, len(batch.context.ids)).index_put((batch.role, example), scored, accumulate=True) > 0
        return has.all(0).sum()

    def losses(self, batch: Batch) -> list[LossTerm]:
        """One term for each task, and the variants' terms."""
        method = self.method
        tasks = task_logits(self.lm, batch)
        terms = []
        for number, (role, logits) in enumerate(tasks.items()):
            total = logits.nll()
            if method.weighting == "uncertainty":
                total = total * torch.exp(-2 * self.log_scales[number]) / 2
            terms.append(LossTerm(NAMES[role], total, logits.label.shape[0], method.weights[role]))
        if method.weighting == "uncertainty":
            terms.append(LossTerm("log_scale", self.log_scales.sum(), 1))
        if method.mutual_information:
            one, two = tasks[ANSWER], tasks[RATIONALE]
            total = mutual_information(one.values, one.example, two.values, two.example, len(batch.context.ids))
            count = self._pairs(batch)
            terms.append(LossTerm("mutual_information", total, count, method.mutual_information))
        if self.teacher is not None:
            terms.append(self._distance(self.teacher, batch, tasks))
        return terms

    def _distance(self, teacher: LanguageModel, batch: Batch, tasks: dict[int, TaskLogits]) -> LossTerm:
        method, name = self.method, "teacher"
        if self._draws_this_step():
            name, batch = "on_policy", self._drawn.popleft() if self._drawn else self._with_drawn_rationales(batch)
            tasks = task_logits(self.lm, batch)
        with torch.no_grad():
            wanted = task_logits(teacher, batch)
        student = torch.cat([tasks[role].values for role in NAMES])
        target = torch.cat([wanted[role].values for role in NAMES])
        shared = min(student.shape[1], target.shape[1])  # tables may have more rows than the vocabulary has tokens
        student, target = student[:, :shared], target[:, :shared]
        if method.jsd_beta is None:
            total = kl_divergence(student, target, method.temperature) * method.temperature**2
        else:
            total = jensen_shannon(student, target, method.jsd_beta, method.temperature)
        return LossTerm(name, total, student.shape[0], method.teacher_weight)

    def _generator(self) -> torch.Generator:
        """A source of randomness that depends on the seed and the step alone, not on the rank."""
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.global_step)

    def _draws_this_step(self) -> bool:
        share = self.method.on_policy_share
        return share > 0 and float(torch.rand((), generator=self._generator(), device=self.device)) < share

    def _with_drawn_rationales(self, batch: Batch) -> Batch:
        """The rationale task alone, with targets that the student draws at temperature 1."""
        asked, _ = batch.of_role(RATIONALE)
        limit = self.method.on_policy_tokens
        was_training = self.lm.training
        self.lm.eval()
        texts = self.lm.generate(
            self.compress(batch.context),
            asked,
            max_new_tokens=limit,
            stop_ids=(self.lm.end_id,),
            temperature=1.0,
            generator=self._generator(),
        )
        self.lm.train(was_training)
        if self.teacher is not None:  # it may have no row for what the student's table holds beyond the vocabulary
            known = self.teacher.vocab_size
            texts = [[*takewhile(lambda token: token < known, text)] for text in texts]
        ended = [[*text, self.lm.end_id] if len(text) < limit else text for text in texts]
        ids, mask = pad(ended, 0, "right")
        asked.target_ids, asked.target_mask = ids.to(self.device), mask.to(self.device)
        return asked

    def depends_on_ranks(self) -> str | None:
        """Also where the student draws answers: micro-batch by micro-batch."""
        if self.teacher is not None and self.method.on_policy_share > 0:
            return "method.on_policy_share draws answers"
        return super().depends_on_ranks()

    @property
    def compared(self) -> Literal["nothing", "targets", "all"]:
        """With a white-box teacher, on the tokens of the targets."""
        return "nothing" if self.method.teacher is None else "targets"

    def passes(self, context_tokens: int, example_tokens: int, queries: int) -> list[Pass]:
        """The student on both tasks, and the teacher."""
        found = super().passes(context_tokens, example_tokens, queries)
        if self.teacher is not None:
            context = self.teacher.num_bos + context_tokens
            tokens, length = context + queries * example_tokens, context + example_tokens
            found.append(Pass(self.teacher.hf, tokens, length, False, False))
        return found


def task_logits(lm: LanguageModel, batch: Batch) -> dict[int, TaskLogits]:
    """The logits of both tasks."""
    memory = lm.whole_prompt(batch.context)
    if lm.query_in_encoder:
        encoded = lm.encoder_side(memory, batch)
        return {role: _decode_task(lm, encoded, batch, role) for role in NAMES}
    logits = lm(memory, batch, "targets")
    own = {role: batch.role[logits.target_of] == role for role in NAMES}
    parts = {role: Logits(logits.values, *(each[rows] for each in logits[1:])) for role, rows in own.items()}
    return {role: _of_logits(part, batch) for role, part in parts.items()}


def _decode_task(lm: LanguageModel, encoded: EncoderStates, batch: Batch, role: int) -> TaskLogits:
    part, queries = batch.of_role(role)
    if not len(queries):  # the decoder runs all the same, because sharded weights are gathered by all ranks together
        first = next(each for each in NAMES if (batch.role == each).any())
        return TaskLogits(*(values[:0] for values in _decode_task(lm, encoded, batch, first)))
    return _of_logits(lm.decode(encoded.rows(queries), part), part)


def _of_logits(logits: Logits, batch: Batch) -> TaskLogits:
    example = batch.context_of[batch.query_of[logits.target_of]]
    return TaskLogits(logits.values[logits.predictor], logits.label, example)
