"""Sweeps over shares of the training data: what is read off them, and the sweep that `promptcomp curve` makes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from promptcomp.config import ConfigError, dump
from promptcomp.evaluation.bootstrap import mean_of
from promptcomp.experiment import Experiment, load
from promptcomp.sweeps.checking import check, check_metric
from promptcomp.sweeps.space import base_tree, grid, planned_trial
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.study import check_changes
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.sweep_file import data_efficiency, read_sweep
from promptcomp.sweeps.views.efficiency import Values, crossing, efficiency_of, print_efficiency, reached
from promptcomp.sweeps.views.html_report import efficiency_csv, state_json, write_report
from promptcomp.sweeps.views.overview import print_state
from tests.sweep_states import config, one_dimension, state, trial, write_results
from tests.sweep_states import data_efficiency as made_by_hand

WORDS = ("data.train_count=8", "method.alpha=0.3")
STEP, FINETUNE = {"method": "step_by_step"}, {"method": "finetune"}


# The sweep of `promptcomp curve`


def _experiments(sweep: SweepConfig) -> list[Experiment]:
    """The runs of seed 0 at share 1, as they are run (but for name and place)."""
    check(sweep)
    points = [point for point in grid(sweep) if point["data.train_share"] == 1]
    runs = [planned_trial(sweep, SweepDirectory(Path("d")), point, 0).experiment for point in points]
    return [run.model_copy(update={"name": "", "output_dir": "runs"}) for run in runs]


def test_baselines_get_the_methods_data_lm_and_steps() -> None:
    own, baseline = _experiments(data_efficiency("step_by_step", ["finetune"], WORDS))
    assert (own.method.name, baseline.method.name) == ("step_by_step", "finetune")
    assert own.method.model_dump()["alpha"] == 0.3
    assert baseline.data.model_dump() == own.data.model_dump() | {"targets": "label"}
    assert own.data.model_dump()["train_count"] == 8
    assert own.data.model_dump()["subset"] == "per_seed"
    assert (own.lm, own.optim, own.trainer, own.seed) == (baseline.lm, baseline.optim, baseline.trainer, baseline.seed)


def test_the_plain_baseline_is_the_shipped_experiment() -> None:
    baseline = _experiments(data_efficiency("step_by_step", ["finetune"], ["data.subset=fixed"]))[1]
    assert baseline.model_dump() == load("finetune", None).model_dump() | {"output_dir": "runs"}


def test_the_shipped_sweep_is_the_curve_of_step_by_step() -> None:
    shipped, made = read_sweep("data_efficiency"), data_efficiency("step_by_step", ["finetune"])
    (goal,) = shipped.objectives
    assert goal.split == "test"
    same = {"title": shipped.title, "objectives": shipped.objectives}
    assert made.model_copy(update=same) == shipped
    assert made.objectives[0].metric == goal.metric
    assert len(check(shipped)) > 0


def test_words_for_one_method_sizes_and_the_sweep_itself() -> None:
    words = ["finetune:optim.lr=0.5", "optim.lr=0.25", "sweep.retries=0", "data.targets=label_and_rationale"]
    made = data_efficiency(
        "step_by_step",
        ["finetune", "task_distillation"],
        words,
        shares="1",
        sizes="16, 32",
        size_key="lm.from_scratch.settings.hidden_size",
    )
    runs = _experiments(made)
    assert made.retries == 0
    assert len(runs) == 6
    by_name = {(run.method.name, run.data.model_dump()["label_source"]): run for run in runs}
    own, plain, teacher = (by_name["step_by_step", "gold"], by_name["finetune", "gold"], by_name["finetune", "teacher"])
    assert [run.optim.lr for run in (own, plain, teacher)] == [0.25, 0.5, 0.25]
    assert [run.data.model_dump()["targets"] for run in (own, plain, teacher)] == [
        "label_and_rationale",
        "label",
        "label",
    ]
    sizes = [run.lm.model_dump()["from_scratch"]["settings"] for run in runs]
    assert sorted(size["hidden_size"] for size in sizes) == [16, 16, 16, 32, 32, 32]


def test_an_experiment_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(dump(load("step_by_step", None)))
    made = data_efficiency(str(file), ["finetune"], ["method.alpha=0.25"])
    assert made.experiment == str(file)
    assert list(made.space["method"].choices) == [str(file), "finetune"]  # type: ignore[union-attr]
    assert _experiments(made)[0].method.model_dump()["alpha"] == 0.25


@pytest.mark.parametrize(
    ("method", "against", "words", "shares", "expected"),
    [
        ("step_by_step", ["finetune"], [], "0,1", "greater than 0"),
        ("step_by_step", ["finetune"], [], "2", "less than or equal to 1"),
        ("step_by_step", ["finetune"], [], "a,1", "valid number"),
        ("step_by_step", ["finetune"], [], "0.5,0.5", "listed twice"),
        ("step_by_step", ["finetune"], [], "", "data.train_share"),
        ("step_by_step", ["step_by_step"], [], "1", "each method once"),
        ("step_by_stepp", ["finetune"], [], "1", "did you mean 'step_by_step'"),
        ("step_by_step", ["nope"], [], "1", "'nope' is neither a shipped experiment nor a YAML file"),
        ("mend", ["no_prompt"], [], "1", r"a curve needs rationale data \(data.train_share\); toy_icl is none"),
        ("step_by_step", ["finetune"], ["seed=1"], "1", "use seeds and first_seed"),
        ("step_by_step", ["finetune"], ["other:seed=1"], "1", "'other' is none of the curve's methods"),
        ("step_by_step", ["finetune"], ["method.alpha=2"], "1", "alpha"),
        ("step_by_step", ["finetune"], ["finetune:optim.lr=1,2"], "1", "takes one value"),
        ("step_by_step", ["finetune"], ["finetune:optim.lr"], "1", "write key=value"),
        ("step_by_step", ["finetune"], ["trainer.max_step=1"], "1", "did you mean 'max_steps'"),
        ("step_by_step", ["finetune"], ["finetune:trainer.max_step=1"], "1", "did you mean 'max_steps'"),
    ],
)
def test_mistakes_are_told(method: str, against: list[str], words: list[str], shares: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check(data_efficiency(method, against, words, shares=shares))


def test_shares_and_baselines_are_added_later_and_other_settings_refused() -> None:
    first = data_efficiency("step_by_step", ["finetune"], [*WORDS, "sweep.seeds=1"], shares="0.5,1")
    more = data_efficiency("step_by_step", ["finetune", "task_distillation"], WORDS, shares="0.25,0.5,1")
    other = data_efficiency("step_by_step", ["finetune"], ["data.train_count=4"], shares="0.5,1")
    before = first.model_dump(mode="json")
    check_changes(Path("d"), before, more, base_tree(first), base_tree(more))
    with pytest.raises(ConfigError, match="start another sweep with -o"):
        check_changes(Path("d"), before, other, base_tree(first), base_tree(other))


# What a sweep says


def _state(folder: Path, values: dict[str, list[list[float]]], metric: str = "exact_match") -> SweepState:
    """Method -> seed -> value at each of the shares that end with 1."""
    shares = [0.25, 0.5, 1][-len(next(iter(values.values()))[0]) :]
    space = {
        "method": {"choices": {name: {"method.name": name} for name in values}},
        "data.train_share": {"values": shares},
    }
    direction = "minimize" if metric == "loss" else "maximize"
    sweep = config(space=space, seeds=3, objectives=[{"metric": metric, "direction": direction}])
    trials = []
    for name, rows in values.items():
        for seed, row in enumerate(rows):
            for share, value in zip(shares, row, strict=True):
                params = {"method": name, "data.train_share": share}
                trials.append(trial(folder, len(trials), params, seed, values={metric: value}))
    return state(folder, sweep, trials)


def test_means_and_differences_seed_by_seed(tmp_path: Path) -> None:
    found = efficiency_of(_state(tmp_path, {"m": [[0.5, 0.7], [0.6, 0.9]], "b": [[0.1, 0.4], [0.3, 0.5]]}))
    assert found is not None
    assert (found.method, found.baselines, found.metric, found.shares) == ("m", ("b",), "exact_match", (0.5, 1.0))
    assert found.rows[0].values == {"m": mean_of([0.5, 0.6]), "b": mean_of([0.1, 0.3])}
    assert found.rows[0].minus == {"b": mean_of([0.4, 0.3])}
    assert found.sizes == {"": None}
    half = 12.706 * 0.1 / math.sqrt(2) / math.sqrt(2)
    assert found.rows[0].minus["b"].ci == pytest.approx((0.35 - half, 0.35 + half), abs=1e-4)


def test_only_common_seeds_are_compared(tmp_path: Path) -> None:
    full = _state(tmp_path, {"m": [[0.5, 0.7], [0.6, 0.9]], "b": [[0.1, 0.4], [0.3, 0.5]]})
    failed = dataclasses.replace(full.trials[-2], status="failed", values={}, problem="killed (exit code -9)")
    waiting = dataclasses.replace(full.trials[0], status="waiting", values={})
    found = efficiency_of(dataclasses.replace(full, trials=(waiting, *full.trials[1:-2], failed, full.trials[-1])))
    assert found is not None
    assert found.rows[0].values["m"].seeds == found.rows[0].values["b"].seeds == 1
    assert "b" not in found.rows[0].minus  # seed 1 of the method, seed 0 of the baseline
    assert found.missing == ("method=b, train_share=0.5, seed 1: killed (exit code -9)",)
    (target,) = found.reached
    assert target.target.seeds == 1
    assert target.ci is None


def test_means_without_pruned_seeds_say_so(tmp_path: Path) -> None:
    """They are means of the seeds that did well."""
    full = _state(tmp_path, {"m": [[0.5, 0.7], [0.6, 0.9]], "b": [[0.1, 0.4], [0.3, 0.5]]})
    pruned = dataclasses.replace(full.trials[-1], status="pruned", values={})
    found = efficiency_of(dataclasses.replace(full, trials=(*full.trials[:-1], pruned)))
    assert found is not None
    assert found.missing == ("method=b, train_share=1, seed 1: pruned",)


def test_crossing_is_on_the_logarithm_of_the_share() -> None:
    shares = (0.25, 0.5, 1.0)
    assert crossing(shares, [0.1, 0.3, 0.5], 0.4) == pytest.approx(math.sqrt(0.5))
    assert crossing(shares, [0.4, 0.3, 0.5], 0.4) == 0.25
    assert crossing(shares, [0.1, 0.4, 0.5], 0.4) == pytest.approx(0.5)
    assert crossing(shares, [0.1, 0.2, 0.3], 0.4) is None


def test_reached_with_an_interval_over_seeds(tmp_path: Path) -> None:
    values = {"m": [[0.1, 0.5, 0.9], [0.1, 0.3, 0.5], [0.1, 0.4, 0.7]], "b": [[0, 0, 0.6], [0, 0, 0.6], [0, 0, 0.6]]}
    whole = efficiency_of(_state(tmp_path, values))
    assert whole is not None
    (found,) = whole.reached
    assert (found.first, found.at_most) == (1.0, False)
    assert found.share == pytest.approx(0.5 * 2 ** (2 / 3))
    assert found.ci == (pytest.approx(0.5 * 2**0.25), None)  # a draw of the second seed alone never reaches it
    assert found.resampled == pytest.approx(23 / 27)
    loss = efficiency_of(_state(tmp_path, {n: [[-v for v in r] for r in rows] for n, rows in values.items()}, "loss"))
    assert loss is not None
    (flipped,) = loss.reached
    assert (flipped.share, flipped.ci) == (found.share, found.ci)
    assert flipped.target.mean == pytest.approx(-0.6)
    lacking: Values = {("m", "", 1.0): {0: 0.5}, ("b", "", 1.0): {0: 0.4}}
    assert reached(lacking, "m", "b", "", (0.5, 1.0), False) is None
    six = efficiency_of(_state(tmp_path, {"m": [[0.1, 0.9, 0.9]] * 6, "b": [[0.0, 0.0, 0.5]] * 6}))
    assert six is not None
    assert (six.reached[0].ci, six.reached[0].resampled) == (None, 1.0)  # all draws say the same
    rows = [[0.1, 0.9 - 0.02 * seed, 0.9] for seed in range(6)]
    drawn = efficiency_of(_state(tmp_path, {"m": rows, "b": [[0.0, 0.0, 0.5]] * 6}))
    assert drawn is not None
    (some,) = drawn.reached
    assert some.ci is not None
    assert some.ci[0] < some.share < some.ci[1]  # type: ignore[operator]


def test_other_metrics_and_splits_of_the_same_runs(tmp_path: Path) -> None:
    found = made_by_hand(tmp_path, seeds=2)
    for each in found.trials:
        value = each.values["exact_match"]
        write_results(each.run, each.seed, {"test": value, "hard": value / 2})
    hard, own = efficiency_of(found, split="hard"), efficiency_of(found)
    assert hard is not None
    assert own is not None
    assert (own.split, hard.split) == ("test", "hard")
    assert hard.rows[0].values["finetune"].mean == pytest.approx(own.rows[0].values["finetune"].mean / 2)
    kept = efficiency_of(found, metric="retained")
    assert kept is not None
    assert kept.rows[0].values["finetune"].mean == pytest.approx((own.rows[0].values["finetune"].mean - 0.3) / 0.6)
    with pytest.raises(ConfigError, match="no trial has exact_match of split 'dev'; exact_match is there for test"):
        efficiency_of(found, split="dev")
    with pytest.raises(ConfigError, match="no trial has macro_f1 of the first split; exact_match is there for test"):
        efficiency_of(found, metric="macro_f1")
    with pytest.raises(ConfigError, match="did you mean 'loss'"):
        check_metric("los")


@pytest.mark.parametrize(
    ("space", "shown"),
    [
        ({"method": {"choices": {"a": {"method": {"name": "a"}}, "b": {"method": {"name": "b"}}}}}, True),
        ({"whom": {"choices": {"a": {"method.name": "a"}, "b": {"method.name": "b"}}}}, True),
        ({"method.name": {"values": ["a", "b"]}}, True),
        ({"method.alpha": {"values": [0.1, 0.2]}}, False),
        ({"lm": {"choices": {"a": {"lm.path": "a"}, "b": {"lm.path": "b"}}}}, False),
    ],
)
def test_only_sweeps_over_shares_and_methods_have_the_view(space: dict, shown: bool, tmp_path: Path) -> None:
    share = {"data.train_share": {"values": [0.5, 1]}}
    (name,) = space
    params = [{name: value, "data.train_share": 1} for value in ("a", "b")]
    trials = [trial(tmp_path, i, each, values={"retained": 0.5}) for i, each in enumerate(params)]
    assert (efficiency_of(state(tmp_path, config(space=space | share), trials)) is not None) is shown
    drawn = {"data.train_share": {"low": 0.1, "high": 1}}
    assert efficiency_of(state(tmp_path, config(space=space | drawn), trials)) is None


def test_show_csv_and_json(tmp_path: Path) -> None:
    found = made_by_hand(tmp_path)
    for width in (80, 100, 160):
        out = io.StringIO()
        print_state(found, Console(file=out, width=width, color_system=None))
        text = out.getvalue()
        assert max(map(len, text.splitlines()[:-3])) <= width  # the last lines are commands
        assert "step_by_step reaches the score of finetune with share 1 (0.610 [0.604, 0.616])" in text.replace(
            "\n", " "
        )
        assert "+0.128 [+0.065, +0.190]" in text
    view = efficiency_of(found)
    assert view is not None
    lines = list(csv.DictReader(io.StringIO(efficiency_csv(view))))
    assert [line["share"] for line in lines] == ["0.125", "0.25", "0.5", "1.0"]
    assert float(lines[0]["minus_finetune_low"]) == pytest.approx(0.065, abs=5e-4)
    assert json.loads(json.dumps(state_json(found)))["efficiency"] == view.model_dump(mode="json")
    assert state_json(one_dimension(tmp_path / "other"))["efficiency"] is None


def test_sizes_are_told_apart(tmp_path: Path) -> None:
    view = efficiency_of(made_by_hand(tmp_path, sizes=(16, 64, 8)))
    assert view is not None
    assert list(view.sizes) == ["width=8", "width=16", "width=64"]
    assert len(view.rows) == 12
    assert len(view.reached) == 6
    out = io.StringIO()
    print_efficiency(view, Console(file=out, width=80, color_system=None))
    assert "width=64: step_by_step reaches" in out.getvalue()
    assert "width=64  0.125" in out.getvalue()


def test_sizes_of_language_models_have_their_parameters(tmp_path: Path) -> None:
    found = made_by_hand(tmp_path, seeds=1, sizes=(16, 32))
    made = data_efficiency("step_by_step", ["finetune"], sizes="16,32", size_key="lm.from_scratch.settings.hidden_size")
    for each in found.trials:
        params = {
            "method": "finetune",
            "lm.from_scratch.settings.hidden_size": each.params["lm.width"],
            "data.train_share": 1,
        }
        experiment = planned_trial(made, SweepDirectory(tmp_path), params, 0).experiment
        (each.run / "config.yaml").write_text(dump(experiment))
    view = efficiency_of(found)
    assert view is not None
    small, large = view.sizes.values()
    assert small is not None
    assert large is not None
    assert 0 < small < large


@pytest.mark.parametrize("sizes", [(), (16, 32)])
def test_the_report_has_the_table_and_the_picture(sizes: tuple[int, ...], tmp_path: Path) -> None:
    found = made_by_hand(tmp_path, sizes=sizes)
    text = write_report(found).read_text(encoding="utf-8")
    assert '<section id="efficiency">' in text
    assert "+0.128 [+0.065, +0.190]" in text or sizes
    assert "reaches the score of finetune" in text
    folder = tmp_path / "report"
    assert json.loads((folder / "efficiency.json").read_text())["method"] == "step_by_step"
    assert all((folder / f"efficiency.{end}").stat().st_size > 200 for end in ("csv", "png", "svg"))
