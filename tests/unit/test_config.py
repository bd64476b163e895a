"""Strict configuration: precedence, round trips, and messages that name the nearest fix."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field

from promptcomp.config import Config, ConfigError, apply_overrides, build, dump
from promptcomp.experiment import load
from promptcomp.toy.recipe import PretrainOptim, StageConfig


class First(Config):
    name: Literal["first"] = "first"
    width: int = Field(4, gt=0)


class Second(Config):
    name: Literal["second"] = "second"
    rate: float = 0.5


class Whole(Config):
    part: Annotated[First | Second, Field(discriminator="name")]
    numbers: tuple[int, ...] = ()
    other: First = First()
    either: Literal["auto"] | int | Annotated[First, AfterValidator(lambda first: first)] = "auto"
    several: tuple[First, ...] = ()
    most: int | None = Field(None, gt=0)
    day: date | None = None


def message(tree: dict[str, object], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(Whole, apply_overrides(tree, overrides))
    return str(caught.value)


def test_overrides_win_from_left_to_right_and_leave_the_tree_alone() -> None:
    tree = {"part": {"name": "first", "width": 1}}
    assert build(Whole, apply_overrides(tree, ["part.width=2", "part.width=3", "numbers=[1, 2]"])).numbers == (1, 2)
    assert tree == {"part": {"name": "first", "width": 1}}


def test_exponents_are_numbers() -> None:
    assert build(Whole, apply_overrides({"part": {"name": "second"}}, ["part.rate=1e-4"])).part.rate == 1e-4


def test_round_trip() -> None:
    import yaml

    whole = build(Whole, {"part": {"name": "second", "rate": 1e-5}, "numbers": [3]})
    assert build(Whole, yaml.safe_load(dump(whole))) == whole


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["part.name=frist"], "part.name = 'frist': did you mean 'first'?"),
        (["part.name=zzz"], "part.name = 'zzz': known: first, second"),
        (["part.wdith=1"], "part.wdith: unknown key; did you mean 'width'?"),
        (["part.rate=1"], "part.rate: unknown key; known keys: name, width"),
        (["other.wdith=1"], "other.wdith: unknown key; did you mean 'width'?"),
        (["part.width=two"], "part.width = 'two': "),
        (["part.width=true"], "configuration:\n  part.width = True: Input should be a number"),
        (["numbers=[1, no]"], "numbers.1 = False: Input should be a number"),
        (["day=0"], "configuration:\n  day = 0: Input should be a date as YYYY-MM-DD"),
        (["most=None"], "most = 'None': write null where there is to be none"),
        (["numbers=[1, x]"], "numbers.1 = 'x': "),
        (["numbers=1"], "numbers = 1: Input should be a valid list"),
        (["either=x"], "  either = 'x': Input should be 'auto', or a valid integer, unable to parse"),
        (["either={wide: 1}"], "configuration:\n  either.wide: unknown key; did you mean 'width'?"),
        (["several=[{wdith: 1}]"], "several.0.wdith: unknown key; did you mean 'width'?"),
        (["several=[first]"], "several.0 = 'first': it is a section; one of its keys is several.0.name"),
        (["part.width.deep=1"], "holds the value 1 and has no keys below it"),
        (["part"], "an override is written section.key=value"),
        (["=1"], "an override is written section.key=value"),
        (["part.width={"], "not valid YAML"),
    ],
)
def test_messages(overrides: list[str], expected: str) -> None:
    assert expected in message({"part": {"name": "first", "width": 1}}, *overrides)


@pytest.mark.parametrize(
    "key",
    [
        "trainer.threads",
        "trainer.timeout_seconds",
        "evaluation.bootstrap_resamples",
        "data.length_window",
        "data.max_batch_tokens",
        "data.num_workers",
    ],
)
def test_numbers_that_no_machine_can_follow_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} = 9{{17}}: Input should be less than"):
        load("mend", None, [f"{key}={'9' * 17}"])


@pytest.mark.parametrize("devices", [0, 100_000])
def test_devices_are_as_many_as_a_machine_may_have(devices: int) -> None:
    with pytest.raises(ConfigError, match=rf"trainer.devices={devices}: give a number from 1 to 1024"):
        load("mend", None, [f"trainer.devices={devices}"])


@pytest.mark.parametrize("betas", [[0.9, 1.5], [1, 0.9], [-0.1, 0.9]])
def test_decays_of_moments_are_below_one(betas: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.betas\.[01] = .*: Input should be"):
        load("mend", None, [f"optim.betas={betas}"])
    with pytest.raises(ConfigError, match=r"betas\.[01] = .*: Input should be"):
        build(PretrainOptim, {"betas": betas})


def test_a_stage_does_not_climb_its_loss() -> None:
    with pytest.raises(ConfigError, match=r"lr_scale\.0 = -1: Input should be"):
        build(StageConfig, {"name": "a", "steps": 1, "lr_scale": [-1, 1]})
