"""Leaderboards: statistics against naive loops, the choice on dev, the board from files of rows, tracks as sweeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from promptcomp.config import ConfigError
from promptcomp.documents import shipped
from promptcomp.evaluation.bootstrap import context_weights
from promptcomp.evaluation.results import Cost
from promptcomp.leaderboard.board import Board, Line, build_board
from promptcomp.leaderboard.board_row import BoardRow, read_rows, write_rows
from promptcomp.leaderboard.board_views import NAMES, print_board, write_board
from promptcomp.leaderboard.from_sweep import _contexts, against_prefix_cache, choose_rate
from promptcomp.leaderboard.significance import drawn, holm, lower_bound, paired_p
from promptcomp.leaderboard.track import DIMENSION, Track, plan_of, read_track
from promptcomp.sweeps.checking import check
from promptcomp.terminal import PlainConsole
from tests.sweep_states import trial
from tests.unit.test_compare import predictions

CONTEXTS = 12
RECORDED = Path(__file__).parents[2] / "docs" / "results" / "leaderboards"


def test_holm_is_the_step_down_of_the_definition() -> None:
    draw = np.random.default_rng(0)
    for count in (0, 1, 2, 5, 9):
        p = draw.random(count) ** 3
        expected = []
        for value in p:  # the largest of the corrected values up to this one
            below = [(count - int((p < other).sum())) * other for other in p if other <= value]
            expected.append(min(1.0, max(below)))
        assert holm(p.tolist()) == pytest.approx(expected)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_intervals_draw_contexts_and_seeds() -> None:
    draw = np.random.default_rng(1)
    scores, weights = draw.random((3, 5)), np.array([1.0, 2, 1, 4, 3])
    found = drawn(scores, weights, 20).values
    seeds, contexts = (np.concatenate(list(context_weights(n, 20, seed))) for n, seed in ((3, 1), (5, 0)))
    for r in range(21):
        above = below = 0.0
        for s in range(3):
            for c in range(5):
                times = 1.0 if r == 0 else seeds[r - 1, s] * contexts[r - 1, c]
                above += times * weights[c] * scores[s, c]
                below += times * weights[c]
        assert found[r] == pytest.approx(above / below)
    assert drawn(scores[:1, :1], weights[:1], 20).ci is None


def test_paired_tests_are_students() -> None:
    draw = np.random.default_rng(2)
    differences = draw.normal(0.1, 0.3, 20)
    expected = stats.ttest_1samp(differences, 0.0)
    assert paired_p(differences, np.full(20, 7.0)) == pytest.approx(expected.pvalue)
    low = expected.confidence_interval(0.90).low  # two-sided 90 %: one-sided 95 %
    assert lower_bound(differences, np.full(20, 7.0)) == pytest.approx(low)
    weights, total = draw.integers(1, 5, 20).astype(float), 0.0
    mean = sum(w * d for w, d in zip(weights, differences, strict=True)) / sum(weights)
    for w, d in zip(weights, differences, strict=True):
        total += (w * (d - mean)) ** 2
    error = math.sqrt(total * 20 / 19) / sum(weights)
    assert paired_p(differences, weights) == pytest.approx(2 * stats.t.sf(abs(mean) / error, 19))
    assert lower_bound(differences, weights) == pytest.approx(mean - stats.t.ppf(0.95, 19) * error)
    assert paired_p(np.zeros(4), np.ones(4)) == 1.0
    assert paired_p(np.ones(4), np.ones(4)) == 0.0
    assert paired_p(np.ones(1), np.ones(1)) is None
    assert lower_bound(np.ones(1), np.ones(1)) is None


def board_row(name: str, seed: int = 0, score: float = 0.7, **changes: Any) -> BoardRow:
    """Scores around `score`, between 0.4 and 0.9; 100 bytes a slot of a context of 160 slots."""
    method, amount = name.rsplit("-", 1)
    kind = "bytes" if method.endswith("-bytes") else "slots"
    draw = np.random.default_rng([seed, sum(map(ord, name))])
    own = [round(float(value), 6) for value in score + draw.normal(0, 0.02, CONTEXTS)]
    slots = float(amount) if kind == "slots" else 160 * float(amount)
    tree = {
        "schema": 1, "row": name, "method": method.removesuffix("-bytes"), "title": method.title(), "seed": seed,
        "budget": {"kind": kind, "requested": float(amount)}, "data": "toy", "lm": "tiny", "split": "test",
        "metric": "accuracy", "examples_sha256": "a", "bounds": "untrained", "is_trained": method in ("mend", "pool"),
        "contexts": {"weights": [8.0] * CONTEXTS, "row": own, "no_prompt": [0.4] * CONTEXTS,
                     "full_prompt": [0.9 + 0.01 * (c % 3 - 1) for c in range(CONTEXTS)]},
        "slots": slots, "stored_bytes": 50 * slots, "kv_bytes": 100 * slots, "context_bytes": 16000.0,
        "kl": 1 - score, "top1": score, "command": "promptcomp leaderboard toy",
    }  # fmt: skip
    return BoardRow.model_validate({**tree, **changes})


def rows() -> list[BoardRow]:
    failed = {"contexts": None, "slots": None, "stored_bytes": None, "kv_bytes": None, "kl": None, "top1": None}
    return [
        *(board_row("mend-4", seed, 0.7) for seed in (0, 1)),
        *(board_row("mend-16", seed, 0.89) for seed in (0, 1)),
        board_row("pool-4", 0, 0.75),
        board_row("pool-4", 1, failure="the loss is not finite", **failed),
        *(board_row("pool-16", seed, failure="out of memory", **failed) for seed in (0, 1)),
        *(board_row("truncate-4", seed, 0.5) for seed in (0, 1)),
        *(board_row("near-4", seed, 0.8, query_aware=True) for seed in (0, 1)),
        *(board_row("shuffled_mend-4", seed, 0.41, is_control=True) for seed in (0, 1)),
        *(board_row("evict-bytes-0.1", seed, 0.6) for seed in (0, 1)),
        *(board_row("evict-bytes-0.02", seed, 0.45) for seed in (0, 1)),
    ]


def lines(found: Board, number: int, kind: str = "slots") -> dict[str, Line]:
    return {line.row: line for line in getattr(found, kind)[number].lines}


def test_a_board_ranks_within_a_budget_and_keeps_groups_apart() -> None:
    found = build_board(rows(), 0.95)
    assert [block.title for block in found.slots] == ["4 slots", "16 slots"]
    four, sixteen = lines(found, 0), lines(found, 1)
    assert list(four) == ["pool-4", "mend-4", "truncate-4", "near-4", "shuffled_mend-4"]
    assert [line.rank for line in four.values()] == [1, 2, 3, None, None]
    assert four["pool-4"].note == "seed 1: the loss is not finite"
    assert (four["pool-4"].seeds, four["pool-4"].p, four["pool-4"].minus_best.value) == (1, None, None)
    assert sixteen["pool-16"].group == "missing"
    assert sixteen["pool-16"].note == "out of memory"
    assert (four["near-4"].p, four["shuffled_mend-4"].p) == (None, None)
    line = four["mend-4"]
    table = {name: np.array([row.contexts.row for row in rows() if row.row == name and row.contexts]).mean(0)
             for name in ("pool-4", "mend-4", "truncate-4")}  # fmt: skip
    p = [float(stats.ttest_rel(table[name], table["pool-4"]).pvalue) for name in ("mend-4", "truncate-4")]
    assert [four[name].p for name in ("mend-4", "truncate-4")] == pytest.approx(holm(p), rel=1e-5)
    assert line.score.value == pytest.approx(table["mend-4"].mean(), rel=1e-5)
    assert line.minus_best.value == pytest.approx((table["mend-4"] - table["pool-4"]).mean(), rel=1e-4)
    assert line.retained.value == pytest.approx((table["mend-4"].mean() - 0.4) / 0.5, rel=1e-5)
    assert line.score.ci is not None
    assert line.score.ci[0] < (line.score.value or 0) < line.score.ci[1]
    assert found.no_prompt.value == pytest.approx(0.4)


def test_rows_that_trained_the_lm_are_held_against_the_lm_as_it_was() -> None:
    row = board_row("gist-4", 0, 0.7)
    own = row.contexts.model_copy(update={"full_prompt": row.contexts.no_prompt})  # type: ignore[union-attr]
    found = build_board([*rows(), row.model_copy(update={"bounds": "trained", "contexts": own})], 0.95)
    line, score = lines(found, 0)["gist-4"], float(np.mean(own.row))  # type: ignore[arg-type]
    assert line.trained_lm
    assert line.gap.value == pytest.approx(score - 0.9, rel=1e-5)
    assert line.retained.value == pytest.approx((score - 0.4) / 0.5, rel=1e-5)
    alone = build_board([row.model_copy(update={"bounds": "trained"})], 0.95).slots[0].lines[0]
    assert alone.gap.value == pytest.approx(score - 0.9, rel=1e-5)


def test_a_failed_first_seed_leaves_the_bounds_of_the_others() -> None:
    trained = [board_row("gist-4", seed, 0.7, bounds="trained") for seed in (0, 1)]
    failed = trained[0].model_copy(update={"bounds": None, "failure": "out of memory", "contexts": None})
    line = lines(build_board([*rows(), failed, trained[1]], 0.95), 0)["gist-4"]
    assert line.trained_lm
    assert line.note == "seed 0: out of memory"


def test_where_the_full_prompt_is_no_better_nothing_is_kept() -> None:
    row = board_row("gist-4", 0, 0.2)
    worse = row.contexts.model_copy(update={"full_prompt": [0.3] * CONTEXTS})  # type: ignore[union-attr]
    found = build_board([row.model_copy(update={"contexts": worse})], 0.95)
    assert found.slots[0].lines[0].retained.value is None
    assert found.floors[0].bounds == {"4": None}
    assert found.floors[0].slots is None


def test_bytes_take_the_most_slots_within_them() -> None:
    found = build_board(rows(), 0.95)
    assert [(block.title, block.allowed_bytes) for block in found.bytes] == [
        ("1/10 of the bytes", 1600.0),
        ("1/50 of the bytes", 320.0),
    ]
    wide, narrow = lines(found, 0, "bytes"), lines(found, 1, "bytes")
    assert wide["mend-bytes-0.1"].entered_with == "mend-16"
    assert wide["pool-bytes-0.1"].entered_with == "pool-4"  # its 16 have failed
    assert (wide["mend-bytes-0.1"].slots, wide["evict-bytes-0.1"].slots) == (16, 16)
    assert wide["shuffled_mend-bytes-0.1"].group == "control"
    assert narrow["mend-bytes-0.02"].group == "missing"
    assert narrow["mend-bytes-0.02"].note == "mend-4, its smallest, has 400 bytes in use, and 320 are allowed"
    assert narrow["evict-bytes-0.02"].rank == 1


def test_the_floor_is_a_test_of_non_inferiority() -> None:
    found = {each.method: each for each in build_board(rows(), 0.95).floors}
    assert (found["mend"].slots, found["pool"].slots, found["truncate"].slots) == (16, None, None)
    assert "evict" not in found
    assert "shuffled_mend" not in found
    own = [row.contexts for row in rows() if row.row == "mend-16" and row.contexts]
    per_context = []
    for c in range(CONTEXTS):
        values = [(o.row[c] - o.no_prompt[c]) - 0.95 * (o.full_prompt[c] - o.no_prompt[c]) for o in own]  # type: ignore[operator]
        per_context.append(sum(values) / len(values))
    low = stats.ttest_1samp(per_context, 0.0).confidence_interval(0.90).low
    assert found["mend"].bounds["16"] == pytest.approx(low, rel=1e-4)
    assert low > 0
    assert {each.method: each for each in build_board(rows(), 1.0).floors}["mend"].slots is None
    assert {each.method: each for each in build_board(rows(), 0.5).floors}["mend"].slots == 4


def test_lower_losses_are_better() -> None:
    worse, better = (board_row(f"{name}-4", 0, score, metric="loss") for name, score in (("mend", 0.8), ("pool", 0.6)))
    ends = {"no_prompt": (0.9,) * CONTEXTS, "full_prompt": (0.4,) * CONTEXTS}
    found = build_board(
        [row.model_copy(update={"contexts": row.contexts.model_copy(update=ends)}) for row in (worse, better)], 0.5
    )
    assert list(lines(found, 0)) == ["pool-4", "mend-4"]
    assert [each.slots for each in found.floors] == [4, None]
    assert lines(found, 0)["pool-4"].retained.value == pytest.approx(0.6, abs=0.05)


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path, rows())
    assert sorted(path.name for path in (tmp_path / "rows").iterdir())[:2] == ["evict-bytes-0.02", "evict-bytes-0.1"]
    read = read_rows(tmp_path)
    assert sorted(read, key=str) == sorted(rows(), key=str)
    write_board(build_board(read, 0.95), tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in NAMES}
    write_board(build_board(read_rows(tmp_path), 0.95), tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in NAMES} == first
    text, page = first["leaderboard.md"].decode(), first["index.html"].decode()
    for word in ("out of memory", "1/10 of the bytes", "mend: 16 slots", "pool: none of the budgets"):
        assert word in text
        assert word in page
    assert "http" not in page.replace("http-equiv", "")
    assert Board.model_validate(json.loads(first["leaderboard.json"])) == build_board(read, 0.95)
    again = [row.model_copy(update={"row": "extra-4", "method": "extra"}) for row in rows() if row.row == "mend-4"]
    write_rows(tmp_path, again)
    assert "extra-4" in lines(build_board(read_rows(tmp_path), 0.95), 0)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_shows_every_column(width: int) -> None:
    with (console := PlainConsole(width=width)).capture() as captured:
        print_board(build_board(rows(), 0.95), console)
    shown = captured.get()
    assert max(map(len, shown.splitlines())) <= width
    for word in ("retained", "p (Holm)", "queries to pay", "n/a", "control", "sees query", "…"):
        assert (word in shown) == (word != "…")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples_sha256": "b"}, r"rows/other-4: 0\.json has other examples than .*; leave it out"),
        ({"lm": "large"}, r"other LM than .* \(large, not tiny\)"),
        ({"data": "mine"}, "other data than"),
        ({"seed": 1}, r"holds seed 1 of other-4, which belongs in other-4/1\.json"),
        ({"contexts": None}, "neither the scores of contexts nor a failure"),
        ({"contexts": {"weights": [1], "row": [1], "no_prompt": [1], "full_prompt": []}}, "different lengths"),
        ({"schema": 2}, "newer promptcomp"),
        ({"slots": "many"}, "not a row of a leaderboard: slots"),
    ],
)
def test_foreign_and_broken_files_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_rows(tmp_path, [*rows(), board_row("other-4")])
    path = tmp_path / "rows" / "other-4" / "0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as told:
        read_rows(tmp_path)
    assert len(str(told.value).splitlines()) == 1


def test_seeds_of_an_earlier_plan_with_another_rate_are_not_averaged(tmp_path: Path) -> None:
    """As `--seeds 3` leaves them to `--seeds 2`, whose dev results choose another rate."""
    write_rows(
        tmp_path, [board_row("mend-4", 0, rate=1e-3), board_row("mend-4", 1, rate=3e-3, failure="out of memory")]
    )
    assert len(read_rows(tmp_path)) == 2
    write_rows(tmp_path, [board_row("mend-4", 2, rate=3e-3)])
    with pytest.raises(ConfigError, match=r"rows/mend-4/2\.json: has learning rate 0\.003, and 0\.json 0\.001"):
        read_rows(tmp_path)


def test_files_that_are_no_json_and_other_contexts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        read_rows(tmp_path)
    write_rows(tmp_path, rows())
    (tmp_path / "rows" / "mend-4" / "0.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"0\.json: not a row of a leaderboard"):
        read_rows(tmp_path)
    other = board_row("other-4")
    own = other.contexts
    assert own is not None
    fewer = own.model_copy(update={"weights": (4.0,) * CONTEXTS})
    with pytest.raises(ConfigError, match=r"rows/other-4/0\.json: its contexts are not those of rows/mend-4/0\.json"):
        build_board([*rows(), other.model_copy(update={"contexts": fewer})], 0.95)
    short = own.model_copy(
        update={name: getattr(own, name)[1:] for name in ("weights", "row", "no_prompt", "full_prompt")}
    )
    with pytest.raises(ConfigError, match=r"rows/other-4/1\.json: its contexts are not"):
        build_board([*rows(), other, other.model_copy(update={"seed": 1, "contexts": short})], 0.95)


def test_dev_alone_chooses_the_rate(tmp_path: Path) -> None:
    """The best dev result, mean over seeds; a rate with a failed seed has none; test results are not there at all."""
    dev = {("a", 0): [0.5, 0.9, 0.1], ("a", 1): [0.2, 0.3], ("b", 0): [0.6], ("b", 1): [0.7], ("c", 0): [0.99]}
    found = {}
    for number, ((choice, seed), values) in enumerate(dev.items()):
        made = trial(tmp_path, number, {DIMENSION: choice}, seed)
        made.run.mkdir(parents=True)
        texts = [f"{step},{value},{1 - value}" for step, value in enumerate(values)]
        (made.run / "metrics.csv").write_text(
            "\n".join(["step,dev/accuracy,dev/loss", *texts]) + "\n", encoding="utf-8"
        )
        found[choice, seed] = made
    found["c", 1] = trial(tmp_path, 9, {DIMENSION: "c"}, 1, status="failed", problem="the loss is not finite")
    rates = {"a": 1e-3, "b": 3e-3, "c": 1e-2}
    chosen, means, metric = choose_rate(rates, found, range(2), None)
    assert (chosen, metric) == ("b", "dev/accuracy")
    assert means == pytest.approx({"0.001": 0.6, "0.003": 0.65, "0.01": None})
    chosen, means, metric = choose_rate(rates, found, range(2), "dev/loss")
    assert (chosen, metric) == ("b", "dev/loss")
    assert means == pytest.approx({"0.001": 0.4, "0.003": 0.35, "0.01": None})
    assert choose_rate({"c": 1e-2}, found, range(2), None)[0] == "c"
    assert choose_rate(rates, found, range(2), "dev/exact_match")[::2] == ("b", "dev/accuracy")  # all have options


@pytest.mark.parametrize("recorded", sorted(RECORDED.iterdir()), ids=lambda folder: folder.name)
def test_recorded_boards_are_built_from_their_rows(recorded: Path, tmp_path: Path) -> None:
    write_board(build_board(read_rows(recorded), 0.95), tmp_path)
    assert (tmp_path / "leaderboard.md").read_bytes() == (recorded / "leaderboard.md").read_bytes()


def test_break_even_against_a_prefix_cache() -> None:
    cost = Cost(compress_flops=100, prefill_flops=30, cached_prefill_flops=20, full_prefill_flops=90,
                cached_full_prefill_flops=40)  # fmt: skip
    queries = next(n for n in range(1, 99) if 100 + 10 + 20 * n <= 50 + 40 * n)
    assert against_prefix_cache(cost) == queries == 3
    assert against_prefix_cache(Cost()) is None


@pytest.mark.parametrize("name", shipped("leaderboards"))
def test_shipped_tracks_are_sweeps(name: str) -> None:
    track = read_track(name, {})
    assert read_track(name, {"methods": list(track.methods)}) == track
    plan = plan_of(track)
    if not name.endswith("smollm2"):  # its LM and data are not part of the package
        check(plan.sweep)
    trained = [row for row in plan.rows if row.is_trained]
    assert len(trained) == len(track.methods) * len(track.slots)
    assert {len(row.choices) for row in trained} == {len(track.rates)}
    assert {row.method for row in plan.rows if row.failure} <= {"quantize_8_bits", "quantize_4_bits"}
    choices = plan.sweep.space[DIMENSION].choices  # type: ignore[union-attr]
    assert {choice for row in plan.rows for choice in row.choices} == set(choices)
    assert any(row.is_control for row in plan.rows)
    words = plan_of(track, ["trainer.max_steps=7", f"{trained[0].method}:method.temperature=0.5"])
    for choice, settings in words.sweep.space[DIMENSION].choices.items():  # type: ignore[union-attr]
        assert settings["trainer.max_steps"] == (0 if choice.startswith("rivals") else 7)
        assert ("method.temperature" in settings) == choice.startswith(trained[0].method + "-")


def test_an_own_track(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "method: {name: mend}\ndata: {name: toy_icl, metric: accuracy}\nlm: {path: 'builtin:toy_decoder'}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(
        "experiment: base.yaml\nmethods: {wide: {experiment: mend, method.projection: tanh}}\nslots: [2]\n"
        "bytes: [1/4]\nrivals: [{name: truncate, keeps: head}]\nrates: [1e-3]\nseeds: 1\n"
    )
    plan = plan_of(read_track(str(path), {"slots": ["2", "3"]}))
    assert plan.sweep.experiment == str(tmp_path / "base.yaml")
    names = [row.name for row in plan.rows]
    assert {"wide-2", "wide-3", "shuffled_wide-2", "random_wide-3", "truncate_head-2", "truncate_head-3"} <= set(names)
    assert plan.sweep.seeds == 1
    assert plan.sweep.objectives[0].direction == "maximize"


def test_rates_of_a_method_and_a_metric_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "experiment: mend\nmethods: {mend: {rates: [3e-4]}, pool: {}}\nslots: [2]\nrates: [1e-3]\nmetric: loss\n"
    )
    plan = plan_of(read_track(str(path), {}))
    assert {row.method: [*row.choices.values()] for row in plan.rows if row.is_trained} == {
        "mend": [3e-4],
        "pool": [1e-3],
    }
    assert (plan.sweep.objectives[0].metric, plan.sweep.objectives[0].direction) == ("loss", "minimize")
    of_all = plan_of(read_track(str(path), {"rates": ["2e-3", "4e-3"]}))
    assert {rate for row in of_all.rows if row.is_trained for rate in row.choices.values()} == {2e-3, 4e-3}


@pytest.mark.parametrize(
    ("name", "given", "words", "message"),
    [
        ("demonstration", {}, [], "did you mean 'demonstrations'"),
        ("demonstrations", {"methods": ["mnd"]}, [], "mnd"),
        ("demonstrations", {"slots": ["0"]}, [], "slots"),
        ("demonstrations", {"bytes": ["1/0"]}, [], "bytes"),
        ("demonstrations", {"bytes": ["2"]}, [], "bytes"),
        ("demonstrations", {"rivals": ["truncat"]}, [], "truncat"),
        ("demonstrations", {}, ["optim.lr=1"], "give --rates"),
        ("demonstrations", {}, ["mend:method.num_slots=3"], "give --slots"),
        ("demonstrations", {}, ["method.train=lm"], "say of which method, for example mend:method.train=lm"),
        ("demonstrations", {}, ["gist:method.train=lm"], "none of the track's methods"),
        ("demonstrations", {}, ["trainer.max_steps=1,2"], "one value"),
        ("demonstrations", {}, ["trainer.max_step=1"], "max_steps"),
        ("demonstrations", {}, ["mend:method.projectio=mlp"], "projection"),
        ("demonstrations", {"slots": ["4", "4"]}, [], "-4 would be two rows"),
        ("demonstrations", {"rates": ["1e-3", "0.001"]}, [], "rates 0.001, 0.001: give each rate once"),
        ("demonstrations", {}, ["mend:rates=[1e-3]"], "mend: 1 rate where the others have 2"),
        ("demonstrations", {}, ["mend:rates=[1e-3,0]"], "rates"),
        ("instructions", {"rivals": ["fewer_demonstrations"]}, [], "needs contexts of demonstrations"),
    ],
)
def test_mistakes_in_tracks(name: str, given: dict[str, Any], words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(plan_of(read_track(name, given), words).sweep)


def test_a_method_named_like_no_folder_is_refused_before_it_is_trained() -> None:
    for name in ("my mend", "a/../mend"):
        track = Track(experiment="mend", methods={name: {"experiment": "mend"}})
        with pytest.raises(ConfigError, match=f"'{name}': a row is a folder"):
            plan_of(track)


def test_contexts_without_a_score_are_none() -> None:
    """They would count in the degrees of freedom: free answers where rows are compared by accuracy."""
    chosen = predictions(0.8, seed=0, contexts=4, number=8)
    free = [
        each.model_copy(update={"task": "free", "kind": "free_form", "options": ()})
        for each in predictions(0.8, seed=0, contexts=4, number=8)
    ]
    assert _contexts([*chosen, *free], "method", "accuracy") == _contexts(chosen, "method", "accuracy")
    assert len(_contexts([*chosen, *free], "method", "loss").weights) == 8
