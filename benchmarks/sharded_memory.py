"""Wall time and peak memory of FSDP2 against DDP on two CPU processes, for an LM that is large for a small machine.

Run: python benchmarks/sharded_memory.py [--cases lora gist] [--width 1024] [--layers 24] [--tokens 64] [--steps 3]
[--precision 32-true] [--json]. lora: adapters beside a frozen LM; gist: all weights trained (with a quarter of the
layers, as AdamW's state comes on top). Random weights in float32, gloo, one thread and one row a process. Under fsdp
rank 0 alone makes the weights and hands them out, as `fit` does. Memory is the resident set of a process above what it
was before the model was made: its peak while loading (until the first step) and in the steps after the first. The C
library is told to give freed memory back at once; otherwise the resident set holds what earlier gathers have left.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from training import METHOD_OPTIONS, make_batch
from transformers import LlamaConfig, LlamaForCausalLM

from promptcomp.batch import Batch
from promptcomp.forecast.activations import Work
from promptcomp.forecast.estimate import estimate_module
from promptcomp.forecast.placement import Layout
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import METHODS
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.execution import shard
from promptcomp.lightning_modules.method_config import OptimConfig

CASES = {"lora": ("full_prompt_lora", 1.0), "gist": ("gist", 0.25)}
"""Method and share of the layers."""
WORLD = 2
CPU = torch.device("cpu")


class Objective(nn.Module):
    """The loss as a forward pass, which is what DDP wraps."""

    def __init__(self, module: CompressionModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([t.weight * t.total / t.count for t in self.module.losses(batch)]).sum()


def build(case: str, options: argparse.Namespace, device: str) -> CompressionModule:
    """The module with random weights, or its shapes on the meta device."""
    method, share = CASES[case]
    name, settings = METHOD_OPTIONS[method]
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=max(1, round(share * options.layers)),
        num_attention_heads=options.width // 64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(device):
        lm = LanguageModel.from_parts(LlamaForCausalLM(config))
        spec = METHODS[name]
        module = spec(**settings).module(lm, OptimConfig(), max_steps=9, seed=0, skeleton=device == "meta")
        module.configure_model()
    return module.train()


def work_of(options: argparse.Namespace) -> Work:
    """One row: half of it context, a quarter target."""
    quarter = options.tokens // 4
    return Work(options.tokens - 2 * quarter, 2 * quarter, quarter, queries=1, contexts=1)


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def forget_peak() -> None:
    """Let VmHWM start again (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def work(rank: int, strategy: str, case: str, port: int, folder: str, options: argparse.Namespace) -> None:
    """One process."""
    torch.set_num_threads(1)
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    forget_peak()
    base = memory("VmRSS")
    begin = time.perf_counter()
    module = build(case, options, "cpu" if strategy == "ddp" or rank == 0 else "meta")
    wrapped: nn.Module = Objective(module)
    if strategy == "ddp":
        wrapped = DistributedDataParallel(wrapped, gradient_as_bucket_view=True)
    else:
        shard(module, mesh, ("losses",), CPU, from_rank_zero=True, precision=options.precision)
    torch.distributed.barrier()
    found: dict[str, Any] = {"load_seconds": time.perf_counter() - begin, "load_bytes": memory("VmHWM") - base}
    optimizer = module.configure_optimizers()["optimizer"]
    batch = make_batch(work_of(options), 32000)
    seconds = []
    for number in range(options.steps + 1):
        if number == 1:
            forget_peak()
        begin = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            loss = wrapped(batch)
        loss.backward()
        del loss
        optimizer.step()
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - begin)
    found |= {"step_seconds": statistics.median(seconds[1:]), "step_bytes": memory("VmHWM") - base}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def run(strategy: str, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """The slower and larger of the two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (strategy, case, port, folder, options), nprocs=WORLD)
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORLD)]
    largest = {key: max(rank[key] for rank in ranks) for key in ranks[0]}
    return {**largest, "node_load_bytes": sum(r["load_bytes"] for r in ranks), "ranks": ranks}


def expected(strategy: str, case: str, options: argparse.Namespace) -> int:
    """The estimate of a step."""
    kind: Literal["ddp", "fsdp"] = "ddp" if strategy == "ddp" else "fsdp"
    layout = Layout(kind, devices_per_node=WORLD, precision=options.precision, on_gpu=False)
    return estimate_module(build(case, options, "meta"), work_of(options), layout).total_bytes


def show(case: str, found: dict[str, dict[str, Any]], parameters: int) -> None:
    """A Markdown table of one case."""
    print(f"\n{case}: {parameters / 1e6:,.0f} M parameters\n")
    print("| | s a step | peak in steps, a process | estimate | peak while loading, both |\n|---|---|---|---|---|")
    for strategy, each in found.items():
        sizes = [each["step_bytes"], each["estimate"], each["node_load_bytes"]]
        cells = " | ".join(f"{size / 2**30:.2f} GiB" for size in sizes)
        print(f"| {strategy} | {each['step_seconds']:.2f} | {cells} |")
    ddp, fsdp = found["ddp"], found["fsdp"]
    keys = ("step_seconds", "step_bytes", "estimate", "node_load_bytes")
    ratios = " | ".join(f"{fsdp[key] / ddp[key]:.2f}" for key in keys)
    print(f"| fsdp / ddp | {ratios} |", flush=True)


def main() -> None:
    """Both strategies for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):  # of glibc, read when the processes start
        os.environ.setdefault(name, "65536")
    results = {}
    for case in options.cases:
        found = {
            each: {**run(each, case, options), "estimate": expected(each, case, options)} for each in ("ddp", "fsdp")
        }
        parameters = sum(p.numel() for p in build(case, options, "meta").parameters())
        results[case] = {"parameters": parameters, **found}
        if not options.json:
            show(case, found, parameters)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
