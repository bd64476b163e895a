"""The page of a run, or of several: report.html, which needs nothing else; the template draws its charts as SVG."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from promptcomp import __version__
from promptcomp.config import ConfigError, build, flat, read_yaml
from promptcomp.documents import read_json, shipped
from promptcomp.errors import first_line
from promptcomp.evaluation.findings import findings
from promptcomp.evaluation.formatting import METRIC_TITLES, many, value_text
from promptcomp.evaluation.predictions import LOWER_IS_BETTER, ROWS
from promptcomp.evaluation.results import Results, SplitResult, read_results
from promptcomp.experiment import Experiment
from promptcomp.files import read_text, write_atomic
from promptcomp.plain import say, without_credentials
from promptcomp.plotting import COLOURS
from promptcomp.report import cost_lines, cost_rows, next_steps, row_title
from promptcomp.run.configured import experiment_of
from promptcomp.run.run_directory import RunDirectory, step_series
from promptcomp.run.shown_examples import ShownExample, read_examples
from promptcomp.webpage import web_page

_MARK = '<meta name="generator" content="promptcomp">'
_POINTS = 300
"""Points of a curve that are drawn."""
_RECORDED = ("time", "command", "promptcomp", "git_commit", "python", "platform", "gpus", "cpu_count", "threads")
_TICKS = 4
_DASHES = ("", "6 3", "2 3")
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 408, 12, 188
"""Sides of a chart's plane in its 420 x 220 units."""


def try_page(run: RunDirectory, console: Console) -> None:
    """Write the page of a run that has just ended; one note where that fails, because the run has not."""
    try:
        write_page(run.page, [run.path])
    except Exception as error:
        say(console, f"note: {run.page} could not be written: {first_line(error)}", "yellow")


def write_page(
    path: Path, runs: Sequence[Path], tables: Sequence[Mapping[str, Any]] = (), names: Sequence[str] = ()
) -> None:
    """Write the page of these runs.

    Args:
        path: the file.
        runs: run directories, or those of evaluations.
        tables: what compares them: `title`, `columns`, `rows` and `notes` of each.
        names: of the runs; none: those of their directories.

    Raises:
        ConfigError: a run has no results, or the file cannot be written or is none of ours.
    """
    if path.exists() and _MARK not in read_text(path, "page")[:2000]:
        raise ConfigError(f"{path} exists and is no page of promptcomp; name another file with -o")
    names = names or [run.absolute().name for run in runs]
    views = [RunView(run, name) for run, name in zip(runs, names, strict=True)]
    several = len(views) > 1
    first = views[0].results
    page = web_page(
        "promptcomp.run",
        "page/run.html.j2",
        views=views,
        several=several,
        tables=tables,
        title=f"{len(views)} runs" if several else f"{first.title or first.method} on {first.data}: {views[0].name}",
        bars=[_bars(split, views) for split in dict.fromkeys(name for view in views for name in view.results.splits)],
        charts=_charts(views),
        version=__version__,
        mark=_MARK,
        **{each.__name__: each for each in (many, cost_rows, cost_lines, next_steps)},
    )
    write_atomic(path, page)


@dataclass(frozen=True)
class RunView:
    """A run as its page shows it."""

    path: Path
    name: str

    @cached_property
    def results(self) -> Results:
        """As results.json has them."""
        return read_results(self.path)

    @property
    def sentences(self) -> list[str]:
        """What was found."""
        return findings(self.results)

    @cached_property
    def series(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv."""
        return step_series(RunDirectory(self.path).metrics)

    @property
    def examples(self) -> list[tuple[ShownExample, list[dict[str, str]]]]:
        """Examples, each with the title, the answer and a mark (right, wrong or nothing) of its rows."""
        found = read_examples(RunDirectory(self.path), self.results.seed)
        return [(each, [self._answer(each, row) for row in self._rows(each)]) for each in found]

    def _rows(self, example: ShownExample) -> list[str]:
        order = dict.fromkeys(("full_prompt", "method", "no_prompt", *example.prediction.loss))
        return [row for row in order if example.prediction.loss.get(row) is not None]

    def _answer(self, example: ShownExample, row: str) -> dict[str, str]:
        made, split = example.prediction, self.results.splits.get(example.prediction.split)
        rival = split.rivals.get(row) if split is not None else None
        text = (made.texts or {}).get(row)
        chosen, scores = made.prediction.get(row), made.scores.get(row)
        more = f"loss {made.loss[row]:.3f}"
        mark = "" if made.correct.get(row) is None else "right" if made.correct[row] else "wrong"
        if text is not None:
            exact = (made.metrics or {}).get(row, {}).get("exact_match")
            mark = "" if exact is None else "right" if exact == 1 else "wrong"
        elif chosen is not None:
            text = made.options[chosen] if chosen >= 0 else "(no option has a score)"
            if scores and len(scores) <= 8:
                pairs = zip(made.options, scores, strict=True)
                more = "log p per token: " + ", ".join(f"{o.strip()} {s:z.2f}" for o, s in pairs if s is not None)
        return {
            "title": rival.title if rival is not None else row_title(self.results, row),
            "text": "" if text is None else text.strip() or "(nothing)",
            "mark": mark,
            "more": more,
        }

    @cached_property
    def configuration(self) -> tuple[str, list[tuple[str, str, str | None]]]:
        """The nearest shipped experiment, and every key with its value here and, where it differs, the value there."""
        try:
            experiment = experiment_of(RunDirectory(self.path))
        except ConfigError:
            return "", []
        own = _values(experiment)
        near = {name: _values(each) for name, each in _shipped_like(experiment)}
        name = min(near, key=lambda name: (_distance(own, near[name]), name), default="")
        rows = []
        for key, text in own.items():
            other = near[name].get(key, "not there") if name else text
            rows.append((key, text, None if other == text or key in ("name", "output_dir") else other))
        return name, rows

    @property
    def environment(self) -> dict[str, str]:
        """Versions and machine, as environment.json has them."""
        try:
            record = read_json(RunDirectory(self.path).environment, "record of the environment")["history"][-1]
            found = {name: record.get(name) for name in _RECORDED} | dict(record.get("packages") or {})
        except (ConfigError, KeyError, IndexError, TypeError, AttributeError, ValueError):
            return {}
        texts = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in found.items()}
        return {name.replace("_", " "): str(text) for name, text in texts.items() if text not in (None, "")}


def _values(experiment: Experiment) -> dict[str, str]:
    values = flat(experiment.model_dump(mode="json"))
    return {key: without_credentials(json.dumps(value, ensure_ascii=False)) for key, value in values.items()}


def _distance(own: Mapping[str, str], other: Mapping[str, str]) -> int:
    return sum(own.get(key) != other.get(key) for key in own.keys() | other.keys())


def _shipped_like(experiment: Experiment) -> Iterable[tuple[str, Experiment]]:
    """Shipped experiments with the same method (its name is looked for before a file is parsed, which takes longer)."""
    name = experiment.method.name
    for title, path in shipped().items():
        text = path.read_text(encoding="utf-8")
        if re.search(rf"\bname: *[\"']?{re.escape(name)}\b", text):
            with contextlib.suppress(ConfigError):
                found = build(Experiment, read_yaml(path))
                if found.method.name == name:
                    yield title, found


def _bars(name: str, views: Sequence[RunView]) -> dict[str, Any]:
    """A split's headline metric: bounds, method and rivals of one run, or the methods of several between the bounds of
    the first; places are percent of the width."""
    having = [(view, view.results.splits[name]) for view in views if name in view.results.splits]
    first, split = having[0]
    rows = [_bar(first, split, row) for row in ("no_prompt",) if row in split.rows]
    for view, own in having:
        if own.metric == split.metric:
            rows.append(_bar(view, own, "method", view.name if len(views) > 1 else ""))
            rows += [_bar(view, own, row) for row in own.rivals if row in own.rows] if len(views) == 1 else []
    rows += [_bar(first, split, row) for row in ("full_prompt",) if row in split.rows]
    rows = [row for row in rows if row["value"] is not None]
    ends = [end for row in rows for end in (row["value"], *(row["ci"] or ()))]
    largest = 1.0 if min(ends, default=0) >= 0 and max(ends, default=0) <= 1 else max(ends, default=1.0)

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, value / (largest or 1.0))), 2)

    for row in rows:
        row["at"], row["ends"] = place(row["value"]), tuple(map(place, row["ci"])) if row["ci"] else None
    lower = ", lower is better" if split.metric in LOWER_IS_BETTER else ""
    counted = f"{many(split.count, 'example')}, {many(split.num_contexts, 'context')}"
    return {
        "name": name,
        "about": split.about,
        "metric": METRIC_TITLES.get(split.metric, split.metric) + lower,
        "counted": f"{counted}; lines are {split.confidence:.0%} intervals",
        "rows": rows,
    }


def _bar(view: RunView, split: SplitResult, row: str, title: str = "") -> dict[str, Any]:
    found, rival = split.estimate(row), split.rivals.get(row)
    kept = split if row == "method" else rival
    retained = "" if kept is None or kept.retained is None else value_text(kept.retained, kept.retained_ci, ".2f")
    return {
        "title": title or (rival.title if rival is not None else row_title(view.results, row)),
        "kind": row if row in ROWS else "control" if rival is not None and rival.is_control else "rival",
        "value": found.value,
        "ci": found.ci,
        "text": value_text(found.value, found.ci),
        "retained": retained,
    }


def _charts(views: Sequence[RunView]) -> list[dict[str, Any]]:
    """Losses in one chart and every dev metric in one of its own; of several runs a chart for each, a line a run."""
    found = dict.fromkeys(key for view in views for row in view.series for key in row)
    keys = [key for key in found if key == "train/loss" or key.startswith("dev/")]
    if len(views) == 1:
        both = [key for key in keys if key in ("train/loss", "dev/loss")]
        groups = {"loss (nats per token)": both, **{key: [key] for key in keys if key not in both}}
        wanted = {title: {key: _points(views[0].series, key) for key in own} for title, own in groups.items()}
    else:
        wanted = {key: {view.name: _points(view.series, key) for view in views} for key in keys}
    return [chart for title, lines in wanted.items() if (chart := _chart(title, lines)) is not None]


def _points(series: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    found = [(row["step"], row[key]) for row in series if row.get(key) is not None and math.isfinite(row[key])]
    every = -(-len(found) // _POINTS) or 1
    return [*found[:-1:every], *found[-1:]]


def _chart(title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Any] | None:
    """Lines as points in the plane of a chart; None: there is nothing to draw."""
    drawn = {name: points for name, points in lines.items() if points}
    values = [value for points in drawn.values() for _, value in points]
    if not values:
        return None
    last = max(step for points in drawn.values() for step, _ in points)
    ticks = _ticks(min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def x(step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * step / last, 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (value - low) / ((high - low) or 1.0), 1)

    across = [tick for tick in _ticks(0, last) if tick <= last and tick == round(tick)]
    return {
        "title": title,
        "lines": [
            {
                "name": name,
                "points": " ".join(f"{x(step)},{y(value)}" for step, value in points),
                "at": (x(points[-1][0]), y(points[-1][1])),
                "text": f"{name}: from {points[0][1]:.3g} to {points[-1][1]:.3g} at step {points[-1][0]:,}",
                "colour": COLOURS[number % len(COLOURS)],
                "dash": _DASHES[number // len(COLOURS) % len(_DASHES)] if len(drawn) > 2 else _DASHES[number],
            }
            for number, (name, points) in enumerate(drawn.items())
        ],
        "across": [(x(tick), f"{tick:,.0f}") for tick in across],
        "up": [(y(tick), f"{tick:g}") for tick in ticks],
    }


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / _TICKS))
    step = next(size * times for times in (1, 2, 2.5, 5, 10, 20) if span / (size * times) <= _TICKS + 0.5)
    first = math.floor(low / step + 1e-9)
    return [round(number * step, 10) for number in range(first, math.ceil(high / step - 1e-9) + 1)]
