"""The table at the end of a run: what the method retains, beside its bounds, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.errors import command
from promptcomp.evaluation.findings import abouts, findings
from promptcomp.evaluation.formatting import (
    METRIC_TITLES,
    bytes_text,
    flops_text,
    held_out_text,
    many,
    ms_text,
    number_text,
    value_text,
)
from promptcomp.evaluation.headroom import has_headroom
from promptcomp.evaluation.predictions import ROWS, TEXT_METRICS
from promptcomp.evaluation.results import Estimate, Gap, Results, RivalResult, SplitResult
from promptcomp.evaluation.summarize import ReferencePoints, SplitPoints
from promptcomp.lightning_modules import METHODS
from promptcomp.plain import continued, near, say
from promptcomp.terminal import open_table

WIDE = 110
"""Console columns from which the tables have room for more than the essentials."""
_HELD_OUT = (
    "KL: distance from the answers behind the whole text, in nats a token; top-1: share of tokens for which the "
    "likeliest is the same; same answer: share of whole answers; gap closed: 1 - KL / KL of no context"
)


def print_report(
    results: Results,
    console: Console,
    run: Path | None = None,
    steps: Sequence[str] | None = None,
    page: Path | None = None,
) -> None:
    """Print the final tables of a run, the run directory and what to try next.

    Args:
        results: of the run.
        console: its width decides how much detail is shown; 80 columns are enough.
        run: the run directory, None when there is none.
        steps: commands to suggest; None: those that always make sense.
        page: what was found as a page; None: there is none.
    """
    for sentence in findings(results):
        console.print(Text(sentence, style="bold"))
    for about in abouts(results):
        console.print(Text(about, style="dim"))
    console.print()
    for name, split in results.splits.items():
        counted = f"{many(split.count, 'example')}, {many(split.num_tasks, 'task')}"
        of = f"{counted}, {many(split.num_contexts, 'context')}; {split.confidence:.0%} intervals"
        console.print(Text(f"{name}: {of}", style="bold"))
        console.print(_quality_table(results, split, console.width >= WIDE))
        for line in _notes(results, split):
            console.print(line)
        console.print()
        if split.headroom_by_task:
            console.print(_headroom_table(name, split, console.width))
            console.print(Text(_HEADROOM, style="italic"))
            console.print()
    if results.size.context_tokens is not None:  # without bounds nothing was measured
        console.print(_cost_table(results, console.width >= WIDE))
        console.print()
    for label, text in cost_lines(results):
        console.print(Text.assemble((f"{label:<18}", "bold"), text))
    if run is not None:
        console.print(Text.assemble(("\nrun directory  ", "bold"), str(near(run))), soft_wrap=True)
        if page is not None:
            console.print(Text.assemble(("as a page      ", "bold"), str(near(page))), soft_wrap=True)
        print_steps(next_steps(results, near(run)) if steps is None else steps, console)


def print_steps(steps: Sequence[str], console: Console) -> None:
    """Print commands to try next, so that they can be copied whatever the console's width; in a file one to a line."""
    console.print(Text("next", style="bold"))
    for step in steps:
        shown = continued(step, console.width - 2, " " * 6) if console.is_terminal else step
        console.print(Text(f"  {shown}"), soft_wrap=True)


def print_held_out(held_out: Mapping[str, Mapping[str, float]], console: Console) -> None:
    """Print what a cartridge and what is beside it keep of a text on held-out questions (`PromptInfo.held_out`)."""
    table = open_table("on held-out questions", ["in front"], ["KL", "top-1", "same answer", "gap closed", "in use"])
    table.columns[0].no_wrap = False  # names of rivals are long, and figures must stay whole
    for name, row in held_out.items():
        keys = ("kl", "top1", "exact", "gap_closed", "bytes")
        cells = (held_out_text(key, row[key]) if key in row else "-" for key in keys)
        table.add_row(name, *cells, style="bold" if name == "cartridge" else "")
    console.print(table)
    say(console, _HELD_OUT, "dim")


def next_steps(results: Results, run: Path) -> list[str]:
    """Commands that make sense after a run: use what it has made, and hold it against another."""
    prompt, steps = "prompt.safetensors", list[str]()
    if results.size.memory_slots and not results.is_bound:
        source = "--demonstrations" if results.context_kind == "demonstrations" else "--file"
        method = METHODS.get(results.method)
        given = (source, "FILE") if method is None or method.reads_prompt else ()
        steps += [command("compress", run, *given, "-o", prompt), command("generate", "-p", prompt, "QUERY")]
    anew = command("fit", "--config", run / "config.yaml", f"seed={results.seed + 1}")
    return [*steps, command("compare", run, "OTHER_RUN"), anew]


def _quality_table(results: Results, split: SplitResult, wide: bool) -> Table:
    """No context, the method and the full context of one split, with intervals and the quality retained."""
    metrics = _shown_metrics(split, wide)
    table = open_table(None, [""], [*(METRIC_TITLES.get(metric, metric) for metric in metrics), "retained"])
    table.columns[0].no_wrap = not split.rivals  # their titles may be long, and an interval is never cut
    aware = {row: known for row, known in split.rivals.items() if known.query_aware}
    apart = [row for row in split.rivals if row not in aware]
    for row in ("no_prompt", *apart, "method", "full_prompt", *aware):
        if row not in _rows(results, split) and row not in split.rivals:
            continue
        cells = [estimate_text(split.rows.get(row, {}).get(metric)) for metric in metrics]
        if (rival := split.rivals.get(row)) is not None:
            kept = "" if rival.retained is None else value_text(rival.retained, rival.retained_ci, ".2f")
            if row == next(iter(aware), None):
                table.add_section()
            table.add_row(rival.title, *cells, kept or ("n/a" if rival.missing else ""),
                          style="dim" if rival.is_control else "")  # fmt: skip
            continue
        kept = "no headroom" if split.no_headroom else value_text(split.retained, split.retained_ci, ".2f")
        is_method = row == "method"
        table.add_row(row_title(results, row), *cells, kept if is_method else "", style="bold" if is_method else "")
    return table


def _rows(results: Results, split: SplitResult) -> list[str]:
    """No context, the method and the full context, where they were scored; a bound that is the method has one row."""
    return [row for row in ROWS if row in split.rows and not (row == "method" and results.is_bound)]


_HEADROOM = (
    "yes: the interval of the gain is above 0 and, with labels, the full context beats the most frequent one; "
    "intervals are paired, over contexts (of a task with one context: over its examples)"
)


def _headroom_table(name: str, split: SplitResult, width: int) -> Table:
    """What the full context gains on every task, in columns for so wide a terminal."""
    wide = width >= 113 + max(len(task.task) for task in split.headroom_by_task)  # 113: all columns but the names
    values = ["none", "full", "majority", "gain", "loss: none", "full", "gain"]
    columns = ["n", "contexts", *values] if wide else ["n", "gain", "gain in loss"]
    table = open_table(f"{name}: headroom by task", ["", "headroom"], columns)
    for task in split.headroom_by_task:
        first, loss = next(iter(task.gaps)), task.gaps["loss"]
        gap = task.gaps[first]
        plain = [value_text(each, None) for each in (gap.no_prompt, gap.full_prompt, task.majority)]
        cells = ["-"] * 4 if first == "loss" else [*plain, _gain(gap)]
        said = "yes" if has_headroom(task) else "in loss" if has_headroom(task, "loss") else "no"
        losses = [value_text(each, None) for each in (loss.no_prompt, loss.full_prompt)]
        numbers = [f"{task.num_contexts:,}", *cells, *losses] if wide else cells[-1:]
        table.add_row(task.task, said, f"{task.count:,}", *numbers, _gain(loss))
    return table


def _gain(gap: Gap) -> str:
    return value_text(gap.headroom, gap.ci, "+.3f", "+.2f")


def _cost_table(results: Results, wide: bool) -> Table:
    """Tokens, bytes and prefill cost of the three rows."""
    columns, rows = cost_rows(results)
    most = len(columns) if wide else len(columns) - 1
    table = open_table("cost of one query", [""], columns[:most])
    for title, cells, is_method in rows:
        table.add_row(title, *cells[:most], style="bold" if is_method else "")
    return table


def cost_rows(results: Results) -> tuple[list[str], list[tuple[str, list[str], bool]]]:
    """Columns of the table of costs, and its rows: title, cells, and whether it is the method's."""
    size, cost = results.size, results.cost
    columns = ["positions", "stored", "KV bytes", "prefill", "time", "prefill if the KV is cached"]
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
    found = []
    for row, positions, stored, kv, flops, milliseconds, cached in rows[:: 2 if results.is_bound else 1]:
        cells = [number_text(positions), bytes_text(stored), bytes_text(kv), flops_text(flops), ms_text(milliseconds)]
        found.append((row_title(results, row), [*cells, flops_text(cached)], row == "method"))
    return columns, found


def cost_lines(results: Results) -> list[tuple[str, str]]:
    """The cost in short: compression, memory, prefill."""
    size, cost = results.size, results.cost
    lines: list[tuple[str, str]] = []
    for name, split in results.splits.items():
        if split.behaviour:
            shares = []
            for each, share in split.behaviour.items():
                kept = "no headroom" if share.value is None else value_text(share.value, share.ci, ".2f")
                shares.append(f"{METRIC_TITLES[each]} {kept}")
            lines.append(("behaviour kept", f"{', '.join(shares)} of the gap on {name}"))
    if results.is_bound:
        return lines
    if size.compression is not None:
        positions = f"{number_text(size.memory_slots)} position{'' if size.memory_slots == 1 else 's'}"
        kept = f"{number_text(size.context_tokens)} tokens in {positions}"
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
    once = [flops_text(cost.compress_flops)] if cost.compress_flops else []
    once += [ms_text(cost.compress_ms)] if cost.compress_ms else []
    once += [f"pays from query {cost.break_even_queries} on the same context"] if cost.break_even_queries else []
    if once:
        lines.append(("compressing once", ", ".join(once)))
    return lines


def _ratio(ours: float, full: float, what: str) -> str:
    """How many times less the memory takes than the keys and values of the full context."""
    return f"{full / ours:.1f}x: {bytes_text(ours)} {what} for {bytes_text(full)} of KV"


def print_points(points: ReferencePoints, console: Console) -> None:
    """Print the reference points, notes, and which run stands for what."""
    for name, split in points.splits.items():
        counted = f"{name}: {many(split.count, 'example')}, {many(split.num_contexts, 'context')}"
        metrics = [split.metric, *(["agreement"] if split.agreement_with and split.metric != "agreement" else [])]
        columns = [METRIC_TITLES.get(metric, metric) for metric in metrics]
        table = open_table(f"{counted}; trained on the same data, steps and seed", [""], columns)
        for role, found in split.rows.items():
            cells = [estimate_text(found.get(metric)) for metric in metrics]
            table.add_row(_role_title(points, role), *cells, style="bold" if role == "method" else "")
        console.print(table)
        for line in _points_remarks(points, split):
            console.print(line)
        console.print()
    for note in points.notes:
        console.print(Text(note, style="italic"), soft_wrap=True)
    for role, made in points.runs.items():
        console.print(f"{_role_title(points, role)}: {made.how}, {made.run}", highlight=False, soft_wrap=True)


def _role_title(points: ReferencePoints, role: str) -> str:
    if role == "method":
        return points.method
    which, _, how = role.rpartition("_")
    weights = "untrained LM" if how == "untrained" else "trained control"
    return f"{'no' if which == 'no_prompt' else 'full'} {points.context_kind}, {weights}"


def _points_remarks(points: ReferencePoints, split: SplitPoints) -> list[Text]:
    lines = ["untrained LM: the weights before training; trained control: its own weights, not the method's"]
    for kind, kept in split.retained.items():
        text = "no headroom" if kept.no_headroom else value_text(kept.value, kept.ci)
        lines.append(f"retained between the {kind} controls: {text}")
    if split.agreement_with is not None:
        lines.append(f"agreement: the same text as {_role_title(points, split.agreement_with)}")
    return [Text(line) for line in lines]


def _taken(rival: RivalResult) -> str:
    """What a rival takes, of what it might have taken, or why it has no row."""
    if rival.missing:
        return f"n/a: {rival.missing}"
    taken = f"{number_text(rival.slots)} positions" + _of(rival.asked_slots, number_text)
    return f"{taken}, {bytes_text(rival.kv_bytes)} of KV{_of(rival.asked_bytes, bytes_text)}"


def _of(asked: float | None, text: Callable[[float], str]) -> str:
    return "" if asked is None else f" (at most {text(asked)})"


def row_title(results: Results, row: str) -> str:
    """The title of a row of the table."""
    what = results.context_kind
    titles = {"no_prompt": f"no {what}", "full_prompt": f"full {what}"}
    return titles.get(row, results.title or results.method)


def estimate_text(estimate: Estimate | None) -> str:
    """A value with its interval: `0.931 [0.91, 0.95]`."""
    return "-" if estimate is None else value_text(estimate.value, estimate.ci)


def _shown_metrics(split: SplitResult, wide: bool) -> list[str]:
    """The headline metric, accuracy and macro-F1; more where there is room."""
    found = {metric for estimates in split.rows.values() for metric in estimates}
    if split.metric == "loss":
        return ["loss"]
    if split.metric in TEXT_METRICS:
        order = [split.metric, "teacher_match", "exact_match", "rougeL", "agreement"]
        return [metric for metric in dict.fromkeys(order) if metric in found][: 3 if wide else 2]
    first = "task" if split.metric == "task" and "macro_f1" not in found else split.metric
    shown = dict.fromkeys([first, "accuracy", "macro_f1", *(["loss"] if wide else [])])
    if not wide and split.metric == "task":  # room for two: the task metric and accuracy, or what it is made of
        only_classes = {task.kind for task in split.tasks} == {"classification"} and "macro_f1" in found
        return ["accuracy", "macro_f1"] if only_classes else ["task", "accuracy"]
    return [metric for metric in shown if metric in found][: None if wide else 2]


def _notes(results: Results, split: SplitResult) -> list[Text]:
    lines = [] if results.lm_note is None else [results.lm_note]
    if split.no_headroom and split.headroom is not None:
        error = "" if split.headroom_se is None else f" with a standard error of {split.headroom_se:.3f}"
        gain = f"the full context gains {split.headroom:+.3f} over no context{error}"
        lines.append(f"no headroom: {gain}; a share of that would be noise")
    if split.metric == "task" and len({task.kind for task in split.tasks}) > 1:
        lines.append("score: macro-F1 of classification tasks, accuracy of the others, mean over tasks")
    if results.bounds is not None and {"no_prompt", "full_prompt"} & split.rows.keys():
        whose = "this run's own trained weights" if results.bounds == "trained" else "the untrained LM"
        lines.append(f"no {results.context_kind} and full {results.context_kind}: scored with {whose}")
    if split.retained is not None and split.retained_ci is None and split.num_contexts > 1 and not results.is_bound:
        lines.append("retained: no interval, because all contexts gave equal values")
    for row in _rows(results, split):
        if cut := split.unfinished.get(row, 0):
            answers = f"{cut:,} of {split.generated:,} answers reached the limit of new tokens"
            lines.append(f"{row_title(results, row)}: {answers}")
    for known in split.rivals.values():
        aware = "; sees the query, so it is not ranked with the others" if known.query_aware else ""
        lines.append(f"{known.title}: {_taken(known)}{aware}{'; a control' if known.is_control else ''}")
    if 0 < split.num_contexts < 10:
        lines.append(f"only {many(split.num_contexts, 'context')}: the intervals are rough")
    return [Text(line, style="italic") for line in lines]
