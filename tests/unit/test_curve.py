"""Data-efficiency curves: which runs they need, how runs are kept and continued, and what is read off them."""

from __future__ import annotations

import csv
import io
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from promptcomp.config import ConfigError, dump
from promptcomp.curve.plan import CurveSpec, Point, fractions_of, plan
from promptcomp.curve.plot import plot
from promptcomp.curve.running import Interrupted, Runner
from promptcomp.curve.session import Wanted, make_curve
from promptcomp.curve.summary import PointResult, Table, crossing, mean_of
from promptcomp.curve.tables import points_csv, remarks, summary_csv
from promptcomp.evaluation.results import Results, SplitResult, write_results
from promptcomp.experiment import load

SPEC = CurveSpec("step_by_step", ("finetune",), (0.5, 1.0), 2, ("data.train_count=8", "method.alpha=0.3"))


def _finish(point: Point, run: Path, value: float) -> None:
    """Write what a finished run leaves."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump(point.experiment), encoding="utf-8")
    (run / "predictions.jsonl").write_text("", encoding="utf-8")
    split = SplitResult(metric="exact_match", count=10, method=value, full_prompt=None, no_prompt=None)
    results = Results(
        method=point.method, family="decoder", data="d", lm="x", seed=point.seed, splits={"test": split}, version="0"
    )
    write_results(run / "results.json", results)


class FakeFit:
    """Starts processes that do nothing; the result is there when they start."""

    def __init__(self, fail: str = "") -> None:
        self.started: list[str] = []
        self.fail = fail

    def __call__(self, point: Point, run: Path) -> subprocess.Popen[bytes]:
        self.started.append(point.title)
        failing = self.fail and self.fail in point.title
        if not failing:
            gain = 0.3 if point.method == "step_by_step" else 0.0
            _finish(point, run, 0.2 + 0.4 * point.fraction + gain + 0.01 * point.seed)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({3 if failing else 0})"])


def test_plan_gives_baselines_the_methods_data_lm_and_steps(tmp_path: Path) -> None:
    points = plan(SPEC, tmp_path)
    assert len(points) == 8
    assert len({point.folder for point in points}) == 8
    own, baseline = points[0].experiment, points[1].experiment
    assert (own.method.name, baseline.method.name) == ("step_by_step", "finetune")
    assert own.method.model_dump()["alpha"] == 0.3
    assert baseline.data.model_dump() == own.data.model_dump() | {"targets": "label"}
    assert (own.lm, own.optim, own.trainer, own.seed) == (baseline.lm, baseline.optim, baseline.trainer, baseline.seed)
    assert [point.experiment.data.model_dump()["train_share"] for point in points[:4:2]] == [0.5, 1.0]
    assert own.data.model_dump()["subset"] == "per_seed"
    assert own.output_dir == str(tmp_path)


def test_plan_of_the_plain_baseline_is_the_shipped_one(tmp_path: Path) -> None:
    point = plan(CurveSpec("step_by_step", ("finetune",), (1.0,), 1, ("data.subset=fixed",)), tmp_path)[1]
    shipped = load("finetune", None).model_dump() | {"output_dir": str(tmp_path)}
    assert point.experiment.model_dump() == shipped


def test_plan_overrides_of_one_method_and_sizes(tmp_path: Path) -> None:
    spec = CurveSpec(
        "step_by_step",
        ("finetune", "task_distillation"),
        (1.0,),
        1,
        ("finetune:optim.lr=0.5",),
        sizes=("16", "32"),
        size_key="lm.from_scratch.settings.n_embd",
    )
    points = plan(spec, tmp_path)
    assert [point.size for point in points] == ["16"] * 3 + ["32"] * 3
    assert [point.experiment.optim.lr for point in points[:3]] == [0.002, 0.5, 0.002]
    assert points[2].experiment.data.model_dump()["label_source"] == "teacher"
    assert points[3].experiment.lm.model_dump()["from_scratch"]["settings"] == {"n_embd": 32}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (CurveSpec("step_by_step", ("finetune",), (0.0,), 1), r"shares of the data lie in \(0, 1\]"),
        (CurveSpec("step_by_step", ("finetune",), (), 1), "is empty"),
        (CurveSpec("step_by_step", ("finetune",), (0.5, 0.5), 1), "twice"),
        (CurveSpec("step_by_step", ("step_by_step",), (0.5,), 1), "twice"),
        (CurveSpec("step_by_stepp", ("finetune",), (0.5,), 1), "METHOD 'step_by_stepp' is neither"),
        (CurveSpec("step_by_step", ("nope",), (0.5,), 1), "--against 'nope' is neither"),
        (CurveSpec("mend", ("no_prompt",), (0.5,), 1), "a curve needs rationale data"),
        (CurveSpec("step_by_step", ("finetune",), (0.5,), 1, ("data.train_share=0.1",)), "the curve sets"),
        (CurveSpec("step_by_step", ("finetune",), (0.5,), 1, ("other:seed=1",)), "'other' is none of the curve's"),
        (CurveSpec("step_by_step", ("finetune",), (0.5,), 1, ("method.alpha=2",)), "alpha"),
    ],
)
def test_plan_refuses(spec: CurveSpec, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(spec, tmp_path)


def test_fractions_are_numbers() -> None:
    assert fractions_of("1, 0.25,0.5") == (0.25, 0.5, 1.0)
    with pytest.raises(ConfigError, match="expected numbers"):
        fractions_of("a,b")


def test_a_curve_is_made_kept_and_written(tmp_path: Path) -> None:
    fit, told = FakeFit(), []
    curve = make_curve(SPEC, tmp_path, workers=2, wanted=Wanted(), tell=told.append, start=fit)
    assert len(fit.started) == 8
    assert (curve.metric, curve.split, curve.missing) == ("exact_match", "test", ())
    cell = curve.cells[0]
    assert (cell.method, cell.fraction, cell.rows, cell.value.seeds) == ("step_by_step", 0.5, 4, 2)
    assert cell.value.mean == pytest.approx(0.705)
    assert cell.against["finetune"].mean == pytest.approx(0.3)
    reached = curve.reached[0]
    assert (reached.first, reached.fraction, reached.at_most, reached.resampled) == (0.5, 0.5, True, 1.0)
    assert curve.parameters[""] is not None
    assert "reaches finetune with share 1" in remarks(curve)[0]

    again = make_curve(SPEC, tmp_path, workers=1, wanted=Wanted(), tell=told.append, start=fit)
    assert len(fit.started) == 8
    assert again == curve
    lines = list(csv.DictReader(io.StringIO((tmp_path / "curve.csv").read_text())))
    assert [line["minus_finetune"] != "" for line in lines] == [True, True, False, False]
    assert len(points_csv(curve).splitlines()) == 9
    assert summary_csv(curve) == (tmp_path / "curve.csv").read_text()


def test_other_settings_are_other_runs(tmp_path: Path) -> None:
    fit = FakeFit()
    make_curve(SPEC, tmp_path, workers=4, wanted=Wanted(), tell=lambda _: None, start=fit)
    other = CurveSpec("step_by_step", ("finetune",), (0.5, 1.0), 2, ("data.train_count=8", "method.alpha=0.7"))
    make_curve(other, tmp_path, workers=4, wanted=Wanted(), tell=lambda _: None, start=fit)
    assert len(fit.started) == 8 + 4  # the baseline's runs are the same


def test_failures_are_told_and_made_again(tmp_path: Path) -> None:
    broken, fit = FakeFit(fail="seed 1"), FakeFit()
    curve = make_curve(SPEC, tmp_path, workers=2, wanted=Wanted(), tell=lambda _: None, start=broken)
    assert len(curve.missing) == 4
    assert "exit code 3" in curve.missing[0]
    assert {cell.value.seeds for cell in curve.cells} == {1}
    assert curve.reached[0].ci is None
    whole = make_curve(SPEC, tmp_path, workers=2, wanted=Wanted(), tell=lambda _: None, start=fit)
    assert len(fit.started) == 4
    assert not whole.missing
    with pytest.raises(ConfigError, match="no run of the curve has finished"):
        make_curve(SPEC, tmp_path / "new", workers=2, wanted=Wanted(), tell=lambda _: None, start=FakeFit("seed"))


def test_wrong_split_and_metric_are_told(tmp_path: Path) -> None:
    for wanted, words in ((Wanted(split="dev"), "the runs have test"), (Wanted(metric="f9"), "in none of the runs")):
        with pytest.raises(ConfigError, match=words):
            make_curve(SPEC, tmp_path, workers=2, wanted=wanted, tell=lambda _: None, start=FakeFit())


def test_an_unfinished_run_is_continued_and_an_empty_folder_used(tmp_path: Path) -> None:
    points = plan(SPEC, tmp_path / "runs")[:2]
    begun, empty = (tmp_path / "runs" / point.folder for point in points)
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text(dump(points[0].experiment), encoding="utf-8")
    (empty / "checkpoints").mkdir(parents=True)
    done = Runner(tmp_path, 1, start=FakeFit()).run(points)
    assert [d.how for d in done] == ["continued", "made"]


def test_a_signal_stops_the_runs_and_starts_no_more(tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(_point: Point, _run: Path) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True))
        return started[-1]

    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted, match="0 of 8 points"):
        Runner(tmp_path, 2, start=start).run(plan(SPEC, tmp_path / "runs"))
    assert len(started) == 2
    assert all(process.poll() for process in started)  # ended, and not by themselves


def test_mean_and_t_interval() -> None:
    found = mean_of([0.4, 0.5, 0.6])
    half = 4.303 * 0.1 / math.sqrt(3)
    assert found.ci == pytest.approx((0.5 - half, 0.5 + half))
    assert mean_of([0.4]).ci is None


def test_crossing_is_on_the_logarithm_of_the_share() -> None:
    shares = (0.25, 0.5, 1.0)
    assert crossing(shares, [0.1, 0.3, 0.5], 0.4) == pytest.approx(math.sqrt(0.5))
    assert crossing(shares, [0.4, 0.3, 0.5], 0.4) == 0.25
    assert crossing(shares, [0.1, 0.4, 0.5], 0.4) == pytest.approx(0.5)
    assert crossing(shares, [0.1, 0.2, 0.3], 0.4) is None


def _points(values: dict[str, list[list[float]]], shares: tuple[float, ...]) -> list[PointResult]:
    return [
        PointResult(method=method, size="", fraction=share, seed=seed, value=value, run="r")
        for method, rows in values.items()
        for seed, row in enumerate(rows)
        for share, value in zip(shares, row, strict=True)
    ]


def test_reached_with_an_interval_over_seeds() -> None:
    shares = (0.25, 0.5, 1.0)
    values = {"m": [[0.1, 0.5, 0.9], [0.1, 0.3, 0.5], [0.1, 0.4, 0.7]], "b": [[0, 0, 0.6], [0, 0, 0.6], [0, 0, 0.6]]}
    found = Table(_points(values, shares)).reached("m", "b", "", shares, lower_is_better=False)
    assert found is not None
    assert found.first == 1.0
    assert found.fraction == pytest.approx(0.5 * 2 ** (2 / 3))
    assert found.ci == (pytest.approx(0.5 * 2**0.25), None)  # a draw of the second seed alone never reaches it
    assert found.resampled == pytest.approx(23 / 27)
    loss = Table(_points({n: [[-v for v in r] for r in rows] for n, rows in values.items()}, shares))
    flipped = loss.reached("m", "b", "", shares, lower_is_better=True)
    assert flipped is not None
    assert (flipped.fraction, flipped.ci) == (found.fraction, found.ci)
    assert flipped.target.mean == pytest.approx(-0.6)
    lacking = Table([p for p in _points(values, shares) if (p.method, p.fraction) != ("m", 0.5)])
    assert lacking.reached("m", "b", "", shares, lower_is_better=False) is None


def test_plot_of_data_and_sizes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    spec = CurveSpec(
        "step_by_step",
        ("finetune",),
        (0.5, 1.0),
        2,
        ("data.train_count=8",),
        ("16", "32"),
        "lm.from_scratch.settings.n_embd",
    )
    curve = make_curve(spec, tmp_path, workers=4, wanted=Wanted(), tell=lambda _: None, start=FakeFit())
    assert all(path.stat().st_size > 1000 for path in plot(curve, tmp_path))
    assert len(curve.reached) == 2
    assert np.isfinite([cell.value.mean for cell in curve.cells]).all()
