"""One call of `promptcomp curve`: plan, run, sum up, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptcomp.config import ConfigError
from promptcomp.curve.plan import CurveSpec, Point, plan
from promptcomp.curve.running import Done, Runner, Start
from promptcomp.curve.summary import LOWER_IS_BETTER, Curve, PointResult, Table
from promptcomp.curve.tables import points_csv, summary_csv
from promptcomp.datamodules import RationaleConfig, build_rationales
from promptcomp.datamodules.rationale_selection import choose_rows, split_rows
from promptcomp.evaluation.results import SplitResult, read_results
from promptcomp.files import locked, write_atomic
from promptcomp.language_model import LanguageModel

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which number of each run the curve shows."""

    split: str | None = None
    """None: the first split of the results."""
    metric: str | None = None
    """None: the split's headline metric."""


def make_curve(
    spec: CurveSpec, folder: Path, *, workers: int, wanted: Wanted, tell: Tell, start: Start | None = None
) -> Curve:
    """Run what is missing of a curve, and write curve.json, curve.csv and points.csv into its folder.

    Args:
        spec: what was asked for.
        folder: the curve's; the same folder and spec go on where they were stopped.
        workers: most runs at a time.
        wanted: split and metric.
        tell: is told what happens.
        start: begins a run; None: `promptcomp fit` in a child process.

    Raises:
        ConfigError: a mistake in the request or a configuration, or no run has a result.
        Interrupted: a person stopped it; finished runs are kept and the others continue from their checkpoints.
    """
    points = plan(spec, folder / "runs")
    rows = {point.fraction: count_rows(point) for point in reversed(points) if point.method == spec.method}
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another with --output") from None
    with locked(folder / ".lock"):
        done = Runner(folder, workers, tell, start).run(points)
        curve = summarise(spec, points, done, wanted, rows)
        write_atomic(folder / "curve.json", curve.model_dump_json(indent=2) + "\n")
        write_atomic(folder / "curve.csv", summary_csv(curve))
        write_atomic(folder / "points.csv", points_csv(curve))
    return curve


def count_rows(point: Point) -> int:
    """Training rows of a point, before filters.

    Raises:
        ConfigError: the data cannot be read.
    """
    data, seed = point.experiment.data, point.experiment.seed
    assert isinstance(data, RationaleConfig)
    return len(choose_rows(data, split_rows(data, build_rationales(data), seed)[0], seed))


def parameters_of(points: Sequence[Point]) -> dict[str, int | None]:
    """Size -> parameters of its student; None where the architecture alone cannot be read."""
    found: dict[str, int | None] = {}
    for point in points:
        if point.size not in found:
            try:
                skeleton = LanguageModel.skeleton(point.experiment.lm)
                found[point.size] = sum(parameter.numel() for parameter in skeleton.parameters())
            except ConfigError:
                found[point.size] = None
    return found


def summarise(
    spec: CurveSpec, points: Sequence[Point], done: Sequence[Done], wanted: Wanted, rows: Mapping[float, int]
) -> Curve:
    """The curve of finished runs.

    Raises:
        ConfigError: there is none, or split or metric is in none of them.
    """
    missing = [f"{d.point.title}: {d.problem}" for d in done if d.problem is not None]
    finished = [d for d in done if d.problem is None]
    if not finished:
        raise ConfigError(f"no run of the curve has finished; the first failed: {missing[0]}")
    first = read_results(finished[0].run)
    split = wanted.split or next(iter(first.splits))
    if split not in first.splits:
        raise ConfigError(f"--split {split!r} was not evaluated; the runs have {', '.join(first.splits)}")
    metric = wanted.metric or first.splits[split].metric
    results = []
    for d in finished:
        found = read_results(d.run)
        value = _value(found.splits.get(split), metric)
        if value is None:
            missing.append(f"{d.point.title}: no {metric} of {split} in {d.run}")
            continue
        point = d.point
        results.append(
            PointResult(
                method=point.method,
                size=point.size,
                fraction=point.fraction,
                seed=point.seed,
                value=value,
                run=str(d.run),
                steps=found.cost.steps,
            )
        )
    if not results:
        known = ", ".join(first.splits[split].rows.get("method", {})) or first.splits[split].metric
        raise ConfigError(f"--metric {metric!r} is in none of the runs; they have {known}")
    table, sizes = Table(results), spec.sizes or ("",)
    fractions = tuple(sorted(spec.fractions))
    reached = [
        table.reached(spec.method, baseline, size, fractions, metric in LOWER_IS_BETTER)
        for size in sizes
        for baseline in spec.against
    ]
    return Curve(
        method=spec.method,
        baselines=spec.against,
        data=points[0].experiment.data.name,
        split=split,
        metric=metric,
        fractions=fractions,
        seeds=spec.seeds,
        sizes=sizes,
        size_key=spec.size_key,
        parameters=parameters_of(points),
        points=tuple(results),
        cells=tuple(table.cells(spec.names, sizes, fractions, rows)),
        reached=tuple(found for found in reached if found is not None),
        missing=tuple(missing),
    )


def _value(split: SplitResult | None, metric: str) -> float | None:
    if split is None:
        return None
    if metric == split.metric:
        return split.method
    estimate = split.rows.get("method", {}).get(metric)
    return estimate.value if estimate is not None else split.others.get(metric)
