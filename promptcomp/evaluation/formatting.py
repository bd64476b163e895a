"""Numbers as people read them; `-` for what was not measured."""

from __future__ import annotations

from promptcomp.evaluation.results import Interval

METRIC_TITLES = {
    "accuracy": "accuracy",
    "task_accuracy": "accuracy, mean of tasks",
    "macro_f1": "macro-F1",
    "macro_f1_metaicl": "macro-F1 (MetaICL)",
    "task": "score",
    "loss": "loss",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "equation": "equation",
    "agreement": "agreement",
    "kl": "KL to full",
    "top1": "top-1 agreement",
    "teacher_match": "as the teacher",
    "teacher_rougeL": "ROUGE-L to teacher",
}


def value_text(value: float | None, interval: Interval | None, form: str = ".3f", ends: str = ".2f") -> str:
    """A value with its interval, `0.931 [0.91, 0.95]`, by two format specifications."""
    if value is None:
        return "-"
    return f"{value:{form}}" + (f" [{interval[0]:{ends}}, {interval[1]:{ends}}]" if interval is not None else "")


def number_text(value: float | None) -> str:
    """A count, with one decimal when it is a mean."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def many(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def bytes_text(value: float | None) -> str:
    """Bytes with a binary unit."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"), ".1f")


def flops_text(value: float | None) -> str:
    """FLOPs with a decimal unit."""
    return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"), ".3g")


def held_out_text(key: str, value: float) -> str:
    """A figure of a compressed prompt's `held_out`: bytes with their unit, slots as a number, shares and nats."""
    return bytes_text(value) if key == "bytes" else f"{value:.0f}" if key == "slots" else f"{value:.3f}"


def _scaled(value: float | None, step: int, units: tuple[str, ...], form: str) -> str:
    if value is None:
        return "-"
    for unit in units[:-1]:
        if value < step:
            return f"{value:.0f} B" if unit == "B" else f"{value:{form}} {unit}"
        value /= step
    return f"{value:{form}} {units[-1]}"


def ms_text(value: float | None) -> str:
    """Milliseconds, or seconds when there are many."""
    if value is None:
        return "-"
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"
