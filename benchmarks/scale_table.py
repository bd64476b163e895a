"""The tables of docs/scale.md: memory, communication and time of a step on 8 to 512 GPUs, from the dry run's estimates.

Run: python benchmarks/scale_table.py [--gpus 8 64 256 512] [--rows 4] [--memory 80] [--sizes 7b 70b] [--json].
The LMs are Llama 2's shapes, written as config.json into a temporary folder; every figure is what
`promptcomp fit --dry-run --json` says for the configuration. For each number of GPUs the first of these is taken that
fits --memory GiB: DDP, DDP with activation checkpointing, FSDP2 with it, the same with half the rows and so on down to
one row a GPU, FSDP2 with the optimiser on the host. Times: a GPU's FLOPs over --mfu of --peak-tflops; its bytes over
--gbit between nodes, or over --nvlink inside one node (8 GPUs).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptcomp.config import build
from promptcomp.experiment import Experiment
from promptcomp.forecast.activations import work_of
from promptcomp.forecast.estimate import StepForecast, estimate_module, skeleton_of
from promptcomp.forecast.placement import layout_of

NODE = 8
"""GPUs of a node."""
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {  # https://huggingface.co/TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "7b": {  # Llama 2 (https://arxiv.org/abs/2307.09288): 6,738,415,616 parameters
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    "70b": {  # Llama 2: 68,976,648,192 parameters
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}  # fmt: skip
INSTRUCTIONS = {
    "name": "toy_instructions",
    "max_context_tokens": 512,
    "max_query_tokens": 128,
    "max_target_tokens": 128,
}
RATIONALES = {
    "name": "toy_rationales", "max_input_tokens": 640, "max_label_tokens": 128, "max_rationale_tokens": 128,
    "markers": "suffix",
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "gist": {"method": {"name": "gist"}, "data": INSTRUCTIONS, "dtype": "float32"},
    "gist, LoRA": {"method": {"name": "gist", "train": "lora"}, "data": INSTRUCTIONS, "dtype": "bfloat16"},
    "MEND, 1B distiller": {"method": {"name": "mend"}, "data": INSTRUCTIONS, "dtype": "bfloat16"},
    "step-by-step": {"method": {"name": "step_by_step"}, "data": RATIONALES, "dtype": "float32"},
}
CHECKPOINTED = {"activation_checkpointing": True}
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ddp", {"strategy": "ddp"}),
    ("ddp, checkpointing", {"strategy": "ddp", **CHECKPOINTED}),
    ("fsdp, checkpointing", {"strategy": "fsdp", **CHECKPOINTED}),
    ("fsdp, checkpointing, offload", {"strategy": "fsdp", **CHECKPOINTED, "offload_optimizer": True}),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table."""

    lm: str
    method: str
    gpus: int
    way: str
    rows: int
    """A GPU and micro-batch."""
    device_gib: float
    sent_gib: float
    """By each GPU in a step."""
    compute_seconds: float
    network_seconds: float
    tokens_per_second: float
    """Of all GPUs, if communication is hidden behind the arithmetic as far as it can be."""


def write_shapes(folder: Path) -> None:
    """Folders with config.json and nothing else."""
    for name, sizes in SHAPES.items():
        (folder / name).mkdir()
        whole = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, **sizes}
        (folder / name / "config.json").write_text(json.dumps(whole))


def experiment(folder: Path, lm: str, method: str, gpus: int, rows: int, trainer: dict[str, Any]) -> Experiment:
    """The configuration of a line."""
    chosen = METHODS[method]
    section = dict(chosen["method"])
    if section["name"] == "mend":
        section["distiller"] = {"path": str(folder / "1b")}
    layout = {"accelerator": "gpu", "devices": min(NODE, gpus), "num_nodes": max(1, gpus // NODE)}
    tree = {
        "method": section,
        "data": chosen["data"],
        "lm": {"path": str(folder / lm), "dtype": chosen["dtype"]},
        "trainer": {**layout, **trainer, "precision": "bf16-mixed", "batch_size": rows * gpus},
    }
    return build(Experiment, tree, source="scale_table")


class Search:
    """Finds the way that fits one LM and method; shapes and activations are computed once."""

    def __init__(self, folder: Path, lm: str, method: str, options: argparse.Namespace) -> None:
        self._folder, self._lm, self._method, self._options = folder, lm, method, options
        self._module = skeleton_of(experiment(folder, lm, method, NODE, 1, {}))
        self._known: dict[int, StepForecast] = {}

    def fitting(self, gpus: int) -> tuple[str, int, StepForecast] | None:
        """The first way that fits, its rows and its estimate."""
        limit = self._options.memory * 2**30
        for way, trainer in WAYS:
            rows = self._options.rows
            while rows:
                found = self._estimate(gpus, rows, trainer)
                if found.total_bytes <= limit:
                    return way, rows, found
                fixed = found.device.weights + found.device.optimizer + found.device.buffers
                rows = 0 if fixed > limit or trainer["strategy"] == "ddp" else rows // 2
        return None

    def _estimate(self, gpus: int, rows: int, trainer: dict[str, Any]) -> StepForecast:
        config = experiment(self._folder, self._lm, self._method, gpus, rows, trainer)
        layout = layout_of(config.trainer)
        work = work_of(config, self._module, layout)
        found = estimate_module(self._module, work, layout, self._options.memory, self._known.get(rows))
        self._known[rows] = found
        return found


def line(lm: str, method: str, gpus: int, chosen: tuple[str, int, StepForecast], options: argparse.Namespace) -> Line:
    """Times of a step from its FLOPs and bytes."""
    way, rows, found = chosen
    compute = found.step_flops / (options.mfu * options.peak_tflops * 1e12)
    bandwidth = options.nvlink * 1e9 if gpus <= NODE else options.gbit * 1e9 / 8
    network = found.communication.total / bandwidth
    tokens = rows * gpus * (found.context_tokens + found.example_tokens)
    return Line(
        lm=lm,
        method=method,
        gpus=gpus,
        way=way,
        rows=rows,
        device_gib=found.total_bytes / 2**30,
        sent_gib=found.communication.total / 2**30,
        compute_seconds=compute,
        network_seconds=network,
        tokens_per_second=tokens / max(compute, network),
    )


def show(lines: list[Line | tuple[str, str, int]]) -> None:
    """A Markdown table."""
    print("| LM | method | GPUs | strategy | rows | GiB a GPU | GiB sent | compute | network | tokens/s at most |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for each in lines:
        if isinstance(each, tuple):
            print(f"| {each[0]} | {each[1]} | {each[2]} | does not fit | | | | | | |")
            continue
        times = f"{each.compute_seconds:.2f} s | {each.network_seconds:.2f} s | {each.tokens_per_second:,.0f}"
        sizes = f"{each.rows} | {each.device_gib:.1f} | {each.sent_gib:.2f}"
        print(f"| {each.lm} | {each.method} | {each.gpus} | {each.way} | {sizes} | {times} |", flush=True)


def main() -> None:
    """All lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 256, 512])
    parser.add_argument("--sizes", nargs="+", default=["7b", "70b"], choices=list(SHAPES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--memory", type=float, default=80.0, help="GiB of a GPU")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16 of an H100 SXM")
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--gbit", type=float, default=400.0, help="Gb/s of each GPU between nodes")
    parser.add_argument("--nvlink", type=float, default=450.0, help="GB/s of each GPU inside a node, one direction")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lines: list[Line | tuple[str, str, int]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shapes(folder)
        for lm in options.sizes:
            for method in options.methods:
                search = Search(folder, lm, method, options)
                for gpus in options.gpus:
                    chosen = search.fitting(gpus)
                    lines.append((lm, method, gpus) if chosen is None else line(lm, method, gpus, chosen, options))
    if options.json:
        print(json.dumps([asdict(each) if isinstance(each, Line) else each for each in lines]))
    else:
        show(lines)


if __name__ == "__main__":
    main()
