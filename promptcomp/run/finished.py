"""A finished run as an object: its tables as DataFrames, and a picture of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from promptcomp.config import ConfigError
from promptcomp.errors import check_place
from promptcomp.evaluation.formatting import METRIC_TITLES
from promptcomp.evaluation.predictions import ROWS, read_predictions
from promptcomp.evaluation.results import Results, read_results
from promptcomp.experiment import Experiment
from promptcomp.files import Place
from promptcomp.plotting import COLOURS, GREY, drawing, panels
from promptcomp.run.configured import experiment_of
from promptcomp.run.fitting import Outcome, resume_fit
from promptcomp.run.opening import as_before
from promptcomp.run.run_directory import RunDirectory, open_existing, step_series
from promptcomp.terminal import PlainConsole, frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = ("train/loss", "dev/loss", "dev/accuracy", "dev/exact_match")


class Run:
    """A run directory. `os.fspath` gives its path, so that it goes wherever a path goes.

    Args:
        path: The directory that `fit` or `evaluate` has made.
    """

    def __init__(self, path: Place) -> None:
        check_place(path, "a run")
        self.path = Path(path)
        self._directory = RunDirectory(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        try:
            found = self.results
        except ConfigError:
            return f"Run({str(self.path)!r}, without results)"
        parts = [f"{found.method} on {found.data}"]
        scored = {name: split for name, split in found.splits.items() if split.method is not None}
        parts += [f"{name}: {split.metric} {split.method:.3f}" for name, split in scored.items()]
        return f"Run({str(self.path)!r}, {', '.join(parts)})"

    @property
    def config(self) -> Experiment:
        """The full resolved configuration."""
        return experiment_of(self._directory)

    @property
    def results(self) -> Results:
        """The results of the run: everything in results.json.

        Raises:
            ConfigError: it has not finished its evaluation.
        """
        return read_results(self.path)

    @property
    def metrics(self) -> Any:
        """Losses and dev results by step (as metrics.csv): a DataFrame, without pandas a list of dictionaries."""
        return frame(step_series(self._directory.metrics))

    @property
    def scores(self) -> Any:
        """One line for each split, row (no_prompt, method, full_prompt) and metric, with its 95 % interval."""
        return frame(
            {"split": split, "row": row, "metric": metric, "value": each.value, "low": low, "high": high}
            for split, result in self.results.splits.items()
            for row, estimates in result.rows.items()
            for metric, each in estimates.items()
            for low, high in [each.ci or (None, None)]
        )

    @property
    def predictions(self) -> Any:
        """One line for each evaluated example (docs/results_format.md)."""
        return frame(each.model_dump() for each in read_predictions(self._directory.predictions))

    def plot(self) -> Figure:
        """Losses and dev metrics over the steps; where there are results, the method beside its bounds and rivals."""
        series = step_series(self._directory.metrics)
        splits = self.results.splits if self._directory.results.is_file() else {}
        with drawing():
            figure, (curves, bars) = panels(2, 2)
            for name, colour in zip(_CURVES, COLOURS, strict=False):
                if points := [(row["step"], row[name]) for row in series if row.get(name) is not None]:
                    curves.plot(*zip(*points, strict=True), label=name, color=colour)
            curves.set_xlabel("optimiser step")
            titles = {row: row.replace("_", " ") for row in ROWS}
            titles |= {
                row: known.title
                for split in splits.values()
                for row, known in split.rivals.items()
                if row in split.rows
            }
            width = 0.81 / len(titles)
            for number, (row, title) in enumerate(titles.items()):
                places = [place + width * (number - (len(titles) - 1) / 2) for place in range(len(splits))]
                found = [split.estimate(row).value for split in splits.values()]
                values = [math.nan if value is None else value for value in found]
                colour = (GREY, *COLOURS)[number % (len(COLOURS) + 1)]
                bars.bar(places, values, 0.93 * width, label=title, color=colour)
            bars.set_xticks(range(len(splits)), [f"{name}\n{METRIC_TITLES[s.metric]}" for name, s in splits.items()])
            beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(titles) > len(ROWS) else {}
            for axes, drawn, place in ((curves, curves.lines, {}), (bars, splits, beside)):
                if drawn:
                    axes.legend(**place)
        return figure

    def resume(self, *, verbose: bool = False) -> Run:
        """Continue training where the last checkpoint has left it, and evaluate; as `promptcomp fit --resume`."""
        return finished(lambda console: resume_fit(self.path, console), verbose)


def load_run(path: Place) -> Run:
    """A run directory, or the directory of an evaluation.

    Raises:
        ConfigError: it is neither.
    """
    run = Run(path)
    if not RunDirectory(run.path).config.is_file():
        open_existing(run.path)
    return run


def finished(work: Callable[[Console], Outcome | None], verbose: bool) -> Run:
    """The run that some work has led to, which prints nothing unless it is `verbose`.

    Raises:
        KeyboardInterrupt: it was stopped.
        ConfigError: the work is that of another process.
    """
    console = PlainConsole(quiet=not verbose)
    with as_before():
        outcome = work(console)
    if outcome is None:
        raise ConfigError("this is not the first process of the run, and only the first one has its results")
    if outcome.interrupted:
        raise KeyboardInterrupt(f"stopped after step {outcome.step}; load_run({str(outcome.run)!r}).resume() continues")
    outcome.print(console)
    return Run(outcome.run)
