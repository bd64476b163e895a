"""Planning sweeps: shorthand, words, grids, cells, and every mistake found before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from promptcomp import experiment as experiments
from promptcomp.config import ConfigError, build, dump
from promptcomp.documents import shipped
from promptcomp.experiment import Experiment
from promptcomp.sweeps import checking
from promptcomp.sweeps.attempts import comparable_part
from promptcomp.sweeps.checking import check, known_metrics
from promptcomp.sweeps.running import share_devices
from promptcomp.sweeps.space import (
    best_yaml,
    distributions,
    grid,
    grid_size,
    planned_controls,
    planned_trial,
    point_id,
    settings_of,
)
from promptcomp.sweeps.sweep_config import Choices, Interval, SweepConfig, Values, split_values
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.sweep_file import read_sweep, sweep_of

PLACE = SweepDirectory(Path("somewhere"))


def sweep(**keys: Any) -> SweepConfig:
    """A sweep of mend over two keys, with changes."""
    tree = {"experiment": "mend", "space": {"method.num_slots": [2, 4]}, **keys}
    return build(SweepConfig, tree, source="test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2,4,8", Values(values=(2, 4, 8))),
        ("1e-5,1e-3", Values(values=(1e-5, 1e-3))),
        ("1..8", Interval(low=1, high=8, integer=True)),
        ("0.5..2", Interval(low=0.5, high=2)),
        ("1e-5..1e-3:log", Interval(low=1e-5, high=1e-3, log=True)),
        ("0..1:steps=5:log", None),
        ("0..1:steps=5", Interval(low=0, high=1, steps=5, integer=True)),
        ("1..64:log:steps=7", Interval(low=1, high=64, log=True, steps=7, integer=True)),
        ("-1.5..-0.5", Interval(low=-1.5, high=-0.5)),
        ("null,{path: gpt2, layers: 6}", Values(values=(None, {"path": "gpt2", "layers": 6}))),
        ("[a, b],[c]", Values(values=(["a", "b"], ["c"]))),
        ("'a,b',c", Values(values=("a,b", "c"))),
        ("true,false", Values(values=(True, False))),
    ],
)
def test_what_is_tried_can_be_written_short(text: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="logarithmic scale needs low > 0"):
            sweep_of("mend", [f"method.x={text}"])
        return
    assert sweep_of("mend", [f"method.x={text}"]).space["method.x"] == expected
    if not text.startswith(("null", "[", "'", "true")) and "," not in text:  # ranges can be written so in files too
        assert sweep(space={"method.x": text}).space["method.x"] == expected


def test_one_value_is_for_all_trials() -> None:
    config = sweep_of("mend", ["method.num_slots=2,4", "data.name=../x", "optim.betas=[0.9, 0.98]", "optim.lr=1e-5"])
    assert config.set == {"data.name": "../x", "optim.betas": [0.9, 0.98], "optim.lr": 1e-5}
    assert list(config.space) == ["method.num_slots"]
    assert sweep_of("mend", ["a.b=1", "a.b=1,2"]).set == {}  # the last one wins


def test_words_change_a_named_sweep() -> None:
    words = ["method.num_slots=1,2", "trainer.max_steps=5", "sweep.seeds=3", "sweep.budget.hours=2"]
    config = read_sweep("gist_tokens", words)
    assert config.space["method.num_slots"] == Values(values=(1, 2))
    assert config.set["trainer.max_steps"] == 5
    assert (config.seeds, config.budget.hours) == (3, 2)
    assert read_sweep("gist_tokens", ["method.num_slots=4"]).space["method.num_slots"] == Values(values=(4,))
    chosen = read_sweep("distiller_size", ["distiller=layers_1,layers_2"]).space["distiller"]
    assert isinstance(chosen, Choices)
    assert list(chosen.choices) == ["layers_1", "layers_2"]
    drawn = read_sweep("gist_tokens", ["sweep.sampler=tpe"])
    assert (drawn.sampler, drawn.points) == ("tpe", 20)
    assert read_sweep("combined", ["method.kl_weight=1,2", "sweep.sampler=grid"]).points is None


def test_dev_losses_under_other_terms_are_not_compared_half_way() -> None:
    of_loss = ["stage=pretrain,finetune", "kl_positions=all,targets", "teacher.path=a,b", "on_policy_share=0,0.5"]
    config = sweep_of("mend", [*(f"method.{word}" for word in of_loss), "optim.lr=1e-3,1e-4"])
    params = dict.fromkeys(config.space, 0)
    compared = comparable_part(config, params, "dev/loss")
    assert list(compared) == [name for name in config.space if name != "optim.lr"]
    assert comparable_part(config, params, "dev/accuracy") == {}


@pytest.mark.parametrize("key", ["method", "method.name", "lm", "data", "data.num_demonstrations"])
def test_trials_of_other_sections_are_not_compared_half_way(key: str) -> None:
    """A choice may set a whole section: another LM, or a method with another number of slots."""
    space = {"row": {"choices": {"a": {key: 1}, "b": {key: 2}}}, "optim.lr": {"values": [1e-3, 1e-4]}}
    config = SweepConfig.model_validate({"experiment": "mend", "space": space})
    assert comparable_part(config, {"row": "a", "optim.lr": 1e-3}, "dev/accuracy") == {"row": "a"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method.num_slots"], "write key=value"),
        (["=1,2"], "write key=value"),
        (["method.num_slots=1,,2"], "a value is empty"),
        (["method.num_slots=1..x"], "a range is written lo..hi"),
        (["optim.lr=1..2:lgo"], "'lgo' is not known"),
        (["optim.lr=3..2"], "is not below high"),
        (["optim.lr=1..2:steps=1"], "greater than or equal to 2"),
        (["optim.lr=0.5..2:int"], "are not whole numbers"),
        (["optim.lr=1,1"], "is listed twice"),
        (["optim.lr=.nan,1"], "not a finite number"),
        (["optim.lr={a,b"], "not valid YAML"),
        (["trainer.max_steps=1"], "no key has several values"),
        (["a.b={x: [},1"], "not valid YAML"),
        (["optim.lr=1,2", "sweep.seds=2"], "did you mean 'seeds'?"),
        (["optim.lr=1,2", "sweep.seeds=0"], "greater than or equal to 1"),
        (["optim.lr=1,2", "sweep.space.x=1"], "have no 'sweep.'"),
        (["optim.lr=1,2", "sweep.sampler=bayes"], "'grid', 'random', 'tpe' or 'nsga2'"),
        (["optim.lr=1,2", "sweep.pruning.pruner=median", "sweep.objectives=[{metric: loss}, {metric: x}]"], "single"),
    ],
)
def test_wrong_words(words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep_of("mend", words)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({}, "space"),
        ({"a": []}, "values: empty"),
        ({"a": {"choices": {}}}, "choices: empty"),
        ({"a": 3}, "expected a list of values"),
        ({"a": "fast"}, "expected a list of values"),
        ({"a": {"low": 1}}, "high: missing"),
        ({"a": {"low": 1, "hihg": 2}}, "hihg: unknown key; known: low, high"),
        ({"a": {"low": "x", "high": 2}}, "valid number"),
        ({"a": {"low": 0, "high": float("inf")}}, "finite number"),
        ({"a": {"choices": {"x": 3}}}, "valid dictionary"),
    ],
)
def test_a_space_that_is_none(space: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep(space=space)
    assert expected in str(error.value)


def test_values_are_split_at_outer_commas_only() -> None:
    assert split_values("{a: [1, 2]}, (3,4) ,'x,y'") == ["{a: [1, 2]}", "(3,4)", "'x,y'"]


def test_the_grid_covers_the_space_early() -> None:
    config = sweep(space={"method.num_slots": [1, 2, 4, 8], "optim.lr": "1e-4..1e-2:log:steps=3"})
    points = grid(config)
    assert len(points) == grid_size(config) == 12
    assert len({point_id(point) for point in points}) == 12
    corners = [(point["method.num_slots"], point["optim.lr"]) for point in points[:4]]
    assert sorted(corners) == [(1, 1e-4), (1, 1e-2), (8, 1e-4), (8, 1e-2)]
    assert sorted({point["optim.lr"] for point in points}) == [1e-4, 1e-3, 1e-2]
    assert points == grid(config)


def test_steps_of_an_interval() -> None:
    config = sweep(space={"a": "0.0..0.9:steps=4", "b": "1..64:log:steps=4", "c": "1..3", "d": "1..3:steps=5:log"})
    values = {name: sorted({point[name] for point in grid(config)}) for name in "abcd"}  # type: ignore[type-var]
    assert values == {"a": [0, 0.3, 0.6, 0.9], "b": [1, 4, 16, 64], "c": [1, 2, 3], "d": [1, 2, 3]}
    for text in ("0.5..1", "1..8:log"):
        with pytest.raises(ConfigError, match="needs steps"):
            grid(sweep(space={"a": text}))


def test_optuna_takes_every_point() -> None:
    space = {
        "numbers": [1, 2, 4],
        "even": [2, 4, 6],
        "rates": [0.1, 0.5],
        "names": ["a", None, True, [1, 2]],
        "range": "1e-3..1:log",
        "whole": "1..9",
        "steps": "0.0..1:steps=3",
        "sizes": {"choices": {"small": {"x": 1}, "large": {"x": 2}}},
    }
    for sampler in ("grid", "tpe"):
        kept = {name: tried for name, tried in space.items() if sampler != "grid" or name != "range"}
        config = sweep(space=kept, sampler=sampler, **({} if sampler == "grid" else {"points": 3}))
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        if sampler == "grid":
            for point in grid(config)[:3]:
                study.enqueue_trial(point)
        for number in range(3):
            found = study.ask(distributions(config)).params
            if sampler == "grid":
                assert found == grid(config)[number]
            settings = settings_of(config, found)
            assert settings["numbers"] in (1, 2, 4)
            assert settings["even"] in (2, 4, 6)
            assert settings["names"] in ("a", None, True, [1, 2])
            assert settings["x"] in (1, 2)


def test_cells_are_runs(tmp_path: Path) -> None:
    config = sweep_of("mend", ["method.num_slots=2,4", "optim.lr=1e-4,1e-3", "trainer.max_steps=7", "sweep.seeds=2"])
    place = SweepDirectory(tmp_path)
    cells = [planned_trial(config, place, params, seed) for seed in (0, 1) for params in grid(config)]
    assert len({cell.cell for cell in cells}) == 8
    assert len({cell.point for cell in cells}) == 4
    first = cells[0]
    assert first.cell.startswith("num_slots_2-lr_0.0001-s0-")
    assert first.run == tmp_path / "runs" / first.cell
    assert (first.experiment.trainer.max_steps, first.experiment.seed) == (7, 0)
    assert first.experiment.output_dir == str(tmp_path / "runs")
    elsewhere = planned_trial(config, PLACE, {"optim.lr": 1e-4, "method.num_slots": 2}, 0)
    assert elsewhere.cell.rpartition("-")[2] == first.cell.rpartition("-")[2]  # neither place nor order counts
    assert elsewhere.point == first.point


def test_names_of_cells_fit_file_systems() -> None:
    long = "/a/../b c" * 60
    config = sweep(space={"data.world.seed": [1, 2], "lm.path": [long, "gpt2"]}, experiment="mend")
    cell = planned_trial(config, PLACE, {"data.world.seed": 1, "lm.path": long}, 3)
    assert len(cell.cell) < 120
    assert "/" not in cell.cell
    assert cell.experiment.lm.path == long


def test_choices_set_several_keys() -> None:
    config = read_sweep("distiller_size")
    half = planned_trial(config, PLACE, {"distiller": "layers_2"}, 0).experiment.method
    assert half.distiller.layers == 2  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="none of its choices"):
        settings_of(config, {"distiller": "layers_9"})
    with pytest.raises(ConfigError, match="no key of the sweep"):
        settings_of(config, {"x": 1})


def test_controls_of_every_seed() -> None:
    cells = planned_controls(read_sweep("gist_tokens"), PLACE)
    assert [(cell.point, cell.seed) for cell in cells] == [
        ("full_prompt", 0),
        ("no_prompt", 0),
        ("full_prompt", 1),
        ("no_prompt", 1),
    ]
    assert {cell.experiment.method.name for cell in cells} == {"full_prompt", "no_prompt"}
    assert all(cell.experiment.trainer.max_steps and cell.run.parent == PLACE.controls for cell in cells)
    assert planned_controls(read_sweep("loss_weight_mend", ["sweep.controls=true"]), PLACE) == []  # the LM is frozen


@pytest.mark.parametrize("name", shipped("sweeps"))
def test_shipped_sweeps_are_sound(name: str) -> None:
    config = read_sweep(name)
    check(config)
    assert build(SweepConfig, yaml.safe_load(dump(config))) == config
    assert config.title


def mistakes(config: SweepConfig, allow_huge: bool = False) -> str:
    with pytest.raises(ConfigError) as error:
        check(config, allow_huge=allow_huge)
    return str(error.value)


def test_every_mistake_is_told_at_once() -> None:
    space = {
        "method.num_slots": [2, 0],
        "optim.lrr": [1, 2],
        "optim.lr": {"low": -1, "high": 1, "steps": 3},
        "seed": [1, 2],
        "trainer": {"choices": {"long": {"trainer.max_steps": 9}, "wrong": {"trainer.max_step": 9}}},
    }
    told = mistakes(sweep(space=space, objectives=[{"metric": "acuracy"}]))
    for part in (
        "space method.num_slots = 0: Input should be greater than 0",
        "space optim.lrr: unknown key; did you mean 'lr'?",
        "space optim.lr = -1.0: Input should be greater than 0",
        "space seed: seed cannot be swept; use seeds",
        "space trainer (wrong): trainer.max_step: unknown key; did you mean 'max_steps'?",
        "objectives acuracy: not a number of results.json; did you mean 'accuracy'?",
    ):
        assert told.count(part) == 1, told


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"experiment": "mned"}, "did you mean 'mend'?"),
        ({"experiment": "nowhere.yaml"}, "no such configuration file"),
        (
            {"set": {"method.num_slots": 3}},
            "set method.num_slots: space method.num_slots sets method.num_slots as well",
        ),
        ({"set": {"seed": 3}}, "set seed: use seeds and first_seed"),
        ({"set": {"output_dir": "x"}}, "give the sweep's directory with -o"),
        ({"set": {"optim.lr": -1}}, "optim.lr = -1"),
        ({"set": {"lm.path.x": 1}}, "has no keys below it"),
        ({"space": {"method": [{"name": "mend"}], "method.num_slots": [1]}}, "one of them would be lost"),
        ({"space": {"optim.lr": "0.1..1"}}, "needs steps"),
        ({"space": {"size": {"choices": {"a": {}, "b": {"optim.lr": 1}}}}}, "choice 'a' sets nothing"),
        ({"space": {"size": {"choices": {"a": {"optim.lr": 1}, "b": {"optim.lr": 1}}}}}, "are the same settings"),
        ({"objectives": [{"metric": "loss"}]}, "less is better; set direction: minimize"),
        (
            {"experiment": "gist", "set": {"data.metric": "kl"}, "objectives": [{"metric": "method"}]},
            "objectives method: of kl less is better; set direction: minimize",
        ),
        ({"objectives": [{"metric": "method"}, {"metric": "method"}]}, "holds one twice"),
        ({"objectives": [{"metric": "size.slots"}]}, "did you mean 'size.memory_slots'?"),
        ({"objectives": [{"metric": "size.memory_slots", "split": "test"}]}, "leave split out"),
        ({"set": {"evaluation.bounds": False}}, "needs evaluation.bounds=true"),
        ({"constraints": [{"metric": "loss"}]}, "give at_most or at_least"),
        (
            {
                "constraints": [{"metric": "cost.prefill_ms", "at_most": 1}],
                "set": {"evaluation.measure_cost": False},
            },
            "needs evaluation.measure_cost=true",
        ),
        ({"set": {"trainer.num_nodes": 2}}, "trainer.num_nodes=2: a trial runs on one machine"),
        ({"space": {"trainer.num_nodes": [1, 4]}}, "leave trainer.num_nodes at 1"),
        ({"space": {"trainer.batch_size": [16, 8], "trainer.accumulate": [1, 16]}}, "is not a multiple of"),
        ({"space": {"trainer.batch_size": "4..120", "trainer.accumulate": [1, 2]}}, "is not a multiple of"),
    ],
)
def test_contradictions(keys: dict[str, Any], expected: str) -> None:
    assert expected in mistakes(sweep(**keys))


def test_a_huge_grid_must_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one passes for huge here; a huge one: tests/cli/test_sweep.py."""
    monkeypatch.setattr(checking, "HUGE", 10)
    config = sweep(space={"data.world.seed": "1..11"})
    assert "11 points" in mistakes(config)
    assert grid_size(config) == 11
    small = sweep(space={"data.world.seed": "1..3", "method.num_slots": [4]})
    check(small)


def test_the_best_point_is_an_experiment(tmp_path: Path) -> None:
    config = sweep_of("mend", ["method.num_slots=2,4", "optim.lr=1e-4..1e-3:log", "sweep.seeds=3"])
    text = best_yaml(config, {"method.num_slots": 4, "optim.lr": 5e-4}, seed=2, note="retained 0.9 on test")
    (tmp_path / "best.yaml").write_text(text, encoding="utf-8")
    found = experiments.load(None, tmp_path / "best.yaml")
    assert isinstance(found, Experiment)
    assert (found.method.num_slots, found.optim.lr, found.seed, found.output_dir) == (4, 5e-4, 2, "runs")  # type: ignore[union-attr]
    assert "# seed 2: the best trial's" in text
    assert "retained 0.9 on test" in text


def test_an_experiment_beside_the_sweep_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exp.yaml").write_text(dump(experiments.load("mend", None)), encoding="utf-8")
    (tmp_path / "s.yaml").write_text("experiment: exp.yaml\nspace: {method.num_slots: [2, 4]}\n", encoding="utf-8")
    config = read_sweep(tmp_path / "s.yaml")
    assert config.experiment == str(tmp_path / "exp.yaml")
    monkeypatch.chdir(tmp_path)
    assert read_sweep("s.yaml").experiment == str(tmp_path / "exp.yaml")
    assert sweep_of("exp.yaml", ["method.num_slots=1,2"]).experiment == str(tmp_path / "exp.yaml")
    check(config)


def test_metrics_that_can_be_asked_for() -> None:
    assert {"retained", "exact_match", "size.memory_bytes", "cost.flops_ratio"} <= set(known_metrics())


def test_workers_get_the_devices_that_a_trial_takes() -> None:
    words = ["optim.lr=1e-5..1e-3:log", "trainer.devices=2", "trainer.accelerator=gpu"]
    assert share_devices(sweep_of("mend", words), 2, "0123") == [("0", "1"), ("2", "3")]
    with pytest.raises(ConfigError, match=r"3 workers with 2 devices each need 6, and there are 4"):
        share_devices(sweep_of("mend", words), 3, "0123")
    on_cpu = sweep_of("mend", [words[0], "trainer.accelerator=cpu"])
    assert share_devices(on_cpu, 2, None) == [(), ()]
    with pytest.raises(ConfigError, match=r"--devices 0,1,2,3: trainer.accelerator=cpu uses no GPUs"):
        share_devices(on_cpu, 2, "0123")
