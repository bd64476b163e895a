"""Steps per second of `fit` against a bare PyTorch loop over the same model and the same batches, in one run.

Run: python benchmarks/overhead.py [--methods mend pool icae autocompressor] [--steps 30] [--rounds 5] [--threads 1]
[--profile]. Both sides train a shipped experiment on its toy world from the same weights with the same loss, clipping,
optimiser and schedule; the rounds alternate, so that other work on the machine meets both. `fit` is the real trainer
with its callbacks, logging and checkpoints (no dev evaluation); the bare loop is what a person would write in twenty
lines. --profile prints where fit's own time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from promptcomp import experiment as experiments
from promptcomp.batch import Batch
from promptcomp.experiment import Experiment
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.run.callbacks import TrainingProgress
from promptcomp.run.opening import make_parts, quiet
from promptcomp.run.run_directory import RunDirectory
from promptcomp.run.trainer import make_trainer


class Clock(L.Callback):
    """Seconds from the first step to the last, without Lightning's set-up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self.seconds = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.seconds


def bare_loop(module: CompressionModule, batches: Sequence[Batch]) -> tuple[float, float]:
    """Seconds and last loss of the plain loop."""
    module.configure_model()
    module.train()
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    trained = [p for p in module.parameters() if p.requires_grad]
    start = time.perf_counter()
    loss = torch.zeros(())
    for batch in batches:
        loss = torch.stack([t.weight * t.total / t.count for t in module.losses(batch)]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, module.optim.clip_norm or float("inf"))
        optimizer.step()
        scheduler.step()
    return time.perf_counter() - start, float(loss.detach())


def with_fit(config: Experiment, batches: Sequence[Batch]) -> tuple[float, float]:
    """Seconds and last loss of the trainer that `promptcomp fit` uses."""
    datamodule, module = make_parts(config)
    with tempfile.TemporaryDirectory() as folder, quiet():
        run = RunDirectory(Path(folder))
        clock = Clock()
        trainer = make_trainer(config, run, datamodule, TrainingProgress(Console(quiet=True), len(batches)), False)
        trainer.callbacks.append(clock)
        trainer.limit_val_batches = 0
        trainer.fit(module, train_dataloaders=DataLoader(list(batches), batch_size=None))
        return clock.seconds, float(trainer.callback_metrics["train/loss"])


def main() -> None:
    """Print the ratio of every method, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["mend"], help="Shipped experiments.")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for method in options.methods:
        compare(method, options)


def compare(method: str, options: argparse.Namespace) -> None:
    """Alternate both sides and print the ratio of their medians.

    Raises:
        SystemExit: they did not train the same.
    """
    overrides = [f"trainer.max_steps={options.steps}", "trainer.accelerator=cpu", "trainer.eval_every=1000000"]
    if method == "autocompressor":  # lengths that are drawn for a step need a trainer that counts steps
        overrides.append("method.random_segments=false")
    config = experiments.load(method, None, overrides)
    datamodule, _ = make_parts(config)
    loader = iter(datamodule.train_dataloader())
    batches = [next(loader) for _ in range(options.steps)]
    times: dict[str, list[float]] = {"bare": [], "fit": []}
    losses: dict[str, Any] = {}
    for number in range(options.rounds + 1):
        for side in ("bare", "fit") if number % 2 else ("fit", "bare"):
            seconds, losses[side] = (
                bare_loop(make_parts(config)[1], batches) if side == "bare" else with_fit(config, batches)
            )
            if number:  # the first round warms up
                times[side].append(seconds)
    if not math.isclose(losses["bare"], losses["fit"], rel_tol=1e-2):  # rounding grows over the steps
        raise SystemExit(f"{method}: the two sides did not train the same: {losses}")
    bare, fit = (statistics.median(times[side]) for side in ("bare", "fit"))
    rates = f"bare loop {options.steps / bare:.2f} steps/s, fit {options.steps / fit:.2f} steps/s"
    print(f"{method}: {rates}, ratio {bare / fit:.3f}; last loss {losses['bare']:.4f} and {losses['fit']:.4f}")
    ratios = sorted(b / f for b, f in zip(times["bare"], times["fit"], strict=True))
    print(f"  ratios of the {options.rounds} rounds: {', '.join(f'{r:.3f}' for r in ratios)}", flush=True)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(with_fit, config, batches)
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
