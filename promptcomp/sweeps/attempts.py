"""The attempts of one Optuna study: begun, read and told; and Optuna's samplers and pruners as a sweep uses them.

All that is private to Optuna is used here or in `study`, nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import random
import zlib
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from promptcomp.config import ConfigError
from promptcomp.experiment import TrainerConfig
from promptcomp.lightning_modules import METHODS
from promptcomp.sweeps.planning import Kind, Trial, TrialStatus
from promptcomp.sweeps.space import CONTROLS, point_id
from promptcomp.sweeps.sweep_config import Scalar, SweepConfig, is_below, keys_of


class Attempts:
    """The attempts at the trials (or the controls) of a sweep, running ones and those that are over.

    Args:
        storage: where they are.
        name: the study's.
        objectives: their names; none for controls, whose values are read from their runs.
    """

    def __init__(self, storage: BaseStorage, name: str, objectives: Sequence[str] = ()) -> None:
        self.storage, self._objectives = storage, objectives
        # only `draw_point` asks a sampler; a Trial must not ask an expensive one whenever it is re-attached
        self.study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
        self._study_id = storage.get_study_id_from_name(name)

    def frozen(self) -> list[FrozenTrial]:
        """All attempts, as Optuna has them."""
        return self.storage.get_all_trials(self._study_id, deepcopy=False)

    def records(self) -> list[Trial]:
        """All attempts."""
        ignored = set(self.attribute("ignored") or [])
        found = [record_of(trial, self._objectives) for trial in self.frozen()]
        return [replace(each, kind="void") if each.number in ignored else each for each in found]

    def attribute(self, name: str) -> Any:
        """A note on the study, None where there is none."""
        return self.storage.get_study_user_attrs(self._study_id).get(name)

    def set_attribute(self, name: str, value: Any) -> None:
        """Leave a note on the study."""
        self.storage.set_study_user_attr(self._study_id, name, value)

    def begin(self, planned: Trial, space: Mapping[str, BaseDistribution], **notes: Any) -> int:
        """Write down that an attempt is running; its number.

        Optuna gets to know its parameters, for samplers, importances and dashboard, but for a value that its dimension
        did not have when the study began: categories of a study are fixed.
        """
        known: dict[str, BaseDistribution] = {}
        for each in self.frozen():
            known |= {name: found for name, found in each.distributions.items() if name not in known}
        params: dict[str, Scalar] = {}
        for name in planned.params.keys() & space.keys():
            before, now = known.get(name, space[name]), space[name]
            if not isinstance(before, CategoricalDistribution) and type(before) is type(now):
                before = now
            with contextlib.suppress(ValueError, TypeError):
                if before._contains(before.to_internal_repr(planned.params[name])):
                    params[name], known[name] = planned.params[name], before
        trial = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: known[name] for name in params},
            user_attrs={**notes_of(planned), **notes, "started": _now()},
        )
        return self.storage.get_trial(self.storage.create_new_trial(self._study_id, trial)).number

    def note(self, number: int, **values: Any) -> None:
        """Leave notes on a running attempt; on a finished one they come too late and are dropped."""
        identity = self._id(number)
        with contextlib.suppress(UpdateFinishedTrialError):
            for name, value in values.items():
                self.storage.set_trial_user_attr(identity, name, value)

    def report(self, number: int, values: Mapping[int, float], sign: float) -> None:
        """Tell Optuna the dev metric at some training steps, those that it does not know yet."""
        trial = optuna.Trial(self.study, self._id(number))
        known = self.storage.get_trial(self._id(number)).intermediate_values
        with contextlib.suppress(UpdateFinishedTrialError):
            for step in sorted(values.keys() - known.keys()):
                trial.report(sign * values[step], step)

    def complete(self, number: int, values: list[float], constraints: Mapping[str, float], spent: float) -> None:
        """Tell a result, unless the attempt is over already; `spent`: device seconds."""
        with contextlib.suppress(UpdateFinishedTrialError):
            trial = optuna.Trial(self.study, self._id(number))
            known = self.storage.get_trial(self._id(number)).constraints
            for name, value in constraints.items():
                if name not in known:
                    trial.set_constraint(name, value)
        self._end(number, TrialState.COMPLETE, values, device_seconds=spent)

    def prune(self, number: int, spent: float) -> None:
        """Tell that an attempt was stopped as hopeless, unless it is over already."""
        self._end(number, TrialState.PRUNED, device_seconds=spent)

    def fail(self, number: int, kind: Kind, problem: str = "", spent: float = 0.0) -> None:
        """Tell that an attempt ended without a result, unless it is over already."""
        self._end(number, TrialState.FAIL, kind=kind, problem=problem, device_seconds=spent)

    def _end(self, number: int, state: TrialState, values: list[float] | None = None, **notes: Any) -> None:
        if not self.storage.get_trial(self._id(number)).state.is_finished():
            self.note(number, **notes, ended=_now())
            with contextlib.suppress(ValueError, UpdateFinishedTrialError):
                self.study.tell(number, values, state)

    def ignore(self, *numbers: int) -> None:
        """Leave finished attempts out of account from now on (they can no longer be changed themselves)."""
        if numbers:
            self.set_attribute("ignored", sorted({*(self.attribute("ignored") or []), *numbers}))

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def notes_of(planned: Trial) -> dict[str, Any]:
    """What an attempt's notes say of its place in the plan."""
    return {"point": planned.point, "seed": planned.seed, "attempt": planned.attempt, "params": dict(planned.params)}


_STATUS: dict[TrialState, TrialStatus] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def record_of(trial: FrozenTrial, objectives: Sequence[str] = ()) -> Trial:
    """An attempt, from Optuna's trial; `objectives`: names of its values."""
    notes = trial.user_attrs
    params, cell = notes.get("params"), str(notes.get("cell", ""))
    point = str(notes.get("point", "")) if "cell" in notes else ""
    values = (trial.values or ()) if trial.state == TrialState.COMPLETE else ()
    return Trial(
        number=trial.number,
        cell=cell,
        point=point,
        params=params if isinstance(params, dict) else {},
        seed=int(notes.get("seed", 0)),
        status=_STATUS[trial.state],
        attempt=int(notes.get("attempt", 1)),
        run=Path(str(notes.get("run") or f"{'controls' if point in CONTROLS else 'runs'}/{cell}")),
        values=dict(zip(objectives, values, strict=False)),
        constraints=dict(trial.constraints),
        reports=tuple(sorted(trial.intermediate_values.items())),
        worker=str(notes.get("worker", "")),
        started=time_of(notes.get("started")),
        ended=time_of(notes.get("ended")),
        device_seconds=float(notes.get("device_seconds", 0.0)),
        problem=str(notes.get("problem", "")),
        kind=notes.get("kind", ""),
        place=str(notes.get("place", "")),
        devices=int(notes.get("devices", 1)),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()


def time_of(note: Any) -> datetime | None:
    """A time as `_now` has written it; None where there is none."""
    try:
        found = datetime.fromisoformat(str(note))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def make_study(storage: BaseStorage, name: str, directions: Sequence[Literal["maximize", "minimize"]]) -> None:
    """Make a study, if there is none of this name.

    Raises:
        ConfigError: the storage holds something else.
    """
    if name not in {study.study_name for study in storage.get_all_studies()}:
        try:
            optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"the study {name!r} cannot be opened: {error}") from None


_TRIES = 20
_ENUMERABLE = 100_000
_OTHER_METRIC = ("data", "lm", "method.name", "trainer.max_steps", "trainer.eval_every", "trainer.batch_size")
"""Keys that change what a dev value means, how soon it comes, or how hard the task is: runs that differ in them say
nothing about each other half-way."""


def sampler_of(config: SweepConfig, turn: int) -> BaseSampler:
    """A sampler whose random numbers are those of one draw: equal after a restart, unequal for any two draws.

    Args:
        config: the sweep.
        turn: how many draws there were before, by all workers.
    """
    digest = hashlib.sha256(f"{config.sampler_seed} {turn}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    points = config.points or 1
    if config.sampler == "tpe":
        return TPESampler(seed=seed, n_startup_trials=min(10, max(3, points // 4)))
    if config.sampler == "nsga2":
        return NSGAIISampler(seed=seed, population_size=min(50, max(4, points // 4)))
    return RandomSampler(seed=seed)


def draw_point(
    study: Attempts, config: SweepConfig, space: dict[str, BaseDistribution], known: Collection[str]
) -> tuple[int, dict[str, Scalar]] | None:
    """Have the sampler draw a point that there is not yet.

    Args:
        study: the trials.
        config: the sweep.
        space: what is drawn from.
        known: identities of the points there are.

    Returns:
        The new attempt's number and its parameters; None when every point of the space has been drawn.
    """
    first = len(study.frozen())
    turn = first + _TRIES
    for draw in range(first, turn):
        drawing = optuna.load_study(
            study_name=study.study.study_name, storage=study.storage, sampler=sampler_of(config, draw)
        )
        trial = drawing.ask(fixed_distributions=space)
        if point_id(trial.params) not in known:
            return trial.number, dict(trial.params)
        study.fail(trial.number, "void")
    rest = [params for params in _all_points(space) if point_id(params) not in known]
    if not rest:
        return None
    params = random.Random(turn).choice(rest)
    return study.begin(Trial(point=point_id(params), params=params, seed=config.first_seed), space), params


def _all_points(space: Mapping[str, BaseDistribution]) -> list[dict[str, Scalar]]:
    axes: list[Sequence[Scalar]] = []
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            axes.append(distribution.choices)
        elif isinstance(distribution, IntDistribution):
            axes.append(range(distribution.low, distribution.high + 1, distribution.step))
        else:
            return []
    if math.prod(map(len, axes)) > _ENUMERABLE:
        return []
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def is_hopeless(study: Attempts, config: SweepConfig, asked: Trial, trainer: TrainerConfig, metric: str) -> bool:
    """Ask the pruner about a running attempt, among those that it may be compared with."""
    rule, first = config.pruning, max(1, trainer.eval_every, config.pruning.warmup_steps)
    if rule.pruner == "none":
        return False
    own = comparable_part(config, asked.params, metric)
    bracket = _bracket(config, asked.number, trainer.max_steps / first)
    pruner: BasePruner
    if rule.pruner == "median":
        pruner = MedianPruner(n_startup_trials=rule.startup_trials, n_warmup_steps=rule.warmup_steps)
    else:
        pruner = SuccessiveHalvingPruner(
            min_resource=first, reduction_factor=rule.reduction, min_early_stopping_rate=bracket
        )

    def is_comparable(trial: FrozenTrial) -> bool:
        record = record_of(trial)
        return trial.number == asked.number or (
            record.status != "failed"
            and comparable_part(config, record.params, metric) == own
            and _bracket(config, record.number, trainer.max_steps / first) == bracket
        )

    class Comparable(optuna.Study):
        """A study that shows a pruner only the attempts that are like the one in question."""

        def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
            return [trial for trial in super().get_trials(deepcopy=deepcopy, states=states) if is_comparable(trial)]

    trial = next(each for each in study.frozen() if each.number == asked.number)
    return pruner.prune(Comparable(study.study.study_name, study.storage, sampler=RandomSampler()), trial)


def _bracket(config: SweepConfig, number: int, rungs: float) -> int:
    """Hyperband's bracket of an attempt: how many rungs its first one is skipped; 0 for other pruners.

    As Optuna's HyperbandPruner (Li et al. 2018, algorithm 1) has it; that one cannot be told which attempts to compare.
    """
    if config.pruning.pruner != "hyperband":
        return 0
    factor = config.pruning.reduction
    count = int(math.log(max(1.0, rungs), factor) + 1e-9) + 1
    shares = [math.ceil(count * factor ** (count - 1 - i) / (count - i)) for i in range(count)]
    place = zlib.crc32(str(number).encode()) % sum(shares)
    return next(i for i in range(count) if place < sum(shares[: i + 1]))


def comparable_part(config: SweepConfig, params: Mapping[str, Scalar], metric: str) -> dict[str, Scalar]:
    """The parameters that runs must share for their dev values to be comparable half-way."""
    parts = {*_OTHER_METRIC, *(f"method.{key}" for section in METHODS.values() for key in section.difficulty_keys)}
    if "loss" in metric:
        parts |= {f"method.{key}" for section in METHODS.values() for key in section.loss_keys}

    def matters(name: str) -> bool:
        keys = keys_of(name, config.space[name]) if name in config.space else [name]
        return any(is_below(key, parts) or any(is_below(part, [key]) for part in parts) for key in keys)

    return {name: value for name, value in params.items() if matters(name)}
