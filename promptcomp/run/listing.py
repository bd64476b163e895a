"""`promptcomp methods` and `promptcomp data list | show | validate`: what there is, and what data looks like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from promptcomp.datamodules import DATASETS
from promptcomp.experiment import Experiment, load, shipped
from promptcomp.lightning_modules import METHODS


def print_methods(console: Console, as_json: bool) -> None:
    """The registry, and the experiments that come with the package."""
    if as_json:
        methods = [
            {"name": s.name, "summary": s.summary, "paper": s.paper, "families": s.families, "needs": s.needs}
            for s in METHODS.values()
        ]
        print(json.dumps({"methods": methods, "experiments": list(shipped())}))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("method", "what it does", "paper"):
        table.add_column(name)
    for spec in METHODS.values():
        table.add_row(f"[bold]{spec.name}[/]", spec.summary, spec.paper)
    console.print(table)
    console.print("\nShipped experiments (promptcomp fit --method NAME):", highlight=False)
    console.print("  " + ", ".join(shipped()), highlight=False)


def print_data(console: Console, as_json: bool) -> None:
    """The kinds of data with the keys of their sections."""
    if as_json:
        print(json.dumps({name: section.model_json_schema() for name, section in DATASETS.items()}))
        return
    for name, section in DATASETS.items():
        summary = (section.__doc__ or "").strip().splitlines()[0]
        table = Table(box=None, pad_edge=False, title=f"data.name={name}: {summary}", title_justify="left")
        for column in ("key", "default", "meaning"):
            table.add_column(column, overflow="fold")
        for key, field in section.model_fields.items():
            if key != "name":
                default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
                table.add_row(key, default, " ".join((field.description or "").split()))
        console.print(table)
        console.print()


def _experiment(method: str | None, config: Path | None, overrides: Sequence[str]) -> Experiment:
    return load(method, config, overrides)
