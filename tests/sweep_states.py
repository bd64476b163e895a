"""Sweep states made by hand, for the tests of views."""

from __future__ import annotations

import itertools
import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory

START = datetime(2026, 5, 1, 8, tzinfo=UTC)
NOW = START + timedelta(minutes=30)
EXACT = {"metric": "exact_match"}


def config(**changes: Any) -> SweepConfig:
    """One dimension of four numbers, three seeds."""
    tree = {
        "title": "How many gist tokens?",
        "experiment": "gist",
        "space": {"method.num_slots": {"values": [1, 2, 4, 8]}},
    }
    return SweepConfig.model_validate({**tree, "seeds": 3, **changes})


def trial(folder: Path, number: int, params: dict[str, Any], seed: int = 0, **changes: Any) -> Trial:
    """A finished trial of two minutes, unless told otherwise."""
    point = "-".join(f"{value}" for value in params.values()).replace("/", "_")
    began = START + timedelta(seconds=60 * number)
    base: dict[str, Any] = {
        "number": number,
        "cell": f"p{number}-s{seed}",
        "point": point,
        "params": params,
        "seed": seed,
        "status": "finished",
        "attempt": 1,
        "run": folder / "runs" / f"p{number}-s{seed}",
        "step": 200,
        "max_steps": 200,
        "worker": "node1:4242",
        "started": began,
        "ended": began + timedelta(seconds=120),
        "device_seconds": 120.0,
    }
    return Trial(**{**base, **changes})


def state(folder: Path, sweep: SweepConfig, trials: list[Trial], **changes: Any) -> SweepState:
    """A state of these trials."""
    base: dict[str, Any] = {"planned": len(trials), "started": START, "workers": 2}
    return SweepState(SweepDirectory(folder), sweep, tuple(trials), **{**base, **changes})


def curve_of(value: float, steps: int = 200) -> tuple[tuple[int, float], ...]:
    """Dev results that rise to a value."""
    return tuple((step, value * (1 - math.exp(-step / 60))) for step in range(20, steps + 1, 20))


def one_dimension(folder: Path, seeds: int = 3, controls: bool = True) -> SweepState:
    """Finished: four numbers of slots, with controls and results files of two splits."""
    draw = random.Random(1)
    sweep = config(seeds=seeds, controls=controls, objectives=[{"metric": "exact_match", "split": "seen"}])
    trials, number = [], 0
    for seed in range(seeds):
        for slots in (1, 2, 4, 8):
            value = 0.45 + 0.12 * math.log2(slots) + draw.gauss(0, 0.015)
            found = trial(
                folder,
                number,
                {"method.num_slots": slots},
                seed,
                values={"exact_match": value},
                reports=curve_of(value),
            )
            write_results(found.run, seed, {"seen": value, "unseen": value - 0.2 + draw.gauss(0, 0.02)})
            trials.append(found)
            number += 1
    found_controls = []
    for seed in range(seeds if controls else 0):
        for name, value in (("full_prompt", 0.93), ("no_prompt", 0.31)):
            run = folder / "controls" / f"{name}-{seed}"
            value += draw.gauss(0, 0.01)
            write_results(run, seed, {"seen": value, "unseen": value - 0.1})
            found = Trial(point=name, seed=seed, status="finished", run=run, values={"exact_match": value})
            found_controls.append(found)
    return state(folder, sweep, trials, controls=tuple(found_controls))


def running(folder: Path) -> SweepState:
    """In the middle: every status, a dropped point, long failures."""
    done = one_dimension(folder)
    now: list[Trial] = list(done.trials[:5])
    at = {"values": {}, "ended": None}
    params = [{"method.num_slots": slots} for slots in (1, 2, 4, 8)]
    now += [
        trial(folder, 20, params[1], 1, status="running", **at, step=120, reports=curve_of(0.6, 120)),
        trial(folder, 21, params[2], 1, status="running", **at, step=20, reports=curve_of(0.7, 20), worker="node2:77"),
        trial(folder, 22, params[3], 1, status="stale", **at, step=60),
        trial(folder, 23, params[0], 2, status="pruned", values={}, reports=curve_of(0.2, 80), step=80),
        trial(
            folder,
            24,
            params[1],
            2,
            status="failed",
            values={},
            attempt=3,
            problem="FloatingPointError: the loss is NaN at step 17 (method.num_slots=2)",
        ),
        trial(folder, 25, params[2], 2, status="waiting", **at, started=None, step=0),
    ]
    done.directory.logs.mkdir(parents=True, exist_ok=True)
    text = "start\n\x1b[31mred <b>not bold</b> & more\x1b[0m\nstep 1\rstep 17\nFloatingPointError: the loss is NaN\n"
    done.directory.log_of("p24-s2").write_text(text, encoding="utf-8")
    return state(folder, done.config, now, planned=12, dropped=(now[0].point,), controls=done.controls)


def several_objectives(folder: Path, points: int = 12) -> SweepState:
    """Quality against memory over three dimensions of different kinds."""
    draw = random.Random(3)
    space = {
        "method.num_slots": {"values": [2, 4, 8, 16]},
        "distiller": {"choices": {"small": {"a": 1}, "large": {"a": 2}}},
        "optim.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    }
    objectives = [{"metric": "retained"}, {"metric": "size.memory_slots", "direction": "minimize"}]
    sweep = config(space=space, objectives=objectives, sampler="tpe", points=points, seeds=2)
    trials = []
    for number in range(points):
        slots = draw.choice([2, 4, 8, 16])
        params = {
            "method.num_slots": slots,
            "distiller": draw.choice(["small", "large"]),
            "optim.lr": 10 ** draw.uniform(-5, -2),
        }
        good = 0.2 + 0.15 * math.log2(slots) - 0.05 * abs(math.log10(params["optim.lr"]) + 3.5)
        for seed in range(2):
            values = {"retained": good + draw.gauss(0, 0.02), "size.memory_slots": float(slots)}
            trials.append(trial(folder, 2 * number + seed, params, seed, values=values, reports=curve_of(good)))
    return state(folder, sweep, trials)


def nasty(folder: Path) -> SweepState:
    """Names that are markup, formulas, other scripts; values that are no numbers."""
    names = [
        "<script>alert(1)</script>",
        "größe_π & $x^2$ %_{}",
        "_hidden",
        "[bold]rich[/bold]",
        "数",
        "</script><b>",
        None,
        True,
    ]
    sweep = config(
        title="<img src=x onerror=alert(1)> & $\\frac$ [red]x[/red]",
        space={"data.<name>": {"values": names}, "b": {"values": [1, 2]}},
        seeds=1,
    )
    trials = []
    for number, name in enumerate(names):
        value: Any = {0: math.nan, 1: None, 2: math.inf}.get(number, 0.1 * number)
        trials.append(trial(folder, number, {"data.<name>": name, "b": 1 + number % 2}, values={"retained": value}))
    bad = trial(folder, 50, {"data.<name>": "=cmd()", "b": 1}, status="failed", problem="ValueError: <b>x</b> [red]y")
    return state(folder, sweep, [*trials, bad])


def data_efficiency(folder: Path, seeds: int = 3, sizes: tuple[int, ...] = ()) -> SweepState:
    """A method and two baselines over four shares of the training data, perhaps for several sizes; results on disk."""
    draw = random.Random(7)
    methods = {"step_by_step": 0.25, "finetune": 0.0, "task_distillation": -0.1}
    space: dict[str, Any] = {"method": {"choices": {name: {"method": {"name": name}} for name in methods}}}
    space |= {"lm.width": {"values": list(sizes)}} if sizes else {}
    shares = [0.125, 0.25, 0.5, 1.0]
    sweep = config(space={**space, "data.train_share": {"values": shares}}, seeds=seeds, objectives=[EXACT])
    trials = []
    for seed, share, size, (name, gain) in itertools.product(range(seeds), shares, sizes or (0,), methods.items()):
        value = 0.3 + 0.1 * math.log2(8 * share) + 0.6 * gain + 0.002 * size + draw.gauss(0, 0.02)
        params = {"method": name, **({"lm.width": size} if size else {}), "data.train_share": share}
        found = trial(folder, len(trials), params, seed, values={"exact_match": value}, reports=curve_of(value))
        write_results(found.run, seed, {"test": value})
        trials.append(found)
    return state(folder, sweep, trials)


def infeasible(folder: Path) -> SweepState:
    """All points break the constraint."""
    sweep = config(constraints=[{"metric": "size.memory_bytes", "at_most": 10}], seeds=1)
    found = [
        trial(
            folder,
            n,
            {"method.num_slots": slots},
            values={"retained": 0.1 * n},
            constraints={"size.memory_bytes": 90.0 * slots},
        )
        for n, slots in enumerate((1, 2, 4, 8))
    ]
    return state(folder, sweep, found)


def nothing_finished(folder: Path) -> SweepState:
    """Just started."""
    return state(
        folder,
        config(),
        [trial(folder, 0, {"method.num_slots": 1}, status="running", values={}, ended=None, step=0)],
        planned=12,
    )


def many_points(folder: Path, points: int = 200) -> SweepState:
    """Two continuous dimensions, one seed."""
    draw = random.Random(5)
    space = {"optim.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "method.loss_weight": {"low": 0, "high": 1}}
    trials = []
    for number in range(points):
        lr, weight = 10 ** draw.uniform(-5, -2), draw.random()
        value = 0.8 - 0.1 * (math.log10(lr) + 3.2) ** 2 - 0.1 * (weight - 0.4) ** 2 + draw.gauss(0, 0.02)
        trials.append(
            trial(
                folder,
                number,
                {"optim.lr": lr, "method.loss_weight": weight},
                values={"retained": value},
                reports=curve_of(value),
            )
        )
    return state(folder, config(space=space, seeds=1, sampler="random", points=points), trials)


def write_results(run: Path, seed: int, splits: dict[str, float]) -> None:
    """A small results.json."""
    run.mkdir(parents=True, exist_ok=True)
    parts = {
        name: {
            "metric": "exact_match",
            "count": 100,
            "method": value,
            "full_prompt": 0.9,
            "no_prompt": 0.3,
            "retained": (value - 0.3) / 0.6,
            "rows": {
                row: {"exact_match": {"value": v}}
                for row, v in (("method", value), ("full_prompt", 0.9), ("no_prompt", 0.3))
            },
        }
        for name, value in splits.items()
    }
    tree = {
        "schema": 1,
        "method": "gist",
        "family": "decoder",
        "data": "toy",
        "lm": "toy",
        "seed": seed,
        "splits": parts,
    }
    (run / "results.json").write_text(json.dumps(tree), encoding="utf-8")


STATES = {
    "one_dimension": one_dimension,
    "running": running,
    "several_objectives": several_objectives,
    "nasty": nasty,
    "infeasible": infeasible,
    "nothing_finished": nothing_finished,
    "many_points": many_points,
    "data_efficiency": data_efficiency,
}
"""Everything that views must cope with."""
