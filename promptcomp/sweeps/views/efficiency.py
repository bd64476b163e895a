"""How much data a method saves, in any sweep over shares of the training data and over methods.

Such a sweep lists values of `data.train_share` and has a dimension that chooses methods. The first of them is held
against the others, the baselines. Intervals of means are Student's t over seeds (95 %); the interval of the share at
which a baseline is reached comes from resampling the seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from promptcomp.config import ConfigError, Measured, build, read_yaml
from promptcomp.evaluation.bootstrap import CONFIDENCE, Mean, mean_of
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.space import SHARE, scalars
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.sweep_config import SweepConfig, is_numeric, keys_of
from promptcomp.sweeps.values import Goal, goals_of, is_lower_better, metric_of
from promptcomp.sweeps.views.numbers import Runs, is_of_run, mean_difference, plain_line
from promptcomp.sweeps.views.wording import axis_of, mean_text, params_text, scalar_text
from promptcomp.terminal import open_table

_RESAMPLES = 2000
_ALL_DRAWS = 3200
"""Up to so many, all draws of seeds are taken instead of random ones (5 seeds have 3125)."""
Values = dict[tuple[str, str, float], dict[int, float]]
"""(method, size, share) -> seed -> value."""


class EfficiencyRow(Measured):
    """One share of the data, at one size."""

    size: str
    share: float
    values: dict[str, Mean]
    """Method -> mean over seeds."""
    minus: dict[str, Mean] = {}
    """Baseline -> the first method minus the baseline, seed by seed."""


class Reached(Measured):
    """The share of the data at which the method is as good as a baseline with all of it."""

    size: str
    baseline: str
    target: Mean
    """The baseline at the largest share."""
    target_share: float
    first: float | None
    """Smallest share that was run whose mean reaches the target; null: none does."""
    share: float | None
    """The same between the shares that were run (straight lines over the logarithm of the share)."""
    at_most: bool = False
    """Already the smallest share reaches it, so the true share may be smaller."""
    ci: tuple[float, float | None] | None = None
    """95 % interval over draws of seeds; null at its end: not reached; null: one seed, or all draws say the same."""
    resampled: float | None = None
    """Share of the draws in which it is reached."""

    def sentence(self, method: str) -> str:
        """The same as a sentence."""
        who = f"{self.size}: {method}" if self.size else method
        target = f"the score of {self.baseline} with share {self.target_share:g} ({mean_text(self.target)})"
        if self.share is None:
            text = f"{who} does not reach {target} at any share that was run"
        else:
            share = f"{'at most' if self.at_most else 'about'} {self.share:.3g}"
            text = f"{who} reaches {target} at a share of {share} (first share run that does: {self.first:g})"
        if self.ci is not None:
            low, high = self.ci
            text += f"; 95 % interval over resampled seeds: {low:.3g} to {'never' if high is None else f'{high:.3g}'}"
        elif self.resampled is not None:
            text += f"; reached in {self.resampled:.0%} of the resamples of seeds"
        return text + "."


class Efficiency(Measured):
    """What a sweep over shares of the training data says (efficiency.json)."""

    metric: str
    split: str | None
    method: str
    baselines: tuple[str, ...]
    sizes: dict[str, int | None]
    """Whatever else varies, in words ("" where nothing does) -> parameters of the LM, null where they are not known
    or nothing varies."""
    shares: tuple[float, ...]
    rows: tuple[EfficiencyRow, ...]
    reached: tuple[Reached, ...]
    missing: tuple[str, ...] = ()
    """Trials that have ended without this value, and why."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The method, then the baselines."""
        return (self.method, *self.baselines)

    @property
    def heading(self) -> str:
        """What the table shows: `exact_match (test) against the share of the training data`."""
        where = f" ({self.split})" if self.split else ""
        return f"{self.metric.replace('_', ' ')}{where} against the share of the training data"

    @property
    def places(self) -> tuple[str, ...]:
        """The columns of the table that say which row it is."""
        known = any(count is not None for count in self.sizes.values())
        return ("size", *(["parameters"] if known else []), "share") if len(self.sizes) > 1 else ("share",)

    @property
    def table(self) -> list[list[str]]:
        """Names of columns, then a line for each size and share: the methods' means, the differences to baselines."""
        lines = [[*self.places, *self.methods, *(f"minus {name}" for name in self.baselines)]]
        for row in self.rows:
            count = self.sizes[row.size]
            place = {"size": row.size, "parameters": f"{count:,}" if count else "-", "share": f"{row.share:g}"}
            means = [mean_text(row.values.get(name)) for name in self.methods]
            minus = [mean_text(row.minus.get(name), sign="+") for name in self.baselines]
            lines.append([*(place[name] for name in self.places), *means, *minus])
        return lines

    @property
    def sentences(self) -> list[str]:
        """Where the baselines are reached, and what is missing."""
        return [*(each.sentence(self.method) for each in self.reached), *(f"missing: {text}" for text in self.missing)]


def efficiency_of(state: SweepState, metric: str | None = None, split: str | None = None) -> Efficiency | None:
    """What a sweep says about shares of the training data.

    Args:
        state: as read.
        metric: None: the sweep's first objective.
        split: None: the objective's, or the first split of the results.

    Returns:
        None: the sweep has not these two dimensions, or no trial has a value yet.

    Raises:
        ConfigError: trials have finished, and none has this metric or split.
    """
    chooser = _chooser(state.config)
    if chooser is None:
        return None
    others = [name for name in state.config.space if name not in (chooser, SHARE)]
    others = [name for name in others if len({repr(trial.params.get(name)) for trial in state.trials}) > 1]
    runs, goal, own = Runs(state), _goal(state.config, metric, split), metric is None and split is None
    values: Values = {}
    sizes: dict[str, Trial] = {}
    missing = []
    for trial in state.trials:
        value = runs.value(trial, goal, None) if own else None
        if not own and trial.status == "finished" and (results := runs.results(trial.run)) is not None:
            value = metric_of(results, goal.metric, goal.split)
        if value is not None:
            size = params_text(trial.params, others) if others else ""
            sizes.setdefault(size, trial)
            key = (scalar_text(trial.params[chooser]), size, float(trial.params[SHARE] or 0))
            values.setdefault(key, {})[trial.seed] = value
        elif trial.status in ("finished", "failed", "pruned"):
            why = "pruned" if trial.status == "pruned" else trial.problem or "no such value"
            missing.append(f"{params_text(trial.params)}, seed {trial.seed}: {why}")
    if not values:
        if own or not any(trial.status == "finished" for trial in state.trials):
            return None
        where = f"split {goal.split!r}" if goal.split else "the first split"
        known = _goal(state.config, None, None)
        raise ConfigError(
            f"no trial has {goal.metric} of {where}; {known.metric} is there for {', '.join(runs.splits(known))}"
        )
    axes = [axis_of(state.config, name, [trial.params for trial in sizes.values()]) for name in others]
    sizes = dict(sorted(sizes.items(), key=lambda item: [axis.place(item[1].params[axis.name]) for axis in axes]))
    listed = map(scalar_text, scalars(state.config.space[chooser]) or ())
    names = [name for name in listed if any(key[0] == name for key in values)]
    shares = tuple(sorted({share for _, _, share in values}))
    lower = goal.direction == "minimize"
    found = [reached(values, names[0], base, size, shares, lower) for size in sizes for base in names[1:]]
    return Efficiency(
        metric=goal.metric,
        split=goal.split or next(iter(runs.splits(goal)), None),
        method=names[0],
        baselines=tuple(names[1:]),
        sizes={size: _parameters(trial) if others else None for size, trial in sizes.items()},
        shares=shares,
        rows=tuple(rows_of(values, names, tuple(sizes), shares)),
        reached=tuple(each for each in found if each is not None),
        missing=tuple(missing),
    )


def _chooser(config: SweepConfig) -> str | None:
    """The dimension that chooses methods, of a sweep over listed shares of the data; None: another kind of sweep."""
    share = config.space.get(SHARE)
    if share is None or not is_numeric(share) or scalars(share) is None:
        return None
    for name, dimension in config.space.items():
        if not {"method", "method.name"}.isdisjoint(keys_of(name, dimension)):
            return name
    return None


def _goal(config: SweepConfig, metric: str | None, split: str | None) -> Goal:
    goals = goals_of(config)
    own = next((goal for goal in goals if not is_of_run(goal.metric)), goals[0])
    split = split or own.split
    if metric is None or metric == own.metric:
        return own.model_copy(update={"split": split})
    direction = "minimize" if is_lower_better(metric) else "maximize"
    return Goal(name=metric, metric=metric, split=split, direction=direction)


def _parameters(trial: Trial) -> int | None:
    """Parameters of a trial's LM; None where its architecture cannot be read."""
    from promptcomp.language_model import LanguageModel, LanguageModelConfig

    try:
        lm = build(LanguageModelConfig, read_yaml(trial.run / "config.yaml").get("lm") or {})
        return sum(parameter.numel() for parameter in LanguageModel.skeleton(lm).parameters())
    except ConfigError:
        return None


def rows_of(
    values: Values, methods: Sequence[str], sizes: Sequence[str], shares: Sequence[float]
) -> Iterator[EfficiencyRow]:
    """A row for every size and share that has a value; the first method is compared with the others."""
    for size, share in itertools.product(sizes, shares):
        found = {name: values[name, size, share] for name in methods if (name, size, share) in values}
        own = found.get(methods[0], {})
        differences = {name: mean_difference(own, found[name]) for name in methods[1:] if name in found}
        minus = {name: mean for name, mean in differences.items() if mean is not None}
        if found:
            means = {name: mean_of(list(each.values())) for name, each in found.items()}
            yield EfficiencyRow(size=size, share=share, values=means, minus=minus)


def reached(
    values: Values, method: str, baseline: str, size: str, shares: Sequence[float], lower_is_better: bool
) -> Reached | None:
    """Where the method reaches the baseline at the largest share; None: some point has no value.

    Only seeds with all values count.
    """
    columns = [values.get((method, size, share), {}) for share in shares] + [
        values.get((baseline, size, shares[-1]), {})
    ]
    seeds = sorted(set.intersection(*(set(column) for column in columns)))
    if not seeds:
        return None
    sign = -1.0 if lower_is_better else 1.0
    table = sign * np.array([[column[seed] for column in columns] for seed in seeds])  # [seeds, shares + 1]
    means = table.mean(0)
    share = crossing(shares, means[:-1], float(means[-1]))
    draws = [crossing(shares, drawn[:-1], float(drawn[-1])) for drawn in _draws(table)]
    ci = None
    if draws:
        inside = np.array([math.inf if draw is None else draw for draw in draws])
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(inside, [tail, 1 - tail], method="inverted_cdf")
        if math.isfinite(low) and low != high:
            ci = (float(low), float(high) if math.isfinite(high) else None)
    return Reached(
        size=size,
        baseline=baseline,
        target=mean_of(list((sign * table[:, -1]).tolist())),
        target_share=shares[-1],
        first=next((each for each, mean in zip(shares, means[:-1], strict=True) if mean >= means[-1]), None),
        share=share,
        at_most=share is not None and share == shares[0],
        ci=ci,
        resampled=sum(draw is not None for draw in draws) / len(draws) if draws else None,
    )


def crossing(shares: Sequence[float], values: Sequence[float] | np.ndarray, target: float) -> float | None:
    """The smallest share at which a method reaches `target`, with straight lines over the logarithm of the share.

    Args:
        shares: rising.
        values: the method's there; higher is better.
        target: what is to be reached.

    Returns:
        None: it is not reached.
    """
    for i, (share, value) in enumerate(zip(shares, values, strict=True)):
        if value >= target:
            if i == 0:
                return share
            before = float(values[i - 1])
            part = (target - before) / (float(value) - before)
            low, high = math.log(shares[i - 1]), math.log(share)
            return math.exp(low + part * (high - low))
    return None


def _draws(table: np.ndarray) -> list[np.ndarray]:
    """Mean rows over draws of seeds with replacement; none for one seed."""
    count = len(table)
    if count < 2:
        return []
    if count**count <= _ALL_DRAWS:
        index = np.array(list(itertools.product(range(count), repeat=count)))
    else:
        index = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    return list(table[index].mean(1))


def print_efficiency(found: Efficiency, console: Console) -> None:
    """The table and what it says; where there is no room for both, differences have a table of their own."""
    lines, start = [[plain_line(text) for text in line] for line in found.table], len(found.places)
    end = start + len(found.methods)
    console.print(Text(found.heading))
    parts = [lines]
    if sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) > console.width + 2:
        parts = [[line[:end] for line in lines]]
        parts += [[[*line[:start], *line[end:]] for line in lines]] if found.baselines else []
    for number, (names, *rows) in enumerate(parts):
        table = open_table()
        for name in names:
            table.add_column(Text(name), justify="left" if name == "size" else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        if number:
            console.print()
        console.print(table)
    for sentence in found.sentences:
        console.print(Text(plain_line(sentence)))
