"""The Python API: what the commands do, for notebooks and programs. Nothing is printed unless `verbose=True`.

Settings of a configuration are keywords with two underscores for a dot: `trainer__max_steps=100`. Every mistake is a
ConfigError with one message. A compressor of a model in memory is in in_memory.py.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from promptcomp.comparing.comparison import Comparison
from promptcomp.comparing.comparison import compare as compare_runs
from promptcomp.comparing.comparison_table import print_comparison, records
from promptcomp.config import ConfigError, build, flat, read_yaml, with_settings
from promptcomp.evaluation.formatting import METRIC_TITLES
from promptcomp.evaluation.predictions import ROWS, read_predictions
from promptcomp.evaluation.results import Results, read_results
from promptcomp.experiment import Experiment
from promptcomp.plotting import COLOURS, GREY, drawing
from promptcomp.run import fitting
from promptcomp.run.processes import device_count, started_rank
from promptcomp.run.run_directory import RunDirectory, open_existing, read_metrics
from promptcomp.sweeps.space import experiment_file
from promptcomp.sweeps.state import SweepState
from promptcomp.terminal import PlainConsole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Place = str | os.PathLike[str]
"""A path, or a `Run`."""
_CURVES = ("train/loss", "dev/loss", "dev/accuracy", "dev/exact_match")
_WIDTH = 110
"""Columns of tables in a notebook."""


class Run:
    """A run directory. `os.fspath` gives its path, so that it goes wherever a path goes.

    Args:
        path: The directory that `fit` or `evaluate` has made.
    """

    def __init__(self, path: Place) -> None:
        self.path = Path(path)
        self._directory = RunDirectory(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        try:
            found = self.results
        except ConfigError:
            return f"Run({str(self.path)!r}, without results)"
        kept = (
            f"{name}: {each.metric} {each.method:.3f}" for name, each in found.splits.items() if each.method is not None
        )
        return f"Run({str(self.path)!r}, {', '.join((f'{found.method} on {found.data}', *kept))})"

    @property
    def config(self) -> Experiment:
        """The whole configuration, as it was resolved."""
        return build(Experiment, read_yaml(self._directory.config), source=str(self._directory.config))

    @property
    def results(self) -> Results:
        """What the run found: everything in results.json.

        Raises:
            ConfigError: it has not finished its evaluation.
        """
        return read_results(self.path)

    @property
    def metrics(self) -> Any:
        """The step series (step, train/loss, dev/...): a DataFrame, without pandas a list of dictionaries."""
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
        """Losses and dev metrics over the steps and, where there are results, the method beside its bounds.

        Raises:
            ConfigError: matplotlib is not there.
        """
        series = step_series(self._directory.metrics)
        with drawing():
            from matplotlib.figure import Figure

            figure = Figure(figsize=(10, 4))
            curves, bars = figure.subplots(1, 2)
            for name, colour in zip(_CURVES, COLOURS, strict=False):
                points = [(row["step"], row[name]) for row in series if row.get(name) is not None]
                if points:
                    curves.plot(*zip(*points, strict=True), label=name, color=colour)
            curves.set_xlabel("optimiser step")
            if curves.lines:
                curves.legend()
            splits = self.results.splits if self._directory.results.is_file() else {}
            for number, row in enumerate(ROWS):
                values = [math.nan if (found := getattr(split, row)) is None else found for split in splits.values()]
                places = [place + 0.27 * (number - 1) for place in range(len(splits))]
                bars.bar(places, values, 0.25, label=row.replace("_", " "), color=(GREY, *COLOURS)[number])
            bars.set_xticks(range(len(splits)), [f"{name}\n{METRIC_TITLES[s.metric]}" for name, s in splits.items()])
            if splits:
                bars.legend()
        return figure

    def resume(self, *, verbose: bool = False) -> Run:
        """Continue training where the last checkpoint has left it, and evaluate; as `promptcomp fit --resume`."""
        return _finished(fitting.resume_fit(self.path, console_for(verbose)), verbose)


@dataclass(frozen=True, slots=True, repr=False)
class ComparedRuns:
    """Runs beside each other."""

    comparison: Comparison

    @property
    def table(self) -> Any:
        """One line for each split and run, best first: a DataFrame, without pandas a list of dictionaries."""
        return frame(records(self.comparison))

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known to read the table."""
        return (*self.comparison.notes, *(note for split in self.comparison.splits for note in split.notes))

    def __repr__(self) -> str:
        return _as_text(lambda console: print_comparison(self.comparison, console))


@dataclass(frozen=True, slots=True, repr=False)
class SweepRun:
    """A sweep's directory and what has been found there so far."""

    state: SweepState

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.state.directory.path

    @property
    def trials(self) -> Any:
        """One line for each trial: what was tried, the seed, how it ended, what was measured, its run directory."""
        return self._table("trials")

    @property
    def points(self) -> Any:
        """One line for each point, best first: what was tried and the objectives' means over seeds, with intervals."""
        return self._table("points")

    def _table(self, kind: str) -> Any:
        from promptcomp.sweeps.views.tables import state_json

        rows = state_json(self.state)[kind]
        return frame({**row.pop("params"), **flat({k: v for k, v in row.items() if v != {}})} for row in rows)

    @property
    def best(self) -> dict[str, Any] | None:
        """Key -> value of the best point; None while there is none."""
        from promptcomp.sweeps.views.points import Summary

        best = Summary(self.state).best
        return None if best is None else dict(best.params)

    def plot(self) -> dict[str, Figure]:
        """Every picture of the sweep by name.

        Raises:
            ConfigError: matplotlib is not there.
        """
        with drawing():
            from promptcomp.sweeps.views.plots import figures
            from promptcomp.sweeps.views.points import Summary

            return {each.name: each.figure for each in figures(Summary(self.state))}

    def __repr__(self) -> str:
        from promptcomp.sweeps.views.overview import print_state

        return _as_text(lambda console: print_state(self.state, console))


def fit(
    what: Place | Mapping[str, Any] | Experiment,
    *,
    run_dir: Place | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Run:
    """Train a compressor (or a control) and measure it beside its bounds, as `promptcomp fit`; on one device.

    Args:
        what: A shipped experiment ("mend"; `promptcomp methods` lists them), a YAML file, or a whole configuration.
        run_dir: Directory of the new run; None: one under `output_dir`.
        verbose: Print what the command prints.
        settings: Changes of the configuration: `trainer__max_steps=100`, `seed=3`.

    Raises:
        ConfigError: any mistake in the configuration or the data; several devices.
        KeyboardInterrupt: it was stopped; what it has done is saved, and `load_run(...).resume()` continues.
    """
    if isinstance(what, Experiment):
        tree, source = what.model_dump(mode="json"), "configuration"
    elif isinstance(what, Mapping):
        tree, source = dict(what), "configuration"
    else:
        file = experiment_file(os.fspath(what))
        tree, source = read_yaml(file), file.name
    experiment = build(Experiment, with_settings(tree, dotted(settings)), source=source)
    if device_count(experiment.trainer) * experiment.trainer.num_nodes > 1 and started_rank() is None:
        raise ConfigError(
            "promptcomp.fit trains in this process, on one device: set trainer__devices=1, or use the command "
            "`promptcomp fit`, which starts a process for each device"
        )
    place = None if run_dir is None else Path(run_dir)
    return _finished(fitting.fit(experiment, place, console_for(verbose)), verbose)


def evaluate(run: Place, *, output: Place | None = None, verbose: bool = False, **settings: Any) -> Run:
    """Measure a trained run again with other splits, data or seeds, in a directory of its own.

    Args:
        run: The run, or its directory.
        output: Directory for the new results; None: RUN/evaluations/<time>.
        verbose: Print what the command prints.
        settings: Changes of the configuration: `evaluation__splits=["unseen"]`.

    Raises:
        ConfigError: no trained run, or a mistake in the settings.
    """
    words = [f"{key}={json.dumps(value, default=str)}" for key, value in dotted(settings).items()]
    place = None if output is None else Path(output)
    return _finished(fitting.evaluate(Path(run), words, place, console_for(verbose)), verbose)


def load_run(path: Place) -> Run:
    """A run directory, or the directory of an evaluation.

    Raises:
        ConfigError: it is neither.
    """
    run = Run(path)
    if not RunDirectory(run.path).config.is_file():
        open_existing(run.path)
    return run


def compare(
    *runs: Place, split: str | None = None, metric: str | None = None, allow_different: bool = False
) -> ComparedRuns:
    """Runs beside each other with paired intervals; the first is the baseline.

    Args:
        runs: Runs, their directories, or results.json files.
        split: The only split to compare; None: all that they share.
        metric: What to compare by; None: the runs' own.
        allow_different: Show runs with other test examples too, unranked.

    Raises:
        ConfigError: a run has no results, or they did not answer the same examples.
    """
    return ComparedRuns(
        compare_runs([Path(run) for run in runs], split=split, metric=metric, allow_different=allow_different)
    )


def sweep(
    what: Place | Mapping[str, Any],
    *,
    output: Place | None = None,
    workers: int = 1,
    verbose: bool = False,
    **settings: Any,
) -> SweepRun:
    """Run or continue a sweep, as `promptcomp sweep`; its trials are processes of their own.

    Args:
        what: A shipped sweep, a YAML file, a sweep's directory, or a sweep file's content.
        output: Its directory; None: sweeps/NAME.
        workers: Trials at a time on this machine.
        verbose: Print how it goes.
        settings: A list is what is tried (`method__num_slots=[2, 4]`), a text may be an interval ("1e-4..1e-2:log"),
            one value is for all trials, `sweep__seeds=3` is a key of the sweep itself.

    Raises:
        ConfigError: any mistake in the sweep or in one of its experiments.
        KeyboardInterrupt: it was stopped; the same call continues it.
    """
    from promptcomp.sweeps.checking import check, check_splits
    from promptcomp.sweeps.running import run_sweep
    from promptcomp.sweeps.study import read_state
    from promptcomp.sweeps.sweep_config import SweepConfig
    from promptcomp.sweeps.sweep_directory import SweepDirectory
    from promptcomp.sweeps.sweep_file import apply_words, find_sweep, read_sweep

    words = [f"{key}={_tried(value)}" for key, value in dotted(settings).items()]
    if isinstance(what, Mapping):
        config, folder = build(SweepConfig, apply_words(what, words), source="sweep"), output
        if folder is None:
            raise ConfigError("a sweep without a file needs a directory: give output=")
    else:
        origin = find_sweep(os.fspath(what))
        config = read_sweep(os.fspath(what), words)
        folder = output or origin.directory or Path("sweeps") / origin.name
    check(config)
    check_splits(config)
    directory = SweepDirectory(Path(folder))
    if not run_sweep(config, directory, workers=workers, console=console_for(verbose)):
        raise KeyboardInterrupt("the sweep was stopped; nothing finished is lost, the same call continues it")
    return SweepRun(read_state(directory))


def dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords as keys of a configuration: `trainer__max_steps` is trainer.max_steps."""
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


def frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A DataFrame; without pandas a list of dictionaries."""
    found = [dict(row) for row in rows]
    if importlib.util.find_spec("pandas") is None:
        return found
    import pandas

    return pandas.DataFrame(found)


def step_series(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv as numbers; None where a step has no such value."""
    rows = read_metrics(path)
    return [
        {key: int(value) if key == "step" else float(value) if value else None for key, value in row.items()}
        for row in rows
    ]


def _tried(value: Any) -> str:
    if isinstance(value, str):
        return value
    return ",".join(map(json.dumps, value)) if isinstance(value, Sequence) else json.dumps(value)


def _finished(outcome: fitting.Outcome | None, verbose: bool) -> Run:
    if outcome is None:
        raise ConfigError("this process has helped in a run of several; only the first one has its results")
    if outcome.interrupted:
        raise KeyboardInterrupt(f"stopped after step {outcome.step}; load_run({str(outcome.run)!r}).resume() goes on")
    if verbose:
        outcome.print(console_for(True))
    return Run(outcome.run)


def console_for(verbose: bool) -> Console:
    return PlainConsole(quiet=not verbose)


def _as_text(draw: Callable[[Console], None]) -> str:
    console = PlainConsole(file=io.StringIO(), width=_WIDTH)
    draw(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
