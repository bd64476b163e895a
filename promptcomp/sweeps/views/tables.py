"""A sweep as files: points and trials as CSV, the table of points as Markdown and LaTeX, everything as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from promptcomp.evaluation.seeds import Mean
from promptcomp.sweeps.state import SweepState, Trial
from promptcomp.sweeps.views.efficiency import Efficiency, efficiency_of
from promptcomp.sweeps.views.importance import ROUGH_BELOW
from promptcomp.sweeps.views.numbers import Runs, finite, plain_line
from promptcomp.sweeps.views.points import Point, Summary, summarize
from promptcomp.sweeps.views.wording import mean_text, objective_text, scalar_text, short_names

VERSION = 1
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # a row that begins with a bracket would be taken for an option of the line break before it
}


def points_csv(state: SweepState) -> str:
    """One line for each point, best first."""
    summary = summarize(state, with_importances=False)
    header = ["point", *summary.dimensions, "seeds", "complete", "feasible", "best", "front", "within_noise"]
    for objective in summary.objectives:
        header += [f"{objective.name}{ending}" for ending in ("", "_low", "_high", "_std")]
    lines = []
    for point in summary.points:
        marks = [point.complete, point.feasible, point.is_best, point.on_front, point.within_noise]
        line = [point.point, *_params(point.params, summary), point.seeds, *marks]
        for objective in summary.objectives:
            mean = point.values.get(objective.name)
            line += [None] * 4 if mean is None else [mean.mean, *(mean.ci or (None, None)), mean.std]
        lines.append(line)
    return _csv(header, lines)


def trials_csv(state: SweepState) -> str:
    """One line for each trial, in the order in which they were planned."""
    summary = summarize(state, with_importances=False)
    metrics = [objective.name for objective in summary.objectives]
    constraints = sorted({name for trial in state.trials for name in trial.constraints})
    header = ["number", "cell", "point", *summary.dimensions, "seed", "status", "attempt", *metrics]
    header += [f"outside_{name}" for name in constraints]
    header += ["step", "max_steps", "started", "ended", "device_seconds", "worker", "run", "problem"]
    lines = []
    for t in state.trials:
        line = [t.number, t.cell, t.point, *_params(t.params, summary), t.seed, t.status, t.attempt]
        line += [finite(t.values.get(name)) for name in metrics]
        line += [finite(t.constraints.get(name)) for name in constraints]
        times = [time.isoformat(timespec="seconds") if time else None for time in (t.started, t.ended)]
        line += [t.step, t.max_steps, *times, t.device_seconds, t.worker, str(t.run), t.problem]
        lines.append(line)
    return _csv(header, lines)


def efficiency_csv(found: Efficiency) -> str:
    """One line for each size and share of the training data: every method's mean, the differences to the baselines."""
    header = ["size", "parameters", "share"]
    for name in (*found.methods, *(f"minus_{name}" for name in found.baselines)):
        header += [f"{name}{ending}" for ending in ("", "_low", "_high", "_std", "_seeds")]
    lines = []
    for row in found.rows:
        line = [row.size, found.sizes[row.size], row.share]
        for mean in (*map(row.values.get, found.methods), *map(row.minus.get, found.baselines)):
            line += [None] * 5 if mean is None else [mean.mean, *(mean.ci or (None, None)), mean.std, mean.seeds]
        lines.append(line)
    return _csv(header, lines)


def _params(params: Mapping[str, Any], summary: Summary) -> list[Any]:
    return [params.get(name) for name in summary.dimensions]


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else value


def markdown(state: SweepState) -> str:
    """The table of points for a README or a paper's notes."""
    header, rows = _rows(state)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(_markdown_text(cell) for cell in line)} |\n" for line in lines)


def _markdown_text(text: str) -> str:
    # A bar ends a cell; angle brackets and ampersands would be read as HTML, the rest as emphasis, code or a link.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{character}" if character in "|\\*`[]_" else character for character in text)


def latex(state: SweepState) -> str:
    """The table of points as a booktabs `tabular`."""
    header, rows = _rows(state)
    columns = "l" * (len(header) - len(state.config.objectives) - 1)
    lines = [f"\\begin{{tabular}}{{{columns}{'r' * (len(state.config.objectives) + 1)}}}", "\\toprule"]
    lines += [_latex_row(header), "\\midrule", *map(_latex_row, rows), "\\bottomrule", "\\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(character, character) for character in cell) for cell in cells) + r" \\"


def _rows(state: SweepState) -> tuple[list[str], list[list[str]]]:
    """Header and lines: parameters, remark, seeds, objectives; the controls are the last lines."""
    summary = summarize(state, with_importances=False)
    names = list(summary.varying or summary.dimensions)
    short = short_names(summary.dimensions)
    header = [*(short[name] for name in names), "", "seeds", *map(objective_text, summary.objectives)]
    rows = []
    for point in summary.points:
        own = [scalar_text(point.params[name]) if name in point.params else "-" for name in names]
        values = [mean_text(point.values.get(objective.name), objective.name) for objective in summary.objectives]
        rows.append([*map(plain_line, own), remark(point), str(point.seeds), *values])
    for line in Runs(state).lines(summary.objectives):
        values = [mean_text(mean, o.name) for mean, o in zip(line.means, summary.objectives, strict=True)]
        rows.append([line.title, *[""] * len(names), str(line.seeds), *values])
    return header, rows


def remark(point: Point) -> str:
    """A point's mark in words."""
    if point.is_best:
        return "best"
    if point.on_front:
        return "Pareto front"
    if not point.feasible:
        return "outside a constraint"
    if point.dropped:
        return "dropped"
    return "within noise of the best" if point.within_noise else ""


def state_json(state: SweepState) -> dict[str, Any]:
    """Everything as JSON values; numbers that are not finite are null."""
    summary, runs, efficiency = summarize(state), Runs(state), efficiency_of(state)
    progress = summary.progress
    return {
        "version": VERSION,
        "directory": str(state.directory.path),
        "title": state.config.title,
        "config": state.config.model_dump(mode="json"),
        "progress": {
            "planned": progress.planned,
            **progress.counts,
            "left_out": progress.left_out,
            "controls": progress.controls,
            "controls_done": progress.controls_done,
            "elapsed_seconds": progress.elapsed,
            "eta_seconds": progress.eta,
            "device_hours": progress.device_hours,
            "control_hours": progress.control_hours,
            "workers": state.workers,
            "stopped_by": state.stopped_by,
        },
        "best": summary.best.point if summary.best else None,
        "why_no_best": summary.why_no_best,
        "front": [point.point for point in summary.front],
        "points": [_point_record(point) for point in summary.points],
        "controls": {
            objective.name: {
                band.name: {**_mean_record(band.value), "trained": band.trained} for band in runs.bands(objective, None)
            }
            for objective in summary.objectives
        },
        "importances": {metric: dict(found) for metric, found in summary.importances.items()},
        "importances_rough": sum(bool(point.values) for point in summary.points) < ROUGH_BELOW,
        "efficiency": efficiency and efficiency.model_dump(mode="json"),
        "trials": [_trial_record(trial) for trial in state.trials],
    }


def _point_record(point: Point) -> dict[str, Any]:
    return {
        "point": point.point,
        "params": dict(point.params),
        "seeds": point.seeds,
        "values": {metric: _mean_record(mean) for metric, mean in point.values.items()},
        "complete": point.complete,
        "feasible": point.feasible,
        "violated": {name: finite(value) for name, value in point.violated.items()},
        "dropped": point.dropped,
        "best": point.is_best,
        "front": point.on_front,
        "minus_best": _mean_record(point.versus_best) if point.versus_best else None,
        "within_noise": point.within_noise,
    }


def _mean_record(mean: Mean) -> dict[str, Any]:
    return {"mean": mean.mean, "ci": list(mean.ci) if mean.ci else None, "std": mean.std, "seeds": mean.seeds}


def _trial_record(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "cell": trial.cell,
        "point": trial.point,
        "params": dict(trial.params),
        "seed": trial.seed,
        "status": trial.status,
        "attempt": trial.attempt,
        "run": str(trial.run),
        "values": {name: finite(value) for name, value in trial.values.items()},
        "constraints": {name: finite(value) for name, value in trial.constraints.items()},
        "step": trial.step,
        "max_steps": trial.max_steps,
        "started": trial.started.isoformat() if trial.started else None,
        "ended": trial.ended.isoformat() if trial.ended else None,
        "device_seconds": trial.device_seconds,
        "worker": trial.worker,
        "problem": trial.problem,
    }


FORMATS: dict[str, Callable[[SweepState], str]] = {
    "csv": points_csv,
    "trials": trials_csv,
    "markdown": markdown,
    "latex": latex,
}
"""What `promptcomp sweep show --format` offers besides the table and JSON."""
