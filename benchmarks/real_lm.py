"""A real LM: training steps, scoring and answers against plain loops of transformers and peft, in one run each.

Run: python benchmarks/real_lm.py MODEL FOLDER [--only gist cartridge] [--rows 32] [--rounds 3] [--threads 1] [--json].
MODEL is a decoder-only LM's folder (SmolLM2-135M-Instruct), FOLDER holds `alpaca_plus_validation_{seen,unseen}.json`.
Every round gives each side all rows once, in a new order. Before that, losses (answers: tokens) must agree, which warms
both up. Wall time says little on a machine that others use, so ratios are of the process's CPU time too.

gist, full_prompt: LoRA; ours in batches of like length, the loop in random ones, with logits everywhere. The other
cases have the same batches on both sides. mend: finetuning, the distiller being the LM's first layers. cartridge: one
step on slots, against a DynamicCache of parameters. teacher_cache: gist with a KL term, an epoch whose teacher was
kept, against one that asks it. bf16: scoring in bfloat16 against float32, both ours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import make_batch
from gist_training import IGNORE, Example, Original, Rows, example, read_rows
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.datamodules.instruction.instruction_config import InstructionConfig
from promptcomp.datamodules.instruction.instruction_module import InstructionDataModule
from promptcomp.datamodules.sections import Reader
from promptcomp.distilling.cartridge import LIKELIEST, Cartridge, TeacherAnswer, as_batch, divergence, first_slots
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.controls import FullPrompt
from promptcomp.lightning_modules.controls_config import FullPromptConfig
from promptcomp.lightning_modules.gist import Gist
from promptcomp.lightning_modules.gist_config import GistConfig
from promptcomp.lightning_modules.mend import Mend
from promptcomp.lightning_modules.mend_config import MendConfig
from promptcomp.lightning_modules.method_config import OptimConfig
from promptcomp.lightning_modules.objective import class_divergence, class_log_probs
from promptcomp.memory import KVCache

BATCH = 4
BUDGET = 64
"""Tokens of an instruction, an input and an output at most."""
SHOWN = 4
"""Rows in front of a query, where there are demonstrations."""
SLOTS = 16
DISTILLER = 6
"""Layers of MEND's distiller."""
NEW = 32
"""Tokens of an answer."""


class Case(NamedTuple):
    """Two sides, each of which works on all rows once; their first losses (or answers); tokens of the rows."""

    ours: Callable[[], object]
    theirs: Callable[[], object]
    agree: Callable[[], float]
    tokens: int


class Bench:
    """The rows, as one LM reads them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.config = LanguageModelConfig(path=str(options.model))
        self.rows = read_rows(options.folder, options.rows)
        budgets = dict.fromkeys(("max_context_tokens", "max_query_tokens", "max_target_tokens"), BUDGET)
        config = InstructionConfig(**budgets)
        lm = self.lm()
        assert lm.tokenizer is not None
        self.data = InstructionDataModule(config, Rows(self.rows), Reader(lm.tokenizer, 0, BATCH, writes_bos=False))
        self.data.encoder("train").add(self.rows)
        batches = iter(self.data.train_sampler())
        grouped = [next(batches) for _ in range(len(self.rows) // BATCH)]
        self.grouped = [[self.data.train_context(draw) for draw in batch] for batch in grouped]
        flat = [context for batch in self.grouped for context in batch]
        random.Random(0).shuffle(flat)
        self.random = [flat[start : start + BATCH] for start in range(0, len(flat), BATCH)]
        self.examples = [[example(context) for context in batch] for batch in self.random]
        every = [each for batch in self.examples for each in batch]
        self.shown = [
            [shown(each, [every[(place * BATCH + row + n) % len(every)] for n in range(1, SHOWN + 1)])
             for row, each in enumerate(batch)]
            for place, batch in enumerate(self.examples)
        ]  # fmt: skip

    def lm(self, dtype: str = "float32") -> LanguageModel:
        """The LM, anew."""
        torch.manual_seed(0)
        return LanguageModel.from_config(self.config.model_copy(update={"dtype": dtype}))

    def gist(self) -> Case:
        """LoRA, `SLOTS` gist tokens."""
        module = built(Gist(GistConfig(num_slots=SLOTS, train="lora"), self.lm(), OptimConfig(), max_steps=1, seed=0))
        original = Original(module.lm.hf, module.gist[0], SLOTS)

        def loss(rows: Sequence[Example]) -> Tensor:
            totals, counts = original.row_losses(rows)
            return totals.sum() / counts.sum()

        return self._steps(module, self.grouped, self.examples, loss, [*original.parameters()])

    def full_prompt(self) -> Case:
        """LoRA, nothing compressed."""
        module = built(FullPrompt(FullPromptConfig(train="lora"), self.lm(), OptimConfig(), max_steps=1, seed=0))

        def loss(rows: Sequence[Example]) -> Tensor:
            ids, mask, labels = padded(rows)
            return module.lm.hf(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss

        return self._steps(module, self.grouped, self.examples, loss, [*module.parameters()])

    def mend(self) -> Case:
        """Cross-entropy and KL, demonstrations in front of every query."""
        distiller = self.config.model_copy(update={"layers": DISTILLER})
        method = MendConfig(num_slots=SLOTS, distiller=distiller)
        module = built(Mend(method, self.lm(), OptimConfig(), max_steps=1, seed=0))
        hf, body = module.lm.hf, module.distiller.body

        def loss(rows: Sequence[Example]) -> Tensor:
            ids, mask, _ = padded(rows, left=True)
            table = body.get_input_embeddings()
            contexts = torch.tensor(aligned([row.prompt for row in rows], 0, left=True))
            real = torch.tensor(aligned([[1] * len(row.prompt) for row in rows], 0, left=True))
            slots = module.slots.expand(len(rows), -1, -1)
            real = F.pad(real, (0, SLOTS), value=1)
            read = body(
                inputs_embeds=torch.cat([table(contexts), slots], 1),
                attention_mask=real,
                position_ids=places(real),
                use_cache=False,
            ).last_hidden_state
            vectors = module.projection(read[:, -SLOTS:])
            behind = [Example((), row.query, row.target) for row in rows]
            tail, tail_mask, tail_labels = padded(behind)
            tail_mask = F.pad(tail_mask, (SLOTS, 0), value=1)
            student = hf(
                inputs_embeds=torch.cat([vectors, hf.get_input_embeddings()(tail)], 1),
                attention_mask=tail_mask,
                use_cache=False,
            ).logits[:, SLOTS:]
            with torch.no_grad():
                teacher = hf(input_ids=ids, attention_mask=mask, position_ids=places(mask), use_cache=False).logits
            wide = tail.shape[1]
            own = torch.stack(  # the teacher's positions of query and answer, as the student has them
                [
                    F.pad(row[len(row) - n :], (0, 0, 0, wide - n))
                    for row, n in zip(teacher, lengths(behind), strict=True)
                ]
            )
            where = tail_mask[:, SLOTS:].bool()
            kl = F.kl_div(student.log_softmax(-1)[where], own.log_softmax(-1)[where], log_target=True, reduction="sum")
            ce = F.cross_entropy(student[:, :-1].flatten(0, 1), tail_labels[:, 1:].flatten(), ignore_index=IGNORE)
            return ce + kl / where.sum()

        rows = [[example(context) for context in batch] for batch in self.shown]
        return self._steps(module, self.shown, rows, loss, [*module.parameters()])

    def cartridge(self) -> Case:
        """A step on 64 slots of keys and values."""
        lm = self.lm().requires_grad_(False)
        text = [token for row in self.examples[0] for token in (*row.prompt, *row.query, *row.target)]
        ids, wanted, answers = (text * 8)[:256], 64, []
        whole = first_slots(lm, ids, len(ids) + lm.num_bos, "kv")
        for batch in self.examples:
            blank = [
                TeacherAnswer((*row.prompt, *row.query), row.target, torch.empty(0), torch.empty(0)) for row in batch
            ]
            with torch.no_grad():
                logits = lm(whole, as_batch(blank), "targets")
            values = logits.values[logits.predictor]
            top = values.topk(LIKELIEST, -1).indices
            parts = zip(
                *(each.split([len(a.labels) for a in blank]) for each in (top, class_log_probs(values, top))),
                strict=True,
            )
            answers.append([a._replace(top=t.int(), log_probs=p) for a, (t, p) in zip(blank, parts, strict=True)])
        start = first_slots(lm, ids, wanted, "kv")
        assert isinstance(start, KVCache)
        ours = Cartridge(start, torch.float32)
        plain = [torch.nn.Parameter(each[:, :, 1:].clone()) for layer in start.layers for each in layer]

        def own_loss(part: Sequence[TeacherAnswer]) -> Tensor:
            total, agrees = divergence(lm, ours.memory(), part)
            return total / len(agrees)

        def loss(part: Sequence[TeacherAnswer]) -> Tensor:
            cache = DynamicCache()
            firsts = [each[:, :, :1] for layer in start.layers for each in layer]
            joined = [torch.cat(pair, 2).expand(len(part), -1, -1, -1) for pair in zip(firsts, plain, strict=True)]
            for layer, pair in enumerate(zip(joined[::2], joined[1::2], strict=True)):
                cache.update(*pair, layer)
            rows, mask, labels = padded([Example((), answer.query, answer.labels) for answer in part])
            mask = F.pad(mask, (wanted, 0), value=1)
            values = lm.hf(input_ids=rows, attention_mask=mask, past_key_values=cache).logits[:, :-1]
            picked = values[labels[:, 1:] != IGNORE]
            top, log_probs = (torch.cat([getattr(a, name) for a in part]) for name in ("top", "log_probs"))
            return class_divergence(picked, log_probs, top.long()) / len(picked)

        optimizers = torch.optim.Adam(ours.parameters(), lr=1e-3), torch.optim.Adam(plain, lr=1e-3)

        def epoch(of: Callable[[Sequence[TeacherAnswer]], Tensor], optimizer: torch.optim.Optimizer) -> None:
            for part in answers:
                optimizer.zero_grad()
                of(part).backward()
                optimizer.step()

        def agree() -> float:
            return relative(own_loss(answers[0]), loss(answers[0]))

        sides = (lambda: epoch(own_loss, optimizers[0])), (lambda: epoch(loss, optimizers[1]))
        return Case(*sides, agree, self._tokens(self.random))

    def scoring(self) -> Case:
        """Log likelihoods of the outputs."""
        lm = self.lm()

        def ours(batch: Batch) -> Tensor:
            return lm.score(lm.whole_prompt(batch.context), batch).sum_log_prob

        def theirs(rows: Sequence[Example]) -> Tensor:
            ids, mask, labels = padded(rows)
            logits = lm.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].log_softmax(-1)
            picked = logits.gather(-1, labels[:, 1:, None].clamp(min=0)).squeeze(-1)
            return (picked * (labels[:, 1:] != IGNORE)).sum(-1)

        return self._reading(ours, theirs)

    def generation(self) -> Case:
        """`NEW` tokens behind the whole prompt, greedily."""
        lm = self.lm()

        def ours(batch: Batch) -> Tensor:
            return torch.tensor(lm.generate(lm.encode(batch.context), batch, max_new_tokens=NEW))

        def theirs(rows: Sequence[Example]) -> Tensor:
            asked = [Example((), (*row.prompt, *row.query), ()) for row in rows]
            ids, mask, _ = padded(asked, left=True)
            how = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
            return lm.hf.generate(input_ids=ids, attention_mask=mask, **how)[:, ids.shape[1] :]

        lm.hf.generation_config.eos_token_id = None  # all answers have the same length
        return self._reading(ours, theirs)._replace(tokens=NEW * len(self.rows))

    def teacher_cache(self) -> Case:
        """What a KL term costs whose teacher's predictions are on disk."""
        os.environ["PROMPTCOMP_CACHE"] = tempfile.mkdtemp()  # of this run alone
        modules = []
        for cached in (True, False):
            method = GistConfig(num_slots=SLOTS, train="lora", kl_weight=1.0, teacher_cache=cached)
            modules.append(built(Gist(method, self.lm(), OptimConfig(), max_steps=1, seed=0)))
        batches = [make_batch(batch) for batch in self.grouped]
        sides = [self._epoch(module, (lambda b, m=module: loss_of(m, b)), batches) for module in modules]

        def agree() -> float:
            # a divergence of the 64 likeliest tokens and the rest is a little less than one over the vocabulary
            return max(0.0, relative(*(loss_of(module, batches[0]) for module in modules)) - 0.05)

        return Case(sides[0], sides[1], agree, self._tokens(self.random))

    def bf16(self) -> Case:
        """Weights of two bytes, as a frozen LM may have them."""
        half, whole = self.lm("bfloat16"), self.lm()

        def score(lm: LanguageModel, batch: Batch) -> Tensor:
            return lm.score(lm.whole_prompt(batch.context), batch).sum_log_prob

        batches = [make_batch(batch) for batch in self.random]
        sides = [lambda lm=lm: [score(lm, batch) for batch in batches] for lm in (half, whole)]
        return Case(sides[0], sides[1], lambda: 0.0, self._tokens(self.random))

    def _tokens(self, batches: Sequence[Sequence[EncodedContext]]) -> int:
        rows = (example(context) for batch in batches for context in batch)
        return sum(len(row.prompt) + len(row.query) + len(row.target) for row in rows)

    def _reading(self, ours: Callable[[Batch], Tensor], theirs: Callable[[Sequence[Example]], Tensor]) -> Case:
        batches = [make_batch(batch) for batch in self.random]

        def agree() -> float:
            pairs = ((ours(batch), theirs(rows)) for batch, rows in zip(batches, self.examples, strict=True))
            return max(
                relative(*pair) if pair[0].is_floating_point() else float(not pair[0].equal(pair[1])) for pair in pairs
            )

        sides = (lambda: [*map(ours, batches)]), (lambda: [*map(theirs, self.examples)])
        return Case(*map(torch.no_grad(), sides), torch.no_grad()(agree), self._tokens(self.random))

    def _steps(
        self,
        module: CompressionModule,
        contexts: Sequence[Sequence[EncodedContext]],
        examples: Sequence[Sequence[Example]],
        loss: Callable[[Sequence[Example]], Tensor],
        parameters: Sequence[Tensor],
    ) -> Case:
        """Training on both sides; the first batch of the loop is read by both before."""
        first = [EncodedContext(e.prompt, (EncodedQuery(e.query, (EncodedTarget(e.target),)),)) for e in examples[0]]

        def agree() -> float:
            with torch.no_grad():
                return relative(loss_of(module, make_batch(first)), loss(examples[0]))

        ours = self._epoch(module, lambda rows: loss_of(module, make_batch(rows)), contexts)
        optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=2e-5)
        return Case(ours, lambda: train(loss, examples, optimizer), agree, self._tokens(contexts))

    @staticmethod
    def _epoch(module: CompressionModule, loss: Callable[[Any], Tensor], batches: Sequence[Any]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=2e-5)
        return lambda: train(loss, batches, optimizer)


CASES = ("gist", "full_prompt", "mend", "cartridge", "scoring", "generation", "teacher_cache", "bf16")


def built(module: CompressionModule) -> Any:
    """With its parts, as in training."""
    module.configure_model()
    return module.train()


def train(loss: Callable[[Any], Tensor], batches: Sequence[Any], optimizer: torch.optim.Optimizer) -> None:
    """Forward, backward, clipping and update of every batch."""
    parameters = optimizer.param_groups[0]["params"]
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def loss_of(module: CompressionModule, batch: Batch) -> Tensor:
    """The module's loss of one batch."""
    return torch.stack([term.weight * term.total / term.count for term in module.losses(batch)]).sum()


def shown(row: Example, others: Sequence[Example]) -> EncodedContext:
    """A row behind others as its demonstrations."""
    context = tuple(token for other in others for part in (other.prompt, other.query, other.target) for token in part)
    return EncodedContext(context, (EncodedQuery((*row.prompt, *row.query), (EncodedTarget(row.target),)),))


def aligned(rows: Sequence[Sequence[int]], blank: int, left: bool) -> list[list[int]]:
    """Lists of one length."""
    width = max(map(len, rows))
    fill = ([blank] * (width - len(row)) for row in rows)
    return [[*pad, *row] if left else [*row, *pad] for pad, row in zip(fill, rows, strict=True)]


def padded(rows: Sequence[Example], left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels [B, S] of rows in one piece each."""
    whole = [[*row.prompt, *row.query, *row.target] for row in rows]
    labels = [[*[IGNORE] * (len(ids) - len(row.target)), *row.target] for ids, row in zip(whole, rows, strict=True)]
    ones = [[1] * len(ids) for ids in whole]
    tensors = (aligned(each, blank, left) for each, blank in ((whole, 0), (ones, 0), (labels, IGNORE)))
    ids, mask, wanted = map(torch.tensor, tensors)
    return ids, mask, wanted


def places(mask: Tensor) -> Tensor:
    """Positions that count real tokens."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def lengths(rows: Sequence[Example]) -> list[int]:
    """Tokens of query and target."""
    return [len(row.query) + len(row.target) for row in rows]


def relative(one: Tensor, other: Tensor) -> float:
    """The largest relative difference."""
    return float(((one - other).abs() / other.abs().clamp(min=1)).max().detach())


def compare(case: Case, rounds: int, rows: int) -> dict[str, Any]:
    """Alternate the sides.

    Raises:
        SystemExit: they do not do the same work.
    """
    if (difference := case.agree()) > 1e-3:
        raise SystemExit(f"the two sides differ by {difference:.1e}")
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in ("ours", "theirs")}
    sides, order = {"ours": case.ours, "theirs": case.theirs}, random.Random(0)
    for _ in range(rounds):
        for name in order.sample([*sides], 2):
            before = {clock: read() for clock, read in clocks.items()}
            sides[name]()
            for clock, read in clocks.items():
                taken[name][clock].append(read() - before[clock])
    found: dict[str, Any] = {"difference": difference}
    for clock in clocks:
        ours, theirs = taken["ours"][clock], taken["theirs"][clock]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        found[clock] = {
            "ratio": statistics.median(theirs) / statistics.median(ours),
            "rounds": [min(ratios), max(ratios)],
        }
        for name, seconds in (("ours", ours), ("theirs", theirs)):
            median = statistics.median(seconds)
            found[clock][name] = {"examples_per_second": rows / median, "tokens_per_second": case.tokens / median}
    return found


def main() -> None:
    """Run the comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench, report = Bench(options), {}
    for name in options.only:
        report[name] = compare(getattr(bench, name)(), options.rounds, len(bench.rows))
        if options.json:
            continue
        cpu, wall = report[name]["cpu"], report[name]["wall"]
        low, high = cpu["rounds"]
        print(
            f"{name:14} CPU {cpu['ratio']:.2f} ({low:.2f} to {high:.2f}), wall {wall['ratio']:.2f}; ours "
            f"{wall['ours']['examples_per_second']:.2f} examples/s, {wall['ours']['tokens_per_second']:.0f} tokens/s; "
            f"theirs {wall['theirs']['examples_per_second']:.2f}, {wall['theirs']['tokens_per_second']:.0f}; "
            f"difference {report[name]['difference']:.0e}",
            flush=True,
        )
    if options.json:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
