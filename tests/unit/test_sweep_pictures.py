"""Live view, plots and report of sweeps made by hand."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from promptcomp import plotting
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views import plots
from promptcomp.sweeps.views.html_report import write_report
from promptcomp.sweeps.views.overview import LiveView
from promptcomp.sweeps.views.points import Summary
from promptcomp.sweeps.views.wording import axis_of
from tests.sweep_states import (
    NOW,
    STATES,
    config,
    one_dimension,
    running,
    several_objectives,
)

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
    from promptcomp.sweeps.views.overview import render

    found = STATES[name](tmp_path)
    busy = tuple(dataclasses.replace(t, status="running") for t in found.trials)
    for each in (found, dataclasses.replace(found, trials=busy)):
        out = io.StringIO()
        console = Console(file=out, width=width, height=24, force_terminal=True, color_system=None)
        console.print(render(Summary(each, NOW), console))
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
    folder = write_report(found).parent
    names = {path.name for path in folder.iterdir()}
    for stem in ("retained_over_num_slots", "retained_over_distiller", "front_retained_size_memory_slots", "curves"):
        assert {f"{stem}.png", f"{stem}.svg"} <= names
    assert {"parallel.png", "importances.png", "retained_over_lr.png"} <= names
    assert all((folder / name).stat().st_size > 1000 for name in names if name.endswith((".png", ".svg")))


def test_plot_has_a_panel_for_each_split(tmp_path: Path) -> None:
    with plotting.drawing():
        found = plots.figures(Summary(one_dimension(tmp_path)))
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


def test_views_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from promptcomp.sweeps.views import html_report, overview, points\n"
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib', 'optuna', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
