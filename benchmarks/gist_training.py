"""Training steps of gisting: the original's recipe against ours, on the same rows, model and loss, in one run.

Run: python benchmarks/gist_training.py FOLDER [--model gpt2|t5] [--rows 256] [--rounds 5] [--json]. FOLDER holds
`alpaca_plus_validation_{seen,unseen}.json`. The original's recipe is written out here on the stock Hugging Face model:
random batches padded to their longest row (decoder: on the left; T5: on the right), a 4-D additive gist mask, logits
of the whole vocabulary at every position, cross-entropy with ignore_index. Ours is `InstructionDataModule` with batches
grouped by length and the `gist` module with logits at the labels alone. Rows that mix the two show where the gain comes
from. Every round gives each side all rows once, in a new order of sides; before timing, the losses of single rows must
agree. Timed: collating, forward, backward, clipping and AdamW. Not timed: tokenising.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from promptcomp.batch import Batch, EncodedContext
from promptcomp.datamodules.instruction.instruction_config import InstructionConfig
from promptcomp.datamodules.instruction.instruction_module import InstructionDataModule
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.tasks import InstructionRow
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules.gist import Gist
from promptcomp.lightning_modules.gist_config import GistConfig
from promptcomp.lightning_modules.method_config import OptimConfig

BATCH = 8
WINDOW = 32
"""Batches that are sorted by length together (the default of `data.length_window`)."""
IGNORE = -100
VOCABULARY = 50257
CHECKED = 4
"""Batches whose losses are compared row by row."""


@dataclass(frozen=True, slots=True)
class Rows:
    """An instruction source of rows that are there already."""

    train: Sequence[InstructionRow]

    @property
    def splits(self) -> tuple[str, ...]:
        """Training rows alone."""
        return ("train",)

    def rows(self, split: str) -> Sequence[InstructionRow]:
        """The rows."""
        return self.train


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a row as the original's collator sees them."""

    prompt: tuple[int, ...]
    query: tuple[int, ...]
    target: tuple[int, ...]


class Original(nn.Module):
    """The original's training step on a stock model: everything padded, everything's logits.

    The gist token's embedding stands beside the table and not in it, so that the two sides have the same softmax.
    """

    def __init__(self, hf: PreTrainedModel, gist: Tensor, slots: int) -> None:
        super().__init__()
        self.hf, self.slots = hf, slots
        self.gist = nn.Parameter(gist.detach().clone())

    def row_losses(self, rows: Sequence[Example], labels_only: bool = False) -> tuple[Tensor, Tensor]:
        """Sum of the negative log likelihoods and number of label tokens of each row."""
        is_t5 = self.hf.config.is_encoder_decoder
        logits, labels = self._t5(rows, labels_only) if is_t5 else self._decoder(rows, labels_only)
        count = (labels != IGNORE).sum(-1)
        if labels_only:
            flat = F.cross_entropy(logits.float(), labels[labels != IGNORE], reduction="none")
            owner = torch.arange(len(rows)).repeat_interleave(count)
            return flat.new_zeros(len(rows)).index_add(0, owner, flat), count
        flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
        return flat.view(labels.shape).sum(-1), count

    def _head(self, hidden: Tensor, labels: Tensor, labels_only: bool) -> Tensor:
        return self.hf.lm_head(hidden[labels != IGNORE] if labels_only else hidden)

    def _embed(self, ids: Tensor, is_gist: Tensor) -> Tensor:
        return torch.where(is_gist[..., None], self.gist, self.hf.get_input_embeddings()(ids))

    def _decoder(self, rows: Sequence[Example], labels_only: bool) -> tuple[Tensor, Tensor]:
        width = max(len(row.prompt) + self.slots + len(row.query) + len(row.target) for row in rows)
        ids, labels, kind = [], [], []
        for row in rows:
            tokens = (*row.prompt, *[0] * self.slots, *row.query, *row.target)
            left = width - len(tokens)
            after = len(row.query) + len(row.target)
            ids.append([0] * left + list(tokens))
            labels.append([IGNORE] * (width - len(row.target)) + list(row.target))
            kind.append([-1] * left + [0] * len(row.prompt) + [1] * self.slots + [2] * after)
        kinds = torch.tensor(kind)
        real = kinds >= 0
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        allowed = _gist_mask(kinds) & causal & real[:, None, :]
        hidden = self.hf.base_model(
            inputs_embeds=self._embed(torch.tensor(ids), kinds == 1),
            attention_mask=_additive(allowed),
            position_ids=(real.long().cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        shifted = F.pad(torch.tensor(labels)[:, 1:], (0, 1), value=IGNORE)
        return self._head(hidden, shifted, labels_only), shifted

    def _t5(self, rows: Sequence[Example], labels_only: bool) -> tuple[Tensor, Tensor]:
        width = max(len(row.prompt) + self.slots + len(row.query) for row in rows)
        longest = max(len(row.target) for row in rows)
        ids, labels, kind = [], [], []
        for row in rows:
            tokens = (*row.prompt, *[0] * self.slots, *row.query)
            right = width - len(tokens)
            ids.append(list(tokens) + [0] * right)
            kind.append([0] * len(row.prompt) + [1] * self.slots + [2] * len(row.query) + [-1] * right)
            labels.append(list(row.target) + [IGNORE] * (longest - len(row.target)))
        kinds, wanted = torch.tensor(kind), torch.tensor(labels)
        real = kinds >= 0
        states = self.hf.encoder(
            inputs_embeds=self._embed(torch.tensor(ids), kinds == 1),
            attention_mask=_additive(_gist_mask(kinds) & real[:, None, :]),
        ).last_hidden_state
        hidden = self.hf.decoder(
            input_ids=F.pad(wanted[:, :-1].clamp(min=0), (1, 0), value=0),
            encoder_hidden_states=BaseModelOutput(states).last_hidden_state,
            encoder_attention_mask=(kinds >= 1).long(),
            use_cache=False,
        ).last_hidden_state
        if self.hf.config.scale_decoder_outputs:
            hidden = hidden * self.hf.config.d_model**-0.5
        return self._head(hidden, wanted, labels_only), wanted


def _gist_mask(kinds: Tensor) -> Tensor:
    """Who may see whom [B, S, S]: prompt and gist see up to the last gist, the rest sees from the first gist on."""
    before = ((kinds == 0) | (kinds == 1))[:, :, None]
    return torch.where(before, (kinds <= 1)[:, None, :], (kinds >= 1)[:, None, :])


def _additive(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)[:, None]


def read_rows(folder: Path, count: int) -> list[InstructionRow]:
    """`count` rows of both validation files, mixed."""
    found = []
    for name in ("seen", "unseen"):
        text = (folder / f"alpaca_plus_validation_{name}.json").read_text(encoding="utf-8")
        found += [InstructionRow(r["instruction"], r["input"], r["output"], r["source"]) for r in json.loads(text)]
    random.Random(0).shuffle(found)
    return found[:count]


def train_tokenizer(rows: Iterable[InstructionRow]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the rows' text, with an end of sequence."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((text for row in rows for text in (row.instruction, row.input, row.output)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>")


def make_model(kind: str, width: int, layers: int) -> PreTrainedModel:
    """A random GPT-2 or T5 of this width with a vocabulary of 50,257."""
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": 1024}
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **sizes))
    sizes = {"d_model": width, "d_kv": 64, "d_ff": 4 * width, "num_layers": layers, "num_heads": width // 64}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes))


class Sides:
    """All sides of the comparison on one set of weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        every = read_rows(options.folder, 2000)
        self.rows = every[
            : max(1, options.rows // (BATCH * WINDOW)) * BATCH * WINDOW
        ]  # whole windows: the same rows on each side
        self.tokenizer = train_tokenizer(every)
        self.is_t5 = options.model == "t5"
        self.hf = make_model(options.model, options.width, options.layers)
        lm = LanguageModel.from_parts(self.hf, self.tokenizer, layout="query_in_encoder", bos=False)
        self.module = Gist(GistConfig(num_slots=options.slots), lm, OptimConfig(), max_steps=1, seed=0)
        self.module.configure_model()
        self.original = Original(self.hf, self.module.gist[0], options.slots)
        self.grouped, self.random = self._data(WINDOW), self._data(1)
        self.optimizers: dict[int, torch.optim.Optimizer] = {}

    def _data(self, length_window: int) -> InstructionDataModule:
        config = InstructionConfig(length_window=length_window)
        source = Rows(self.rows)
        reader = Reader(self.tokenizer, 0, BATCH, query_in_encoder=self.is_t5, writes_bos=False)
        made = InstructionDataModule(config, source, reader)
        made.encoder("train").add(self.rows)
        return made

    def batches(self, data: InstructionDataModule) -> Iterable[Batch]:
        """One epoch of ours."""
        loader = iter(data.train_dataloader())
        return (next(loader) for _ in range(len(self.rows) // BATCH))

    def original_batches(self, data: InstructionDataModule) -> Iterable[list[Example]]:
        """One epoch of the same rows for the original's collator."""
        sampler = iter(data.train_sampler())
        return ([example(data.train_context(draw)) for draw in next(sampler)] for _ in range(len(self.rows) // BATCH))

    def loss_of_ours(self, batch: Batch) -> Tensor:
        """The module's loss."""
        (term,) = self.module.losses(batch)
        return term.total / term.count

    def sides(self) -> dict[str, Callable[[], int]]:
        """Every side as a call that trains one epoch and returns the number of steps."""

        def ours(data: InstructionDataModule, arrangement: str) -> int:
            self.module.method = self.module.method.model_copy(update={"arrangement": arrangement})
            return self._train(self.module, (lambda b=batch: self.loss_of_ours(b) for batch in self.batches(data)))

        def theirs(data: InstructionDataModule, labels_only: bool) -> int:
            def loss(rows: list[Example]) -> Tensor:
                totals, counts = self.original.row_losses(rows, labels_only)
                return totals.sum() / counts.sum()

            return self._train(self.original, (lambda b=rows: loss(b) for rows in self.original_batches(data)))

        return {
            "original": lambda: theirs(self.random, False),
            "original, grouped": lambda: theirs(self.grouped, False),
            "original, label logits": lambda: theirs(self.random, True),
            "original, both": lambda: theirs(self.grouped, True),
            "ours, random batches": lambda: ours(self.random, "joint"),
            "ours": lambda: ours(self.grouped, "joint"),
            "ours, split": lambda: ours(self.grouped, "split"),
        }

    def _train(self, module: nn.Module, losses: Iterable[Callable[[], Tensor]]) -> int:
        module.train()
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = self.optimizers.setdefault(id(module), torch.optim.AdamW(parameters, lr=2e-5))
        steps = 0
        for loss in losses:
            optimizer.zero_grad()
            loss().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            steps += 1
        return steps

    def work(self) -> dict[str, float]:
        """Padded tokens and rows of logits of an epoch, which no noise can move."""
        slots = self.module.method.num_slots
        found = {}
        for name, data in (("random", self.random), ("grouped", self.grouped)):
            total = logits = 0
            for rows in self.original_batches(data):
                source = max(len(r.prompt) + slots + len(r.query) + (0 if self.is_t5 else len(r.target)) for r in rows)
                target = max(len(r.target) for r in rows) if self.is_t5 else 0
                total += BATCH * (source + target)
                logits += BATCH * (target if self.is_t5 else source)
            found[f"padded_tokens_{name}"], found[f"logits_everywhere_{name}"] = total, logits
        found["label_tokens"] = sum(len(r.target) for rows in self.original_batches(self.random) for r in rows)
        return found


def example(context: EncodedContext) -> Example:
    """A row of ours as the original's collator gets it."""
    (query,) = context.queries
    (target,) = query.targets
    return Example(context.ids, query.ids, target.ids)


def check_losses(sides: Sides) -> float:
    """Largest difference of the losses of single rows; the two must do the same work.

    Raises:
        SystemExit: they do not.
    """
    sides.module.eval()
    worst = 0.0
    with torch.no_grad():
        pairs = zip(sides.batches(sides.random), sides.original_batches(sides.random), strict=True)
        for batch, rows in itertools.islice(pairs, CHECKED):
            logits = sides.module.lm(sides.module.lm.prefix(batch.context, sides.module.slots()), batch, "targets")
            ours = logits.log_probs().new_zeros(BATCH).index_add(0, logits.target_of, -logits.log_probs())
            for labels_only in (False, True):
                theirs, _ = sides.original.row_losses(rows, labels_only)
                worst = max(worst, float(((ours - theirs).abs() / theirs).max()))
            if worst > 1e-4 or math.isnan(worst):
                raise SystemExit(f"the two sides do not compute the same losses: {ours} and {theirs}")
    return worst


def compare(sides: Sides, options: argparse.Namespace) -> dict[str, Any]:
    """Alternate all sides and report rates and ratios to the original."""
    report: dict[str, Any] = {
        "model": options.model, "width": options.width, "layers": options.layers, "rows": len(sides.rows),
        "batch_size": BATCH, "slots": options.slots, "threads": options.threads, "rounds": options.rounds,
        "largest_relative_loss_difference": check_losses(sides), **sides.work(),
    }  # fmt: skip
    runs = sides.sides()
    names = [name for name in runs if not options.only or name in options.only]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for number in range(options.rounds + 1):
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            runs[name]()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    report["sides"] = {}
    for name in (name for name in runs if name in seconds):
        ratios = [base / own for base, own in zip(seconds["original"], seconds[name], strict=True)]
        report["sides"][name] = {
            "examples_per_second": len(sides.rows) / statistics.median(seconds[name]),
            "ratio": statistics.median(seconds["original"]) / statistics.median(seconds[name]),
            "ratio_of_rounds": [min(ratios), max(ratios)],
        }
    return report


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=("gpt2", "t5"), default="gpt2")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="sides to run; the original must be among them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = compare(Sides(options), options)
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        if name != "sides":
            print(f"{name}: {value}")
    for name, side in report["sides"].items():
        low, high = side["ratio_of_rounds"]
        rate = side["examples_per_second"]
        print(f"{name:24} {rate:8.2f} examples/s, ratio {side['ratio']:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
