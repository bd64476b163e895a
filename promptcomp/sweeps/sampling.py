"""Samplers and pruners of Optuna as a sweep uses them."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import zlib
from collections.abc import Callable, Collection, Container, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from promptcomp.lightning_modules import METHODS
from promptcomp.sweeps.planning import Record
from promptcomp.sweeps.queue import Queue, record_of
from promptcomp.sweeps.space import point_id
from promptcomp.sweeps.sweep_config import Choices, Scalar, SweepConfig

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


def should_prune(queue: Queue, number: int, pruner: BasePruner, is_comparable: Callable[[Record], bool]) -> bool:
    """Ask the pruner about a running attempt, among those that it may be compared with."""

    class Comparable(optuna.Study):
        """A study that shows a pruner only the attempts that are like the one in question."""

        def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
            trials: list[Any] = super().get_trials(deepcopy=deepcopy, states=states)
            return [trial for trial in trials if trial.number == number or is_comparable(record_of(trial))]

    study = Comparable(queue.study.study_name, queue.storage, sampler=RandomSampler(), pruner=pruner)
    trial = next(each for each in queue.frozen() if each.number == number)
    return pruner.prune(study, trial)
