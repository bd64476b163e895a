"""The table at the end of a run: what the method keeps, beside its bounds, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from promptcomp.errors import command
from promptcomp.evaluation.formatting import (
    METRIC_TITLES,
    bytes_text,
    flops_text,
    ms_text,
    number_text,
    value_text,
)
from promptcomp.evaluation.predictions import TEXT_METRICS
from promptcomp.evaluation.results import Estimate, Results, SplitResult
from promptcomp.evaluation.summarize import ReferencePoints, SplitPoints

WIDE = 110
"""Console columns from which the tables have room for more than the essentials."""


def print_report(
    results: Results, console: Console, run: Path | None = None, next_steps: Sequence[str] | None = None
) -> None:
    """Print the final tables of a run, the run directory and what to try next.

    Args:
        results: of the run.
        console: its width decides how much detail is shown; 80 columns are enough.
        run: the run directory, None when there is none.
        next_steps: commands to suggest; None: those that always make sense.
    """
    console.print(render(results, console.width))
    if run is not None:
        console.print(Text.assemble(("\nrun directory  ", "bold"), str(run)), soft_wrap=True)
        steps = suggested_steps(run, results.seed) if next_steps is None else next_steps
        for i, step in enumerate(steps):
            console.print(Text.assemble(("next           " if i == 0 else " " * 15, "bold"), step), soft_wrap=True)


def suggested_steps(run: Path, seed: int = 0) -> list[str]:
    """Commands that make sense after every run; `seed` is the run's."""
    return [
        command("compare", run, "OTHER_RUN"),
        command("fit", "--config", run / "config.yaml", f"seed={seed + 1}"),
        command("evaluate", run),
    ]


def render(results: Results, width: int) -> RenderableType:
    """The quality table of each split, the cost table, and the findings in words."""
    parts: list[RenderableType] = []
    for name, split in results.splits.items():
        parts += [quality_table(results, name, split, width), *_remarks(results, split), Text()]
    if results.size.context_tokens is not None:  # without bounds nothing was measured
        parts += [cost_table(results, width), Text()]
    parts += findings(results)
    return Group(*parts)


def quality_table(results: Results, name: str, split: SplitResult, width: int) -> Table:
    """No context, the method and the full context of one split, with intervals and the quality retained."""
    wide = width >= WIDE
    counted = f"{name}: {split.count:,} examples, {_many(split.num_tasks, 'task')}"
    title = f"{counted}, {_many(split.num_contexts, 'context')}; {split.confidence:.0%} intervals"
    table = _table(title)
    metrics = _shown_metrics(split, wide)
    for metric in metrics:
        table.add_column(METRIC_TITLES.get(metric, metric), justify="right", no_wrap=True)
    table.add_column("retained", justify="right", no_wrap=True)
    for row in ("no_prompt", "method", "full_prompt"):
        if row not in split.rows:
            continue
        cells = [estimate_text(split.rows[row].get(metric)) for metric in metrics]
        kept = retained_text(split, 2) if row == "method" else ""
        table.add_row(row_title(results, row), *cells, kept, style="bold" if row == "method" else "")
    return table


def cost_table(results: Results, width: int) -> Table:
    """Tokens, bytes and prefill cost of the three rows."""
    size, cost = results.size, results.cost
    table = _table("cost of one query")
    for column in ("positions", "stored", "KV bytes", "prefill", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column("prefill if the KV is cached", justify="right", no_wrap=True)
    rows = [
        ("no_prompt", 0.0, None, 0.0, cost.no_prompt_prefill_flops, None, None),
        (
            "method", size.memory_slots, size.memory_bytes, size.memory_kv_bytes,
            cost.prefill_flops, cost.prefill_ms, cost.cached_prefill_flops,
        ),
        (
            "full_prompt", size.context_tokens, None, size.context_bytes,
            cost.full_prefill_flops, cost.full_prefill_ms, cost.cached_full_prefill_flops,
        ),
    ]  # fmt: skip
    for row, positions, stored, kv, flops, milliseconds, cached in rows:
        cells = [number_text(positions), bytes_text(stored), bytes_text(kv), flops_text(flops), ms_text(milliseconds)]
        extra = [flops_text(cached)] if width >= WIDE else []
        table.add_row(row_title(results, row), *cells, *extra, style="bold" if row == "method" else "")
    return table


def findings(results: Results) -> list[Text]:
    """The run in words: quality retained, compression, memory, prefill."""
    size, cost = results.size, results.cost
    lines: list[tuple[str, str]] = []
    for name, split in results.splits.items():
        if split.no_headroom:
            lines.append(("quality retained", f"no headroom on {name}"))
        elif split.retained is not None:
            lines.append(("quality retained", f"{retained_text(split)} of the gap on {name}"))
    if size.compression is not None:
        kept = f"{number_text(size.context_tokens)} tokens in {number_text(size.memory_slots)} positions"
        lines.append(("compression", f"{size.compression:.1f}x: {kept}"))
    if size.context_bytes and size.memory_bytes:
        lines.append(("memory", _ratio(size.memory_bytes, size.context_bytes, "stored")))
    if size.context_bytes and size.memory_kv_bytes:
        lines.append(("memory in use", _ratio(size.memory_kv_bytes, size.context_bytes, "of KV")))
    if cost.flops_ratio is not None:
        faster = ""
        if cost.prefill_ms and cost.full_prefill_ms:
            faster = f", {cost.full_prefill_ms / cost.prefill_ms:.1f}x less time"
        lines.append(("prefill", f"{cost.flops_ratio:.1f}x fewer FLOPs{faster}"))
    if cost.cached_full_prefill_flops is not None:
        kept = flops_text(cost.cached_full_prefill_flops)
        lines.append(("prefix cache", f"a query takes {kept} once the full context's KV is cached"))
    once = [text for value, text in _compress_once(results) if value]
    if once:
        lines.append(("compressing once", ", ".join(once)))
    return [Text.assemble((f"{label:<18}", "bold"), text) for label, text in lines]


def _ratio(ours: float, full: float, what: str) -> str:
    """How many times less the memory takes than the keys and values of the full context."""
    return f"{full / ours:.1f}x: {bytes_text(ours)} {what} for {bytes_text(full)} of KV"


def points_tables(points: ReferencePoints) -> RenderableType:
    """The method between its reference points, a table for each split, and how much it retains."""
    parts: list[RenderableType] = []
    for name, split in points.splits.items():
        counted = f"{name}: {split.count:,} examples, {_many(split.num_contexts, 'context')}"
        table = _table(f"{counted}; trained on the same data, steps and seed")
        metrics = [split.metric, *(["agreement"] if split.agreement_with and split.metric != "agreement" else [])]
        for metric in metrics:
            table.add_column(METRIC_TITLES.get(metric, metric), justify="right", no_wrap=True)
        for role, found in split.rows.items():
            is_method = role == "method"
            title = points.method if is_method else _role_title(points, role)
            cells = [estimate_text(found.get(metric)) for metric in metrics]
            table.add_row(title, *cells, style="bold" if is_method else "")
        parts += [table, *_points_remarks(points, split), Text()]
    return Group(*parts)


def print_points(points: ReferencePoints, console: Console) -> None:
    """Print the reference points, remarks, and which run stands for what."""
    console.print(points_tables(points))
    for note in points.notes:
        console.print(Text(note, style="italic"), soft_wrap=True)
    for role, found in points.runs.items():
        name = points.method if role == "method" else _role_title(points, role)
        console.print(f"{name}: {found.how}, {found.run}", highlight=False, soft_wrap=True)


def _role_title(points: ReferencePoints, role: str) -> str:
    which, _, how = role.rpartition("_")
    weights = "untrained LM" if how == "untrained" else "trained control"
    return f"{'no' if which == 'no_prompt' else 'full'} {points.context_kind}, {weights}"


def _points_remarks(points: ReferencePoints, split: SplitPoints) -> list[Text]:
    lines = ["untrained LM: the weights that all began with; trained control: its own weights, none of the method's"]
    for kind, kept in split.retained.items():
        text = "no headroom" if kept.no_headroom else value_text(kept.value, kept.ci)
        lines.append(f"retained between the {kind} controls: {text}")
    if split.agreement_with is not None:
        lines.append(f"agreement: the same text as {_role_title(points, split.agreement_with)}")
    return [Text(line) for line in lines]


def _table(title: str) -> Table:
    """An open table that wastes no column of an 80-column terminal; its first column names the rows."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    return table


def _compress_once(results: Results) -> list[tuple[float | None, str]]:
    cost = results.cost
    return [
        (cost.compress_flops, flops_text(cost.compress_flops)),
        (cost.compress_ms, ms_text(cost.compress_ms)),
        (cost.break_even_queries, f"pays from query {cost.break_even_queries} on a context"),
    ]


def row_title(results: Results, row: str) -> str:
    """What people call a row of the table."""
    what = results.context_kind
    titles = {"no_prompt": f"no {what}", "full_prompt": f"full {what}"}
    return titles.get(row, results.title or results.method)


def retained_text(split: SplitResult, digits: int = 3) -> str:
    """Quality retained with its interval, or why there is none."""
    if split.no_headroom:
        return "no headroom"
    return value_text(split.retained, split.retained_ci, digits)


def estimate_text(estimate: Estimate | None) -> str:
    """A value with its interval: `0.931 [0.91, 0.95]`."""
    return "-" if estimate is None else value_text(estimate.value, estimate.ci)


def _shown_metrics(split: SplitResult, wide: bool) -> list[str]:
    """The headline metric, accuracy and macro-F1; more where there is room."""
    found = {metric for estimates in split.rows.values() for metric in estimates}
    if split.metric == "loss":
        return ["loss"]
    if split.metric in TEXT_METRICS:
        order = [split.metric, "exact_match", "rougeL", "agreement"]
        return [metric for metric in dict.fromkeys(order) if metric in found][: 3 if wide else 2]
    first = "task" if split.metric == "task" and "macro_f1" not in found else split.metric
    order = [first, "accuracy", "macro_f1", "loss"] if wide else [first, "accuracy", "macro_f1"]
    shown = [metric for metric in dict.fromkeys(order) if metric in found]
    return shown if wide else shown[:2] if split.metric != "task" else _two_of_task(split, found)


def _two_of_task(split: SplitResult, found: set[str]) -> list[str]:
    """Where only two fit and the headline is the task metric: it and accuracy, or accuracy and macro-F1 if equal."""
    kinds = {task.kind for task in split.tasks}
    if kinds == {"classification"} and "macro_f1" in found:
        return ["accuracy", "macro_f1"]
    return ["task", "accuracy"]


def _remarks(results: Results, split: SplitResult) -> list[Text]:
    lines = []
    if split.no_headroom and split.headroom is not None:
        error = "" if split.headroom_se is None else f" with a standard error of {split.headroom_se:.3f}"
        gain = f"the full context gains {split.headroom:+.3f} over no context{error}"
        lines.append(f"no headroom: {gain}; a share of that would be noise")
    if split.metric == "task" and len({task.kind for task in split.tasks}) > 1:
        lines.append("score: macro-F1 of classification tasks, accuracy of the others, mean over tasks")
    if results.bounds is not None and {"no_prompt", "full_prompt"} & split.rows.keys():
        whose = "this run's own trained weights" if results.bounds == "trained" else "the untrained LM"
        lines.append(f"no {results.context_kind} and full {results.context_kind}: read by {whose}")
    if split.retained is not None and split.retained_ci is None and split.num_contexts > 1:
        lines.append("retained: no interval, because all contexts came out alike")
    lines += [f"{row_title(results, row)}: {text}" for row, text in _unfinished(split)]
    if 0 < split.num_contexts < 10:
        lines.append(f"only {_many(split.num_contexts, 'context')}: the intervals are rough")
    return [Text(line, style="italic") for line in lines]


def _unfinished(split: SplitResult) -> list[tuple[str, str]]:
    """The rows with answers that were cut off."""
    found = [(row, split.unfinished.get(row, 0)) for row in ("no_prompt", "method", "full_prompt")]
    limit = "reached the limit of new tokens"
    return [(row, f"{cut:,} of {split.generated:,} answers {limit}") for row, cut in found if cut]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
