"""The final table: readable at 80 and 120 columns, honest without headroom."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from promptcomp.evaluation.formatting import bytes_text, flops_text, ms_text, number_text, value_text
from promptcomp.evaluation.results import Cost, Estimate, Results, RivalResult, Size, SplitResult, TaskResult
from promptcomp.report import print_report


def estimates(value: float, *metrics: str) -> dict[str, Estimate]:
    return {metric: Estimate(value=value, ci=(value - 0.02, value + 0.02)) for metric in metrics}


def make_split(metric: str = "accuracy", metrics=("accuracy", "macro_f1", "loss"), **changes) -> SplitResult:
    values = {"no_prompt": 0.25, "method": 0.93, "full_prompt": 0.96}
    rows = {row: estimates(value, *metrics) for row, value in values.items()}
    fields = {"metric": metric, "count": 512, "retained": 0.958, "retained_ci": (0.93, 0.98), "num_tasks": 32}
    return SplitResult(**(fields | values | {"rows": rows, "num_contexts": 128} | changes))


RESULTS = Results(
    method="mend",
    title="MEND",
    context_kind="demonstrations",
    context_words="24 demonstrations",
    family="decoder",
    data="toy_icl",
    lm="builtin:toy_decoder",
    seed=0,
    splits={"test": make_split(about="new tasks")},
    size=Size(
        context_tokens=99.6, memory_slots=8, compression=12.45, context_bytes=203980.8, memory_bytes=4096,
        memory_kv_bytes=16384,
    ),
    cost=Cost(
        compress_ms=3.4, prefill_ms=1.4, full_prefill_ms=5.22, flops_ratio=8.2, compress_flops=2.2e8,
        prefill_flops=2.1e7, full_prefill_flops=1.7e8, cached_full_prefill_flops=1.1e7, no_prompt_prefill_flops=8.2e6,
        break_even_queries=2,
    ),
)  # fmt: skip


def printed(results: Results, width: int, run: Path | None = None) -> str:
    out = io.StringIO()
    print_report(results, Console(file=out, width=width), run)
    return out.getvalue()


def test_a_context_without_positions_has_no_ratio() -> None:
    none = RESULTS.model_copy(update={"size": RESULTS.size.model_copy(update={"compression": 0.0})})
    assert "add on test. " in " ".join(printed(none, 80).split())


@pytest.mark.parametrize("width", [80, 120])
def test_everything_is_readable(width):
    text = printed(RESULTS, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    lines = [line for line in text.splitlines() if "0.930 [0.91, 0.95]" in line]
    assert lines[0].split("  ")[0] == "MEND"
    assert lines[0].count("[") == (4 if width == 120 else 3)
    assert " ".join(text.split()).startswith(
        "MEND keeps 96% [93%, 98%] of what 24 demonstrations add on test, in 1/12 of the positions."
    )
    for expected in (
        "test: 512 examples, 32 tasks, 128 contexts; 95% intervals",
        "no demonstrations",
        "full demonstrations",
        "macro-F1",
        "test: new tasks",
        "compression       12.4x: 99.6 tokens in 8 positions",
        "memory            49.8x: 4.0 KiB stored for 199.2 KiB of KV",
        "memory in use     12.4x: 16.0 KiB of KV for 199.2 KiB of KV",
        "prefill           8.2x fewer FLOPs, 3.7x less time",
        "compressing once  220 MFLOP, 3.4 ms, pays from query 2 on the same context",
    ):
        assert expected in text


RIVALS = {
    "truncate_tail": RivalResult(title="truncated (tail)", slots=8, asked_slots=8, kv_bytes=27648, retained=0.2),
    "long": RivalResult(
        title="fewer demonstrations (random, 1/16 of the bytes)", missing="nothing of any context fits the budget"
    ),
    "seeing": RivalResult(
        title="fewer demonstrations (bm25 to query, 1/8 of the bytes)", query_aware=True, slots=11.5, kv_bytes=38400,
        asked_bytes=39321.6, retained=0.5, retained_ci=(0.4, 0.6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 200])
def test_long_titles_of_rivals_cut_no_interval(width):
    rows = make_split().rows | {row: estimates(0.5, "accuracy", "macro_f1") for row in ("truncate_tail", "seeing")}
    text = printed(RESULTS.model_copy(update={"splits": {"test": make_split(rows=rows, rivals=RIVALS)}}), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("0.500 [0.48, 0.52]") == 4
    assert "0.50 [0.40, 0.60]" in text
    whole = " ".join(text.split())
    assert "truncated (tail): 8 positions (at most 8), 27.0 KiB of KV" in whole
    assert "n/a: nothing of any context fits the budget" in whole
    assert "11.5 positions, 37.5 KiB of KV (at most 38.4 KiB); sees the query" in whole
    apart = text.index("fewer demonstrations", text.index("full demonstrations"))
    assert text.index("truncated (tail)") < text.index("full demonstrations") < apart


def test_run_directory_and_next_steps():
    text = printed(RESULTS, 80, Path("runs/my run"))
    assert "run directory  runs/my run" in text
    steps = text[text.index("next\n") :].split("\n")[1:]
    assert [step.removeprefix("  promptcomp ") for step in steps[:3]] == [
        "compress 'runs/my run' --demonstrations FILE -o prompt.safetensors",
        "generate -p prompt.safetensors QUERY",
        "compare 'runs/my run' OTHER_RUN",
    ]
    trained = RESULTS.model_copy(update={"method": "prompt_tuning"})
    assert "compress r -o prompt.safetensors\n" in printed(trained, 80, Path("r"))
    out = io.StringIO()
    print_report(RESULTS, Console(file=out, width=80), Path("r"), ["do this"])
    assert out.getvalue().endswith("next\n  do this\n")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_commands_of_a_long_path_fit_a_terminal_and_can_be_copied(width, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, out = "mend-toy_icl-with-a-very-long-name-indeed", io.StringIO()
    print_report(
        RESULTS, Console(file=out, width=width, force_terminal=True, color_system=None), tmp_path / "runs" / name
    )
    assert max(map(len, out.getvalue().splitlines())) <= width
    steps = out.getvalue().partition("next\n")[2].replace("\\\n", "").splitlines()
    assert [shlex.join(shlex.split(step)) for step in steps[::3]] == [
        f"promptcomp compress runs/{name} --demonstrations FILE -o prompt.safetensors",
        f"promptcomp fit --config runs/{name}/config.yaml seed=1",
    ]


def test_no_headroom_is_said():
    split = make_split(retained=None, retained_ci=None, no_headroom=True, headroom=0.01, headroom_se=0.02)
    text = printed(RESULTS.model_copy(update={"splits": {"test": split}}), 80)
    assert "On test 24 demonstrations add too little (+0.010) to say what MEND keeps of it." in " ".join(text.split())
    assert "gains +0.010 over no context with a standard error of 0.020" in " ".join(text.split())


def test_bounds_that_do_not_apply_are_absent():
    split = make_split(retained=None, retained_ci=None, num_contexts=3)
    split = split.model_copy(update={"rows": {"method": split.rows["method"]}})
    bare = Results(
        method="metaicl", family="decoder", data="d", lm="l", seed=0, splits={"test": split}, context_kind="prompt"
    )
    text = printed(bare, 80)
    assert "metaicl" in text
    assert "no prompt" not in text.split("cost of one query")[0]
    assert "only 3 contexts: the intervals are rough" in text
    assert "metaicl: accuracy 0.930 on test, without bounds to hold it against." in text


def test_metric_columns_follow_the_data():
    kinds = [
        TaskResult(task=kind, kind=kind, count=1, seeds=1, metric="m") for kind in ("classification", "multi_choice")
    ]
    mixed = make_split("task", ("task", "accuracy", "macro_f1", "loss"), tasks=kinds)
    text = printed(RESULTS.model_copy(update={"splits": {"test": mixed}}), 80)
    assert "score" in text
    assert "score: macro-F1 of classification tasks, accuracy of the others" in text
    pure = make_split("task", ("task", "accuracy", "macro_f1", "loss"), tasks=kinds[:1])
    text = printed(RESULTS.model_copy(update={"splits": {"test": pure}}), 80)
    assert "score" not in text
    assert "macro-F1" in text
    loss = printed(RESULTS.model_copy(update={"splits": {"dev": make_split("loss", ("loss",))}}), 80)
    assert "loss" in loss
    assert "accuracy" not in loss


def test_numbers_as_people_read_them():
    assert [number_text(v) for v in (None, 8.0, 99.57, 12000)] == ["-", "8", "99.6", "12,000"]
    assert [bytes_text(v) for v in (None, 0, 1023, 4096, 3 * 2**30, 2**41)] == [
        "-", "0 B", "1023 B", "4.0 KiB", "3.0 GiB", "2.0 TiB",
    ]  # fmt: skip
    assert [flops_text(v) for v in (None, 12, 8.2e6, 3.07e13, 2e16)] == [
        "-", "12 FLOP", "8.2 MFLOP", "30.7 TFLOP", "20 PFLOP",
    ]  # fmt: skip
    assert [ms_text(v) for v in (None, 0.1234, 15.55, 2500)] == ["-", "0.123 ms", "15.6 ms", "2.5 s"]
    assert [value_text(0.5, None), value_text(None, None), value_text(-0.5, (-1, 0.25), ".2f")] == [
        "0.500", "-", "-0.50 [-1.00, 0.25]",
    ]  # fmt: skip
