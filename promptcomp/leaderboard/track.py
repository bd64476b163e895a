"""A track: data and an LM, and which methods and rivals are held against each other at which budgets.

A track is an ordinary sweep with one dimension, `row`: each method at each number of slots with each learning rate, and
what trains nothing and scores all rivals. Every trained row has the track's data, LM, optimiser and steps, and as many
learning rates as every other.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from promptcomp.config import Config, build, read_yaml
from promptcomp.documents import experiment_file, shipped
from promptcomp.errors import ConfigError, did_you_mean
from promptcomp.evaluation.formatting import many
from promptcomp.evaluation.predictions import LOWER_IS_BETTER
from promptcomp.leaderboard.board_row import ROW_NAME, RowBudget
from promptcomp.rivals.rival import Share
from promptcomp.sweeps.checking import headline_of
from promptcomp.sweeps.space import experiment_of
from promptcomp.sweeps.sweep_config import SweepConfig, is_below
from promptcomp.sweeps.sweep_file import apply_words, only_set, sorted_words, untangled, with_full_path

if TYPE_CHECKING:
    from promptcomp.experiment import Experiment
    from promptcomp.rivals import Rival

DIMENSION = "row"
UNTRAINED = "rivals"
"""The choice that trains nothing; where two rivals have one name, further ones follow: rivals-1, ..."""
_CONTROLS = {"shuffled": "another context's memory", "random": "random slots"}
"""What is scored beside every trained row, as it needs its memory."""
_OURS = {
    "optim.lr": "give --rates",
    "evaluation.rivals": "give --rivals",
    "evaluation.bounds": "a leaderboard needs the bounds",
    "method.num_slots": "give --slots",
    "seed": "give --seeds",
}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _keys(value: Any) -> Any:
    return {name: {} for name in value} if isinstance(value, list | tuple) else value


class Track(Config):
    """A leaderboard's track: data and an LM, and what is compared on them at which budgets."""

    title: str = ""
    """What the board is called."""
    experiment: str
    """A shipped experiment or a YAML file: its data, LM, optimiser and steps are those of every row."""
    set: dict[str, Any] = {}
    """Dotted key -> value, for every row."""
    methods: Annotated[dict[str, dict[str, Any]], BeforeValidator(_keys)] = {}
    """Name -> dotted keys of this method; its `method` section is that of the shipped experiment of this name, or of
    `experiment` where that is one of the keys. `rates`: its own learning rates, as many as those of all others."""
    slots: tuple[Annotated[int, Field(gt=0)], ...] = Field((4, 16), min_length=1)
    """Budgets in slots."""
    bytes: tuple[Share, ...] = ()
    """Budgets as shares of the bytes of the full context's keys and values (1/8)."""
    rivals: tuple[Annotated[dict[str, Any], BeforeValidator(_named)], ...] = ()
    """Names, or sections of `evaluation.rivals`, without a budget."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field((1e-3, 3e-3), min_length=1)
    """Learning rates of a trained row; one of them is chosen on dev."""
    seeds: int = Field(3, ge=1)
    """Seeds of every row."""
    split: str | None = None
    """What is scored; null: the first test split."""
    metric: Literal["accuracy", "exact_match", "rougeL", "loss"] | None = None
    """What it is scored by; null: the data's metric, or accuracy where that is no mean over examples. accuracy: of
    chosen options; exact_match: of generated answers; rougeL: of generated answers; loss: of the right answers."""


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row before it has results."""

    method: str
    title: str
    paper: str
    budget: RowBudget
    is_trained: bool = False
    is_control: bool = False
    query_aware: bool = False
    choices: Mapping[str, float | None] = field(default_factory=dict)
    """Choice of the sweep -> its learning rate; None: nothing is trained."""
    result: str = "method"
    """The row of results.json that it is."""
    failure: str = ""
    """Why it cannot be."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-{self.budget.text}"


@dataclass(frozen=True, slots=True)
class TrackPlan:
    """A track's rows and the sweep that makes them."""

    track: Track
    sweep: SweepConfig
    rows: tuple[PlannedRow, ...]
    experiment: Experiment
    """Of the first choice."""


def read_track(name: str, given: Mapping[str, Any]) -> Track:
    """A shipped track or a YAML file, with what the command was given instead of its own.

    Raises:
        ConfigError: it is neither, or a mistake in it.
    """
    known = shipped("leaderboards")
    if name not in known and not name.endswith((".yaml", ".yml")):
        hint = did_you_mean(name, known, f"shipped tracks: {', '.join(known)}")
        raise ConfigError(f"{name!r} is no shipped track and no YAML file; {hint}")
    path = known.get(name, Path(name))
    tree = read_yaml(path)
    own, wanted = _keys(tree.get("methods") or {}), given.get("methods")
    tree |= {key: value for key, value in given.items() if value}
    if given.get("rates") and isinstance(own, Mapping):  # they are for all
        own = {name: {key: value for key, value in keys.items() if key != "rates"} for name, keys in own.items()}
        tree["methods"] = own
    if wanted and isinstance(own, Mapping):
        tree["methods"] = {method: own.get(method, {}) for method in wanted}
    return build(Track, with_full_path(tree, path.parent), source=name)


def plan_of(track: Track, words: Iterable[str] = ()) -> TrackPlan:
    """The rows of a track and the sweep that makes them.

    Args:
        track: the track.
        words: `key=value` for every row, `NAME:key=value` for one method, `sweep.key=value` for the sweep.

    Raises:
        ConfigError: a mistake in names, words or settings, or nothing to run.
    """
    words = tuple(words)
    _refuse(track, words)
    shared, own = sorted_words(track.methods, words, "track")
    tree: dict[str, Any] = {
        "title": track.title or f"leaderboard of {track.experiment}",
        "experiment": track.experiment,
        "space": {},
        "set": dict(track.set),
        "seeds": track.seeds,
        "objectives": [{"metric": track.metric or "method", **({"split": track.split} if track.split else {})}],
    }
    tree = apply_words(tree, shared)
    if tree.get("space"):
        raise ConfigError(f"{', '.join(tree['space'])}: one value; what a leaderboard tries are methods, slots, rates")
    choices, rows = dict[str, dict[str, Any]](), list[PlannedRow]()
    trained = (
        _trained(track, name, {**keys, **only_set(name, own[name])}, tree) for name, keys in track.methods.items()
    )
    for made, found in (*trained, _untrained(track, tree)):
        choices |= made
        rows += found
    if not choices:
        raise ConfigError("a leaderboard needs a method or a rival that can be run; give --methods or --rivals")
    sweep = _sweep(tree, choices)
    experiment = experiment_of(sweep, {DIMENSION: next(iter(choices))}, 0)
    if (track.metric or headline_of(experiment)) in LOWER_IS_BETTER:
        aim = sweep.objectives[0].model_copy(update={"direction": "minimize"})
        sweep = sweep.model_copy(update={"objectives": (aim,)})
    if twice := {row.name for row in rows if sum(row.name == each.name for each in rows) > 1}:
        raise ConfigError(f"{min(twice)} would be two rows; give each method, rival and budget once")
    if odd := next((row for row in rows if not re.match(ROW_NAME, row.name)), None):
        raise ConfigError(f"{odd.method!r}: a row is a folder; name it with letters, digits, '.', '_' and '-' alone")
    return TrackPlan(track, sweep, tuple(rows), experiment)


def _sweep(tree: Mapping[str, Any], choices: Mapping[str, Mapping[str, Any]]) -> SweepConfig:
    whole = untangled({**tree, "space": {DIMENSION: {"choices": choices}}}, DIMENSION)
    return build(SweepConfig, whole, source="leaderboard")


def _refuse(track: Track, words: Iterable[str]) -> None:
    """Refuse words that are not for the user to say, or that are for a method and do not say which."""
    for word in words:
        key = word.partition("=")[0]
        for taken, instead in _OURS.items():
            if is_below(key.rpartition(":")[2], [taken]):
                raise ConfigError(f"{word!r}: {instead}")
        if is_below(key, ["method"]):
            raise ConfigError(f"{word!r}: say of which method, for example {next(iter(track.methods), 'mend')}:{word}")


def _trained(
    track: Track, name: str, keys: Mapping[str, Any], tree: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[PlannedRow]]:
    """A method at each number of slots with each rate, and the controls that need its memory. A budget that its
    configuration refuses is a row with the reason; where all are refused, the mistake is elsewhere."""
    section = read_yaml(experiment_file(str(keys.get("experiment", name)))).get("method")
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name}: its experiment has no method section")
    own = {key: value for key, value in keys.items() if key not in ("experiment", "rates")}
    rates = _rates(track, name, keys)
    choices, rows, problems = dict[str, dict[str, Any]](), list[PlannedRow](), list[ConfigError]()
    for slots in track.slots:
        settings = {"method": {**section, "num_slots": slots}, **own}
        settings["evaluation.rivals"] = [{"name": control} for control in _CONTROLS]
        of_rate = {f"{name}-{slots}-lr{rate:g}": {**settings, "optim.lr": rate} for rate in rates}
        if len(of_rate) < len(rates):
            raise ConfigError(f"rates {', '.join(f'{rate:g}' for rate in rates)}: give each rate once")
        known = dict(zip(of_rate, rates, strict=True))
        row = PlannedRow(name, name, "", RowBudget(kind="slots", requested=slots), is_trained=True, choices=known)
        one = dict([next(iter(of_rate.items()))])
        try:
            method = experiment_of(_sweep(tree, one), {DIMENSION: next(iter(one))}, 0).method
        except ConfigError as error:
            problems.append(error)
            rows.append(replace(row, failure=str(error).splitlines()[-1].strip()))
            continue
        choices |= of_rate
        title = method.title if method.name == name else f"{method.title} ({name})"
        rows.append(replace(row, title=title, paper=method.paper))
        for control, label in _CONTROLS.items():
            if control == "shuffled" or name == next(iter(track.methods)):  # random slots are the same for all
                own_title = f"{label} ({title})"
                rows.append(replace(row, method=f"{control}_{name}", title=own_title, is_trained=False, is_control=True,
                                    result=control))  # fmt: skip
    if problems and len(problems) == len(track.slots):
        raise problems[0]
    return choices, rows


def _rates(track: Track, name: str, keys: Mapping[str, Any]) -> tuple[float, ...]:
    """A method's own learning rates, or those of the track."""
    if "rates" not in keys:
        return track.rates
    rates = build(Track, {"experiment": track.experiment, "rates": keys["rates"]}, source=name).rates
    if len(rates) != len(track.rates):
        raise ConfigError(
            f"{name}: {many(len(rates), 'rate')} where the others have {len(track.rates)}; give each method as many"
        )
    return rates


def _untrained(track: Track, tree: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[PlannedRow]]:
    """All rivals at all budgets behind a method that trains nothing."""
    asked = [RowBudget(kind="slots", requested=slots) for slots in track.slots]
    asked += [RowBudget(kind="bytes", requested=share) for share in track.bytes]
    parts: dict[str, dict[str, Mapping[str, Any]]] = {}
    rows = list[PlannedRow]()
    for section in track.rivals:
        plain = _rival(section, tree)
        for budget in asked:
            row = PlannedRow(plain.row, plain.label, plain.paper, budget, is_control=plain.is_control,
                             query_aware=plain.sees_queries)  # fmt: skip
            if budget.kind not in type(plain).model_fields:
                if budget.kind == "slots" and not plain.is_control:  # controls come with the trained rows
                    rows.append(replace(row, failure="it has no budget in slots"))
                continue  # without a budget in bytes it enters there with its slots, as trained rows do
            asks = {**section, budget.kind: int(budget.requested) if budget.kind == "slots" else budget.requested}
            name = _rival(asks, tree).row
            numbered = (f"{UNTRAINED}-{number}" if number else UNTRAINED for number in itertools.count())
            choice = next(each for each in numbered if name not in parts.get(each, {}))
            parts.setdefault(choice, {})[name] = asks
            rows.append(replace(row, choices={choice: None}, result=name))
    return {choice: _scoring([*part.values()]) for choice, part in parts.items()}, rows


def _scoring(rivals: list[Mapping[str, Any]]) -> dict[str, Any]:
    """A run that trains nothing."""
    return {"method": {"name": "no_prompt"}, "trainer.max_steps": 0, "evaluation.rivals": rivals}


def _rival(section: Mapping[str, Any], tree: Mapping[str, Any]) -> Rival:
    """A rival, checked against the track's data.

    Raises:
        ConfigError: no such rival or key.
    """
    sweep = _sweep(tree, {UNTRAINED: _scoring([section])})
    experiment = experiment_of(sweep, {DIMENSION: UNTRAINED}, 0)
    return experiment.evaluation.rivals[0]
