"""Summaries and tables of sweeps made by hand."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from promptcomp.errors import ConfigError
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.values import dev_reports, goals_of, metric_rows
from promptcomp.sweeps.views.html_report import FORMATS, points_csv, state_json
from promptcomp.sweeps.views.numbers import Runs, duration, log_tail
from promptcomp.sweeps.views.overview import print_state
from promptcomp.sweeps.views.points import Summary, best_cell
from promptcomp.sweeps.views.wording import amount, number, params_text, short_names, time_text
from tests.sweep_states import (
    NOW,
    START,
    STATES,
    config,
    infeasible,
    many_points,
    nasty,
    nothing_finished,
    one_dimension,
    running,
    several_objectives,
    state,
    trial,
)


def _printed(found: SweepState, width: int = 80) -> str:
    out = io.StringIO()
    print_state(found, Console(file=out, width=width, color_system=None))
    return out.getvalue()


# Summary


def test_best_is_a_point_with_all_seeds(tmp_path: Path) -> None:
    found = Summary(one_dimension(tmp_path), NOW)
    assert found.best is not None
    assert found.best.params == {"method.num_slots": 8}
    assert [point.params["method.num_slots"] for point in found.points] == [8, 4, 2, 1]
    mean = found.best.values["exact_match"]
    assert mean.seeds == 3
    assert mean.ci is not None
    assert mean.ci[0] < mean.mean < mean.ci[1]
    assert found.why_no_importances == "only one dimension varies"


def test_a_lucky_seed_alone_is_not_the_best(tmp_path: Path) -> None:
    rows = [(1, 0, 0.5), (1, 1, 0.52), (2, 0, 0.99)]
    trials = [
        trial(tmp_path, i, {"method.num_slots": k}, seed, values={"retained": value})
        for i, (k, seed, value) in enumerate(rows)
    ]
    found = Summary(state(tmp_path, config(seeds=2), trials, planned=4), NOW)
    assert found.best is not None
    assert found.best.params["method.num_slots"] == 1
    assert found.leading is not None
    assert found.leading.params["method.num_slots"] == 2
    assert found.ahead == found.leading
    text = _printed(state(tmp_path, config(seeds=2), trials, planned=4))
    assert "num_slots=2 is ahead of the best point, but has 1 of 2 seeds" in text
    lost = dataclasses.replace(trials[1], status="failed", values={})
    over = Summary(state(tmp_path, config(seeds=2), [trials[0], lost]), NOW)
    assert over.why_no_best == "no point has finished all its seeds"


def test_noise_is_judged_on_paired_differences(tmp_path: Path) -> None:
    # Seeds differ by far more than points do: only pairs show that 4 is worse than 8, and 2 is not known to be.
    values = {8: [0.5, 0.7, 0.9], 4: [0.47, 0.67, 0.88], 2: [0.40, 0.75, 0.85]}
    trials = [
        trial(tmp_path, k * 10 + seed, {"method.num_slots": k}, seed, values={"retained": value})
        for k, row in values.items()
        for seed, value in enumerate(row)
    ]
    found = {p.params["method.num_slots"]: p for p in Summary(state(tmp_path, config(), trials), NOW).points}
    assert found[8].is_best
    assert found[4].within_noise is False
    assert found[2].within_noise is True


def test_one_seed_says_nothing_of_noise(tmp_path: Path) -> None:
    found = Summary(one_dimension(tmp_path, seeds=1), NOW)
    assert all(point.within_noise is None for point in found.points)
    assert "One seed has no interval" in _printed(one_dimension(tmp_path, seeds=1))


def test_minimised_objective(tmp_path: Path) -> None:
    sweep = config(seeds=1, objectives=[{"metric": "method", "direction": "minimize"}])
    trials = [trial(tmp_path, k, {"method.num_slots": k}, values={"method": 1.0 / k}) for k in (1, 2, 4)]
    found = Summary(state(tmp_path, sweep, trials), NOW)
    assert found.best is not None
    assert found.best.params["method.num_slots"] == 4


def test_front_over_means(tmp_path: Path) -> None:
    found = Summary(several_objectives(tmp_path), NOW)
    assert found.best is None
    assert found.front
    pairs = [(p.values["retained"].mean, p.values["size.memory_slots"].mean) for p in found.points]
    for point in found.front:
        good, slots = point.values["retained"].mean, point.values["size.memory_slots"].mean
        assert not any((g >= good and s < slots) or (g > good and s <= slots) for g, s in pairs)
    others = [p for p in found.points if not p.on_front]
    assert len(others) + len(found.front) == 12
    assert max(found.importances["size.memory_slots"], key=found.importances["size.memory_slots"].__getitem__) == (
        "method.num_slots"
    )
    assert sum(found.importances["retained"].values()) == pytest.approx(1)


def test_constraints_nobody_meets(tmp_path: Path) -> None:
    found = Summary(infeasible(tmp_path), NOW)
    assert found.best is None
    assert found.leading is None
    assert found.why_no_best == "no point meets the constraints"
    assert "no best point: no point meets the constraints" in _printed(infeasible(tmp_path))


def test_the_best_point_is_one_that_is_wanted(tmp_path: Path) -> None:
    """With its value, and with the seeds that the sweep has now."""
    done = one_dimension(tmp_path)
    best = Summary(done, NOW).best
    assert best is not None
    found = Summary(dataclasses.replace(done, left_out=(best.point,)), NOW)
    assert found.best is found.leading is found.points[1]
    assert len(found.points) == 4, "the table has it still"
    moved = done.config.model_copy(update={"first_seed": 1})
    later = dataclasses.replace(done, config=moved, planned=done.planned + 4)
    assert Summary(later, NOW).why_no_best == "no point has finished all its seeds yet"


def test_values_that_are_no_numbers_do_not_count(tmp_path: Path) -> None:
    found = Summary(nasty(tmp_path), NOW)
    empty = [point for point in found.points if not point.values]
    assert len(empty) == 4  # NaN, None, infinity, failed
    assert found.points[-1] in empty


def test_importances_need_points(tmp_path: Path) -> None:
    found = several_objectives(tmp_path, points=3)
    assert Summary(found, NOW).why_no_importances == "too few trials (3 of 4 points)"
    found = Summary(many_points(tmp_path), NOW)
    assert found.importances["retained"]["optim.lr"] > 0.8


def test_progress_counts_and_times(tmp_path: Path) -> None:
    progress = Summary(running(tmp_path), NOW).progress
    assert progress.counts == {"finished": 5, "running": 2, "stale": 1, "pruned": 1, "failed": 1, "waiting": 2}
    assert (progress.done, progress.planned, progress.over) == (7, 12, False)
    assert progress.elapsed == 1800
    assert progress.eta is not None
    assert progress.eta > 0
    done = Summary(one_dimension(tmp_path), NOW + timedelta(days=3)).progress
    assert done.over
    assert done.eta is None
    assert done.elapsed == 13 * 60  # to the end of the last trial, not to now
    assert done.device_hours == pytest.approx(0.4)
    assert done.control_hours == 0


def test_the_time_left_does_not_count_nights_between_attempts(tmp_path: Path) -> None:
    """Both trials were interrupted and went on three days later; each has worked for two minutes."""
    night = timedelta(days=3)
    done = trial(tmp_path, 0, {"method.num_slots": 1}, values={"retained": 0.5}, ended=START + night)
    half = trial(tmp_path, 1, {"method.num_slots": 2}, status="running", step=100, ended=None)
    progress = Summary(state(tmp_path, config(seeds=1), [done, half], planned=4), START + night).progress
    assert duration(done) == 120
    assert progress.eta == pytest.approx((120 + 2 * 120) / 2)


def test_controls_count_as_work(tmp_path: Path) -> None:
    """Their device hours, and the time until the last of them has ended."""
    found = one_dimension(tmp_path)
    end = START + timedelta(hours=1)
    controls = [dataclasses.replace(control, ended=end, device_seconds=300.0) for control in found.controls]
    found = dataclasses.replace(found, controls=tuple(controls))
    progress = Summary(found, NOW + timedelta(days=3)).progress
    assert progress.elapsed == 3600
    assert progress.control_hours == pytest.approx(0.5)
    assert progress.device_hours == pytest.approx(0.9)
    assert "0.900 device hours, 0.500 of them for the controls" in _printed(found)
    assert state_json(found)["progress"]["control_hours"] == pytest.approx(0.5)


def test_a_control_that_failed_is_told(tmp_path: Path) -> None:
    """Bounds stand in its place in the table."""
    found = one_dimension(tmp_path)
    lost = dataclasses.replace(found.controls[0], status="failed", values={}, problem="killed (exit code -9)")
    text = _printed(dataclasses.replace(found, controls=(lost, *found.controls[1:])))
    assert f"failed: {lost.point}, seed {lost.seed}: killed (exit code -9)" in text


def test_dropped_points_leave_trials_out(tmp_path: Path) -> None:
    one = trial(tmp_path, 0, {"method.num_slots": 1}, values={"retained": 0.1})
    found = Summary(state(tmp_path, config(), [one], planned=3, dropped=(one.point,)), NOW)
    assert found.progress.left_out == 2
    assert found.progress.over
    assert found.best is None


# Tables


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("width", [60, 80, 160])
def test_every_state_prints(name: str, width: int, tmp_path: Path) -> None:
    found = STATES[name](tmp_path)
    lines = _printed(found, width).splitlines()
    commands = [line for line in lines if "promptcomp sweep" in line]
    assert commands
    assert max(len(line) for line in lines if line not in commands) <= width
    assert "Traceback" not in "".join(lines)


def test_show_has_controls_failures_and_tails(tmp_path: Path) -> None:
    text = _printed(running(tmp_path), 160)
    assert "full prompt (trained): exact match (seen) 0.9" in text
    assert "failed after 3 attempts: num_slots=2, seed 2: FloatingPointError" in text
    assert "  red <b>not bold</b> & more" in text
    assert "\x1b" not in text
    assert "  step 17" in text


def test_long_tables_are_cut(tmp_path: Path) -> None:
    text = _printed(many_points(tmp_path), 80)
    assert "160 more points" in text
    assert len(text.splitlines()) < 60
    assert len(points_csv(many_points(tmp_path)).splitlines()) == 201


@pytest.mark.parametrize("name", STATES)
def test_every_state_has_tables_and_json(name: str, tmp_path: Path) -> None:
    found = STATES[name](tmp_path)
    for format_ in FORMATS.values():
        assert format_(found).endswith("\n")
    record = json.loads(json.dumps(state_json(found), allow_nan=False))
    assert len(record["trials"]) == len(found.trials)


def test_wording() -> None:
    assert short_names(["optim.lr", "method.lr", "method.num_slots"]) == {
        "optim.lr": "optim.lr",
        "method.lr": "method.lr",
        "method.num_slots": "num_slots",
    }
    assert params_text({"a.b": True, "c": None, "d": 1e-5}) == "b=true, c=null, d=1e-05"
    assert [number(value) for value in (0.5, 12.0, 1234.5, 1e-5)] == ["0.500", "12", "1,234", "1.00e-05"]
    assert [amount("size.memory_bytes", 2048.0), amount("size.memory_slots", 8.0)] == ["2.0 KiB", "8"]
    assert [time_text(seconds) for seconds in (5, 65, 7260, 200_000)] == ["5 s", "1 min 05 s", "2 h 01 min", "2 d 07 h"]


# Best


def test_best_cell(tmp_path: Path) -> None:
    found = best_cell(one_dimension(tmp_path))
    assert found.params == {"method.num_slots": 8}
    assert found.values["exact_match"] == max(
        t.values["exact_match"] for t in one_dimension(tmp_path).trials if t.params == found.params
    )
    assert best_cell(one_dimension(tmp_path), point="2").params == {"method.num_slots": 2}


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (several_objectives, {}, "several objectives; choose with --objective or --point; Pareto front:"),
        (several_objectives, {"objective": "loss"}, "no such objective; it has retained, size.memory_slots"),
        (one_dimension, {"point": "9"}, "no such point"),
        (one_dimension, {"point": ""}, "no such point"),
        (infeasible, {}, "no point meets the constraints"),
        (running, {}, "no point has finished all its seeds yet"),
        (nothing_finished, {}, "no trial has finished with a value"),
        (nothing_finished, {"point": "1"}, "has no finished trial with a value"),
    ],
)
def test_best_cell_refuses(
    make: Callable[[Path], SweepState], words: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        best_cell(make(tmp_path), **words)


def test_best_of_a_front(tmp_path: Path) -> None:
    found = several_objectives(tmp_path)
    assert best_cell(found, objective="size.memory_slots").params["method.num_slots"] == 2
    assert best_cell(found, objective="retained").params["method.num_slots"] == 16


# What is read from runs


def test_bands(tmp_path: Path) -> None:
    found = one_dimension(tmp_path)
    runs, objective = Runs(found), goals_of(found.config)[0]
    assert runs.splits(objective) == ["seen", "unseen"]
    seen, unseen = runs.bands(objective, "seen"), runs.bands(objective, "unseen")
    assert [band.title for band in seen] == ["full prompt (trained)", "no prompt (trained)"]
    assert seen[0].value.seeds == 3
    assert unseen[0].value.mean == pytest.approx(seen[0].value.mean - 0.1)
    without = dataclasses.replace(found, controls=())
    assert [(b.title, b.value.mean) for b in Runs(without).bands(objective, None)] == [
        ("full prompt", pytest.approx(0.9)),
        ("no prompt", pytest.approx(0.3)),
    ]


def test_a_control_of_value_zero_counts(tmp_path: Path) -> None:
    found = one_dimension(tmp_path)
    controls = tuple(dataclasses.replace(c, values={"exact_match": 0.0}) for c in found.controls)
    bands = Runs(dataclasses.replace(found, controls=controls)).bands(goals_of(found.config)[0], None)
    assert [(band.value.mean, band.trained) for band in bands] == [(0.0, True), (0.0, True)]


def test_two_splits_of_one_metric_are_two_objectives(tmp_path: Path) -> None:
    goals = [{"metric": "exact_match", "split": "seen"}, {"metric": "exact_match", "split": "unseen"}]
    values = {"seen/exact_match": 0.7, "unseen/exact_match": 0.4}
    sweep = config(seeds=1, objectives=goals)
    found = state(tmp_path, sweep, [trial(tmp_path, 0, {"method.num_slots": 1}, values=values)])
    assert [mean.mean for mean in Summary(found, NOW).points[0].values.values()] == [0.7, 0.4]
    assert "exact match (unseen)" in _printed(found, 160)


def test_learning_curve_from_metrics(tmp_path: Path) -> None:
    one = trial(tmp_path, 0, {"a": 1})
    assert dev_reports(metric_rows(one.run), None) == (None, {})
    one.run.mkdir(parents=True)
    (one.run / "metrics.csv").write_text("step,loss,dev/loss\n1,2.0,\n2,,1.5\n3,,nan\n4,x,1.2\n", encoding="utf-8")
    assert dev_reports(metric_rows(one.run), None) == ("dev/loss", {2: 1.5, 4: 1.2})


def test_log_tail_reads_only_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert log_tail(path, 3) == []
    path.write_bytes(b"x" * 100_000 + b"\n\xff\xfebad\n\x1b[2K\x1b[1A10%\r20%\r\nend\x07\n\n")
    assert log_tail(path, 2) == ["20%", "end"]
