"""compare: ranks, paired deltas, refusal of different examples, renderings."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from promptcomp.comparing.comparison import compare
from promptcomp.comparing.comparison_table import FORMATS, print_comparison
from promptcomp.config import ConfigError
from promptcomp.evaluation.predictions import ROWS, Prediction, write_predictions
from promptcomp.evaluation.results import Results, Size, write_results
from promptcomp.evaluation.summarize import summarise


def predictions(
    skill: float, seed: int, split: str = "test", contexts: int = 20, number: int = 200
) -> list[Prediction]:
    luck = np.random.default_rng(7).random(number)  # the same examples are hard for every run
    noise = np.random.default_rng(seed).normal(scale=0.1, size=number)
    rates = {"no_prompt": 0.3, "method": skill, "full_prompt": 0.95}
    right = {row: (luck + noise < rate).tolist() for row, rate in rates.items()}
    return [
        Prediction(
            split=split,
            example=i,
            task=f"t{i % 4}",
            kind="classification",
            seed=None,
            context=i % contexts,
            gold=i % 2,
            options=("a", "b"),
            scores=dict.fromkeys(ROWS, (0.0, -1.0)),
            prediction={row: i % 2 if right[row][i] else 1 - i % 2 for row in ROWS},
            correct={row: right[row][i] for row in ROWS},
            loss=dict.fromkeys(ROWS, 1.0 - skill),
            gold_tokens=1,
        )
        for i in range(number)
    ]


def make_run(
    folder: Path,
    skill: float,
    seed: int = 0,
    *,
    sha: str = "same",
    config: str = "",
    bounds: str | None = None,
    **options,
) -> Path:
    folder.mkdir(parents=True)
    found = predictions(skill, seed, **options)
    metric = "accuracy"
    split = summarise(found, metric, examples_sha256=sha, resamples=100)
    results = Results(
        method="mend",
        family="decoder",
        data="toy_icl",
        lm="builtin:toy_decoder",
        seed=seed,
        splits={found[0].split: split},
        size=Size(compression=12.0, memory_bytes=4096, context_bytes=65536),
        bounds=bounds,
    )
    write_results(folder / "results.json", results)
    write_predictions(folder / "predictions.jsonl", found)
    if config:
        (folder / "config.yaml").write_text(f"{config}\nseed: {seed}\nname: {folder.name}\n", encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path / "base", 0.7), make_run(tmp_path / "better", 0.85), make_run(tmp_path / "worse", 0.5)]


def test_ranks_and_paired_deltas(runs):
    split = compare(*runs, resamples=300).splits[0]
    assert [(row.rank, row.run.label) for row in split.rows] == [(1, "better"), (2, "base"), (3, "worse")]
    best, base, worst = split.rows
    assert (base.delta, base.delta_ci) == (None, None)
    assert best.delta == pytest.approx(best.method - base.method)
    assert 0 < best.delta_ci[0] < best.delta < best.delta_ci[1]
    assert worst.delta_ci[1] < 0
    unpaired = np.hypot(*(row.method_ci[1] - row.method_ci[0] for row in (best, base)))
    assert best.delta_ci[1] - best.delta_ci[0] < 0.9 * unpaired


def test_another_metric_may_be_chosen(runs):
    split = compare(*runs, metric="loss", resamples=50).splits[0]
    assert [row.run.label for row in split.rows] == ["better", "base", "worse"]
    assert split.rows[0].retained is None
    assert split.rows[0].delta == pytest.approx(-0.15)
    with pytest.raises(ConfigError, match="unknown metric 'rouge'; known: accuracy"):
        compare(*runs, metric="rouge")


def test_different_examples_are_not_ranked(tmp_path, runs):
    other = make_run(tmp_path / "other", 0.9, sha="different")
    with pytest.raises(ConfigError, match=r"other answered other test examples than base .* --allow-different"):
        compare(*runs, other)
    split = compare(*runs, other, allow_different=True, resamples=50).splits[0]
    assert [row.run.label for row in split.rows] == ["base", "better", "worse", "other"]
    assert {(row.rank, row.delta) for row in split.rows} == {(None, None)}
    assert "no ranks" in split.notes[0]


def test_runs_without_an_identity_are_not_ranked(tmp_path):
    paths = [make_run(tmp_path / name, 0.7, sha="") for name in ("a", "b")]
    with pytest.raises(ConfigError, match="cannot be ranked"):
        compare(*paths)


def test_missing_predictions_cost_only_the_interval(runs):
    (runs[1] / "predictions.jsonl").unlink()
    split = compare(*runs, resamples=50).splits[0]
    assert split.rows[0].delta is not None
    assert split.rows[0].delta_ci is None
    assert split.notes[0].startswith("better: no predictions.jsonl")


def test_other_contexts_are_resampled_by_task(tmp_path, runs):
    other = make_run(tmp_path / "other", 0.8, contexts=10)
    split = compare(runs[0], other, resamples=50).splits[0]
    assert split.rows[0].delta_ci is not None
    assert "other contexts than the first run" in split.notes[0]


def test_runs_of_one_setting_get_a_mean_over_seeds(tmp_path):
    paths = [make_run(tmp_path / f"seed{seed}", 0.8, seed, config="method: {name: mend}") for seed in range(3)]
    paths.append(make_run(tmp_path / "alone", 0.6, 0, config="method: {name: mend, num_slots: 4}"))
    split = compare(*paths, resamples=20).splits[0]
    assert len(split.seed_means) == 1
    values = [row.method for row in split.rows if row.run.label.startswith("seed")]
    assert split.seed_means[0].value == pytest.approx(np.mean(values))
    assert split.seed_means[0].value_std == pytest.approx(np.std(values, ddof=1))
    assert "mean of 3 seeds" in FORMATS["markdown"](compare(*paths, resamples=20))


def test_labels_are_as_long_as_needed(tmp_path):
    paths = [make_run(tmp_path / name / "run", 0.7) for name in ("one", "two")]
    assert [run.label for run in compare(*paths, resamples=20).runs] == ["one/run", "two/run"]
    with pytest.raises(ConfigError, match="given twice"):
        compare(paths[0], paths[0] / "results.json")


def test_a_link_to_itself_is_no_results_file(tmp_path, runs):
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "results.json").symlink_to("results.json")
    with pytest.raises(ConfigError, match=r"results\.json"):
        compare(runs[0], tmp_path / "round")


def test_splits_must_be_shared(tmp_path, runs):
    other = make_run(tmp_path / "other", 0.7, split="test_far")
    with pytest.raises(ConfigError, match="no evaluated split in common"):
        compare(runs[0], other)
    with pytest.raises(ConfigError, match=r"split 'dev' was not evaluated by all runs .base: test; better: test"):
        compare(*runs[:2], split="dev")
    assert [s.split for s in compare(*runs, split="test", resamples=20).splits] == ["test"]
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare()


def test_text_renderings(runs):
    comparison = compare(*runs, resamples=50)
    table = list(csv.DictReader(io.StringIO(FORMATS["csv"](comparison))))
    assert [line["run"] for line in table] == ["better", "base", "worse"]
    assert table[1]["delta"] == ""
    assert float(table[0]["value"]) == comparison.splits[0].rows[0].method
    tree = json.loads(FORMATS["json"](comparison))
    assert tree["baseline"] == "base"
    assert tree["splits"][0]["rows"][0]["rank"] == 1
    markdown = FORMATS["markdown"](comparison).splitlines()
    assert markdown[0] == "### test: 200 examples, best first"
    assert len({line.count("|") for line in markdown if line.startswith("|")}) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_the_terminal(runs, width):
    out = io.StringIO()
    print_comparison(compare(*runs, resamples=50), Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "baseline" in text
    assert ("full prompt" in text) == (width == 120)


def test_no_torch_is_imported():
    code = "import sys, promptcomp.comparing, promptcomp.report; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_retained_of_different_bounds_is_shown_with_a_note(tmp_path: Path) -> None:
    """Ranks are by the metric; a share of another gap says nothing about which run is better."""
    frozen = make_run(tmp_path / "frozen", 0.7, bounds="untrained")
    again = make_run(tmp_path / "again", 0.8, bounds="untrained")
    trained = make_run(tmp_path / "trained", 0.85, seed=5, bounds="trained")  # its own bounds have other values
    same = compare(frozen, again, resamples=100).splits[0]
    assert same.same_bounds
    assert not any("retained" in note for note in same.notes)
    different = compare(frozen, trained, resamples=100)
    (split,) = different.splits
    assert not split.same_bounds
    assert [row.run.label for row in split.rows] == ["trained", "frozen"]
    notes = "\n".join(split.notes)
    assert "do not rank by it" in notes
    assert "frozen: 0.3" in notes
    assert "by the untrained LM" in notes
    assert "by its own trained weights" in notes
    tree = json.loads(FORMATS["json"](different))
    assert tree["splits"][0]["same_bounds"] is False
    assert {row["bounds"] for row in tree["splits"][0]["rows"]} == {"trained", "untrained"}


def test_a_metric_that_all_runs_have_is_offered(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 0.7) for name in ("one", "two")]
    tree = json.loads((runs[1] / "results.json").read_text())
    tree["splits"]["test"]["metric"] = "loss"
    for metric in ("accuracy", "task_accuracy"):
        del tree["splits"]["test"]["rows"]["method"][metric]
    (runs[1] / "results.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"one: accuracy, two: loss\); choose one that all .*: macro_f1, .*loss$"):
        compare(*runs)


def test_an_equal_run_has_a_delta_without_an_interval(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 0.7) for name in ("one", "two")]
    (split,) = compare(*runs, resamples=100).splits
    assert {row.delta_ci for row in split.rows} == {None}
    assert any("differ equally" in note for note in split.notes)
    (split,) = compare(*runs, metric="exact_match", resamples=100).splits
    assert split.notes == ["two: no exact_match in this run or the first, so there is no delta"]
