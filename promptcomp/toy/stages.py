"""Where a curriculum of several stages stands: what all staged lessons share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Stage(Protocol):
    """One stage of a curriculum."""

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def lr_scale(self) -> tuple[float, float]:
        """Learning rate at the stage's start and end, relative to the configured one."""
        ...


AnyStage = TypeVar("AnyStage", bound=Stage)


class StagedLessons(Generic[AnyStage]):
    """Counts steps through the stages; subclasses make the batches."""

    def __init__(self, stages: Sequence[AnyStage]) -> None:
        self._stages = stages
        self._number = 0
        self._step_in_stage = 0

    @property
    def stage(self) -> AnyStage:
        """The current stage, or the last one when all are over."""
        return self._stages[min(self._number, len(self._stages) - 1)]

    @property
    def total_steps(self) -> int:
        """Steps if no stage is left early."""
        return sum(stage.steps for stage in self._stages)

    @property
    def stage_name(self) -> str:
        """Name of the current stage."""
        return self.stage.name

    @property
    def finished(self) -> bool:
        """Whether the last stage is over."""
        return self._number >= len(self._stages)

    @property
    def lr_scale(self) -> float:
        """Learning rate of the next step relative to the configured one."""
        start, end = self.stage.lr_scale
        return start + (end - start) * self._step_in_stage / self.stage.steps

    def count_step(self) -> None:
        """Note that a batch was made."""
        self._step_in_stage += 1
        if self._step_in_stage >= self.stage.steps:
            self.next_stage()

    def next_stage(self) -> None:
        """Go on to the next stage."""
        self._number += 1
        self._step_in_stage = 0
