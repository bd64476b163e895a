"""Examples per second of a two-task training step: the original's two padded passes against our arrangement.

    python benchmarks/step_by_step.py FOLDER --task cqa --json     (FOLDER: the original's `datasets`)

Both sides train the same random T5 on the same rows. The original pads both tasks of a random batch
to its longest row and runs the model twice; ours draws batches of rows of like length, reads both tasks' inputs in one
encoder pass and decodes labels and rationales apart. Losses of equal batches are compared first. Rounds alternate, and
the ratio of the medians is what counts on a shared machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from promptcomp.batch import ANSWER, RATIONALE, Batch
from promptcomp.datamodules.rationale.rationale_config import RationaleFolderData
from promptcomp.datamodules.rationale.rationale_module import RationaleDataModule
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.step_by_step import StepByStep
from promptcomp.lightning_modules.step_by_step_config import StepByStepConfig

IGNORE = -100


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=8192, special_tokens=["<pad>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def make_model(width: int, layers: int) -> PreTrainedModel:
    """A random T5 v1.0 with T5's own vocabulary size."""
    torch.manual_seed(0)
    sizes = {"d_model": width, "d_kv": 64, "d_ff": 4 * width, "num_layers": layers, "num_heads": width // 64}
    return T5ForConditionalGeneration(T5Config(vocab_size=32128, dropout_rate=0.0, decoder_start_token_id=0, **sizes))


def original_loss(hf: PreTrainedModel, batch: Batch, alpha: float) -> Tensor:
    """Two passes, one for each task, padded to the longest input and the longest target of the batch."""
    weights = {ANSWER: alpha, RATIONALE: 1 - alpha}
    total = torch.zeros(())
    for role, weight in weights.items():
        part, _ = batch.of_role(role)
        labels = part.target_ids.masked_fill(~part.target_mask, IGNORE)
        found = hf(input_ids=part.query_ids, attention_mask=part.query_mask.long(), labels=labels)
        total = total + weight * F.cross_entropy(found.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    return total


def our_loss(module: StepByStep, batch: Batch) -> Tensor:
    """The sum of the method's terms."""
    return torch.stack([t.weight * t.total / t.count for t in module.losses(batch)]).sum()


def batches(data: RationaleFolderData, tokenizer: PreTrainedTokenizerFast, size: int, window: int) -> Iterator[Batch]:
    """Training batches; `window` 1 draws them at random."""
    section = data.model_copy(update={"length_window": window})
    return iter(RationaleDataModule(section, section.source(), tokenizer, seed=0, batch_size=size).train_dataloader())


def seconds(losses: Iterable[Tensor], parameters: Sequence[Tensor]) -> float:
    """Time of forward and backward passes."""
    start = time.perf_counter()
    for loss in losses:
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
    return time.perf_counter() - start


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", default="cqa", choices=["cqa", "svamp"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, default=16, help="steps of a round; half a window of batches of like length"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = RationaleFolderData(folder=options.folder, task=options.task)
    rows = data.source().rows("train")
    tokenizer = train_tokenizer(text for row in rows for text in (row.input, row.label, row.llm_rationale))
    hf = make_model(options.width, options.layers)
    lm = LanguageModel.from_parts(hf, layout="query_in_encoder")
    module = StepByStep(StepByStepConfig(alpha=0.5), lm, OptimConfig(), max_steps=1, seed=0)
    module.configure_model()
    parameters = list(hf.parameters())
    size = options.batch_size
    plain, grouped = (batches(data, tokenizer, size, window) for window in (1, 2 * options.steps))
    first = next(plain)
    with torch.no_grad():
        difference = float((original_loss(hf, first, 0.5) / our_loss(module, first) - 1).abs())
    times: dict[str, list[float]] = {"original": [], "our passes, random batches": [], "ours": []}
    for _ in range(options.rounds):
        random_batches = list(itertools.islice(plain, options.steps))
        like_length = list(itertools.islice(grouped, options.steps))
        times["original"].append(seconds((original_loss(hf, b, 0.5) for b in random_batches), parameters))
        times["our passes, random batches"].append(seconds((our_loss(module, b) for b in random_batches), parameters))
        times["ours"].append(seconds((our_loss(module, b) for b in like_length), parameters))
    show(times, options.steps * size, difference, options.json)


def show(times: dict[str, list[float]], examples: int, difference: float, as_json: bool) -> None:
    """Print examples per second and the ratios."""
    rates = {name: examples / statistics.median(values) for name, values in times.items()}
    ratios = {name: rate / rates["original"] for name, rate in rates.items()}
    found: dict[str, Any] = {"examples_per_second": rates, "ratio": ratios, "relative_loss_difference": difference}
    if as_json:
        print(json.dumps({**found, "seconds": times}))
        return
    print(f"losses of the same batch differ by {difference:.1e} (relative)")
    for name, rate in rates.items():
        print(f"{name:28} {rate:8.2f} examples/s  {ratios[name]:.2f}x")


if __name__ == "__main__":
    main()
