"""Everything that can be wrong with a sweep, found before anything starts and reported at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcomp.datamodules.sections import tested
from promptcomp.errors import ConfigError, did_you_mean
from promptcomp.evaluation.predictions import LOWER_IS_BETTER, METRICS, TEXT_METRICS
from promptcomp.evaluation.results import Cost, Size
from promptcomp.experiment import Experiment
from promptcomp.sweeps.space import base_tree, experiment_of, grid, grid_size, planned_controls, scalars, settings_of
from promptcomp.sweeps.sweep_config import Choices, Dimension, Interval, Scalar, SweepConfig, is_below, keys_of
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.values import OF_HEADLINE, OF_SPLIT

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

HUGE = 10_000
"""Points of a grid above which someone has to say that it is meant."""
_EVERY_POINT = 500
"""Points of a grid up to which every combination is validated, not only every value."""
_OF_SWEEP = {
    "seed": "use seeds and first_seed",
    "name": "the sweep names its runs",
    "output_dir": "give the sweep's directory with -o",
}
_NEED_BOUNDS = {*OF_SPLIT, "kl", "top1"} - {"method"}


def check(config: SweepConfig, *, allow_huge: bool = False) -> list[Experiment]:
    """Validate a sweep against the experiments that it would make.

    Args:
        config: the sweep.
        allow_huge: accept a grid of more than 10,000 points.

    Returns:
        The experiments that were looked at: every sample of every dimension (`samples_of`) is in one of them.

    Raises:
        ConfigError: lists every mistake with the dimension it belongs to.
    """
    base = base_tree(config)
    problems = [*_clashes(config), *_size(config, allow_huge)]
    experiments: list[Experiment] = []
    sound = {name: dimension for name, dimension in config.space.items() if name not in _OF_SWEEP}
    if sound:
        whole = not problems
        problems += _values(config.model_copy(update={"space": sound}), base, experiments, whole)
    problems += [*_metrics(config, experiments), *_machines(experiments), *_places(experiments)]
    if problems:
        title = config.title or config.experiment
        raise ConfigError("\n".join([f"sweep {title!r}:", *(f"  {problem}" for problem in dict.fromkeys(problems))]))
    return experiments


def check_splits(config: SweepConfig, shown: str | None = None) -> None:
    """Look whether the splits that objectives or constraints name are there; the first point's data is opened where
    its section does not say.

    Args:
        config: the sweep.
        shown: another split that will be wanted.

    Raises:
        ConfigError: no such split, or a mistake in the data.
    """
    named = [shown, *(found.split for found in config.objectives), *(found.split for found in config.constraints)]
    wanted = [split for split in named if split is not None]
    if not wanted:
        return
    experiment = experiment_of(config, first_point(config), config.first_seed)
    known, data = experiment.evaluation.splits, experiment.data
    if not known and data.splits is not None:
        known = tested(data.eval_splits(data.splits))
    elif not known:
        from promptcomp.run.opening import make_parts, quiet

        with quiet():
            known = make_parts(experiment)[0].test_splits
    for split in wanted:
        if split not in known:
            raise ConfigError(f"results have no split {split!r}, which is asked for; {did_you_mean(split, known)}")


def url_of(storage: str) -> URL:
    """The address of a database; SQLite's file by its full path, as it may be opened from another folder.

    Raises:
        ConfigError: it is none, or names no file for SQLite.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
    except ArgumentError:
        raise ConfigError(
            "--storage is no database address; it is written postgresql://USER@HOST/DATABASE (the password may come "
            "from PGPASSWORD or ~/.pgpass)"
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigError(f"--storage {storage} is gone when a process ends; name a file (sqlite:///sweep.db)")
        if not str(url.database).startswith("file:"):
            url = url.set(database=os.path.abspath(str(url.database)))
    return url


def check_workers(address: URL | None, workers: int) -> None:
    """Refuse SQLite for several workers: it hands the same trial to two of them (it has no SELECT ... FOR UPDATE).

    Raises:
        ConfigError: SQLite and more than one worker.
    """
    if address is not None and address.get_backend_name() == "sqlite" and workers > 1:
        raise ConfigError(
            "SQLite cannot hand out trials to several workers; leave --storage out (a journal file needs nothing "
            "installed) or use PostgreSQL"
        )


def first_point(config: SweepConfig) -> dict[str, Scalar]:
    """The first sample of every dimension."""
    return {name: samples_of(dimension)[0] for name, dimension in config.space.items()}


def samples_of(dimension: Dimension) -> Sequence[Scalar]:
    """Values that stand for a dimension: all listed ones, the ends of an interval that is continuous or very long."""
    found = scalars(dimension)
    if found is not None and not (isinstance(dimension, Interval) and len(found) > _EVERY_POINT):
        return found
    assert isinstance(dimension, Interval)
    ends = (dimension.low, dimension.high)
    return tuple(int(end) for end in ends) if dimension.integer else ends


def _clashes(config: SweepConfig) -> Iterator[str]:
    """Keys that two places set, or that the sweep sets itself."""
    owners: dict[str, str] = {}
    for name, dimension in config.space.items():
        for key in keys_of(name, dimension):
            if key in _OF_SWEEP:
                yield f"space {name}: {key} cannot be swept; {_OF_SWEEP[key]}"
            for other, owner in owners.items():
                if owner != name and (is_below(key, [other]) or is_below(other, [key])):
                    yield f"space {name}: sets {key}, and space {owner} sets {other}; one of them would be lost"
            owners[key] = name
        if isinstance(dimension, Choices):
            yield from _choices(name, dimension)
    for key in config.set:
        if key in _OF_SWEEP:
            yield f"set {key}: {_OF_SWEEP[key]}"
        for swept, owner in owners.items():
            if is_below(key, [swept]):
                yield f"set {key}: space {owner} sets {swept} as well; remove one of the two"


def _choices(name: str, dimension: Choices) -> Iterator[str]:
    for choice, settings in dimension.choices.items():
        if not settings:
            yield f"space {name}: choice {choice!r} sets nothing"
    distinct = [str(sorted(settings.items(), key=str)) for settings in dimension.choices.values()]
    for (one, first), (two, second) in itertools.combinations(zip(dimension.choices, distinct, strict=True), 2):
        if first == second:
            yield f"space {name}: {one!r} and {two!r} are the same settings"


def _size(config: SweepConfig, allow_huge: bool) -> Iterator[str]:
    try:
        points = grid_size(config)
    except ConfigError as error:
        yield str(error)
        return
    if config.sampler == "grid" and points > HUGE and not allow_huge:
        yield (
            f"the grid has {points:,} points ({points * config.seeds:,} trials); draw some of them "
            "(sweep.sampler=tpe sweep.points=100), list fewer values, or give --yes"
        )


def _values(config: SweepConfig, base: Mapping[str, Any], experiments: list[Experiment], whole: bool) -> Iterator[str]:
    """Validate every sample, the others at their first value; if `whole`, combinations and controls too."""
    start = first_point(config)
    at_start = _mistakes(config, start, base)
    known = at_start & _mistakes(config, {}, base)  # what the space itself mends (a key that is always chosen) is none
    yield from sorted(known)
    at_start -= known
    found = False
    for name, dimension in config.space.items():
        of_choice = " ({})" if isinstance(dimension, Choices) else ""
        for value in samples_of(dimension):
            keys = settings_of(config, {name: value})
            lines = _mistakes(config, {**start, name: value}, base, experiments) - known
            for line in sorted(line for line in lines if line not in at_start or _is_about(line, keys)):
                found = True
                plain = _is_about(line, [name]) and not of_choice
                yield f"space {line}" if plain else f"space {name}{of_choice.format(value)}: {line}"
    if at_start and not found:
        yield from (f"space {told(start)}: {line}" for line in sorted(at_start))
    if at_start or found or known or not whole:
        return
    yield from _combinations(config, base, experiments)
    try:
        planned_controls(config.model_copy(update={"seeds": 1}), SweepDirectory(Path()))
    except ConfigError as error:
        yield f"controls: {_lines(error)[0]}"


def _combinations(config: SweepConfig, base: Mapping[str, Any], experiments: list[Experiment]) -> Iterator[str]:
    if config.sampler != "grid" or len(config.space) < 2 or grid_size(config) > _EVERY_POINT:
        return
    for params in grid(config):
        for line in sorted(_mistakes(config, params, base, experiments)):
            yield f"space {told(params)}: {line}"
            return  # one such combination stands for many


def _mistakes(
    config: SweepConfig, params: Mapping[str, Scalar], base: Mapping[str, Any], into: list[Experiment] | None = None
) -> set[str]:
    """The lines of the message for a point; its experiment goes to `into` when there are none."""
    try:
        experiment = experiment_of(config, params, config.first_seed, base)
    except ConfigError as error:
        return set(_lines(error))
    if into is not None:
        into.append(experiment)
    return set()


def _is_about(line: str, keys: Iterable[str]) -> bool:
    """Whether a line of a message is about one of these keys."""
    return any(line.startswith((f"{key} ", f"{key}:", f"{key}.")) for key in keys)


def told(params: Mapping[str, Scalar]) -> str:
    """A point in a message, by its whole keys."""
    return ", ".join(f"{name}={value}" for name, value in params.items())


def _lines(error: ConfigError) -> list[str]:
    """The mistakes that a message lists, without its heading."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1:] or lines


def _machines(experiments: Iterable[Experiment]) -> Iterator[str]:
    for nodes in sorted({each.trainer.num_nodes for each in experiments} - {1}):
        yield (
            f"trainer.num_nodes={nodes}: a trial runs on one machine; leave trainer.num_nodes at 1 (trainer.devices "
            "may be more), or make the runs one by one with 'promptcomp fit --slurm'"
        )


def _places(experiments: Iterable[Experiment]) -> Iterator[str]:
    for each in experiments:
        try:
            each.check()
        except ConfigError as error:
            yield str(error)


def _metrics(config: SweepConfig, experiments: Iterable[Experiment]) -> Iterator[str]:
    """Objectives and constraints: names, and whether the runs will measure them."""
    experiments = list(experiments)
    names = [(found.metric, found.split) for found in config.objectives]
    if len(set(names)) < len(names):
        yield f"objectives: {', '.join(metric for metric, _ in names)} holds one twice"
    for objective in config.objectives:
        measured = [objective.metric]
        if objective.metric in OF_HEADLINE:
            measured = sorted({headline_of(each) for each in experiments})
        falls = next((name for name in measured if name in LOWER_IS_BETTER), None)
        if falls is not None and objective.direction == "maximize":
            of = "" if falls == objective.metric else f" of {falls}"
            yield f"objectives {objective.metric}:{of} less is better; set direction: minimize"
    for constraint in config.constraints:
        if constraint.at_most is None and constraint.at_least is None:
            yield f"constraints {constraint.metric}: give at_most or at_least"
    for where, asked in (("objectives", config.objectives), ("constraints", config.constraints)):
        for each in asked:
            problem = _of_metric(each.metric, each.split, experiments)
            if problem is not None:
                yield f"{where} {each.metric}: {problem}"


def headline_of(experiment: Experiment) -> str:
    """The metric that the results of an experiment's data are summed up by."""
    return str(getattr(experiment.data, "metric", None) or "loss")


def _of_metric(metric: str, split: str | None, experiments: list[Experiment]) -> str | None:
    known = known_metrics()
    if metric not in known:
        return f"not a number of results.json; {did_you_mean(metric, known)}"
    section = metric.partition(".")[0]
    if section in ("size", "cost") and split is not None:
        return f"size and cost belong to the run, not to split {split!r}; leave split out"
    needs_bounds = metric in _NEED_BOUNDS or section == "size"
    if needs_bounds and any(not each.evaluation.bounds for each in experiments):
        return "needs evaluation.bounds=true, which the experiment switches off; ask for method, or set it"
    if metric.endswith("_ms") and any(not each.evaluation.measure_cost for each in experiments):
        return "needs evaluation.measure_cost=true"
    if metric in TEXT_METRICS and any(each.evaluation.generate is False for each in experiments):
        return "is computed on generated texts and needs evaluation.generate=true"
    return None


def check_metric(metric: str) -> None:
    """Look whether results can have a metric of this name.

    Raises:
        ConfigError: they cannot.
    """
    if metric not in known_metrics():
        raise ConfigError(f"metric {metric!r} is not a number of results.json; {did_you_mean(metric, known_metrics())}")


def known_metrics() -> tuple[str, ...]:
    """Every name that an objective or a constraint can have."""
    sections = [f"{name}.{key}" for name, section in (("size", Size), ("cost", Cost)) for key in section.model_fields]
    return (*OF_SPLIT, *METRICS, *sections)
