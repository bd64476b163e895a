"""StepSampler: the order is a pure function of (seed, step), whatever the number of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise

import pytest

from promptcomp.config import ConfigError
from promptcomp.datamodules.sampler import Draw, StepSampler


def lengths_of(draws: Sequence[Draw]) -> list[int]:
    """Lengths of 5-104 tokens that depend on the item."""
    return [5 + (draw.index * 37) % 100 for draw in draws]


def sampler(mode: str, *, num_items: int = 101, batch_size: int = 8, seed: int = 3, **options: int) -> StepSampler:
    window = {"plain": 1, "grouped": 4, "tokens": 4}[mode]
    max_tokens = 900 if mode == "tokens" else None
    grouped = None if mode == "plain" else lengths_of
    return StepSampler(num_items, batch_size, seed, window=window, lengths_of=grouped, max_tokens=max_tokens, **options)


MODES = pytest.mark.parametrize("mode", ["plain", "grouped", "tokens"])


@MODES
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_one_global_order(mode: str, world_size: int) -> None:
    expected = list(islice(sampler(mode).global_batches(), 60))
    ranks = [list(islice(sampler(mode, rank=r, world_size=world_size), 60)) for r in range(world_size)]
    for step, batch in enumerate(expected):
        parts = [ranks[rank][step] for rank in range(world_size)]
        assert all(parts), "every process has something to do"
        assert sorted(draw for part in parts for draw in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@MODES
def test_start_step_continues(mode: str) -> None:
    whole = list(islice(sampler(mode), 80))
    for start in (1, 3, 4, 17, 50):
        assert list(islice(sampler(mode, start_step=start), 30)) == whole[start : start + 30]


def test_a_callable_start_is_asked_at_every_iteration() -> None:
    step = 0
    ours = StepSampler(20, 2, 0, start_step=lambda: step)
    whole = list(islice(StepSampler(20, 2, 0), 10))
    assert list(islice(ours, 3)) == whole[:3]
    step = 3
    assert list(islice(ours, 3)) == whole[3:6]


@MODES
def test_every_item_once_per_epoch_and_no_number_twice(mode: str) -> None:
    num_items, seen = 101, []
    for batch in sampler(mode, num_items=num_items):
        seen.extend(batch)
        if len(seen) >= 12 * num_items:
            break
    numbers = Counter(draw.number for draw in seen)
    assert set(numbers.values()) == {1}
    epochs: dict[int, list[int]] = {}
    for draw in seen:
        epochs.setdefault(draw.number // num_items, []).append(draw.index)
    for epoch in range(9):  # the last ones may be cut off by the end of the test, or wait in a window
        assert sorted(epochs[epoch]) == list(range(num_items))
    assert epochs[0] != epochs[1]


def test_without_windows_epochs_follow_each_other() -> None:
    draws = [draw for batch in islice(sampler("plain", num_items=16), 4) for draw in batch]
    assert [sorted(d.index for d in draws[i : i + 16]) for i in (0, 16)] == [list(range(16))] * 2


def padding(batches: Sequence[Sequence[Draw]]) -> float:
    """Padded tokens for each real one."""
    padded = sum(max(lengths_of(batch)) * len(batch) for batch in batches)
    return padded / sum(sum(lengths_of(batch)) for batch in batches)


def test_grouping_cuts_padding() -> None:
    plain = padding(list(islice(sampler("plain", num_items=1000), 120)))
    grouped = padding(list(islice(sampler("grouped", num_items=1000), 120)))
    assert plain > 1.5
    assert grouped < 1.2


def test_grouped_batches_do_not_come_in_order_of_length() -> None:
    longest = [max(lengths_of(batch)) for batch in islice(sampler("grouped", num_items=1000), 64)]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 16 < rises < 47


def test_token_budget_is_kept_and_used() -> None:
    batches = list(islice(sampler("tokens", num_items=1000), 100))
    padded = [max(lengths_of(batch)) * len(batch) for batch in batches]
    assert max(padded) <= 900
    assert sum(padded) / len(padded) > 0.85 * 900
    assert len({len(batch) for batch in batches}) > 3


def test_another_seed_is_another_order() -> None:
    assert list(islice(sampler("plain", seed=3), 3)) != list(islice(sampler("plain", seed=4), 3))


def test_too_little_for_every_process() -> None:
    with pytest.raises(ConfigError, match="batch_size = 2 gives some of the 4 processes nothing"):
        StepSampler(10, 2, 0, world_size=4)
    with pytest.raises(ConfigError, match=r"fewer than the 4 processes; use at least \d+"):
        list(islice(StepSampler(1000, 8, 0, world_size=4, window=4, lengths_of=lengths_of, max_tokens=150), 50))


def test_nothing_to_train_on() -> None:
    with pytest.raises(ConfigError, match="train split is empty"):
        StepSampler(0, 2, 0)
