"""The page of a run, the sentences about it, and where its curves go."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import Logger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from promptcomp.commands.run_files import report
from promptcomp.config import ConfigError, dump
from promptcomp.evaluation.findings import abouts, findings
from promptcomp.evaluation.predictions import Prediction, write_predictions
from promptcomp.evaluation.results import Estimate, Results, RivalResult, Size, SplitResult, write_results
from promptcomp.experiment import load
from promptcomp.run.callbacks import MetricsLogger, check_loggers
from promptcomp.run.run_directory import MetricsFile, RunDirectory, make_new, read_metrics, step_series
from promptcomp.run.run_page import try_page, write_page
from promptcomp.run.shown_examples import write_examples

HOSTILE = '<script>alert(1)</script> \x1b[31m \u202e \u2028 & "quoted"'


def split(**changes: Any) -> SplitResult:
    values = {"no_prompt": 0.3, "method": 0.9, "full_prompt": 0.95} | changes.pop("values", {})
    rows = {row: {"accuracy": Estimate(value=value, ci=(value - 0.1, value + 0.05))} for row, value in values.items()}
    fields = {"metric": "accuracy", "count": 4, "num_contexts": 2, "rows": rows, "method_ci": (0.8, 0.95)}
    return SplitResult(**(fields | dict.fromkeys(("no_prompt", "full_prompt")) | values | changes))


def results(one: SplitResult, slots: float | None = 8, **changes: Any) -> Results:
    fields = {
        "method": "mend", "title": "MEND", "family": "decoder", "data": "toy_icl", "lm": "builtin:toy_decoder",
        "seed": 0, "context_kind": "demonstrations", "context_words": "24 demonstrations",
        "size": Size(context_tokens=100, memory_slots=slots, compression=12.5 if slots else None),
    }  # fmt: skip
    return Results(**(fields | {"splits": {"test": one}} | changes))


@pytest.mark.parametrize(
    ("one", "slots", "said"),
    [
        (
            split(retained=0.95, retained_ci=(0.9, 0.99)), 8,
            "MEND keeps 95% [90%, 99%] of what 24 demonstrations add on test, in 1/12 of the positions.",
        ),
        (split(retained=1.2, retained_ci=(1.1, 1.3)), 8, "MEND does better than the full demonstrations on test: 120%"),
        (split(retained=0.1, retained_ci=(-0.1, 0.3)), 8, "is not shown to keep anything of what 24 demonstrations"),
        (
            split(retained=-0.4, retained_ci=(-0.6, -0.2)), 8,
            "On test MEND is worse than no demonstrations at all: accuracy 0.900 [0.80, 0.95], 0.300 without.",
        ),
        (split(no_headroom=True, headroom=0.01), 8, "On test 24 demonstrations add too little (+0.010) to say what"),
        (split(retained=0.9), None, "MEND: accuracy 0.900 [0.80, 0.95] on test; it compresses nothing"),
        (split(values={"full_prompt": 0}, rows={}), 8, "on test, without bounds to hold it against."),
    ],
)  # fmt: skip
def test_one_sentence_first(one: SplitResult, slots: float | None, said: str) -> None:
    assert said in findings(results(one, slots))[0]


def test_a_loss_that_is_no_number_is_said_and_not_what_is_kept() -> None:
    [said] = findings(results(split(retained=0.95, not_finite={"method": 3, "full_prompt": 1})))
    assert said.startswith("On test the loss is NaN or infinite (MEND in 3 of 4, the full demonstrations in 1 of 4 exa")
    assert said.endswith("or they overflow in 16 bits (lm.dtype=float32).")
    rival = results(split(retained=0.95, not_finite={"r": 1}, rivals={"r": RivalResult(title="evicted")}))
    kept, said = findings(rival)
    assert kept.startswith("MEND keeps 95%")
    assert "(evicted in 1 of 4 examples)" in said


def test_the_data_says_what_its_splits_are() -> None:
    data = load("mend", None).data
    assert data.context_words == "24 demonstrations"
    assert {"test", "test_hard", "dev"} <= data.split_words.keys()
    assert abouts(results(split(about="new tasks"))) == ["test: new tasks"]
    prompt = results(split(retained=0.5), context_kind="prompt", context_words="the full prompt")
    assert "of what the full prompt adds on test" in findings(prompt)[0]
    whole = results(split(retained=1.0), method="full_prompt", title="full prompt", bounds="untrained")
    said = "accuracy on test: 0.950 with 24 demonstrations, 0.300 without; the gap is what can be kept of it."
    assert findings(whole) == [said]


class _Page(HTMLParser):
    """Tags with their attributes, and their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_torn_row_of_metrics_is_none(tmp_path: Path) -> None:
    """It would be that of another step, or hold another number."""
    path = tmp_path / "metrics.csv"
    for torn in ("12", "120,2.", "120,2.134"):
        path.write_text(f"step,train/loss\r\n110,2.5\r\n{torn}")
        assert [row["step"] for row in read_metrics(path)] == ["110"]
    series = MetricsFile(path)
    series.truncate(110)
    series.append(120, {"train/loss": 2.25})
    assert [(row["step"], row["train/loss"]) for row in read_metrics(path)] == [("110", "2.5"), ("120", "2.25")]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run as a fit leaves it, whose texts are hostile."""
    made = RunDirectory(tmp_path / "run")
    made.path.mkdir()
    made.config.write_text(dump(load("mend", None, ["method.num_slots=4", "seed=3"])), encoding="utf-8")
    found = results(split(retained=0.95, retained_ci=(0.9, 0.99), about=HOSTILE), lm=HOSTILE, lm_note=HOSTILE)
    write_results(made.results, found)
    series = MetricsFile(made.metrics)
    for step in range(1, 900):
        series.append(
            step, {"train/loss": 3 / step} | ({"dev/loss": 2 / step, "dev/accuracy": 0.5} if step % 9 else {})
        )
    rows = {"no_prompt": 0.5, "method": 0.1, "full_prompt": 0.2}
    predictions = [
        Prediction(
            split="test", example=number, task=HOSTILE, kind="classification", seed=None, context=0, gold=number % 2,
            options=(HOSTILE, "b"), scores=dict.fromkeys(rows, (-1.0, -2.0)), prediction=dict.fromkeys(rows, 0),
            correct=dict.fromkeys(rows, number % 2 == 0), loss=rows, gold_tokens=1,
        )
        for number in range(8)
    ]  # fmt: skip
    write_predictions(made.predictions, predictions)
    write_examples(
        made.examples, {"test": predictions}, {"test": lambda number: (HOSTILE, f"query {number}", HOSTILE)}, 0
    )
    return made


def test_the_page_holds_everything_and_nothing_foreign_acts(run: RunDirectory) -> None:
    write_page(run.page, [run.path])
    text = run.page.read_text(encoding="utf-8")
    tags = _Page(text).tags
    names = [name for name, _ in tags]
    assert "script" not in names
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    assert not [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "onclick")]
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in tags)
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    assert {attributes["href"][1:] for name, attributes in tags if name == "a"} == ids  # type: ignore[index]
    for part in ("MEND keeps 95%", "query 0", "&lt;script&gt;", "method.num_slots", "log p per token", "12.5x"):
        assert part in text
    assert "to 0.5 at step 899" in text
    drawn = [attributes for name, attributes in tags if name == "svg" and "role" in attributes]
    assert len(drawn) == 3 + 2
    assert text.count("<title>") == 1 + len(drawn)
    assert all("scope" in attributes for name, attributes in tags if name == "th")
    assert len(text) < 200_000


def test_several_runs_and_an_older_one(run: RunDirectory, tmp_path: Path) -> None:
    run.examples.unlink()
    run.metrics.unlink()
    table = {"title": "test", "columns": ["run"], "rows": [[HOSTILE]], "notes": [HOSTILE]}
    write_page(tmp_path / "both.html", [run.path, run.path], [table], ["first", "second"])
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert text.count('<article class="example">') == 12
    assert "second" in text
    assert "polyline" not in text.split("<main>")[1]


def test_a_page_that_cannot_be_written_is_a_note(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run.page.mkdir()
    try_page(run, Console(width=200))
    out = capsys.readouterr().out
    assert "report.html could not be written" in out
    assert len(out.splitlines()) == 1


class _Sink(Logger):
    name, version = "sink", ""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.got.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_a_page_in_a_folder_that_cannot_be_written_to_is_named_elsewhere(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=r"report.html: the folder .* cannot be written to; name another file"):
        report([run.path])


def test_folders_of_the_same_second_are_not_shared(tmp_path: Path) -> None:
    assert len({make_new(tmp_path / "evaluations") for _ in range(3)}) == 3


def test_a_resumed_run_goes_on_in_the_same_curves(tmp_path: Path) -> None:
    run, sink = RunDirectory(tmp_path), _Sink()
    for resumed, steps in ((0, range(6)), (3, range(3, 8))):  # killed after step 6, its last checkpoint was at step 3
        logger = MetricsLogger(run, resumed, lambda: [sink])
        for step in steps:
            logger.log_metrics({"train/loss": float(step), "epoch": 0.0}, step)
        logger.finalize("success")
        if not resumed:  # both may begin in one second, and event files are read in the order of their names
            (written,) = run.tensorboard.iterdir()
            written.rename(written.with_name("events.out.tfevents.0000000000.first"))
    wanted = [(step, step - 1.0) for step in range(1, 9)]
    assert [(int(row["step"]), float(row["train/loss"])) for row in read_metrics(run.metrics)] == wanted
    assert [(step, values["train/loss"]) for step, values in sink.got] == wanted
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert [(each.step, each.value) for each in events.Scalars("train/loss")] == wanted


def test_a_cell_that_is_no_number_has_no_value(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,dev/loss\n1,0.5\n2,half\n3,\n")
    assert [row["dev/loss"] for row in step_series(tmp_path / "metrics.csv")] == [0.5, None, None]


def test_a_logger_that_is_missing_is_one_sentence() -> None:
    experiment = load("mend", None, ["trainer.loggers=[wandb]"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(
            ConfigError, match=r'trainer.loggers: wandb is not installed; pip install "promptcomp\[wandb'
        ):
            check_loggers(experiment)
