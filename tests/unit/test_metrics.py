"""Metrics, aggregation, the bootstrap (against a naive loop with scikit-learn) and option choice."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from promptcomp.config import ConfigError
from promptcomp.evaluation.bootstrap import context_weights, resample, retained
from promptcomp.evaluation.metrics import group
from promptcomp.evaluation.option_accuracy import OptionAccuracy, best_choice
from promptcomp.evaluation.predictions import (
    METRICS,
    ROWS,
    TEXT_METRICS,
    TOKEN_METRICS,
    OptionScores,
    Prediction,
    choose,
    examples_sha256,
    make_predictions,
    read_predictions,
    write_predictions,
)
from promptcomp.evaluation.summarize import summarise
from tests.classification import accuracy, macro_f1


@dataclass(frozen=True)
class Example:
    number: int
    task: str
    kind: str
    seed: int | None
    context: int
    gold: int
    options: tuple[str, ...]
    input: str = "?"
    output: str = "!"
    teacher: str | None = None


def sample(
    num: int = 240, skill: float = 0.8, seed: int = 0, kinds=("classification", "multi_choice")
) -> list[Prediction]:
    """Predictions of four tasks, two data seeds, several contexts; options are reordered in every example."""
    draw = np.random.default_rng(seed)
    rows = {"no_prompt": 0.3, "method": skill, "full_prompt": 0.9}
    made = []
    for i in range(num):
        task = int(draw.integers(4))
        data_seed = int(draw.choice([13, 21]))
        options = tuple(draw.permutation(["red", "green", "blue"][: 2 + task % 2]).tolist())
        gold = int(draw.integers(len(options)))
        measured = {row: {name: float(draw.random()) for name in TEXT_METRICS} for row in rows}
        generated = {"texts": dict.fromkeys(rows, "text"), "metrics": measured} if i % 3 else {}
        prediction = {row: gold if draw.random() < p else int(draw.integers(len(options))) for row, p in rows.items()}
        made.append(
            Prediction(
                split="test",
                example=i,
                task=f"task{task}",
                kind=kinds[task % len(kinds)],
                seed=data_seed,
                context=int(draw.integers(5)) + 100 * task + 1000 * data_seed,
                gold=gold,
                options=options,
                scores={row: tuple(draw.normal(size=len(options)).tolist()) for row in rows},
                prediction=prediction,
                correct={row: prediction[row] == gold for row in rows},
                loss={row: float(draw.exponential()) for row in rows},
                gold_tokens=int(draw.integers(1, 4)),
                kl={row: float(draw.exponential()) for row in rows},
                top1={row: float(draw.random()) for row in rows},
                **generated,
            )
        )
    return made


def naive(drawn: list[Prediction], contexts_of: dict, row: str, shares: dict) -> dict[str, float]:
    """The metrics of a resample, computed with scikit-learn on repeated examples."""
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in METRICS}
    for key in contexts_of:
        own = [p for p in drawn if (p.task, p.seed) == key]
        if not own:
            continue
        gold = [p.options[p.gold] for p in own]
        predicted = [p.options[p.prediction[row]] for p in own]
        right = float(np.mean([p.correct[row] for p in own]))
        values["task_accuracy"].append((shares[key], right))
        if own[0].kind == "classification":
            f1 = f1_score(gold, predicted, average="macro", labels=sorted({*gold, *predicted}), zero_division=0)
            metaicl = f1_score(gold, predicted, average="macro", labels=sorted(set(gold)), zero_division=0)
            values["macro_f1"].append((shares[key], f1))
            values["macro_f1_metaicl"].append((shares[key], metaicl))
            values["task"].append((shares[key], f1))
        else:
            values["task"].append((shares[key], right))
    tokens = np.array([p.gold_tokens for p in drawn])
    pooled = {
        "accuracy": float(np.mean([p.correct[row] for p in drawn])),
        **{
            name: float((np.array([getattr(p, name)[row] for p in drawn]) * tokens).sum() / tokens.sum())
            for name in TOKEN_METRICS
        },
    }
    generated = [p.metrics[row] for p in drawn if p.metrics]
    pooled |= {name: float(np.mean([values[name] for values in generated])) for name in TEXT_METRICS}
    mean = {name: sum(w * v for w, v in pairs) / sum(w for w, _ in pairs) for name, pairs in values.items() if pairs}
    return mean | pooled


def test_bootstrap_equals_a_naive_loop_with_scikit_learn():
    predictions = sample(150)
    groups = group(predictions, ROWS)
    samples = resample(groups, ROWS, resamples=12, seed=3)
    order = [(g.task, g.seed) for g in groups]
    contexts_of = {key: list(dict.fromkeys(p.context for p in predictions if (p.task, p.seed) == key)) for key in order}
    numbered = [context for key in order for context in contexts_of[key]]
    num_seeds = {task: sum(key[0] == task for key in order) for task, _ in order}
    weights = np.concatenate(list(context_weights(len(numbered), 12, 3)))
    for r, counts in enumerate([np.ones(len(numbered)), *weights]):
        times = dict(zip(numbered, counts.astype(int), strict=True))
        drawn = [p for p in predictions for _ in range(times[p.context])]
        shares = {k: sum(times[c] for c in cs) / len(cs) / num_seeds[k[0]] for k, cs in contexts_of.items()}
        for row in ROWS:
            expected = naive(drawn, contexts_of, row, shares)
            for name in METRICS:
                assert samples.values[name][row][r] == pytest.approx(expected[name], abs=1e-12), (r, row, name)


def test_bootstrap_of_a_large_split_is_fast():
    predictions = sample(4000)
    groups = group(predictions, ROWS)
    start = time.perf_counter()
    resample(groups, ROWS, resamples=2000)
    assert time.perf_counter() - start < 10


def test_bootstrap_is_a_function_of_its_seed():
    groups = group(sample(80), ROWS)
    first, again, other = (resample(groups, ROWS, resamples=50, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.values["task"]["method"], again.values["task"]["method"])
    assert not np.array_equal(first.values["task"]["method"], other.values["task"]["method"])


def test_chunks_of_resamples_give_the_same_draws(monkeypatch):
    whole = np.concatenate(list(context_weights(7, 10, 0)))
    monkeypatch.setattr("promptcomp.evaluation.bootstrap._CHUNK_VALUES", 21)
    parts = list(context_weights(7, 10, 0))
    assert len(parts) == 4
    assert np.array_equal(np.concatenate(parts), whole)
    assert (whole.sum(1) == 7).all()


def test_summary_has_bounds_intervals_and_tables():
    result = summarise(sample(400), "accuracy", examples_sha256="abc", resamples=300)
    assert result.no_prompt < result.method < result.full_prompt
    assert result.method_ci[0] < result.method < result.method_ci[1]
    assert result.retained == pytest.approx(
        (result.method - result.no_prompt) / (result.full_prompt - result.no_prompt)
    )
    assert result.retained_ci[0] < result.retained < result.retained_ci[1]
    assert result.gap_to_full == pytest.approx(result.method - result.full_prompt)
    assert set(result.seeds) == {"13", "21"}
    assert [task.metric for task in sorted(result.tasks, key=lambda t: t.task)] == ["macro_f1", "accuracy"] * 2
    assert sum(task.count for task in result.tasks) == result.count == 400
    means = [np.mean([result.seeds[seed][row] for seed in ("13", "21")]) for row in ROWS]
    assert means == pytest.approx([result.no_prompt, result.method, result.full_prompt], abs=0.05)
    assert result.rows["method"]["accuracy"].worst == min(result.seeds[seed]["method"] for seed in ("13", "21"))
    assert result.others["accuracy"] == result.method
    assert result.num_contexts == len({p.context for p in sample(400)})


def test_tasks_weigh_the_same_in_the_figures_of_a_seed_however_many_seeds_they_have():
    made = sample(200, kinds=("multi_choice",))
    made = [p for p in made if p.task != "task1" or p.seed == 13]
    result = summarise(made, "accuracy", resamples=10)
    for name in ("task_accuracy", "task"):
        named = summarise(made, name, resamples=10)
        for seed in (13, 21):
            own = [p for p in made if p.seed == seed]
            tasks = [np.mean([p.correct["method"] for p in own if p.task == t]) for t in {p.task for p in own}]
            assert named.seeds[str(seed)]["method"] == pytest.approx(np.mean(tasks))
        assert result.rows["method"][name].worst == min(each["method"] for each in named.seeds.values())


def test_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        rates = draw.beta(8, 2, size=40)  # contexts differ in luck; the mean is 0.8
        predictions = [
            p.model_copy(
                update={"context": i // 6, "seed": None, "task": "t", "correct": dict.fromkeys(ROWS, bool(hit))}
            )
            for i, (p, hit) in enumerate(zip(sample(240), draw.random(240) < np.repeat(rates, 6), strict=True))
        ]
        low, high = summarise(predictions, "accuracy", resamples=300).method_ci
        covered += low <= 0.8 <= high
    assert covered >= 51  # 95 % of 60 is 57


def test_no_headroom_when_the_bounds_are_within_two_standard_errors():
    weak = [p.model_copy(update={"correct": p.correct | {"full_prompt": p.correct["no_prompt"]}}) for p in sample(200)]
    result = summarise(weak, "accuracy", resamples=200)
    assert result.no_headroom
    assert result.retained is None
    assert result.retained_ci is None
    swapped = [p.model_copy(update={"correct": p.correct | {"full_prompt": False}}) for p in sample(200)]
    assert summarise(swapped, "accuracy", resamples=200).no_headroom


def test_a_row_that_does_not_apply_is_null():
    no_bound = [p.model_copy(update={"scores": p.scores | {"full_prompt": None}}) for p in sample(60)]
    result = summarise(no_bound, "accuracy", resamples=50)
    assert (result.full_prompt, result.retained, result.gap_to_full, result.no_headroom) == (None, None, None, False)
    assert result.method_ci is not None


def test_one_context_has_no_interval():
    single = [p.model_copy(update={"context": 0, "task": "t", "seed": None}) for p in sample(40)]
    result = summarise(single, "accuracy", resamples=50)
    assert result.method_ci is None
    assert result.seeds == {}
    assert result.method is not None


def test_perfect_score_keeps_an_honest_interval():
    perfect = [p.model_copy(update={"correct": dict.fromkeys(ROWS, True)}) for p in sample(200)]
    result = summarise(perfect, "accuracy", resamples=50)
    assert result.method == 1.0
    assert result.method_ci == (pytest.approx(0.025 ** (1 / result.num_contexts)), 1.0)


def test_free_form_examples_have_a_loss_and_retained_of_the_loss():
    loss = {"no_prompt": 3.0, "method": 1.2, "full_prompt": 1.0}
    free = [
        p.model_copy(
            update={
                "kind": "free_form",
                "options": (),
                "texts": None,
                "metrics": None,
                "loss": {k: v + 0.01 * (p.example % 7) for k, v in loss.items()},
            }
        )
        for p in sample(100)
    ]
    result = summarise(free, "accuracy", resamples=100)
    assert result.metric == "loss"
    assert result.retained == pytest.approx(0.9, abs=1e-9)
    assert result.others["accuracy"] is None
    assert "accuracy" not in result.rows["method"]


@pytest.mark.parametrize("kind", ["classification", "multi_choice"])
def test_examples_without_a_choice_count_for_the_loss_alone(kind):
    choices = sample(60, kinds=(kind,))
    free = [p.model_copy(update={"kind": "free_form", "options": ("z",), "gold": 0}) for p in sample(40, seed=1)]
    alone = summarise(choices, "accuracy", resamples=50)
    for mixed in ([*free, *choices], [*choices, *free]):  # whichever comes first
        found = summarise(mixed, "accuracy", resamples=50)
        for name in ("accuracy", "task_accuracy", "macro_f1", "macro_f1_metaicl"):
            assert found.others[name] == pytest.approx(alone.others[name])
        assert {task.kind for task in found.tasks} == {kind}
        assert found.count == 100


def test_a_missing_loss_spoils_the_loss_alone():
    predictions = sample(60)
    predictions[3] = predictions[3].model_copy(update={"loss": dict.fromkeys(ROWS)})
    result = summarise(predictions, "accuracy", resamples=50)
    assert result.others["loss"] is None
    assert result.retained is not None


def test_summary_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="without examples"):
        summarise([], "accuracy")


def test_loss_without_headroom_for_ratio_is_kept_apart_from_bounds():
    groups = group(sample(60), ("method",))
    assert retained(resample(groups, ("method",), resamples=10), "accuracy").value is None


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_equals_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    gold = draw.choice(["a", "b", "c"], size=30).tolist()
    predicted = draw.choice(["a", "b", "d"], size=30).tolist()
    assert macro_f1(predicted, gold) == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))


def test_empty_and_unequal_inputs():
    assert math.isnan(macro_f1([], []))
    assert math.isnan(accuracy([], []))
    with pytest.raises(ValueError, match="2 predictions for 1 gold"):
        accuracy(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="2 predictions for 1 gold"):
        macro_f1(["a", "b"], ["a"])


def test_choice_ignores_what_is_not_a_number():
    assert choose([-2.0, -1.0, -1.0]) == 1
    assert choose([math.nan, -5.0]) == 1
    assert choose([math.nan, -math.inf]) == -1


def make_scores() -> tuple[list[Example], OptionScores]:
    examples = [
        Example(1, "b", "free_form", None, 0, 0, (), output="long answer"),
        Example(0, "a", "classification", 13, 7, 1, ("yes", "no")),
    ]
    return examples, {(0, 0): (-4.0, 4), (0, 1): (-3.0, 1), (1, 0): (-6.0, 3)}


def test_predictions_are_length_normalised():
    examples, scores = make_scores()
    first, second = make_predictions("test", examples, {"method": scores})
    assert (first.example, first.prediction["method"], first.correct["method"]) == (0, 0, False)
    assert first.scores == {"no_prompt": None, "method": (-1.0, -3.0), "full_prompt": None}
    assert first.loss["method"] == 3.0
    assert first.gold_tokens == 1
    assert (second.prediction["method"], second.correct["method"], second.loss["method"]) == (None, None, 2.0)


def test_a_row_whose_loss_is_no_number_is_counted():
    examples, scores = make_scores()
    broken = {key: (math.nan, count) for key, (_, count) in scores.items()}
    rows = {"method": {**scores, (1, 0): (-math.inf, 3)}, "full_prompt": broken, "no_prompt": scores}
    near = {"full_prompt": dict.fromkeys((0, 1), (math.nan, math.nan))}
    predictions = make_predictions("test", examples, rows, closeness=near)
    assert {(p.kl["full_prompt"], p.top1["full_prompt"]) for p in predictions} == {(None, None)}
    found = summarise(predictions, "accuracy", examples_sha256="", resamples=10)
    assert found.not_finite == {"method": 1, "full_prompt": 2}
    assert "loss" not in found.rows["full_prompt"]
    assert "NaN" not in found.model_dump_json()


def test_pmi_changes_the_choice_but_not_the_loss():
    examples, scores = make_scores()
    null = {(0, 0): (-1.0, 4), (0, 1): (-5.0, 1), (1, 0): (-1.0, 1)}
    first = make_predictions("test", examples, {"method": scores}, {"method": null})[0]
    assert first.scores["method"] == (-0.75, 2.0)
    assert (first.correct["method"], first.loss["method"]) == (True, 3.0)


def test_missing_options_are_refused():
    _, scores = make_scores()
    with pytest.raises(ValueError, match="example 5: option 0 has not been scored"):
        make_predictions("test", [Example(5, "a", "classification", 13, 7, 1, ("yes", "no"))], {"method": scores})


def test_an_option_without_tokens_never_wins():
    scores = {(0, 0): (0.0, 0), (0, 1): (-9.0, 1)}
    found = make_predictions("test", [Example(0, "a", "classification", 13, 7, 1, ("", "no"))], {"method": scores})[0]
    assert found.prediction["method"] == 1
    assert found.scores["method"] == (None, -9.0)


def test_identity_of_examples_sees_questions_and_not_contexts():
    examples, _ = make_scores()
    same = [Example(**{**_fields(e), "context": e.context + 5}) for e in reversed(examples)]
    assert examples_sha256(examples) == examples_sha256(same)
    for change in ({"input": "other"}, {"options": ("no", "yes")}, {"gold": 0}, {"seed": 21}):
        changed = [examples[0], Example(**{**_fields(examples[1]), **change})]
        assert examples_sha256(examples) != examples_sha256(changed)


def _fields(example: Example) -> dict:
    return {name: getattr(example, name) for name in Example.__dataclass_fields__}


def test_predictions_file_round_trip_and_errors(tmp_path):
    path = tmp_path / "predictions.jsonl"
    predictions = sample(20)
    write_predictions(path, predictions)
    assert read_predictions(path) == predictions
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.jsonl"]
    older = [p.model_copy(update={"kl": None, "top1": None}) for p in predictions]  # and runs without bounds
    write_predictions(path, older)
    assert not {"kl", "top1"} & json.loads(path.read_text().splitlines()[0]).keys()
    assert read_predictions(path) == older
    assert not {"kl", "top1"} & summarise(older, "accuracy", resamples=10).rows["method"].keys()
    write_predictions(path, predictions)
    path.write_text(path.read_text()[:-30], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"predictions\.jsonl, line 20: not a prediction"):
        read_predictions(path)
    line = predictions[0].model_dump()
    path.write_text(json.dumps(line | {"options": line["options"][: line["gold"]] or ["red"], "gold": 2}))
    with pytest.raises(ConfigError, match=r"line 1: not a prediction .*option 2 is chosen or right, and there are"):
        read_predictions(path)


def test_option_accuracy_counts_examples():
    metric = OptionAccuracy()
    example = torch.tensor([4, 4, 9, 9, 9, 2])
    choice = torch.tensor([1, 0, 0, 1, 2, 0])
    scores = torch.tensor([-1.0, -1.0, -3.0, float("nan"), -2.0, float("-inf")])
    gold = torch.tensor([0, 0, 2, 2, 2, 0])
    chosen, right = best_choice(scores, example, choice, gold)
    assert chosen.tolist() == [-1, 0, 2]
    assert right.tolist() == [0, 0, 2]
    other = OptionAccuracy()
    other.update(scores[2:5], example[2:5], choice[2:5], gold[2:5])
    metric.update(scores, example, choice, gold)
    metric.merge_state(other)
    assert (metric.mean_value.item(), metric.weight.item()) == (3, 4)
    assert metric.compute().item() == pytest.approx(3 / 4)
    metric.reset()
    assert metric.weight == 0


def test_option_accuracy_is_that_of_all_ranks():
    """Two ranks with unequal shares, 1 of 1 and 1 of 2 right; the gather of torch.distributed is stood in for."""
    ranks = [OptionAccuracy(), OptionAccuracy()]
    shares = [([-1.0, -2.0], [0, 0], [0, 1], [0, 0]), ([-1.0, -2.0, -3.0, -1.0], [1, 1, 2, 2], [0, 1] * 2, [0] * 4)]
    for metric, share in zip(ranks, shares, strict=True):
        metric.update(*(torch.tensor(column) for column in share))

    def gather(value: torch.Tensor, group: object) -> list[torch.Tensor]:
        name = "mean_value" if value is ranks[0].mean_value else "weight"
        return [getattr(metric, name) for metric in ranks]

    ranks[0].sync(dist_sync_fn=gather, distributed_available=lambda: True)
    assert (ranks[0].mean_value.item(), ranks[0].weight.item()) == (2, 3)
    ranks[0].unsync()
    assert ranks[0].weight.item() == 1
