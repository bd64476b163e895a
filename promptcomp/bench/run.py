"""The bench command: choose the subject, measure, print and write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from promptcomp import experiment as experiments
from promptcomp import plotting
from promptcomp.bench.bench_table import print_bench
from promptcomp.bench.measurements import Bench, as_csv, as_json
from promptcomp.bench.plot import plot
from promptcomp.bench.subject import Subject, subject_of_architecture, subject_of_experiment, subject_of_run
from promptcomp.bench.timing import Plan, measure, pick_device
from promptcomp.config import ConfigError
from promptcomp.files import write_atomic
from promptcomp.run.opening import quiet


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user asked to measure."""

    run: Path | None
    method: str | None
    config: Path | None
    lm: str | None
    slots: int | None
    overrides: tuple[str, ...]
    query_tokens: int | None


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers of at least 1 from "64,256".

    Raises:
        ConfigError: names the option.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{option} {text!r}: give whole numbers of at least 1, for example 64,256")
    return tuple(dict.fromkeys(int(word) for word in words))


def open_subject(choice: Choice) -> Subject:
    """The module that is measured.

    Raises:
        ConfigError: options that contradict each other, or anything wrong with the run or the configuration.
    """
    if choice.run is not None:
        if choice.method or choice.config or choice.lm or choice.slots:
            raise ConfigError(
                "a run directory brings its own method and LM; leave --method, --config, --lm, --slots out"
            )
        return subject_of_run(choice.run, choice.overrides, choice.query_tokens)
    if choice.method is None and choice.config is None:
        raise ConfigError("give a run directory, or --method NAME or --config FILE (with --lm PATH for random weights)")
    if choice.lm is not None:
        return subject_of_architecture(
            choice.method, choice.config, choice.lm, choice.slots, choice.overrides, choice.query_tokens
        )
    slots = () if choice.slots is None else (f"method.num_slots={choice.slots}",)
    experiment = experiments.load(choice.method, choice.config, (*slots, *choice.overrides))
    return subject_of_experiment(experiment, choice.query_tokens)


def run_bench(choice: Choice, plan: Plan, output: Path | None, console: Console, as_json_document: bool) -> Bench:
    """Measure and show; with `output` also write bench.json, bench.csv and the plot.

    Raises:
        ConfigError: a mistake in the options, or nothing could be measured.
    """
    pick_device(plan.device)
    if output is not None and output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty; name another folder with --output")
    with quiet():
        subject = open_subject(choice)
    with console.status("measuring ...") as status:
        bench = measure(
            subject, plan, lambda tokens, rows: status.update(f"measuring {tokens:,} prompt tokens, batch {rows} ...")
        )
    if not bench.records:
        raise ConfigError("nothing to measure: " + "; ".join(bench.skipped) + "; give shorter --lengths")
    if as_json_document:
        print(as_json(bench))
    else:
        print_bench(bench, console)
    if output is not None:
        _write(bench, output, console)
    return bench


def _write(bench: Bench, output: Path, console: Console) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "bench.json", as_json(bench) + "\n")
    write_atomic(output / "bench.csv", as_csv(bench))
    if plotting.can_plot():
        plot(bench, output)
    else:
        console.print(plotting.MISSING, highlight=False, markup=False)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)
