"""What the checkpoint commands print."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from promptcomp.checkpoints.describe import Description
from promptcomp.evaluation.formatting import bytes_text

MOST_TENSORS = 20


def print_descriptions(found: Sequence[Description], console: Console, as_json: bool, every_tensor: bool) -> None:
    """One block for each checkpoint or export, or JSON."""
    if as_json:
        print(json.dumps([each.as_json() for each in found]))
        return
    for number, each in enumerate(found):
        if number:
            console.print()
        _print(each, console, every_tensor)


def _print(found: Description, console: Console, every_tensor: bool) -> None:
    step = "" if found.step is None else f", step {found.step}"
    state = "no optimiser state" if found.optimizer is None else f"optimiser state of {found.optimizer['numbers']:,}"
    lines = [
        found.path,
        f"  {found.kind}, format {found.format}{step}, {bytes_text(found.bytes)}",
        f"  method {found.method} on {found.lm} ({found.family})",
        f"  {found.parameters:,} trained parameters in {len(found.tensors)} tensors, {state}",
    ]
    lines += [f"  {name}: {bytes_text(size)}" for name, size in found.files.items()]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    shown = found.tensors if every_tensor else found.tensors[:MOST_TENSORS]
    for tensor in shown:
        table.add_row("   ", tensor.name, " x ".join(map(str, tensor.shape)) or "number", tensor.dtype)
    console.print(table)
    if len(shown) < len(found.tensors):
        console.print(f"    ... and {len(found.tensors) - len(shown)} more (--all)", highlight=False)
