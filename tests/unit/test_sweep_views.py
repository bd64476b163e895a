"""Summaries, tables, live view, plots and report of sweeps made by hand."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from promptcomp.errors import ConfigError
from promptcomp.sweeps import plots
from promptcomp.sweeps.axes import axis_of
from promptcomp.sweeps.best import best_cell
from promptcomp.sweeps.live import LiveView
from promptcomp.sweeps.numbers import Runs, goals_of, learning_curve, log_tail
from promptcomp.sweeps.report import write_report
from promptcomp.sweeps.show import print_state
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.summary import summarize
from promptcomp.sweeps.tables import FORMATS, latex, markdown, points_csv, state_json
from promptcomp.sweeps.wording import amount, number, params_text, short_names, time_text
from tests.sweep_states import (
    NOW,
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
    found = summarize(one_dimension(tmp_path), NOW)
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
    found = summarize(state(tmp_path, config(seeds=2), trials, planned=4), NOW)
    assert found.best is not None
    assert found.best.params["method.num_slots"] == 1
    assert found.leading is not None
    assert found.leading.params["method.num_slots"] == 2
    assert found.ahead == found.leading
    text = _printed(state(tmp_path, config(seeds=2), trials, planned=4))
    assert "num_slots=2 is ahead of the best point, but has 1 of 2 seeds" in text


def test_noise_is_judged_on_paired_differences(tmp_path: Path) -> None:
    # Seeds differ by far more than points do: only pairs show that 4 is worse than 8, and 2 is not known to be.
    values = {8: [0.5, 0.7, 0.9], 4: [0.47, 0.67, 0.88], 2: [0.40, 0.75, 0.85]}
    trials = [
        trial(tmp_path, k * 10 + seed, {"method.num_slots": k}, seed, values={"retained": value})
        for k, row in values.items()
        for seed, value in enumerate(row)
    ]
    found = {p.params["method.num_slots"]: p for p in summarize(state(tmp_path, config(), trials), NOW).points}
    assert found[8].is_best
    assert found[4].within_noise is False
    assert found[2].within_noise is True


def test_one_seed_says_nothing_of_noise(tmp_path: Path) -> None:
    found = summarize(one_dimension(tmp_path, seeds=1), NOW)
    assert all(point.within_noise is None for point in found.points)
    assert "One seed has no interval" in _printed(one_dimension(tmp_path, seeds=1))


def test_minimised_objective(tmp_path: Path) -> None:
    sweep = config(seeds=1, objectives=[{"metric": "method", "direction": "minimize"}])
    trials = [trial(tmp_path, k, {"method.num_slots": k}, values={"method": 1.0 / k}) for k in (1, 2, 4)]
    found = summarize(state(tmp_path, sweep, trials), NOW)
    assert found.best is not None
    assert found.best.params["method.num_slots"] == 4


def test_front_over_means(tmp_path: Path) -> None:
    found = summarize(several_objectives(tmp_path), NOW)
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
    found = summarize(infeasible(tmp_path), NOW)
    assert found.best is None
    assert found.leading is None
    assert found.why_no_best == "no point meets the constraints"
    assert "no best point: no point meets the constraints" in _printed(infeasible(tmp_path))


def test_values_that_are_no_numbers_do_not_count(tmp_path: Path) -> None:
    found = summarize(nasty(tmp_path), NOW)
    empty = [point for point in found.points if not point.values]
    assert len(empty) == 4  # NaN, None, infinity, failed
    assert found.points[-1] in empty


def test_importances_need_points(tmp_path: Path) -> None:
    found = several_objectives(tmp_path, points=3)
    assert summarize(found, NOW).why_no_importances == "too few trials (3 of 4 points)"
    found = summarize(many_points(tmp_path), NOW)
    assert found.importances["retained"]["optim.lr"] > 0.8


def test_progress_counts_and_times(tmp_path: Path) -> None:
    progress = summarize(running(tmp_path), NOW).progress
    assert progress.counts == {"finished": 5, "running": 2, "stale": 1, "pruned": 1, "failed": 1, "waiting": 2}
    assert (progress.done, progress.planned, progress.over) == (7, 12, False)
    assert progress.elapsed == 1800
    assert progress.eta is not None
    assert progress.eta > 0
    done = summarize(one_dimension(tmp_path), NOW + timedelta(days=3)).progress
    assert done.over
    assert done.eta is None
    assert done.elapsed == 13 * 60  # to the end of the last trial, not to now
    assert done.device_hours == pytest.approx(0.4)


def test_dropped_points_leave_trials_out(tmp_path: Path) -> None:
    one = trial(tmp_path, 0, {"method.num_slots": 1}, values={"retained": 0.1})
    found = summarize(state(tmp_path, config(), [one], planned=3, dropped=(one.point,)), NOW)
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


def test_table_formats_escape(tmp_path: Path) -> None:
    found = nasty(tmp_path)
    assert "<script>" not in markdown(found)
    assert r"\textless{}script\textgreater{}alert(1)" in latex(found)
    assert r"gr" in latex(found)
    assert r"\$x\textasciicircum{}2\$ \%\_\{\}" in latex(found)
    assert r"{[}bold]rich" in latex(found)
    assert "| full prompt (trained) |" in markdown(one_dimension(tmp_path / "other"))


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
    assert [mean.mean for mean in summarize(found, NOW).points[0].values.values()] == [0.7, 0.4]
    assert "exact match (unseen)" in markdown(found)


def test_learning_curve_from_metrics(tmp_path: Path) -> None:
    one = trial(tmp_path, 0, {"a": 1})
    assert learning_curve(one, None)[1] == ()
    one.run.mkdir(parents=True)
    (one.run / "metrics.csv").write_text("step,loss,dev/loss\n1,2.0,\n2,,1.5\n3,,nan\n4,x,1.2\n", encoding="utf-8")
    assert learning_curve(one, None) == ("dev/loss", ((2, 1.5), (4, 1.2)))


def test_log_tail_reads_only_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert log_tail(path, 3) == []
    path.write_bytes(b"x" * 100_000 + b"\n\xff\xfebad\n\x1b[2K\x1b[1A10%\r20%\r\nend\x07\n\n")
    assert log_tail(path, 2) == ["20%", "end"]


# Live view


def _lines(states: list[SweepState]) -> list[str]:
    out = io.StringIO()
    with LiveView(Console(file=out, width=80)) as view:
        for found in states:
            view.update(found)
    return out.getvalue().splitlines()


def test_plain_lines_tell_each_change_once(tmp_path: Path) -> None:
    base = running(tmp_path)
    first = dataclasses.replace(base, trials=base.trials[:7])
    ended = dataclasses.replace(base.trials[5], status="finished", values={"exact_match": 0.61})
    lost = dataclasses.replace(base.trials[6], status="failed", problem="killed\nby [red]the system")
    later = dataclasses.replace(base, trials=(*base.trials[:5], ended, lost, *base.trials[7:]))
    lines = _lines([first, first, later, later])
    assert lines[0] == "sweep: 12 trials, 5 done before"
    assert sum(line.startswith("started") for line in lines) == 2
    assert [line for line in lines if line.startswith("finished")] == [
        line for line in lines if "num_slots=2, seed 1: exact_match 0.610 (9 of 12" in line
    ]
    assert any("killed by [red]the system (log: " in line for line in lines)
    assert any(line.startswith("pruned    num_slots=1, seed 2 at step 80") for line in lines)
    assert any(line.startswith("lost      num_slots=8") for line in lines)
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("width", [60, 80, 160])
def test_live_view_fits_the_terminal(name: str, width: int, tmp_path: Path) -> None:
    from promptcomp.sweeps.live import render

    found = STATES[name](tmp_path)
    busy = tuple(dataclasses.replace(t, status="running") for t in found.trials)
    for each in (found, dataclasses.replace(found, trials=busy)):
        out = io.StringIO()
        console = Console(file=out, width=width, height=24, force_terminal=True, color_system=None)
        console.print(render(each, summarize(each, NOW), console))
        lines = out.getvalue().splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= width


def test_live_view_on_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=80, height=24, force_terminal=True)) as view:
        view.update(running(tmp_path))
        view.update(one_dimension(tmp_path))
    assert "How many gist tokens?" in out.getvalue()
    assert "best so far" in out.getvalue()


# Pictures and page


@pytest.mark.parametrize(
    ("dimension", "values", "kind"),
    [
        ({"values": [1, 2, 4, 8]}, [1, 2, 4, 8], "log2"),
        ({"values": [1, 8]}, [1, 8], "log2"),
        ({"values": [0, 0.25, 1]}, [0, 0.25, 1], "linear"),
        ({"values": [1e-4, 1e-3, 1e-2]}, [1e-4, 1e-3, 1e-2], "log10"),
        ({"values": [1, 2, 3]}, [1, 2, 3], "linear"),
        ({"values": [True, 2]}, [True, 2], "category"),
        ({"values": ["b", "a"]}, ["b", "a"], "category"),
        ({"low": 1e-5, "high": 1e-2, "log": True}, [1e-5, 3e-3], "log10"),
        ({"low": 0, "high": 1}, [0.1, 0.7], "linear"),
        ({"choices": {"4": {"x": 1}, "2": {"x": 2}}}, ["4", "2"], "category"),
    ],
)
def test_axes(dimension: dict[str, Any], values: list[Any], kind: str) -> None:
    axis = axis_of(config(space={"a.b": dimension}), "a.b", [{"a.b": value} for value in reversed(values)])
    assert (axis.kind, list(axis.values)) == (kind, values)
    assert axis.title == "b"
    assert [axis.share(values[0]), axis.share(values[-1])] == pytest.approx([0, 1])


def test_plots_of_every_kind(tmp_path: Path) -> None:
    found = several_objectives(tmp_path)
    names = {path.name for path in plots.write_plots(found, tmp_path / "pictures")}
    for stem in ("retained_over_num_slots", "retained_over_distiller", "front_retained_size_memory_slots", "curves"):
        assert {f"{stem}.png", f"{stem}.svg"} <= names
    assert {"parallel.png", "importances.png", "retained_over_lr.png"} <= names
    assert all((tmp_path / "pictures" / name).stat().st_size > 1000 for name in names)


def test_plot_has_a_panel_for_each_split(tmp_path: Path) -> None:
    with plots.drawing():
        found = plots.figures(one_dimension(tmp_path))
    first = found[0].figure.axes
    assert [axes.get_ylabel() for axes in first] == ["exact match (seen)", "exact match (unseen)"]
    assert [axes.get_xscale() for axes in first] == ["log", "log"]


@pytest.mark.parametrize("name", ["nasty", "nothing_finished", "infeasible", "running"])
def test_report_of_odd_states(name: str, tmp_path: Path) -> None:
    page = write_report(STATES[name](tmp_path))
    text = page.read_text(encoding="utf-8")
    assert page.parent == tmp_path / "report"
    assert "<script>alert" not in text
    assert "onerror=alert(1)>" not in text
    assert (tmp_path / "report" / "trials.csv").is_file()
    json.loads((tmp_path / "report" / "points.json").read_text(encoding="utf-8"))


def test_report_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "can_plot", lambda: False)
    text = write_report(one_dimension(tmp_path)).read_text(encoding="utf-8")
    assert "matplotlib is not installed; pip install &#34;promptcomp[plots]&#34;" in text
    assert "<figure" not in text
    assert not list((tmp_path / "report").glob("*.png"))


def test_views_import_no_torch() -> None:
    code = (
        "import sys\n"
        "import promptcomp.sweeps.report, promptcomp.sweeps.show, promptcomp.sweeps.live, promptcomp.sweeps.best\n"
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib', 'optuna', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
