"""Training throughput, model FLOP utilisation and memory of the methods on one GPU.

Run: python benchmarks/gpu.py --output gpu.json [--device cuda] [--cases NAME ...] [--limit-seconds 300] [--steps 10]
[--list] [--quick]. Models have the shapes of Llama 3.2 1B and 3B and of Flan-T5-large with random weights. Each case
runs in a process of its own; one that fails, runs out of memory or takes too long is recorded as such and the others
go on; the JSON is written after every case. Rows a step: the largest power of two whose estimate (that of
`fit --dry-run`) stays below --fill of the device's memory. MFU is the estimate's FLOPs (recomputed activations not
counted) over time and the device's dense peak in the type of the matrix products. --quick takes tiny models and few
steps: a test of this script, also on CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.device_mesh import init_device_mesh
from training import METHOD_OPTIONS, make_batch, train_step
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from promptcomp.forecast.activations import Work
from promptcomp.forecast.estimate import estimate_module
from promptcomp.forecast.placement import Layout
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import METHODS
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.execution import Execution, prepare_blocks, shard
from promptcomp.lightning_modules.method_config import OptimConfig

_LLAMA = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "llama_1b": {  # https://huggingface.co/meta-llama/Llama-3.2-1B
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "llama_3b": {  # https://huggingface.co/meta-llama/Llama-3.2-3B
        **_LLAMA, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "t5_large": {  # https://huggingface.co/google/flan-t5-large
        "model_type": "t5", "vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24,
        "num_heads": 16, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    },
}  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "vocab_size": 512},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 512},
}  # fmt: skip
PEAKS = {
    "H200": {"bfloat16": 989e12, "float32": 67e12},
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
}
"""Dense FLOP/s of the data sheets (SXM; TF32 is off, as in PyTorch's defaults): https://www.nvidia.com/en-us/data-center/h200,
https://www.nvidia.com/en-us/data-center/h100, https://www.nvidia.com/en-us/data-center/a100."""


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration."""

    name: str
    method: str
    model: str
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "bf16-mixed"
    attention: str = "sdpa"
    compiled: bool = False
    checkpointing: bool = False
    sharded: bool = False
    """FSDP2 on one rank."""
    context: int = 512
    query: int = 128
    target: int = 128


def cases() -> list[Case]:
    """What is measured, in this order."""
    gist = {"method": "gist", "model": "llama_1b"}
    long = {"context": 3072, "query": 512, "target": 512}
    lora = {"method": "full_prompt_lora", "model": "llama_3b"}
    return [
        Case("gist", **gist),
        Case("mend", "mend", "llama_1b"),
        Case("step_by_step", "step_by_step", "t5_large", context=0, query=512),
        Case("prompt_tuning", "prompt_tuning", "llama_3b", context=0, query=512),
        Case("full_prompt_lora", **lora),
        Case("gist_float32", **gist, precision="32-true"),
        Case("gist_bf16_true", **gist, precision="bf16-true"),
        Case("gist_checkpointing", **gist, checkpointing=True),
        Case("gist_compile", **gist, compiled=True),
        Case("gist_flex", **gist, attention="flex_attention"),
        Case("gist_long", **gist, **long),
        Case("gist_long_flex", **gist, **long, attention="flex_attention"),
        Case("gist_long_compile_checkpointing", **gist, **long, compiled=True, checkpointing=True),
        Case("gist_fsdp", **gist, sharded=True),
        Case("mend_compile", "mend", "llama_1b", compiled=True),
        Case("mend_fsdp", "mend", "llama_1b", sharded=True),
        Case("full_prompt_lora_checkpointing", **lora, checkpointing=True),
        Case("full_prompt_lora_compile", **lora, compiled=True),
        Case("full_prompt_lora_bf16_true", **lora, precision="bf16-true"),
        Case("step_by_step_compile", "step_by_step", "t5_large", context=0, query=512, compiled=True),
    ]


def make_model(case: Case, quick: bool) -> PreTrainedModel:
    """A random model on the current default device."""
    settings = dict(SHAPES[case.model])
    kind = str(settings.pop("model_type"))
    none = {} if kind == "t5" else {"bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(kind, **{**settings, **none, **(QUICK[kind] if quick else {})})
    maker = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return maker.from_config(config, attn_implementation=case.attention)


def build(case: Case, device: torch.device, quick: bool) -> CompressionModule:
    """The module with random weights."""
    method, options = METHOD_OPTIONS[case.method]
    torch.manual_seed(0)
    with device:
        lm = LanguageModel.from_parts(make_model(case, quick), layout="query_in_encoder")
        module = METHODS[method](**options).module(lm, OptimConfig(lr=1e-5), max_steps=9, seed=0)
        module.configure_model()
    return module.to(dtype=torch.bfloat16 if case.precision == "bf16-true" else None).train()


def prepare(module: CompressionModule, case: Case, device: torch.device) -> None:
    """Checkpointing, compiling and sharding, in this order."""
    prepare_blocks(module, Execution(case.checkpointing, False, case.compiled))
    if case.sharded:
        shard_alone(module, device, case.precision)


def shard_alone(module: CompressionModule, device: torch.device, precision: str) -> None:
    """FSDP2 with one rank, in the groups that training uses."""
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"})
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (1,))
    shard(module, mesh, ("losses",), device, from_rank_zero=False, precision=precision)


def rows_that_fit(module: CompressionModule, case: Case, budget: float, most: int) -> tuple[int, int, float]:
    """Rows, estimated bytes and FLOPs of a step: the largest power of two within the budget, at least one row."""
    layout = Layout("fsdp" if case.sharded else "single", precision=case.precision)
    layout = replace(layout, activation_checkpointing=case.checkpointing)
    found = 1, 0, 0.0
    rows = 1
    while rows <= most:
        work = work_of(case, rows)
        estimate = estimate_module(module, work, layout)
        if rows > 1 and estimate.total_bytes > budget:
            break
        found = rows, estimate.total_bytes, estimate.step_flops
        rows *= 2
    return found


def work_of(case: Case, rows: int) -> Work:
    """The tokens of a step."""
    return Work(case.context, case.query + case.target, case.target, queries=1, contexts=rows)


def measure(case: Case, device: torch.device, quick: bool, steps: int, fill: float) -> dict[str, Any]:
    """Figures of one case."""
    module = build(case, device, quick)
    on_gpu = device.type == "cuda"
    budget = fill * torch.cuda.get_device_properties(device).total_memory if on_gpu else 2**30
    rows, estimated, flops = rows_that_fit(module, case, budget, most=2 if quick else 256)
    prepare(module, case, device)
    batch = make_batch(work_of(case, rows), module.lm.vocab_size).to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    begin = time.perf_counter()
    for _ in range(2):
        train_step(module, batch, optimizer, case.precision)
    wait(device)
    warm_up = time.perf_counter() - begin
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    for _ in range(steps):
        train_step(module, batch, optimizer, case.precision)
    wait(device)
    seconds = (time.perf_counter() - begin) / steps
    peak = peak_flops(device, case.precision)
    return {
        "rows": rows,
        "seconds_per_step": seconds,
        "warm_up_seconds": warm_up,
        "examples_per_second": rows / seconds,
        "tokens_per_second": rows * (case.context + case.query + case.target) / seconds,
        "flops_per_step": flops,
        "mfu": None if peak is None else flops / seconds / peak,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "estimated_bytes": estimated,
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Of the data sheet; None: not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    kind = "float32" if precision == "32-true" else "bfloat16"
    return next((peaks[kind] for part, peaks in PEAKS.items() if part in name), None)


def run_child(options: argparse.Namespace) -> None:
    """Measure one case and write what was found."""
    case = next(each for each in cases() if each.name == options.child)
    device = torch.device(options.device)
    try:
        found = {"status": "ok", **measure(case, device, options.quick, options.steps, options.fill)}
    except torch.OutOfMemoryError as error:
        found = {"status": "out of memory", "error": str(error).splitlines()[0]}
    options.output.write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a case, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--child", case.name, "--output", str(answer), "--device", options.device]
        command += ["--steps", str(options.steps), "--fill", str(options.fill)]
        command += ["--quick"] if options.quick else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit_seconds, check=False)
        except subprocess.TimeoutExpired:
            return {"status": "too slow", "error": f"more than {options.limit_seconds} s"}
        if answer.is_file():
            return dict(json.loads(answer.read_text()))
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"status": "failed", "error": last[:300]}


def show(case: Case, found: dict[str, Any]) -> None:
    """One line of the table."""
    if found["status"] != "ok":
        print(f"{case.name:32} {found['status']}: {found['error']}", flush=True)
        return
    mfu = "-" if found["mfu"] is None else f"{found['mfu']:.1%}"
    peak = "-" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 2**30:.1f}"
    print(
        f"{case.name:32} {found['rows']:5d} {found['tokens_per_second']:12,.0f} {found['examples_per_second']:10.2f} "
        f"{mfu:>7} {peak:>9} {found['estimated_bytes'] / 2**30:9.1f}",
        flush=True,
    )


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def main() -> None:
    """Run the cases, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--cases", nargs="+", choices=[each.name for each in cases()], metavar="NAME")
    parser.add_argument("--limit-seconds", type=float, default=300.0, help="of one case")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fill", type=float, default=0.75)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options)
        return
    chosen = [each for each in cases() if not options.cases or each.name in options.cases]
    if options.list:
        print("\n".join(each.name for each in chosen))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu --quick tests the script")
    results = []
    print(f"{'case':32} {'rows':>5} {'tokens/s':>12} {'examples/s':>10} {'MFU':>7} {'peak GiB':>9} {'estimate':>9}")
    for case in chosen:
        found = run_case(case, options)
        show(case, found)
        results.append({"case": asdict(case), **found})
        tree = {**environment(torch.device(options.device)), "quick": options.quick, "results": results}
        options.output.write_text(json.dumps(tree, indent=1))


if __name__ == "__main__":
    main()
