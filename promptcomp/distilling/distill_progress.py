"""Progress of a cartridge."""

from __future__ import annotations

from promptcomp.distilling.cartridge_training import TrainingHistory
from promptcomp.run.stage import WorkStage

_SMOOTHING = 0.9


class DistillStage(WorkStage):
    """One part of the work."""

    _loss: float | None = None

    def trained(self, progress: TrainingHistory) -> None:
        """A step of a training, or a look at the held-out questions."""
        if progress.losses:
            last = progress.losses[-1]
            self._loss = last if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * last
        step, found = progress.looks[-1]
        loss = "" if self._loss is None else f"KL {self._loss:.3f}, "
        state = f"{loss}held out {found.kl:.3f}, top-1 {found.top1:.2f}"
        self.at(progress.step, state, always=step == progress.step)
