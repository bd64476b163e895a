"""CPU seconds of looking at much: `sweep show` over many trials, `compare` over many runs, a large tokenizer's hash.

Run: python benchmarks/listing.py [--trials 5000] [--runs 300] [--vocabulary 262144] [--keep FOLDER]. The sweep's
journal, its run directories (config.yaml, metrics.csv, results.json, predictions.jsonl) and the BPE tokenizer are made
up; the commands are the real ones, each in a process of its own, its start included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState, create_trial
from tokenizers import Tokenizer, models, pre_tokenizers

from promptcomp.config import dump
from promptcomp.evaluation.predictions import Prediction, write_predictions
from promptcomp.evaluation.results import Estimate, Results, SplitResult, TaskResult
from promptcomp.experiment import load
from promptcomp.sweeps.space import distributions, grid, point_id
from promptcomp.sweeps.study import begin
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.sweep_file import sweep_of

SEEDS = 5
EVALS = 20


def make_run(folder: Path, config: str, seed: int, rng: random.Random, predictions: int = 0) -> float:
    """A run directory as a finished `fit` leaves it; its value."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.replace("\nseed: 0\n", f"\nseed: {seed}\n"), encoding="utf-8")
    value = rng.random()
    rows = "".join(f"{10 * i},{rng.random():.6f},{rng.random():.6f},{value:.6f}\n" for i in range(1, EVALS + 1))
    (folder / "metrics.csv").write_text(f"step,train/loss,dev/loss,dev/accuracy\n{rows}", encoding="utf-8")
    estimate = Estimate(value=value, ci=(value - 0.1, value + 0.1))
    names = ("accuracy", "macro_f1", "loss", "task")
    tasks = tuple(
        TaskResult(task=f"task {i}", kind="classification", count=16, seeds=1, metric="macro_f1", method=value)
        for i in range(20)
    )
    split = SplitResult(
        metric="accuracy",
        count=320,
        method=value,
        full_prompt=0.9,
        no_prompt=0.1,
        retained=value,
        rows={row: dict.fromkeys(names, estimate) for row in ("no_prompt", "method", "full_prompt")},
        tasks=tasks,
        examples_sha256="same",
    )
    found = Results(method="mend", family="decoder", data="toy", lm="toy", seed=seed, splits={"test": split})
    (folder / "results.json").write_text(found.model_dump_json(by_alias=True, indent=2), encoding="utf-8")
    if predictions:
        write_predictions(folder / "predictions.jsonl", (_prediction(i, rng) for i in range(predictions)))
    return value


def _prediction(number: int, rng: random.Random) -> Prediction:
    chosen = int(rng.random() < 0.7)
    rows = ("no_prompt", "method", "full_prompt")
    return Prediction(
        split="test",
        example=number,
        task=f"task {number % 20}",
        kind="classification",
        seed=0,
        context=number // 4,
        gold=1,
        options=("a", "b"),
        scores=dict.fromkeys(rows, (rng.random(), rng.random())),
        prediction=dict.fromkeys(rows, chosen),
        correct=dict.fromkeys(rows, bool(chosen)),
        loss=dict.fromkeys(rows, rng.random()),
        gold_tokens=2,
    )


class _Lines(BaseJournalBackend):
    """A journal in memory: writing thousands of trials to a disk, each flushed, would take minutes."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """What is new."""
        return self.lines[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep."""
        self.lines += logs


def make_sweep(folder: Path, trials: int) -> None:
    """A finished sweep of `trials` trials."""
    rng = random.Random(0)
    points = trials // SEEDS
    words = [f"method.num_slots={','.join(map(str, range(1, points // 10 + 1)))}", "optim.lr=1e-5..1e-3:log:steps=10"]
    config = sweep_of("mend", [*words, f"sweep.seeds={SEEDS}"])
    directory = SweepDirectory(folder)
    begin(config, directory, None, 1).close()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = [json.loads(line) for line in directory.journal.read_text(encoding="utf-8").splitlines()]
    backend = _Lines()
    backend.lines = first
    study = optuna.load_study(study_name=folder.name, storage=JournalStorage(backend))
    text = dump(load("mend", None))
    cells = [(params, seed) for params in grid(config) for seed in range(SEEDS)]
    study.add_trials([_trial(config, directory, text, params, seed, rng) for params, seed in cells])
    directory.journal.write_text(
        "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in backend.lines), encoding="utf-8"
    )


def _trial(config: SweepConfig, place: SweepDirectory, text: str, params: Any, seed: int, rng: random.Random) -> Any:
    now = datetime.now(UTC).isoformat()
    point = point_id(params)
    cell = f"{point}-{seed}"
    value = make_run(place.runs / cell, text, seed, rng)
    notes = {"point": point, "seed": seed, "attempt": 1, "params": params, "cell": cell, "worker": "host:1"}
    notes |= {"started": now, "ended": now, "device_seconds": 10.0, "place": "here", "run": f"runs/{cell}"}
    return create_trial(
        state=TrialState.COMPLETE, params=params, distributions=distributions(config), values=[value], user_attrs=notes
    )


def cpu_seconds(words: Sequence[str]) -> float:
    """CPU seconds of a command in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_tokenizer(file: Path, vocabulary: int) -> None:
    """A byte-pair tokenizer with as many merges as letters allow."""
    rng = random.Random(0)
    letters = [chr(0x4E00 + i) for i in range(2000)]
    vocab = {letter: i for i, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    while len(vocab) < vocabulary:
        pair = (rng.choice(letters), rng.choice(letters))
        last = rng.choice(letters)
        for first, second in (pair, ("".join(pair), last)):
            if first + second not in vocab and len(vocab) < vocabulary:
                vocab[first + second] = len(vocab)
                merges.append((first, second))
                if len(first) == 2 and first[1] + second in vocab:  # Gemma has two merges for a token
                    merges.append((first[0], first[1] + second))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(file))


_HASH = """
import sys, time
from transformers import PreTrainedTokenizerFast
from promptcomp.prompts.artifact import tokenizer_hash
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1])
began = time.process_time()
found = tokenizer_hash(tokenizer)
print(f"{time.process_time() - began:.2f} {found}")
"""


def hash_seconds(file: Path) -> str:
    """CPU seconds of a tokenizer's hash (the tokenizer is open already), and the hash."""
    done = subprocess.run([sys.executable, "-c", _HASH, str(file)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    """Make the files and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--vocabulary", type=int, default=2**18)
    parser.add_argument("--keep", type=Path, default=None, help="Make the files there, or use those that are there.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        if not (folder / "sweep").exists():
            began = time.monotonic()
            make_sweep(folder / "sweep", args.trials)
            text = dump(load("mend", None))
            for seed in range(args.runs):
                make_run(folder / "runs" / f"run-{seed}", text, seed, random.Random(seed), predictions=320)
            make_tokenizer(folder / "tokenizer.json", args.vocabulary)
            print(f"made in {time.monotonic() - began:.0f} s")
        for what in ("table", "json"):
            words = ["-m", "promptcomp", "sweep", "show", str(folder / "sweep"), "-f", what]
            print(f"sweep show -f {what}, {args.trials} trials: {cpu_seconds(words):.1f} s")
        runs = sorted(map(str, (folder / "runs").iterdir()))
        print(f"compare, {len(runs)} runs: {cpu_seconds(['-m', 'promptcomp', 'compare', *runs]):.1f} s")
        print(f"tokenizer hash, {args.vocabulary} tokens: {hash_seconds(folder / 'tokenizer.json')}")
        print(f"base: sweep --help {cpu_seconds(['-m', 'promptcomp', 'sweep', '--help']):.1f} s")


if __name__ == "__main__":
    main()
