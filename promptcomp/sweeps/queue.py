"""One Optuna study as a queue of trials: reading, planning, taking, telling; and Optuna's samplers and
pruners as a sweep uses them. All that is private to Optuna is used here or in `study`, nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import random
import zlib
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from promptcomp.config import ConfigError
from promptcomp.lightning_modules import METHODS
from promptcomp.sweeps.planning import Kind, Planned, TrialRecord
from promptcomp.sweeps.space import point_id
from promptcomp.sweeps.sweep_config import Choices, Scalar, SweepConfig


class Queue:
    """The trials (or the controls) of a sweep.

    Args:
        storage: where they are.
        name: the study's.
        is_control: its trials are controls.
    """

    def __init__(self, storage: BaseStorage, name: str, is_control: bool = False) -> None:
        self.storage, self.is_control = storage, is_control
        # the sampler is only ever asked by `draw`; a Trial must not ask an expensive one whenever it is re-attached
        self.study = optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())
        self._study_id = storage.get_study_id_from_name(name)

    def frozen(self) -> list[FrozenTrial]:
        """All attempts, as Optuna has them."""
        return self.storage.get_all_trials(self._study_id, deepcopy=False)

    def records(self) -> list[TrialRecord]:
        """All attempts."""
        ignored = set(self.attribute("ignored") or [])
        found = [record_of(trial) for trial in self.frozen()]
        return [replace(each, kind="void") if each.number in ignored else each for each in found]

    def attribute(self, name: str) -> Any:
        """A note on the study, None where there is none."""
        return self.storage.get_study_user_attrs(self._study_id).get(name)

    def set_attribute(self, name: str, value: Any) -> None:
        """Leave a note on the study."""
        self.storage.set_study_user_attr(self._study_id, name, value)

    def enqueue(self, planned: Planned, cell: str) -> None:
        """Put an attempt into the queue."""
        attributes = {
            "point": planned.point,
            "seed": planned.seed,
            "attempt": planned.attempt,
            "params": dict(planned.params),
            "cell": cell,
        }
        self.study.enqueue_trial(dict(planned.params), user_attrs=attributes)

    def take(self, number: int, worker: str, place: str) -> bool:
        """Take a waiting attempt; False when another worker was faster."""
        identity = self._id(number)
        try:
            taken = self.storage.set_trial_state_values(identity, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False
        if taken:
            self.note(number, worker=worker, place=place, started=_now())
        return bool(taken)

    def put_parameters(self, number: int, params: Mapping[str, Scalar], space: Mapping[str, BaseDistribution]) -> None:
        """Have Optuna know a planned attempt's parameters, for its samplers, importances and dashboard.

        A value that its dimension did not have when the study began is left out: categories of a study are fixed.
        """
        known: dict[str, BaseDistribution] = {}
        for trial in self.frozen():
            known.update({name: each for name, each in trial.distributions.items() if name not in known})
        identity = self._id(number)
        for name, value in params.items():
            distribution = space.get(name)
            if distribution is None:
                continue
            before = known.get(name)
            if before is not None and isinstance(before, CategoricalDistribution):
                distribution = before
            with contextlib.suppress(ValueError):
                inner = distribution.to_internal_repr(value)
                if before is not None and type(before) is not type(distribution):
                    distribution = before
                self.storage.set_trial_param(identity, name, inner, distribution)

    def draw(self, space: dict[str, BaseDistribution], sampler: BaseSampler) -> tuple[int, dict[str, Scalar]]:
        """Have a sampler choose a point: a new running attempt's number and parameters. For an empty queue."""
        self.study.sampler = sampler
        try:
            trial = self.study.ask(fixed_distributions=space)
        finally:
            self.study.sampler = RandomSampler()
        return trial.number, dict(trial.params)

    def note(self, number: int, **values: Any) -> None:
        """Leave notes on an attempt that is queued or running; on a finished one they come too late and are dropped."""
        identity = self._id(number)
        with contextlib.suppress(UpdateFinishedTrialError):
            for name, value in values.items():
                self.storage.set_trial_user_attr(identity, name, value)

    def report(self, number: int, values: Mapping[int, float], sign: float) -> None:
        """Tell Optuna the dev metric at some training steps, those that it does not know yet."""
        trial = self._attached(number)
        known = self.storage.get_trial(self._id(number)).intermediate_values
        with contextlib.suppress(UpdateFinishedTrialError):
            for step, value in sorted(values.items()):
                if step not in known:
                    trial.report(sign * value, step)

    def complete(
        self,
        number: int,
        values: list[float],
        constraints: Mapping[str, float],
        device_seconds: float,
    ) -> bool:
        """Tell a result; False when the attempt is over already."""
        self.note(number, device_seconds=device_seconds, ended=_now())
        try:
            trial = self._attached(number)
            known = self.storage.get_trial(self._id(number)).constraints
            for name, value in constraints.items():
                if name not in known:
                    trial.set_constraint(name, value)
            self.study.tell(number, values)
        except (ValueError, UpdateFinishedTrialError):
            return self.storage.get_trial(self._id(number)).state == TrialState.COMPLETE
        return True

    def prune(self, number: int, device_seconds: float) -> bool:
        """Tell that an attempt was stopped as hopeless; False when it is over already."""
        return self._end(number, TrialState.PRUNED, {"device_seconds": device_seconds, "ended": _now()})

    def fail(self, number: int, kind: Kind, problem: str = "", device_seconds: float = 0.0) -> bool:
        """Tell that an attempt ended without a result; False when it is over already."""
        notes = {"kind": kind, "problem": problem, "device_seconds": device_seconds, "ended": _now()}
        return self._end(number, TrialState.FAIL, notes)

    def ignore(self, number: int) -> None:
        """Leave a finished attempt out of account from now on (it can no longer be changed itself)."""
        self.set_attribute("ignored", sorted({*(self.attribute("ignored") or []), number}))

    def drop(self, number: int) -> None:
        """Take an attempt out of the queue that is not to be run."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(self._id(number), TrialState.RUNNING)
        self.fail(number, "void")

    def _end(self, number: int, state: TrialState, notes: Mapping[str, Any]) -> bool:
        if self.storage.get_trial(self._id(number)).state.is_finished():
            return False
        self.note(number, **notes)
        try:
            self.study.tell(number, state=state)
        except (ValueError, UpdateFinishedTrialError):
            return False
        return True

    def _attached(self, number: int) -> Trial:
        return Trial(self.study, self._id(number))

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def record_of(trial: FrozenTrial) -> TrialRecord:
    """An attempt, from Optuna's trial."""
    notes = trial.user_attrs
    params = notes.get("params")
    return TrialRecord(
        number=trial.number,
        state=trial.state.name.lower(),  # type: ignore[arg-type]  # Optuna's names are ours
        point=str(notes.get("point", "")) if "cell" in notes else "",
        seed=int(notes.get("seed", 0)),
        attempt=int(notes.get("attempt", 1)),
        cell=str(notes.get("cell", "")),
        params=params if isinstance(params, dict) else {},
        kind=notes.get("kind", ""),
        problem=str(notes.get("problem", "")),
        worker=str(notes.get("worker", "")),
        place=str(notes.get("place", "")),
        run=str(notes.get("run", "")),
        device_seconds=float(notes.get("device_seconds", 0.0)),
        devices=int(notes.get("devices", 1)),
        values=tuple(trial.values or ()) if trial.state == TrialState.COMPLETE else (),
        constraints=dict(trial.constraints),
        started=_time(notes.get("started")),
        ended=_time(notes.get("ended")),
        reports=trial.intermediate_values,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _time(found: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(found) if isinstance(found, str) else None
    except ValueError:
        return None


def make_study(
    storage: BaseStorage, name: str, directions: Sequence[Literal["maximize", "minimize"]], is_control: bool = False
) -> Queue:
    """Open a study, made if there is none.

    Raises:
        ConfigError: the storage holds something else.
    """
    if name in {study.study_name for study in storage.get_all_studies()}:
        return Queue(storage, name, is_control)
    try:
        optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"the study {name!r} cannot be opened: {error}") from None
    return Queue(storage, name, is_control)


_TRIES = 20
_ENUMERABLE = 100_000
_OTHER_METRIC = ("data.", "lm.", "trainer.max_steps", "trainer.eval_every", "trainer.batch_size")
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
    queue: Queue, config: SweepConfig, space: dict[str, BaseDistribution], known: Collection[str]
) -> tuple[int, dict[str, Scalar]] | None:
    """Have the sampler draw a point that there is not yet.

    Args:
        queue: the trials; none may be waiting.
        config: the sweep.
        space: what is drawn from.
        known: identities of the points there are.

    Returns:
        The new attempt's number and its parameters; None when every point of the space has been drawn.
    """
    turn = len(queue.frozen())
    for _ in range(_TRIES):
        number, params = queue.draw(space, sampler_of(config, turn))
        if point_id(params) not in known:
            return number, params
        queue.drop(number)
        turn += 1
    rest = [params for params in _all_points(space) if point_id(params) not in known]
    if not rest:
        return None
    params = random.Random(turn).choice(rest)
    queue.study.enqueue_trial(dict(params))
    number, _ = queue.draw(space, RandomSampler(seed=turn))
    return number, params


def _all_points(space: Mapping[str, BaseDistribution]) -> list[dict[str, Scalar]]:
    axes: list[list[Scalar]] = []
    total = 1
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            axes.append(list(distribution.choices))
        elif isinstance(distribution, IntDistribution):
            axes.append(list(range(distribution.low, distribution.high + 1, distribution.step)))
        else:
            return []
        total *= len(axes[-1])
    if total > _ENUMERABLE:
        return []
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def pruner_of(config: SweepConfig, eval_every: int, bracket: int) -> BasePruner | None:
    """The sweep's pruner; None for none."""
    rule = config.pruning
    first = max(1, eval_every, rule.warmup_steps)
    if rule.pruner == "median":
        return MedianPruner(n_startup_trials=rule.startup_trials, n_warmup_steps=rule.warmup_steps)
    if rule.pruner in ("successive_halving", "hyperband"):
        return SuccessiveHalvingPruner(
            min_resource=first, reduction_factor=rule.reduction, min_early_stopping_rate=bracket
        )
    return None


def bracket_of(config: SweepConfig, number: int, eval_every: int, max_steps: int) -> int:
    """Hyperband's bracket of an attempt: how many rungs its first one is skipped; 0 for other pruners.

    As Optuna's HyperbandPruner (Li et al. 2018, algorithm 1) has it; that one cannot be told which attempts to compare.
    """
    if config.pruning.pruner != "hyperband":
        return 0
    first, factor = max(1, eval_every, config.pruning.warmup_steps), config.pruning.reduction
    count = int(math.log(max(1.0, max_steps / first), factor) + 1e-9) + 1
    shares = [math.ceil(count * factor ** (count - 1 - i) / (count - i)) for i in range(count)]
    place = zlib.crc32(str(number).encode()) % sum(shares)
    return next(i for i in range(count) if place < sum(shares[: i + 1]))


def comparable_part(config: SweepConfig, params: Mapping[str, Scalar], metric: str) -> dict[str, Scalar]:
    """The parameters that runs must share for their dev values to be comparable half-way."""
    of_methods = {f"method.{key}" for section in METHODS.values() for key in section.difficulty_keys}
    if "loss" in metric:
        of_methods |= {f"method.{key}" for section in METHODS.values() for key in section.loss_keys}
    found: dict[str, Scalar] = {}
    for name, value in params.items():
        dimension = config.space.get(name)
        keys = {name}
        if isinstance(dimension, Choices):
            keys = {key for settings in dimension.choices.values() for key in settings}
        if any(key.startswith(_OTHER_METRIC) or key in of_methods for key in keys):
            found[name] = value
    return found


def should_prune(queue: Queue, number: int, pruner: BasePruner, is_comparable: Callable[[TrialRecord], bool]) -> bool:
    """Ask the pruner about a running attempt, among those that it may be compared with."""

    class Comparable(optuna.Study):
        """A study that shows a pruner only the attempts that are like the one in question."""

        def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
            trials: list[Any] = super().get_trials(deepcopy=deepcopy, states=states)
            return [trial for trial in trials if trial.number == number or is_comparable(record_of(trial))]

    study = Comparable(queue.study.study_name, queue.storage, sampler=RandomSampler(), pruner=pruner)
    trial = next(each for each in queue.frozen() if each.number == number)
    return pruner.prune(study, trial)
