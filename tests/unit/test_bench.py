"""The bench: analytic FLOPs against counted ones, break-even, ways that do not exist, windows, output."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from promptcomp.bench import BenchPlan, measurements
from promptcomp.bench.measurements import BreakEven, Spread, as_csv, as_json, print_bench
from promptcomp.bench.requests import Request, Subject, plain_answer, requests
from promptcomp.bench.timing import measure
from promptcomp.cli import app
from promptcomp.config import ConfigError
from promptcomp.evaluation.flops import break_even
from promptcomp.language_model.counting import count_flops
from promptcomp.language_model.loading import pick_device
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.plotting import drawing, panel, save
from tests.tiny_models import tiny_lm

MODELS = ("gpt2", "llama", "t5_query_in_decoder", "t5_query_in_encoder")
PLAN = BenchPlan("12,20", "1,2", new_tokens=3, repeats=3, seed=0, device="cpu", seconds=0)


def make_module(method: str, model: str, **options: object) -> CompressionModule:
    spec = METHODS[method]
    module = spec(**options).module(
        tiny_lm(model, width=64),
        OptimConfig(),
        max_steps=1,
        seed=0,
        task_names=("a",),
    )
    module.configure_model()
    return module.eval()


def make_subject(method: str = "mend", model: str = "gpt2", **options: object) -> Subject:
    if method in ("mend", "prompt_tuning", "gist"):
        options.setdefault("num_slots", 2)
    return Subject(make_module(method, model, **options), method, model, False, (), (), 5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["gist", "mend", "full_prompt", "no_prompt"])
def test_analytic_flops_agree_with_counted_ones(method: str, model: str) -> None:
    """The counter takes all pairs of a causal attention; at these sizes that is a few per cent."""
    subject = make_subject(method, model)
    with torch.inference_mode():
        batch = subject.batch(24, 1, torch.device("cpu"))
        for name, way in requests(subject, batch).items():
            if isinstance(way, Request):
                counted = count_flops(lambda way=way: way.answer(1, lambda: None))  # type: ignore[misc]
                assert counted == pytest.approx(way.flops(1), rel=0.06), name
                counted = count_flops(lambda way=way: way.answer(4, lambda: None))  # type: ignore[misc]
                assert counted == pytest.approx(way.flops(4), rel=0.06), name
                if way.make is not None:
                    assert count_flops(way.make) == pytest.approx(way.make_flops, rel=0.06), name


@pytest.mark.parametrize("model", MODELS)
def test_all_ways_exist_or_say_why(model: str) -> None:
    subject = make_subject(model=model)
    with torch.inference_mode():
        ways = requests(subject, subject.batch(16, 2, torch.device("cpu")))
    if model == "t5_query_in_encoder":
        assert isinstance(ways["prefix_cache"], str)
        assert "compressed_cached" not in ways
        return
    cached = ways["prefix_cache"]
    assert isinstance(cached, Request)
    compressed = ways["compressed_cached"]
    assert isinstance(compressed, Request)
    assert cached.positions == 16
    assert compressed.positions == 2
    assert compressed.held_bytes * 8 == cached.held_bytes


@pytest.mark.parametrize("model", MODELS)
def test_ways_of_the_same_prompt_give_the_same_answer(model: str) -> None:
    """What is timed is the same work: reading anew, the cache, and the method "full prompt" write the same tokens."""
    subject = make_subject("full_prompt", model)
    lm = subject.module.lm
    batch = subject.batch(16, 2, torch.device("cpu"))
    expected = lm.generate(lm.encode(batch.context), batch, max_new_tokens=4)
    if lm.family == "decoder":
        written: list[list[int]] = []
        head = lm.head
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(lm, "head", lambda h: (written.append(head(h).argmax(-1).tolist()), head(h))[1])
            plain_answer(lm, torch.cat([batch.context.ids, batch.query_ids], 1), 4, lambda: None)
        assert [list(row) for row in zip(*written, strict=True)] == expected


def test_compressed_keys_and_values_stand_for_the_vectors() -> None:
    for model in ("gpt2", "llama", "t5_query_in_decoder"):
        subject = make_subject(model=model)
        lm = subject.module.lm
        batch = subject.batch(16, 2, torch.device("cpu"))
        with torch.inference_mode():
            ways = requests(subject, batch)
            memories = [ways[name].memory for name in ("compressed", "compressed_cached")]  # type: ignore[union-attr]
            vectors, cached = (lm(memory, batch).values for memory in memories)
        torch.testing.assert_close(vectors, cached, rtol=1e-4, atol=1e-4)


def test_prompts_are_cut_from_the_data_and_differ_between_rows() -> None:
    subject = make_subject()
    subject.prompt_pool = list(range(3, 33))
    batch = subject.batch(20, 2, torch.device("cpu"))
    assert batch.context.ids[0].tolist() == list(range(3, 23))
    assert batch.context.ids[1, :11].tolist() == [*range(23, 33), 3]
    assert batch.query_ids.shape == (2, 5)


def test_break_even_counts_the_rivals_cache_too() -> None:
    assert break_even(10, 1, 0, 6) == (2, None)
    assert break_even(10, 6, 0, 1) == (None, None)
    assert break_even(11, 1, 10, 1.5) == (2, None)
    assert break_even(5, 2, 10, 1) == (1, 5)
    assert break_even(5, 1, 5, 1) == (1, None)
    assert break_even(5, 1, 4, 1) == (None, None)
    assert break_even(0, 1, 9, 2) == (1, None)
    assert break_even(0.1 + 0.2, 1, 0, 1.3) == (1, None)
    assert BreakEven(None, None).text == "never"
    assert BreakEven(1, 1200).text == "1 to 1,200"
    assert BreakEven(1, None, sure=False).text == "unclear"


def test_spread() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spread == Spread(3.0, 2.0, 4.0)
    assert spread.overlaps(Spread(5.0, 4.0, 6.0))
    assert not spread.overlaps(Spread(5.0, 4.5, 6.0))


@pytest.mark.parametrize("model", ["gpt2", "t5_query_in_encoder"])
@pytest.mark.parametrize("width", [80, 120])
def test_a_whole_bench(model: str, width: int) -> None:
    bench = measure(make_subject(model=model), PLAN)
    assert bench.lengths == [12, 20]
    assert bench.batch_sizes == [1, 2]
    console = Console(width=width, record=True, file=io.StringIO())
    print_bench(bench, console)
    text = console.export_text()
    assert "…" not in text
    assert "20 prompt tokens" in text
    assert ("not possible" in text) == (model != "gpt2")
    tree = json.loads(as_json(bench))
    compressed = next(r for r in tree["records"] if r["way"] == "compressed" and r["batch_size"] == 1)
    assert compressed["making"]["file_bytes"] > compressed["held_bytes"] > 0
    assert set(compressed["break_even"]["no_cache"]) == {
        "first_token_flops", "first_token_seconds", "answer_flops", "answer_seconds",
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(as_csv(bench))))
    assert len(rows) == len(bench.records)
    assert float(rows[0]["first_token_ms.median"]) > 0


def test_lengths_beyond_the_window_are_skipped_with_a_word() -> None:
    plan = BenchPlan("20,124", "1", new_tokens=1, repeats=3, seed=0, device="cpu", seconds=0)
    bench = measure(make_subject("full_prompt"), plan)
    assert bench.lengths == [20]
    (line,) = bench.skipped
    assert "124 prompt tokens" in line
    assert "window is 128" in line
    assert bench.records[0].tokens_per_second is None


def test_plot(tmp_path) -> None:
    bench = measure(make_subject(), PLAN)
    for path in measurements.plot(bench, tmp_path):
        assert path.stat().st_size > 1000


def test_options_that_make_no_sense() -> None:
    assert "give a run directory, or --method NAME" in str(CliRunner().invoke(app, ["bench"]).exception)
    with pytest.raises(ConfigError, match="whole numbers of at least 1"):
        BenchPlan("64,0").sizes()
    assert BenchPlan("64, 8,64").sizes()[0] == (64, 8)
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda or cuda:1"):
        pick_device("tpu")


def test_numbers_at_logarithmic_axes_are_plain_text(tmp_path: Path) -> None:
    with drawing():
        figure, axes = panel(6, 4)
        axes.plot([16, 64, 2048], [0.02, 0.05, 30])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        save(figure, tmp_path, "picture")
    drawn = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert "mathdefault" not in drawn
    assert all(f"<!-- {number} -->" in drawn for number in ("64", "1,024", "0.1", "10"))
