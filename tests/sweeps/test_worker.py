"""One worker and a trainer that is not one: what becomes of trials."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from promptcomp.config import ConfigError, read_yaml
from promptcomp.documents import parse_yaml
from promptcomp.errors import Exit, NoSpace
from promptcomp.lease import Keeper
from promptcomp.run import configured
from promptcomp.run.configured import identity
from promptcomp.stopping import Stop
from promptcomp.sweeps.attempts import Attempts
from promptcomp.sweeps.outcomes import report
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.preview import make_plan
from promptcomp.sweeps.running import run_sweep
from promptcomp.sweeps.space import best_yaml, point_id
from promptcomp.sweeps.study import begin, open_sweep, read_state
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.values import objective_values
from promptcomp.sweeps.views.numbers import Progress
from promptcomp.sweeps.views.points import best_cell
from promptcomp.sweeps.worker import Claim, Worker, work
from tests.sweep_states import write_results
from tests.sweeps.fleet import fork_worker
from tests.sweeps.helpers import FAKE, assert_exactly_once, run, starts, statuses, sweep_config


def test_a_grid_is_run_once(tmp_path: Path) -> None:
    config = sweep_config(seeds=2, controls=True)
    state = run(config, tmp_path / "s")
    assert_exactly_once(state, 4)
    assert {trial.values["retained"] for trial in state.trials} == {0.2, 0.4}
    assert [len(trial.reports) for trial in state.trials] == [4] * 4
    assert {(control.point, control.seed, control.status) for control in state.controls} == set()  # mend trains no LM
    assert Progress(state, datetime.now(UTC)).over
    before = (tmp_path / "s" / "journal.log").read_text()
    assert run(config, tmp_path / "s").trials == state.trials
    after = (tmp_path / "s" / "journal.log").read_text()
    assert after == before, "nothing is written when nothing is to be done"


def test_controls_are_run_too(tmp_path: Path) -> None:
    config = sweep_config(experiment="gist", space={"method.num_slots": {"values": [2]}}, controls=True)
    state = run(config, tmp_path / "s")
    assert {(each.point, each.status) for each in state.controls} == {
        ("full_prompt", "finished"),
        ("no_prompt", "finished"),
    }
    assert all(control.run.parent.name == "controls" for control in state.controls)
    assert all(control.ended is not None and control.device_seconds > 0 for control in state.controls)
    assert state.stopped_by is None


def test_controls_count_for_the_budget(tmp_path: Path) -> None:
    """The trial uses the budget up, however fast it is; no control is begun, and the state says why."""
    space = {"method.num_slots": {"values": [2]}}
    config = sweep_config(experiment="gist", space=space, controls=True, budget={"device_hours": 1e-9})
    state = run(config, tmp_path / "s")
    assert [trial.status for trial in state.trials] == ["finished"]
    assert state.planned_controls == 2
    assert state.controls == ()
    assert (state.stopped_by or "").startswith("device_hours")


def test_added_points_and_seeds_are_planned(tmp_path: Path) -> None:
    run(sweep_config(), tmp_path / "s")
    more = sweep_config(space={"method.num_slots": {"values": [2, 4, 8]}}, seeds=2)
    state = run(more, tmp_path / "s")
    assert_exactly_once(state, 6)
    assert set(starts(tmp_path / "s").values()) == {1}


def test_added_categories_are_planned(tmp_path: Path) -> None:
    first = sweep_config(space={"method.projection": {"values": ["none", "linear"]}}, objectives=[{"metric": "method"}])
    run(first, tmp_path / "s")
    more = sweep_config(
        space={"method.projection": {"values": ["none", "linear", "tanh"]}}, objectives=[{"metric": "method"}]
    )
    assert_exactly_once(run(more, tmp_path / "s"), 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sampler": "tpe", "points": 3}, "sampler"),
        ({"objectives": [{"metric": "method"}]}, "objectives"),
        ({"set": {"trainer.accelerator": "cpu", "trainer.eval_every": 1, "trainer.max_steps": 9}}, "trainer.max_steps"),
        ({"experiment": "gist"}, "method.name"),
        ({"space": {"optim.lr": {"values": [1.0e-3]}}}, "space with method.num_slots"),
    ],
)
def test_another_sweep_is_refused(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    directory = SweepDirectory(tmp_path / "s")
    begin(sweep_config(), directory, None, 1)
    with pytest.raises(ConfigError, match=f"was started with.*{named}.*another sweep with -o"):
        begin(sweep_config(**changes), directory, None, 1)
    assert read_state(directory).config == sweep_config()
    with pytest.raises(ConfigError, match=f"was started with.*{named}"):
        make_plan(sweep_config(**changes), directory, 1, False)


def test_a_sweep_whose_data_has_changed_is_refused(tmp_path: Path) -> None:
    (table := tmp_path / "rows.csv").write_text("input,output\na,b\n")
    own = tmp_path / "own.yaml"
    own.write_text(f"method: {{name: mend}}\nlm: {{path: x}}\ndata: {{name: table_icl, test: [{table}]}}\n")
    directory = SweepDirectory(tmp_path / "s")
    begin(sweep_config(experiment=str(own), seeds=1), directory, None, 1)
    begin(sweep_config(experiment=str(own), seeds=2), directory, None, 1)
    table.write_text("input,output\na,c\n")
    with pytest.raises(ConfigError, match=r"rows\.csv is not what it was when the sweep in .* started"):
        begin(sweep_config(experiment=str(own), seeds=2), directory, None, 1)


def test_data_that_other_points_read_may_not_change_either(tmp_path: Path) -> None:
    tables = [tmp_path / f"{name}.csv" for name in ("one", "two")]
    for table in tables:
        table.write_text("input,output\na,b\n")
    own = tmp_path / "own.yaml"
    own.write_text(f"method: {{name: mend}}\nlm: {{path: x}}\ndata: {{name: table_icl, test: [{tables[0]}]}}\n")
    space = {"rows": {"choices": {table.stem: {"data.test": [str(table)]} for table in tables}}}
    config, directory = sweep_config(experiment=str(own), space=space), SweepDirectory(tmp_path / "s")
    begin(config, directory, None, 1)
    tables[1].write_text("input,output\na,c\n")
    with pytest.raises(ConfigError, match=r"two\.csv is not what it was when the sweep in .* started"):
        begin(config, directory, None, 1)


def test_what_is_edited_while_a_sweep_runs_is_not_mixed(tmp_path: Path) -> None:
    """An experiment's file is read at the start alone, also for controls and the best point; data may not change."""
    (table := tmp_path / "rows.csv").write_text("input,output\na,b\n")
    own, text = (
        tmp_path / "own.yaml",
        f"method: {{name: gist}}\nlm: {{path: x}}\ndata: {{name: instructions, files: {{train: {table}}}}}\n",
    )
    own.write_text(text)
    directory = SweepDirectory(tmp_path / "s")
    config = sweep_config(experiment=str(own), controls=True)
    begin(config, directory, None, 1).close()
    own.write_text(f"{text}optim: {{lr: 0.5}}\n")
    assert work(directory, command=FAKE) == 0
    state = read_state(directory)
    assert statuses(state) == {"finished": 2}
    assert [control.status for control in state.controls] == ["finished"] * 2
    before = {read_yaml(each.run / "config.yaml")["optim"]["lr"] for each in (*state.trials, *state.controls)}
    assert len(before) == 1
    assert before == {parse_yaml(best_yaml(config, best_cell(state).params, base=state.base))["optim"]["lr"]}
    with pytest.raises(ConfigError, match=r"was started with optim\.lr"):
        make_plan(config, directory, 1, False)
    own.write_text(text)
    begin(sweep_config(experiment=str(own), controls=True, seeds=2), directory, None, 1).close()
    table.write_text("input,output\na,c\n")
    assert work(directory, command=FAKE) == 0
    state = read_state(directory)
    assert statuses(state) == {"finished": 2, "failed": 2}
    assert all("rows.csv is not what it was" in (each.problem or "") for each in state.trials if each.seed == 1)


def test_what_may_change(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path / "s")
    begin(sweep_config(), directory, None, 1)
    changed = sweep_config(title="new", budget={"hours": 2.0}, retries=5, seeds=3)
    begin(changed, directory, None, 1)
    assert read_state(directory).config == changed


@pytest.mark.parametrize(
    ("mode", "attempts", "words"),
    [
        ("raise", 3, "something is wrong with <this> trial"),
        ("nan", 1, "not finite"),
        ("memory", 2, "out of memory"),
        ("oom", 3, "killed (exit code 137)"),
        ("config", 1, "no such file"),
        ("once", 2, None),
        ("usr1", 2, None),
        ("novalue", 1, "retained has no value"),
    ],
)
def test_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, attempts: int, words: str | None) -> None:
    monkeypatch.setenv("FAKE_MODE", f"{mode}:4:*")
    directory = SweepDirectory(tmp_path / "s")
    begin(sweep_config(), directory, None, 1)
    codes = [work(directory, command=FAKE)]
    if mode == "usr1":
        assert codes == [75]
        assert statuses(read_state(directory))["failed"] == 0
        codes.append(work(directory, command=FAKE))
    assert codes[-1] == 0
    state = read_state(directory)
    plan = make_plan(sweep_config(), directory, 1, False)
    of_bad = [words is None, mode == "config", words is not None and mode != "config"]
    assert [plan.finished, plan.started, plan.over] == [1 + of_bad[0], *of_bad[1:]]
    good, bad = sorted(state.trials, key=lambda trial: trial.params["method.num_slots"])  # type: ignore[arg-type,return-value]
    assert good.status == "finished"
    assert starts(tmp_path / "s")[bad.cell] == attempts
    assert bad.status == ("finished" if words is None else "failed")
    assert bad.attempt == (1 if mode == "usr1" else attempts)
    if words is not None:
        assert words in (bad.problem or "")


def test_results_that_turn_out_to_be_losses_are_not_maximised(tmp_path: Path) -> None:
    """Answers without options and without generated texts are summed up by their loss, whatever the data asks for."""
    write_results(tmp_path, 0, {"test": 1.25})
    results = tmp_path / "results.json"
    results.write_text(results.read_text().replace('"exact_match"', '"loss"'))
    with pytest.raises(ConfigError, match=r"method is a loss here.*sweep.objectives='\[\{metric: loss, direction: min"):
        objective_values(sweep_config(objectives=[{"metric": "method"}]), tmp_path)
    for metric in ("loss", "method"):
        falling = sweep_config(objectives=[{"metric": metric, "direction": "minimize"}])
        assert objective_values(falling, tmp_path) == {metric: 1.25}


@pytest.mark.parametrize("drawn", [{}, {"sampler": "random", "points": 2}])
def test_a_mistake_that_was_put_right_is_tried_again_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: dict[str, object]
) -> None:
    monkeypatch.setenv("FAKE_MODE", "config:4:* nan:2:*")
    for _ in range(2):
        assert statuses(run(sweep_config(**drawn), tmp_path / "s")) == {"failed": 2}
    monkeypatch.delenv("FAKE_MODE")
    state = run(sweep_config(**drawn), tmp_path / "s")
    assert {trial.params["method.num_slots"]: trial.status for trial in state.trials} == {2: "failed", 4: "finished"}
    assert sorted(starts(tmp_path / "s").values()) == [1, 3]


@pytest.mark.parametrize("drawn", [{}, {"sampler": "random", "points": 4}])
def test_values_that_contradict_each_other_fail_alone(tmp_path: Path, drawn: dict[str, object]) -> None:
    """Grids are checked before they are begun, up to a size."""
    space = {"trainer.batch_size": {"values": [4, 5]}, "trainer.accumulate": {"values": [1, 2]}}
    state = run(sweep_config(space=space, seeds=2, **drawn), tmp_path / "s")
    assert statuses(state) == {"finished": 6, "failed": 2}
    bad = [trial for trial in state.trials if trial.status == "failed"]
    assert {tuple(trial.params.values()) for trial in bad} == {(5, 2)}
    assert [trial.attempt for trial in bad] == [1, 1]
    assert all("5 is not a multiple of" in (trial.problem or "") for trial in bad)
    assert all("5 is not a multiple of" in state.directory.log_of(trial.cell).read_text() for trial in bad)
    assert Progress(state, datetime.now(UTC)).over


GIST = {"experiment": "gist", "space": {"method.num_slots": {"values": [2]}}}


@pytest.mark.parametrize(
    ("mode", "before", "now"),
    [
        ("usr1:4:1", {"seeds": 2}, {}),
        ("usr1:8:*", {"space": {"method.num_slots": {"values": [2, 4, 8]}}}, {}),
        ("usr1:0:*", {**GIST, "controls": True}, GIST),
    ],
)
def test_what_was_interrupted_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, before: dict[str, object], now: dict[str, object]
) -> None:
    monkeypatch.setenv("FAKE_MODE", mode)
    directory = SweepDirectory(tmp_path / "s")
    begin(sweep_config(**before), directory, None, 1)
    assert work(directory, command=FAKE) == Exit.PREEMPTED
    state = run(sweep_config(**now), tmp_path / "s")
    assert set(statuses(state)) == {"finished"}
    assert Progress(state, datetime.now(UTC)).over


def test_a_left_out_value_is_not_the_best(tmp_path: Path) -> None:
    run(sweep_config(), tmp_path / "s")
    state = run(sweep_config(space={"method.num_slots": {"values": [2]}}), tmp_path / "s")
    assert statuses(state) == {"finished": 2}
    assert best_cell(state).params == {"method.num_slots": 2}


def test_a_trial_of_an_older_version_continues_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration lacked a key, so that its directory has another name."""
    monkeypatch.setenv("FAKE_MODE", "usr1:4:*")
    directory = SweepDirectory(tmp_path / "s")
    begin(sweep_config(), directory, None, 1)
    with monkeypatch.context() as older:
        older.setattr(configured, "identity", lambda experiment: f"old{identity(experiment)}")
        assert work(directory, command=FAKE) == Exit.PREEMPTED
    assert_exactly_once(run(sweep_config(), tmp_path / "s"), 2)
    assert sorted(starts(tmp_path / "s").values()) == [1, 2]
    assert all("-old" in name for name in starts(tmp_path / "s"))


@pytest.mark.parametrize("last", ["started", "optuna", "experiment", "config"])
def test_a_beginning_that_is_killed_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    note = Attempts.set_attribute

    def killed(self: Attempts, name: str, value: object) -> None:
        if name == last:
            raise KeyboardInterrupt
        note(self, name, value)

    directory = SweepDirectory(tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(Attempts, "set_attribute", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(sweep_config(), directory, None, 1)
    sweep = begin(sweep_config(), directory, None, 1)
    assert sweep.started is not None
    assert all(sweep.trials.attribute(name) for name in ("optuna", "experiment", "config"))


def test_a_trial_that_takes_all_devices_of_a_job_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config = sweep_config(set={"trainer.eval_every": 1, "trainer.max_steps": 4}, budget={"device_hours": 1e-9})
    assert run(config, tmp_path / "s").trials[0].devices == 2
    assert run(sweep_config(budget={"device_hours": 1e-9}), tmp_path / "t").trials[0].devices == 1  # on CPU


def test_more_retries_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MODE", "raise:4:*")
    assert statuses(run(sweep_config(retries=0), tmp_path / "s"))["failed"] == 1
    monkeypatch.delenv("FAKE_MODE")
    assert_exactly_once(run(sweep_config(retries=1), tmp_path / "s"), 2)


def test_a_full_disk_stops_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MODE", "disk:4:*")
    directory = SweepDirectory(tmp_path / "s")
    begin(sweep_config(), directory, None, 1)
    assert work(directory, command=FAKE) == Exit.NO_SPACE
    assert statuses(read_state(directory)) == {"finished": 1, "waiting": 1}
    monkeypatch.delenv("FAKE_MODE")
    assert_exactly_once(run(sweep_config(), tmp_path / "s"), 2)


def test_finished_runs_are_reused_by_a_new_study(tmp_path: Path) -> None:
    state = run(sweep_config(), tmp_path / "s")
    (tmp_path / "s" / "journal.log").unlink()
    again = run(sweep_config(), tmp_path / "s")
    assert_exactly_once(again, 2)
    assert set(starts(tmp_path / "s").values()) == {1}
    assert [trial.values for trial in again.trials] == [trial.values for trial in state.trials]


def test_dropping_leaves_out_seeds(tmp_path: Path) -> None:
    config = sweep_config(
        space={"method.num_slots": {"values": [2, 4, 5]}}, seeds=3, dropping={"after": 1, "margin": 0.15}
    )
    state = run(config, tmp_path / "s")
    assert sorted(trial.params["method.num_slots"] for trial in state.trials) == [2, 4, 4, 4, 5, 5, 5]  # type: ignore[type-var]
    assert [trial.point for trial in state.trials if trial.params["method.num_slots"] == 2] == list(state.dropped)
    assert state.planned == 9


def test_budget_of_trials(tmp_path: Path) -> None:
    state = run(sweep_config(seeds=2, budget={"trials": 3}), tmp_path / "s")
    assert statuses(state) == {"finished": 3}
    assert state.stopped_by == "trials (3)"
    assert_exactly_once(run(sweep_config(seeds=2), tmp_path / "s"), 4)


def test_budget_of_device_hours(tmp_path: Path) -> None:
    state = run(sweep_config(budget={"device_hours": 1e-9}), tmp_path / "s")
    assert statuses(state) == {"finished": 1, "waiting": 1}
    assert state.stopped_by == "device_hours (1e-09)"


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_drawn_points(tmp_path: Path, sampler: str) -> None:
    objectives = [{"metric": "retained"}]
    if sampler == "nsga2":
        objectives.append({"metric": "size.memory_slots", "direction": "minimize"})
    config = sweep_config(
        sampler=sampler,
        points=4,
        seeds=2,
        objectives=objectives,
        space={"method.num_slots": {"values": [1, 2, 3, 4]}, "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        constraints=[{"metric": "size.memory_slots", "at_most": 3}],
    )
    state = run(config, tmp_path / "s")
    assert_exactly_once(state, 8)
    assert len({trial.point for trial in state.trials}) == 4
    for trial in state.trials:
        slots = trial.params["method.num_slots"]
        assert isinstance(slots, int)
        assert trial.constraints == {"size.memory_slots <= 3": slots - 3}
    again = run(config, tmp_path / "t")
    assert [trial.params for trial in again.trials] == [trial.params for trial in state.trials], "the seed decides"


def test_bounds_of_one_metric_on_two_splits_are_both_kept(tmp_path: Path) -> None:
    config = sweep_config(
        constraints=[
            {"metric": "retained", "at_least": 0.3},
            {"metric": "retained", "split": "test", "at_least": 0.3},
            {"metric": "size.memory_slots", "at_most": 3},
        ],
        space={"method.num_slots": {"values": [2]}},
    )
    (trial,) = run(config, tmp_path / "s").trials
    assert trial.constraints == {
        "first/retained >= 0.3": pytest.approx(0.1),
        "test/retained >= 0.3": pytest.approx(0.1),
        "size.memory_slots <= 3": -1.0,
    }


def test_a_small_space_is_drawn_empty(tmp_path: Path) -> None:
    config = sweep_config(sampler="random", points=9, space={"method.num_slots": {"values": [1, 2, 5]}})
    directory = SweepDirectory(tmp_path / "s")
    before = make_plan(config, directory, 1, False)
    assert (before.points, before.trials, before.finished) == (3, 3, 0)
    state = run(config, directory.path)
    assert_exactly_once(state, 3)
    assert state.planned == 3
    assert make_plan(config, directory, 1, False).finished == 3


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_hopeless_trials_are_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruner: str) -> None:
    """The dev accuracy of the fake grows with the learning rate, and the best one is tried first."""
    monkeypatch.setenv("FAKE_SECONDS", "0.2")
    config = sweep_config(
        space={"optim.lr": {"values": [3e-3, 2e-3, 1e-3]}},
        pruning={"pruner": pruner, "startup_trials": 1, "reduction": 2},
    )
    state = run(config, tmp_path / "s")
    assert sum(statuses(state).values()) == 3
    assert statuses(state)["failed"] == 0
    if pruner != "hyperband":  # there it depends on the bracket
        assert statuses(state)["pruned"] > 0
        study = optuna.load_study(
            study_name="s",
            storage=optuna.storages.JournalStorage(
                optuna.storages.journal.JournalFileBackend(str(tmp_path / "s" / "journal.log"))
            ),
        )
        assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}


def test_a_user_without_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may have room; the command ends with the code that docs/sweeps.md gives."""
    directory = SweepDirectory(tmp_path / "s")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "journal.log")

    monkeypatch.setattr(Attempts, "begin", full)
    with pytest.raises(NoSpace):
        run_sweep(sweep_config(), directory, console=Console(quiet=True), start=fork_worker)


def test_what_is_left_may_run_elsewhere(tmp_path: Path) -> None:
    """On a machine that shares a database and no disk: that is no reason to say "stopped"."""
    places = [SweepDirectory(tmp_path / name / "s") for name in ("here", "there")]
    address = f"sqlite:///{tmp_path}/sweep.db"
    there = begin(sweep_config(), places[1], address, 1)
    params = {"method.num_slots": 4}
    there.trials.begin(Trial(point=point_id(params), params=params), {}, cell="there", place=there.place)
    there.close()
    assert run_sweep(sweep_config(), places[0], storage=address, console=Console(quiet=True), start=fork_worker)
    assert statuses(read_state(places[0])) == {"finished": 1, "running": 1}


def test_a_pruned_trial_that_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had told before its first checkpoint is gone when the pruner looks again."""
    config = sweep_config(pruning={"pruner": "median", "metric": "dev/accuracy"})
    begin(config, SweepDirectory(tmp_path), None, 1).close()
    sweep = open_sweep(SweepDirectory(tmp_path))
    worker = Worker(sweep, Keeper(tmp_path / "lease.json"), (), Stop(), FAKE, False)
    worker.sweep.directory.logs.mkdir(exist_ok=True)
    claim = worker._claim()
    assert isinstance(claim, Claim)
    claim.cell.run.mkdir(parents=True)
    metrics = claim.cell.run / "metrics.csv"
    for text in ("step,dev/accuracy\n1,0.5\n", "step,dev/accuracy\n"):
        metrics.write_text(text)
        assert not worker._is_hopeless(claim)


def test_curves_of_a_run_that_is_gone(tmp_path: Path) -> None:
    """Optuna was told negative losses where more is better."""
    config = sweep_config(pruning={"metric": "dev/loss"})
    directory = SweepDirectory(tmp_path)
    sweep = begin(config, directory, None, 1)
    params = {"method.num_slots": 4}
    number = sweep.trials.begin(Trial(point=point_id(params), params=params), {}, cell="x", place=sweep.place)
    (gone := tmp_path / "gone").mkdir()
    (gone / "metrics.csv").write_text("step,dev/loss\n10,2.5\n20,2.25\n")
    report(sweep, Trial(number=number), gone)
    assert [trial.reports for trial in sweep.state().trials if trial.number == number] == [((10, 2.5), (20, 2.25))]


def test_storage_addresses(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path / "s")
    with pytest.raises(ConfigError, match="SQLite cannot hand out trials to several workers"):
        begin(sweep_config(), directory, f"sqlite:///{tmp_path}/x.db", 2)
    with pytest.raises(ConfigError, match="no database address"):
        begin(sweep_config(), directory, "just words", 1)
    state = run(sweep_config(), tmp_path / "t", f"sqlite:///{tmp_path}/x.db")
    assert_exactly_once(state, 2)
    with pytest.raises(ConfigError, match="keeps its trials in"):
        begin(sweep_config(), SweepDirectory(tmp_path / "t"), "postgresql://me@nowhere/db", 1)
    run(sweep_config(), tmp_path / "u")
    with pytest.raises(ConfigError, match="comes too late"):
        begin(sweep_config(), SweepDirectory(tmp_path / "u"), "postgresql://me@nowhere/db", 1)


def test_a_file_of_sqlite_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(sweep_config(), tmp_path / "s", "sqlite:///sweep.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_exactly_once(read_state(SweepDirectory(tmp_path / "s")), 2)
    assert not any((tmp_path / "elsewhere").iterdir())
    for address in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigError, match=r"name a file \(sqlite:///sweep\.db\)"):
            begin(sweep_config(), SweepDirectory(tmp_path / "t"), address, 1)


def test_no_password_is_written(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path / "s")
    with pytest.raises(ConfigError):
        begin(sweep_config(), directory, "postgresql://me:secret-word@127.0.0.1:1/db", 1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all("secret-word" not in path.read_text() for path in files)


def test_params_are_known_to_optuna(tmp_path: Path) -> None:
    state = run(sweep_config(), tmp_path / "s")
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "s" / "journal.log"))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    assert [trial.params for trial in study.trials] == [trial.params for trial in state.trials]
    assert all(set(trial.distributions) == {"method.num_slots"} for trial in study.trials)


def test_nothing_is_written_through_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="runs: is a link"):
        begin(sweep_config(), SweepDirectory(tmp_path / "s"), None, 1)
    assert not any((tmp_path / "elsewhere").iterdir())
