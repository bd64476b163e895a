"""Timing and counting: warm runs in random order, an accelerator waited for, medians with quartiles."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from promptcomp import __version__
from promptcomp.bench import BenchPlan
from promptcomp.bench.measurements import (
    Bench,
    Making,
    Spread,
    Timing,
    Way,
    add_break_even,
    as_csv,
    as_json,
    plot,
    print_bench,
)
from promptcomp.bench.requests import Request, Subject, positions_needed, requests
from promptcomp.config import ConfigError
from promptcomp.evaluation.memory_cost import seconds_of, synchronise
from promptcomp.files import write_atomic
from promptcomp.language_model.counting import count_flops
from promptcomp.language_model.loading import pick_device
from promptcomp.memory import load_memory, save_memory
from promptcomp.plain import telling
from promptcomp.run.opening import quiet

MIN_REPEATS = 3
"""Slow ways are repeated less often, but not less than this."""


@torch.inference_mode()
def measure(
    subject: Subject, plan: BenchPlan, on_point: Callable[[int, int], None] = lambda tokens, rows: None
) -> Bench:
    """Every way of serving at every length and batch size; `on_point` is called with both before they are measured.

    Raises:
        ConfigError: no such device.
    """
    device = pick_device(plan.device)
    lm = subject.module.to(device).lm
    bench = Bench(
        method=subject.method,
        lm=subject.lm,
        trained=subject.trained,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=str(lm.hf.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        query_tokens=subject.query_tokens,
        new_tokens=plan.new_tokens,
        repeats=plan.repeats,
        seed=plan.seed,
        version=__version__,
    )
    order, (lengths, batch_sizes) = random.Random(plan.seed), plan.sizes()
    for tokens in subject.lengths or lengths:
        needed = positions_needed(subject, tokens, plan.new_tokens)
        if lm.window is not None and needed > lm.window:
            bench.skipped.append(
                f"{tokens:,} prompt tokens: {needed:,} positions with the answer, the LM's window is {lm.window:,}"
            )
            continue
        for rows in batch_sizes:
            on_point(tokens, rows)
            bench.records += _point(subject, tokens, rows, device, plan, order)
    return bench


def _point(
    subject: Subject, tokens: int, rows: int, device: torch.device, plan: BenchPlan, order: random.Random
) -> list[Timing]:
    batch = subject.batch(tokens, rows, device)
    ways = requests(subject, batch)
    possible = {way: request for way, request in ways.items() if isinstance(request, Request)}
    answers, makings = _time(possible, device, plan, order)
    records = []
    for way, request in ways.items():
        if isinstance(request, str):
            records.append(Timing(way, tokens, rows, not_possible=request))
            continue
        stamps = answers[way]
        speeds = [rows * (plan.new_tokens - 1) / (last - first) for first, last in stamps if plan.new_tokens > 1]
        record = Timing(
            way,
            tokens,
            rows,
            positions=request.positions,
            held_bytes=request.held_bytes,
            kv_bytes=request.kv_bytes,
            first_token_flops=request.flops(1),
            first_token_flops_counted=count_flops(partial(request.answer, 1, lambda: None)) / rows,
            answer_flops=request.flops(plan.new_tokens),
            first_token_ms=Spread.of([1000.0 * first for first, _ in stamps]),
            answer_ms=Spread.of([1000.0 * last for _, last in stamps]),
            tokens_per_second=Spread.of(speeds) if speeds else None,
        )
        if request.make is not None:
            record.making = _making(request, request.make, makings[way], rows, device, plan)
        records.append(record)
    add_break_even(records)
    return records


def _making(
    way: Request, make: Callable[[], object], seconds: Sequence[float], rows: int, device: torch.device, plan: BenchPlan
) -> Making:
    """What is done once; of one memory the size of its file too, and the time to load it (from a warm file cache)."""
    ms = Spread.of([1000.0 * (value / rows + way.make_seconds) for value in seconds])
    making = Making(flops=way.make_flops, flops_counted=count_flops(make) / rows, ms=ms)
    if way.memory is None or rows > 1:
        return making
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.safetensors"
        save_memory(path, way.memory, {})
        load_memory(path, str(device))
        repeats = max(MIN_REPEATS, plan.repeats)
        times = [seconds_of(lambda: load_memory(path, str(device)), device) for _ in range(repeats)]
        making.file_bytes, making.load_ms = path.stat().st_size, Spread.of([1000.0 * value for value in times])
    return making


def _time(
    ways: Mapping[Way, Request], device: torch.device, plan: BenchPlan, order: random.Random
) -> tuple[dict[Way, list[tuple[float, float]]], dict[Way, list[float]]]:
    """Seconds to the first and the last token of each way, and seconds of making what it keeps.

    Each round runs everything once in a new random order, so that a change of the machine's speed meets all ways.
    """
    answers: dict[Way, list[tuple[float, float]]] = {way: [] for way in ways}
    makings: dict[Way, list[float]] = {way: [] for way in ways}
    calls: list[tuple[list[Any], Callable[[], Any]]] = []
    for way, request in ways.items():
        calls.append((answers[way], partial(_stamps, request, plan.new_tokens, device)))
        if request.make is not None:
            calls.append((makings[way], partial(seconds_of, request.make, device)))
    jobs = []
    for found, job in calls:
        seconds = np.max(job())  # this call warms up, and tells how long one takes
        jobs.append((found, job, max(MIN_REPEATS, min(plan.repeats, int(plan.seconds / max(seconds, 1e-6))))))
    for number in range(max(rounds for _, _, rounds in jobs)):
        order.shuffle(jobs)
        for found, job, rounds in jobs:
            if number < rounds:
                found.append(job())
    return answers, makings


def _stamps(way: Request, new_tokens: int, device: torch.device) -> tuple[float, float]:
    stamps: list[float] = []
    synchronise(device)
    start = time.perf_counter()
    way.answer(new_tokens, lambda: stamps.append(time.perf_counter()))
    return stamps[0] - start, stamps[-1] - start


def run_bench(
    open_: Callable[[], Subject], plan: BenchPlan, output: Path | None, console: Console, as_json_document: bool
) -> Bench:
    """Measure and show; with `output` also write bench.json, bench.csv and the plot.

    Args:
        open_: opens what is measured (`open_subject`), after the other options were looked at.
        plan: what to measure.
        output: folder of the files.
        console: for tables and progress.
        as_json_document: print the document and no tables.

    Raises:
        ConfigError: a mistake in the options, or nothing could be measured.
    """
    pick_device(plan.device)
    with telling(console, "loading the model ...") as tell:
        with quiet():
            subject = open_()
        bench = measure(
            subject, plan, lambda tokens, rows: tell(f"measuring {tokens:,} prompt tokens, batch {rows} ...")
        )
    if not bench.records:
        raise ConfigError(
            "nothing to measure: " + "; ".join(bench.skipped) + "; give shorter --lengths or fewer --query-tokens"
        )
    if as_json_document:
        print(as_json(bench))
    else:
        print_bench(bench, console)
    if output is None:
        return bench
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "bench.json", as_json(bench) + "\n")
    write_atomic(output / "bench.csv", as_csv(bench))
    plot(bench, output)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)
    return bench
