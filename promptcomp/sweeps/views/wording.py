"""Words and numbers of sweeps as people read them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from promptcomp.evaluation.formatting import bytes_text, flops_text, ms_text, number_text
from promptcomp.evaluation.seeds import Mean
from promptcomp.sweeps.sweep_config import Scalar
from promptcomp.sweeps.views.numbers import Goal, is_of_run
from promptcomp.sweeps.views.pace import Progress

STATUS_STYLES = {
    "finished": "green",
    "running": "cyan",
    "stale": "yellow",
    "pruned": "magenta",
    "failed": "red",
    "waiting": "dim",
}


def scalar_text(value: Scalar) -> str:
    """A parameter's value, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, with as many more parts as tell it from the others."""
    short = {}
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            ending = ".".join(parts[-count:])
            if sum(other == ending or other.endswith("." + ending) for other in names) == 1:
                break
        short[name] = ending
    return short


def params_text(params: Mapping[str, Scalar], shown: Sequence[str] | None = None) -> str:
    """`num_slots=4, lr=0.001`: the dimensions `shown` (all, if there are none)."""
    short = short_names(list(params))
    names = [name for name in (shown or params) if name in params]
    return ", ".join(f"{short[name]}={scalar_text(params[name])}" for name in names)


def number(value: float, sign: str = "") -> str:
    """Three decimals for what is about 1; large and tiny numbers short."""
    size = abs(value)
    if size >= 1000:
        return f"{value:{sign},.0f}"
    if size >= 10:
        return f"{value:{sign}.0f}" if value == round(value) else f"{value:{sign}.2f}"
    if 0 < size < 0.001:
        return f"{value:{sign}.2e}"
    return f"{value:{sign}.3f}"


def amount(metric: str, value: float, sign: str = "") -> str:
    """A value in the unit of its metric: bytes, milliseconds, FLOPs, counts, or a plain number."""
    if not is_of_run(metric):
        return number(value, sign)
    ending = metric.rpartition("_")[2]
    texts = {"bytes": bytes_text, "ms": ms_text, "flops": flops_text}
    text = texts.get(ending, number_text)(abs(value))
    return ("-" if value < 0 else sign) + text


def mean_text(mean: Mean | None, metric: str = "", sign: str = "") -> str:
    """A mean with its interval: `0.512 [0.431, 0.593]`."""
    if mean is None:
        return "-"
    text = amount(metric, mean.mean, sign)
    if mean.ci is None:
        return text
    return f"{text} [{amount(metric, mean.ci[0], sign)}, {amount(metric, mean.ci[1], sign)}]"


def objective_text(objective: Goal, split: str | None = None) -> str:
    """The metric in words, with its split: `retained (test)`."""
    name = objective.metric if not is_of_run(objective.metric) else objective.metric.replace(".", " ")
    where = split or objective.split
    return f"{name.replace('_', ' ')} ({where})" if where else name.replace("_", " ")


def direction_text(objective: Goal) -> str:
    """Which way is better."""
    return "higher is better" if objective.direction == "maximize" else "lower is better"


def time_text(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def hours_text(hours: float) -> str:
    """Device hours with what is visible of them."""
    return f"{hours:.3f}" if hours < 1 else f"{hours:.1f}"


def device_hours_text(progress: Progress) -> str:
    """All device hours, and the controls' part where there are controls."""
    part = f", {hours_text(progress.control_hours)} of them for the controls" if progress.controls else ""
    return f"{hours_text(progress.device_hours)} device hours{part}"


def many(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def slug(name: str) -> str:
    """A name that is safe as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower() or "x"
