"""How Lightning's trainer writes and reads our checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO

from promptcomp.checkpoints.checkpoint_files import read_checkpoint, write_whole


def save_between_steps(trainer: L.Trainer, path: Path) -> None:
    """Save the state as of the last finished step, although Lightning has counted the next batch as ready."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    counters = (progress.total, progress.current)
    for counter in counters:
        counter.ready -= 1
    try:
        trainer.save_checkpoint(path)
    finally:
        for counter in counters:
            counter.ready += 1


def log_right_steps(trainer: L.Trainer) -> None:
    """Before a step: log by the number of steps that were done. Lightning has a count of its own for this, and counts a
    step twice when it resumes from a checkpoint written right after a dev evaluation."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


class AtomicCheckpoints(TorchCheckpointIO):
    """Whole files, written beside the old one and renamed; reads whole and sharded checkpoints alike."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write, flush to the disk, rename.

        Raises:
            OSError: the disk is full or not writable; the checkpoint before is untouched.
        """
        write_whole(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Everything, on the CPU, without pickles (whatever the arguments say).

        Raises:
            ConfigError: it cannot be read, is incomplete, or is none of ours.
        """
        return read_checkpoint(Path(path))
