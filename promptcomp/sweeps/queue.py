"""One Optuna study as a queue of trials: reading, planning, taking, telling. All that is private to Optuna is used here
or in `study`, nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from promptcomp.config import ConfigError
from promptcomp.sweeps.planning import Kind, Planned, Record
from promptcomp.sweeps.sweep_config import Scalar


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

    def records(self) -> list[Record]:
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
            if before is not None and isinstance(before, optuna.distributions.CategoricalDistribution):
                distribution = before
            with contextlib.suppress(ValueError):
                inner = distribution.to_internal_repr(value)
                if before is not None and type(before) is not type(distribution):
                    distribution = before
                self.storage.set_trial_param(identity, name, inner, distribution)

    def draw(
        self, space: dict[str, BaseDistribution], sampler: optuna.samplers.BaseSampler
    ) -> tuple[int, dict[str, Scalar]]:
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


def record_of(trial: FrozenTrial) -> Record:
    """An attempt, from Optuna's trial."""
    notes = trial.user_attrs
    params = notes.get("params")
    return Record(
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
