"""A method between its four reference points: no prompt and full prompt, each untrained and trained.

The trained controls saw the same data, steps and seeds as the method; the untrained ones are the LM as it was. All
figures come from the runs' predictions on the same examples, resampled together, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from promptcomp.config import ConfigError, Measured
from promptcomp.evaluation.bootstrap import RESAMPLES, Samples, resample, retained
from promptcomp.evaluation.metrics import METRICS, MetricName, group
from promptcomp.evaluation.predictions import Prediction, joined
from promptcomp.evaluation.results import Estimate, Interval
from promptcomp.evaluation.texts import agreement

Role = Literal["no_prompt_untrained", "no_prompt_trained", "method", "full_prompt_trained", "full_prompt_untrained"]
ROLES: tuple[Role, ...] = get_args(Role)
"""In the order of tables."""
Kind = Literal["trained", "untrained"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class RoleRun(Measured):
    """Which run stands for a role."""

    run: str
    """Its directory."""
    how: Literal["made", "resumed", "reused"]
    """Trained and evaluated by this command, continued by it, or found finished."""


class RetainedBetween(Measured):
    """(method - no prompt) / (full prompt - no prompt), both controls trained or both untrained."""

    value: float | None
    """Null without headroom."""
    ci: Interval | None
    headroom: float | None
    """full prompt - no prompt (for a loss the other way round)."""
    headroom_se: float | None
    no_headroom: bool
    """The controls are closer than two standard errors, or the wrong way round."""


class SplitPoints(Measured):
    """The reference points on one split."""

    metric: MetricName
    """Headline metric."""
    count: int
    num_contexts: int
    rows: dict[Role, dict[str, Estimate]]
    """Role -> metric -> value with its interval."""
    retained: dict[Kind, RetainedBetween]
    agreement_with: Role | None
    """Whose texts the rows' `agreement` compares with: the paper's exact match; null without texts."""


class ReferencePoints(Measured):
    """controls.json."""

    schema_version: int = 1
    method: str
    """Name of the method for people."""
    context_kind: str
    data: str
    lm: str
    seed: int
    runs: dict[Role, RoleRun]
    splits: dict[str, SplitPoints]
    notes: tuple[str, ...] = ()


def split_points(
    members: Mapping[Role, Sequence[Prediction]], metric: MetricName, resamples: int = RESAMPLES
) -> SplitPoints:
    """The reference points on one split.

    Args:
        members: role -> the predictions of that run on the split.
        metric: headline metric.
        resamples: bootstrap resamples.

    Raises:
        ConfigError: the runs answered different examples.
    """
    roles = [role for role in ROLES if role in members]
    partners: tuple[Role, ...] = ("full_prompt_trained", "full_prompt_untrained")
    partner = next((role for role in partners if role in members), None)
    examples = _by_example(members)
    predictions = [_agreeing(joined(found), partner) for found in examples]
    groups = group(predictions, roles)
    samples = resample(groups, roles, resamples=resamples)
    return SplitPoints(
        metric=metric,
        count=len(predictions),
        num_contexts=samples.num_contexts,
        rows={role: _estimates(samples, role) for role in roles},
        retained={kind: found for kind in KINDS if (found := _retained(samples, metric, kind)) is not None},
        agreement_with=partner if any(p.is_generated for p in predictions) else None,
    )


def _by_example(members: Mapping[Role, Sequence[Prediction]]) -> list[dict[str, Prediction]]:
    """The predictions of all runs on each example, in the order of the method's."""
    numbered = {role: {p.example: p for p in found} for role, found in members.items()}
    first = numbered["method"]
    for role, found in numbered.items():
        if found.keys() != first.keys() or any(found[i].context != p.context for i, p in first.items()):
            raise ConfigError(f"the run of {role} answered other examples than the method's; evaluate both anew")
    return [{role: found[number] for role, found in numbered.items()} for number in first]


def _agreeing(prediction: Prediction, partner: Role | None) -> Prediction:
    """`agreement` anew: with the partner's text and not with the run's own full-prompt row."""
    if prediction.metrics is None or prediction.texts is None:
        return prediction
    kept = {
        row: {name: value for name, value in values.items() if name != "agreement"}
        for row, values in prediction.metrics.items()
    }
    right = prediction.texts.get(partner or "")
    if right is not None:
        for row, text in prediction.texts.items():
            if row != partner and text is not None:
                kept[row]["agreement"] = agreement(text, right)
    return prediction.model_copy(update={"metrics": kept})


def _estimates(samples: Samples, role: Role) -> dict[str, Estimate]:
    found = {name: samples.estimate(name, role) for name in METRICS}
    return {
        name: Estimate(value=value, ci=samples.interval(name, role))
        for name, value in found.items()
        if value is not None
    }


def _retained(samples: Samples, metric: MetricName, kind: Kind) -> RetainedBetween | None:
    full, none = f"full_prompt_{kind}", f"no_prompt_{kind}"
    if full not in samples.values[metric] or none not in samples.values[metric]:
        return None
    found = retained(samples, metric, full=full, none=none)
    return RetainedBetween(
        value=found.value,
        ci=found.interval,
        headroom=found.headroom,
        headroom_se=found.standard_error,
        no_headroom=found.no_headroom,
    )
