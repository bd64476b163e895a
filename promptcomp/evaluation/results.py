"""results.json (schema 1): the results of a run. `compare`, `sweep` and `report` read nothing else.

Keys may be added in later versions and unknown keys are kept when a file is read; no key changes its meaning. A number
that could not be measured, or is not finite, is null.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from promptcomp.config import ConfigError, Measured
from promptcomp.documents import of_sweep, read_json
from promptcomp.errors import command
from promptcomp.files import write_atomic

SCHEMA = 1
FILE_NAME = "results.json"

Interval = tuple[float, float]


def finite(value: float | None) -> float | None:
    """The value if it is a number that is finite, else None (null in files)."""
    return float(value) if value is not None and math.isfinite(value) else None


class _Section(Measured):
    model_config = ConfigDict(extra="allow", populate_by_name=True)


class Estimate(_Section):
    """A metric of one row of one split."""

    value: float | None
    """The metric on all examples."""
    ci: Interval | None = None
    """Bootstrap interval over contexts (Wilson's where all resamples are equal); null for fewer than two contexts."""
    std: float | None = None
    """Sample standard deviation over the data seeds; null for one seed."""
    worst: float | None = None
    """Value of the worst data seed; null for one seed."""


class TaskResult(_Section):
    """One task: the mean over its data seeds."""

    task: str
    kind: str
    count: int
    """Examples, all seeds together."""
    seeds: int
    """Data seeds."""
    metric: str
    """macro_f1 for a classification, accuracy for multiple choice, loss or a metric of texts for a free-form task."""
    method: float | None = None
    full_prompt: float | None = None
    no_prompt: float | None = None
    method_std: float | None = None
    """Sample standard deviation of the method over the data seeds."""


class Gap(_Section):
    """A metric of the two bounds of a task."""

    no_prompt: float | None
    full_prompt: float | None
    headroom: float | None
    """full_prompt - no_prompt (for a loss the other way round)."""
    ci: Interval | None = None
    """Paired; null where nothing varies."""


class TaskHeadroom(_Section):
    """What the full context gains over none on one task."""

    task: str
    kind: str
    count: int
    """Examples."""
    num_contexts: int
    """Units of the bootstrap; of a task with one context its examples are."""
    majority: float | None = None
    """Share of the most frequent right label; null without labels."""
    gaps: dict[str, Gap]
    """Metric -> its bounds; what the task is scored by comes first, and loss is always there."""


class RivalResult(_Section):
    """What one rival did on one split (its metrics are in `rows`, under the same name)."""

    title: str
    query_aware: bool = False
    """Whether what it keeps depends on the query."""
    is_control: bool = False
    """Whether it has to score as no prompt does."""
    slots: float | None = None
    """Positions that it takes in the LM but a BOS, a mean over contexts (query-aware: over queries), as all below."""
    asked_slots: float | None = None
    """Positions that it might have taken: the method's own, or those asked for; null: bytes were asked for, or there is
    no budget."""
    kv_bytes: float | None = None
    """Bytes of keys and values in use, BOS included: those of real positions; of a quantised cache the packed
    integers and their steps."""
    stored_bytes: float | None = None
    """Bytes of its memory as stored, without queries."""
    asked_bytes: float | None = None
    """Bytes of keys and values that were asked for."""
    missing: str = ""
    """Why it has no row, in words."""
    retained: float | None = None
    """(rival - no_prompt) / (full_prompt - no_prompt), as the method's."""
    retained_ci: Interval | None = None
    gap: float | None = None
    """method - rival, in the headline metric."""
    gap_ci: Interval | None = None
    """Paired, over contexts."""


class KeptShare(_Section):
    """What the method keeps of one side of the full context's behaviour."""

    value: float | None
    """(method - no_prompt) / (full_prompt - no_prompt), in this metric; null without headroom."""
    ci: Interval | None = None


class SplitResult(_Section):
    """One evaluated split. `method`, `full_prompt` and `no_prompt` are values of `metric` on the same examples."""

    metric: str
    """Headline metric: one of metrics.METRICS; of these loss and kl (nats per token) are better when they are lower."""
    about: str = ""
    """What the split is, in words; empty: the data section does not say."""
    count: int
    """Examples."""
    method: float | None
    full_prompt: float | None
    no_prompt: float | None
    retained: float | None = None
    """(method - no_prompt) / (full_prompt - no_prompt); null without headroom or without bounds."""
    retained_ci: Interval | None = None
    """Null also where all resamples are equal."""
    others: dict[str, float | None] = {}
    """Other metrics of the method."""
    method_ci: Interval | None = None
    full_prompt_ci: Interval | None = None
    no_prompt_ci: Interval | None = None
    headroom: float | None = None
    """full_prompt - no_prompt (for a loss the other way round)."""
    headroom_se: float | None = None
    """Standard error of the headroom."""
    no_headroom: bool = False
    """The bounds are closer than two standard errors, or the wrong way round; `retained` is then null."""
    gap_to_full: float | None = None
    """method - full_prompt."""
    gap_to_full_ci: Interval | None = None
    """Null also where all resamples are equal."""
    rows: dict[str, dict[str, Estimate]] = {}
    """Row -> metric -> estimate, for every metric that applies."""
    rivals: dict[str, RivalResult] = {}
    """Row -> what that rival did (`evaluation.rivals`)."""
    behaviour: dict[str, KeptShare] = {}
    """Metric (kl, top1, teacher_match, teacher_rougeL) -> the share of the full context's behaviour that the method
    keeps; empty unless the targets are the LM's own answers (`data.targets: teacher`)."""
    tasks: tuple[TaskResult, ...] = ()
    headroom_by_task: tuple[TaskHeadroom, ...] = ()
    """Of runs of the bounds alone."""
    seeds: dict[str, dict[str, float | None]] = {}
    """Data seed -> row -> headline metric; empty when the data has no seeds."""
    num_tasks: int = 0
    num_contexts: int = 0
    """Distinct contexts: the units of the bootstrap."""
    confidence: float = 0.95
    resamples: int = 0
    examples_sha256: str = ""
    """Identity of the examples; runs are ranked only when it is equal."""
    generated: int = 0
    """Examples that texts were generated for."""
    unfinished: dict[str, int] = {}
    """Row -> texts that reached the limit of new tokens before they ended."""
    not_finite: dict[str, int] = {}
    """Row -> examples whose loss is NaN or infinite; rows without one are left out."""

    def estimate(self, row: str, metric: str | None = None) -> Estimate:
        """A row's value of a metric (None: the headline), also of a file that has the headline keys and no `rows`."""
        found = self.rows.get(row, {}).get(metric or self.metric)
        if found is None and metric in (None, self.metric):
            found = Estimate(value=getattr(self, row, None), ci=getattr(self, f"{row}_ci", None))
        return found or Estimate(value=None)


class Size(_Section):
    """Sizes of contexts and memories (means over the contexts of the first test split)."""

    context_tokens: float | None = None
    """Tokens of the full context, the BOS in front of it included where the LM reads one."""
    memory_slots: float | None = None
    """Positions that the memory takes in the LM."""
    compression: float | None = None
    """context_tokens / memory_slots."""
    context_bytes: float | None = None
    """Bytes of keys and values of the full context in the LM."""
    memory_bytes: float | None = None
    """Bytes of the memory as stored."""
    memory_kv_bytes: float | None = None
    """Bytes of keys and values in use once the memory is loaded into the LM (behind a BOS, where vectors have one)."""
    query_tokens: float | None = None
    """Tokens of a query (mean), the length that the prefill costs are computed for."""


class Cost(_Section):
    """The cost of training and of a query. Milliseconds are medians after a warm-up, FLOPs are analytic."""

    train_seconds: float | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    seconds_to_first_step: float | None = None
    """From the command to the first training step; of a resumed run, from the command that resumed it."""
    compress_ms: float | None = None
    """Making the memory of one context."""
    prefill_ms: float | None = None
    """Query after the memory."""
    full_prefill_ms: float | None = None
    """Query after the full context, nothing cached."""
    flops_ratio: float | None = None
    """full_prefill_flops / prefill_flops: how many times cheaper a query is, compressing not counted."""
    compress_flops: float | None = None
    prefill_flops: float | None = None
    full_prefill_flops: float | None = None
    cached_full_prefill_flops: float | None = None
    """Query after the full context whose keys and values are cached."""
    cached_prefill_flops: float | None = None
    """Query after the memory once its keys and values are cached."""
    no_prompt_prefill_flops: float | None = None
    break_even_queries: int | None = None
    """Queries on one context from which compressing costs fewer FLOPs than reading the full context each time."""


class Results(_Section):
    """The results of a run."""

    schema_version: int = Field(SCHEMA, alias="schema")
    method: str
    """Registry name of the method."""
    family: str
    """decoder or encoder_decoder."""
    data: str
    """Name of the data section."""
    lm: str
    """The language model, as in the configuration."""
    lm_note: str | None = None
    """What has to be said of its weights beside every figure, such as that they were dequantised."""
    seed: int
    """Training seed."""
    splits: dict[str, SplitResult]
    size: Size = Size()
    cost: Cost = Cost()
    title: str = ""
    """The method's name in tables; empty: `method`."""
    context_kind: Literal["demonstrations", "prompt"] = "prompt"
    """What the contexts are, for the rows of tables."""
    context_words: str = ""
    """A whole context in words: "24 demonstrations"."""
    bounds: Literal["untrained", "trained"] | None = None
    """Weights that the bounds (full_prompt, no_prompt) were scored with: the LM's as it was, or the run's own, which it
    has trained; null: there are no bounds, or an older version wrote the file."""
    version: str = ""
    """Version of promptcomp that wrote the file."""

    @property
    def is_bound(self) -> bool:
        """Whether the method is the full prompt or no prompt, and so the same as one of its bounds."""
        return self.bounds is not None and self.method in ("full_prompt", "no_prompt")


def write_results(path: Path, results: Results) -> None:
    """Write results.json atomically; numbers that are not finite become null.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_atomic(path, results.model_dump_json(by_alias=True, indent=2) + "\n")


def read_results(path: Path) -> Results:
    """Read the results of a run.

    Args:
        path: a results.json or a run directory that holds one.

    Raises:
        ConfigError: the file is missing, torn, foreign, or of a newer schema.
    """
    if os.path.isdir(path):
        path = path / FILE_NAME
    if not os.path.lexists(path):
        why = of_sweep(path.parent) or "; has the run finished its evaluation?"
        raise ConfigError(f"{path}: no such results file{why}")
    anew = command("fit", "--resume", path.parent)
    tree = read_json(path, "results file", f"`{anew}` writes the file again")
    version = tree.get("schema") if isinstance(tree, dict) else None
    if not isinstance(version, int):
        raise ConfigError(f"{path}: not a results file of promptcomp (it has no whole number under 'schema')")
    if version > SCHEMA:
        raise ConfigError(
            f"{path}: written by a newer promptcomp (schema {version}, this version reads {SCHEMA}); upgrade promptcomp"
        )
    try:
        return Results.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        place = ".".join(str(part) for part in found[0]["loc"])
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigError(f"{path}: not a complete results file: {place}: {found[0]['msg']}{more}") from None
