"""The estimate of `fit --dry-run` against the memory that a training step really takes.

Run: python benchmarks/memory.py [--device cpu|cuda] [--width 256 512] [--length 256 1024] [--methods gist mend ...]
[--precision 32-true bf16-mixed bf16-true] [--checkpointing] [--json]. Every case trains a random model of four layers
on one random batch whose rows fill their budgets (half of a row is context, a quarter query, a quarter target): a
first step makes AdamW's moments, the second one is measured. On CPU live tensors are counted exactly
(benchmarks/tracking.py), on a GPU the figure is torch.cuda.max_memory_allocated. Printed: peak of the step, estimate,
and (estimate - peak) / peak, for each case and the largest of them.

Run: python benchmarks/memory.py --process FOLDER_OF_A_MODEL. What `fit --dry-run` says that a process takes on CPU
(libraries and loading included) against the highest resident memory of the real `promptcomp fit` (three steps and the
evaluation), for gist with LoRA, a trained full_prompt and MEND on the toy instruction world.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tracking import LiveBytes, peak_allocated
from training import METHOD_OPTIONS, make_batch, train_step
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from promptcomp.forecast.activations import Work
from promptcomp.forecast.estimate import estimate_module
from promptcomp.forecast.placement import Layout
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import METHODS
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.execution import Execution
from promptcomp.lightning_modules.method_config import OptimConfig

VOCABULARY = 8192
LAYERS = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement."""

    method: str
    model: str
    attention: str
    precision: str
    width: int
    length: int
    """Tokens of context, query and target together."""
    rows: int = 2
    checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Bytes of a case."""

    case: Case
    measured: int
    estimated: int

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.estimated / self.measured - 1


def make_model(case: Case) -> PreTrainedModel:
    """A random model; no dropout, as the CPU's fused attention has none."""
    heads, none = max(1, case.width // 64), {"bos_token_id": None, "eos_token_id": None}
    chosen = {"attn_implementation": case.attention}
    if case.model == "gpt2":
        sizes = {"n_embd": case.width, "n_layer": LAYERS, "n_head": heads, "n_positions": 2 * case.length}
        off = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **off, **none, **chosen))
    if case.model == "t5":
        sizes = {"d_model": case.width, "d_ff": 4 * case.width, "num_layers": LAYERS // 2, "num_heads": heads}
        return T5ForConditionalGeneration(
            T5Config(vocab_size=VOCABULARY, d_kv=64, dropout_rate=0.0, decoder_start_token_id=0, **sizes, **chosen)
        )
    sizes = {"hidden_size": case.width, "intermediate_size": 3 * case.width, "num_hidden_layers": LAYERS}
    settings = {"max_position_embeddings": 2 * case.length, "num_attention_heads": heads}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **settings, **none, **chosen))


def work_of(case: Case) -> Work:
    """How many tokens are what."""
    quarter = case.length // 4
    context = 0 if case.method == "step_by_step" else case.length - 2 * quarter
    return Work(context, case.length - context, quarter, queries=1, contexts=case.rows)


def build(case: Case, device: torch.device) -> CompressionModule:
    """The module, as training would have it."""
    torch.manual_seed(0)
    method, options = METHOD_OPTIONS[case.method]
    hf = make_model(case).to(device)
    lm = LanguageModel.from_parts(hf, layout="query_in_encoder")
    module = METHODS[method](**options).module(lm, OptimConfig(), max_steps=9, seed=0)
    module.execution = Execution(activation_checkpointing=case.checkpointing)
    module.configure_model()
    return module.to(device=device, dtype=torch.bfloat16 if case.precision == "bf16-true" else None).train()


def measure(case: Case, device: torch.device) -> int:
    """Peak bytes of the second step."""
    module = build(case, device)
    batch = make_batch(work_of(case), VOCABULARY).to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    train_step(module, batch, optimizer, case.precision)
    optimizer.zero_grad()
    gc.collect()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        train_step(module, batch, optimizer, case.precision)
        return peak_allocated(device, None)
    with LiveBytes([*module.parameters(), *module.buffers(), *moments]) as tracked:
        train_step(module, batch, optimizer, case.precision)
    return peak_allocated(device, tracked)


def predict(case: Case, device: torch.device) -> int:
    """The estimate of `fit --dry-run` for the same step."""
    layout = Layout(
        precision=case.precision,  # type: ignore[arg-type]
        activation_checkpointing=case.checkpointing,
        on_gpu=device.type == "cuda",
    )
    plain = build(replace(case, checkpointing=False), torch.device("cpu"))
    return estimate_module(plain, work_of(case), layout).total_bytes


def compare(case: Case, device: torch.device) -> Found:
    """Both figures."""
    return Found(case, measure(case, device), predict(case, device))


def plan(options: argparse.Namespace) -> list[Case]:
    """All combinations that exist."""
    return [
        Case(method, model, attention, precision, width, length, options.rows, options.checkpointing)
        for method, model, attention, precision, width, length in itertools.product(
            options.methods, options.models, options.attention, options.precision, options.width, options.length
        )
        if not (model == "t5" and attention == "eager" and method == "mend")
    ]


def show(found: Sequence[Found]) -> None:
    """A Markdown table."""
    print("| method | model | attention | precision | width | tokens | measured | estimate | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for each in found:
        case = each.case
        cells = (case.method, case.model, case.attention, case.precision, str(case.width), str(case.length))
        sizes = (f"{each.measured / 2**20:,.0f} MiB", f"{each.estimated / 2**20:,.0f} MiB", f"{each.error:+.1%}")
        print(f"| {' | '.join((*cells, *sizes))} |", flush=True)
    errors = [abs(each.error) for each in found]
    print(f"\n{len(found)} cases: largest error {max(errors):.1%}, median {statistics.median(errors):.1%}")


PROCESSES = {
    "gist, LoRA": {"name": "gist", "train": "lora"},
    "full_prompt, all weights": {"name": "full_prompt", "train": "lm"},
    "mend": {"name": "mend", "num_slots": 4},
}


def process(name: str, lm: str, folder: Path) -> tuple[int, int]:
    """Bytes that a process is said to take, and most that it took."""
    config = {
        "method": PROCESSES[name],
        "lm": {"path": lm},
        "data": {"name": "toy_instructions", "max_eval_examples": 4},
        "trainer": {"max_steps": 3, "eval_every": 2, "batch_size": 4, "accelerator": "cpu", "threads": 1},
        "evaluation": {"bounds": False, "measure_cost": False, "max_new_tokens": 2},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    words = [sys.executable, "-m", "promptcomp", "fit", "--config", str(file)]
    said = subprocess.run([*words, "--dry-run", "--json"], check=True, capture_output=True, text=True).stdout
    run = [*words, "--run-dir", str(folder / name.replace(" ", "_"))]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(run, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit((folder / "log").read_text())
    return json.loads(said)["estimate"]["host"]["process"], used.ru_maxrss * 1024


def show_processes(lm: str) -> None:
    """A Markdown table, a row for each run."""
    print("| run | peak resident memory | forecast | error |\n|---|---|---|---|")
    for name in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            said, used = process(name, lm, Path(folder))
        print(f"| {name} | {used / 2**20:,.0f} MiB | {said / 2**20:,.0f} MiB | {said / used - 1:+.1%} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--methods", nargs="+", default=list(METHOD_OPTIONS), choices=list(METHOD_OPTIONS))
    parser.add_argument("--models", nargs="+", default=["llama", "gpt2", "t5"], choices=["llama", "gpt2", "t5"])
    parser.add_argument("--attention", nargs="+", default=["sdpa"], choices=["sdpa", "eager"])
    parser.add_argument("--precision", nargs="+", default=["32-true"], choices=["32-true", "bf16-mixed", "bf16-true"])
    parser.add_argument("--width", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--length", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--process", metavar="FOLDER", help="compare whole processes with this LM instead")
    options = parser.parse_args()
    if options.process:
        show_processes(options.process)
        return
    device = torch.device(options.device)
    found = [compare(case, device) for case in plan(options)]
    if options.json:
        print(json.dumps([{**asdict(each), "error": each.error} for each in found]))
    else:
        show(found)


if __name__ == "__main__":
    main()
