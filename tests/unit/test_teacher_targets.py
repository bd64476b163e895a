"""What the LM answers behind the full contexts as targets: written once, kept, the same whatever is asked beside it."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import promptcomp
from promptcomp.batch import EncodedContext, EncodedQuery
from promptcomp.config import ConfigError
from promptcomp.datamodules.taught import TaughtAnswer, TaughtDataModule, asked_key
from promptcomp.evaluation.predictions import read_predictions
from promptcomp.experiment import Experiment, load
from promptcomp.files import cache_folder
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.lm_config import locate
from promptcomp.language_model.loading import settings_hash
from promptcomp.run import teacher_targets
from promptcomp.run.opening import make_data
from promptcomp.run.teacher_targets import write_targets
from promptcomp.terminal import PlainConsole
from tests.forks import Fork, run_fork

FEW = (
    *("data.targets=teacher", "data.teacher.max_new_tokens=8", "trainer.max_steps=2", "trainer.batch_size=4"),
    *("data.max_dev_examples=4", "data.max_eval_examples=6", "evaluation.splits=[unseen]"),
)
FEW_DEMONSTRATIONS = (
    *("data.targets=teacher", "data.teacher.max_new_tokens=4", "trainer.max_steps=1", "trainer.batch_size=2"),
    *("data.max_dev_tasks=1", "data.max_eval_tasks=1", "data.max_eval_queries=3", "evaluation.splits=[test]"),
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTCOMP_CACHE", str(tmp_path / "cache"))


def taught(experiment: Experiment, said: io.StringIO | None = None) -> TaughtDataModule:
    data = make_data(experiment)
    assert isinstance(data, TaughtDataModule)
    write_targets(experiment, data, PlainConsole(file=said or io.StringIO()), trains=True)
    return data


def kept_file() -> Path:
    (path,) = (cache_folder() / "teachers").glob("answers-*.jsonl")
    return path


def first_asked(data: TaughtDataModule) -> tuple[EncodedContext, EncodedQuery]:
    context = data.train_context(next(iter(data.train_sampler()))[0])
    return context, context.queries[0]


@torch.no_grad()
def naive_answer(
    lm: LanguageModel, context: EncodedContext, query: EncodedQuery, stop_ids: tuple[int, ...], most: int
) -> tuple[int, ...]:
    """One token after another by plain transformers, everything read again for each."""
    found: list[int] = []
    while len(found) < most:
        if lm.family == "decoder":
            bos = [] if lm.bos_id is None else [lm.bos_id]
            logits = lm.hf(torch.tensor([[*bos, *context.ids, *query.ids, *found]])).logits
        else:
            encoder = torch.tensor([[*context.ids, *query.ids]])
            logits = lm.hf(input_ids=encoder, decoder_input_ids=torch.tensor([[lm.start_id, *found]])).logits
        token = int(logits[0, -1].argmax())
        if token in stop_ids:
            break
        found.append(token)
    return tuple(found)


@pytest.mark.parametrize("method", ["gist", "gist_t5", "mend"])
def test_greedy_answers_are_those_of_plain_transformers(method: str) -> None:
    """Instructions for both families, and demonstrations, of which several queries share a context."""
    experiment = load(method, None, FEW_DEMONSTRATIONS if method == "mend" else FEW)
    asks, data = experiment.data.asks, taught(experiment)
    assert data.taught is not None
    lm, stop_ids = LanguageModel.from_config(experiment.lm), data.prompt_format().stop_ids
    for draw in next(iter(data.train_sampler()))[:2]:
        context = data.train_context(draw)
        answered = data.with_targets("train", context)
        for query, with_answer in list(zip(context.queries, answered.queries, strict=True))[:3]:
            wanted = naive_answer(lm, context, query, stop_ids, asks.max_new_tokens)
            found = data.taught[asked_key(context, query)]
            assert found == TaughtAnswer(wanted, ended=len(wanted) < asks.max_new_tokens)
            end = stop_ids[:1] if (found.ended if method != "mend" else not wanted) else ()
            assert with_answer.targets[0].ids == (*wanted, *end)
    batch = next(iter(data.eval_dataloader("test" if method == "mend" else "unseen")))
    chosen = batch.choice.max()
    assert (chosen > 0) == (method == "mend")  # options stay


def test_what_is_kept_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses the batch that was being written; settings of their own have a file of their own."""
    experiment, append = load("gist", None, (*FEW, "data.teacher.batch_size=4")), teacher_targets.AnswerFile.append

    def killed(self: Any, entry: Any) -> None:
        if len(self.entries) == 10:
            raise KeyboardInterrupt
        append(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_targets.AnswerFile, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            taught(experiment)
    before = kept_file().read_text(encoding="utf-8")
    kept_file().write_text(before + before.splitlines()[-1][:40], encoding="utf-8")  # and in the middle of a line
    said = io.StringIO()
    first = taught(experiment, said)
    assert kept_file().read_text(encoding="utf-8").startswith(before)
    assert first.taught is not None
    rest = len(first.taught) - 10
    assert f"{rest} of {len(first.taught)} answers" in said.getvalue()
    assert f"answers: {rest}/{rest}" in said.getvalue()
    monkeypatch.setattr(teacher_targets, "_write", None)
    assert taught(load("gist", None, (*FEW, "seed=0", "method.num_slots=2"))).taught == first.taught
    with pytest.raises(TypeError):  # something is to be written
        taught(load("gist", None, (*FEW, "data.teacher.max_new_tokens=7")))


def test_of_two_processes_one_goes_on_where_the_other_was_killed(tmp_path: Path) -> None:
    words = ("promptcomp", "fit", "gist", *FEW, "data.teacher.batch_size=2", "evaluation.bounds=false")
    with Fork(*words, "--run-dir", str(tmp_path / "one")) as first:
        while not list(tmp_path.glob("cache/teachers/*.jsonl")) or len(kept_file().read_bytes().splitlines()) < 8:
            assert first.poll() is None, first.printed()
        first.send_signal(signal.SIGSTOP)  # it holds the file until the other waits
        with Fork(*words, "--run-dir", str(tmp_path / "two")) as second:
            while "waiting for another process" not in second.printed()[0]:
                assert second.poll() is None, second.printed()
            first.kill()
            assert second.wait() == 0, second.printed()
    answers = [json.loads(line) for line in kept_file().read_text(encoding="utf-8").splitlines()[1:]]
    assert len({answer["key"] for answer in answers}) == len(answers) > 8
    before = kept_file().read_bytes()
    assert run_fork(*words, "--run-dir", str(tmp_path / "three")).returncode == 0  # finds all answers
    assert kept_file().read_bytes() == before
    found = [(tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8") for name in ("two", "three")]
    assert found[0] == found[1]


def test_answers_of_another_lm_are_not_read() -> None:
    taught(load("gist", None, FEW))
    lines = kept_file().read_text(encoding="utf-8").splitlines(keepends=True)
    header = json.loads(lines[0])
    kept_file().write_text("".join([json.dumps({**header, "weights": "other"}) + "\n", *lines[1:]]), encoding="utf-8")
    with pytest.raises(ConfigError, match="with another LM: other"):
        taught(load("gist", None, FEW))


def test_a_draw_is_a_row_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for batch_size, seed in ((16, 1), (3, 1), (16, 2)):
        monkeypatch.setenv("PROMPTCOMP_CACHE", str(tmp_path / f"{batch_size} {seed}"))
        drawn = ("temperature=3.0", f"seed={seed}", f"batch_size={batch_size}")
        found.append(taught(load("gist", None, (*FEW, *(f"data.teacher.{each}" for each in drawn)))).taught)
    assert found[0] == found[1] != found[2]


def test_the_order_of_training_needs_no_answers() -> None:
    experiment = load("gist", None, (*FEW, "data.length_window=4", "data.max_batch_tokens=200"))
    data = make_data(experiment)
    batches = iter(data.train_sampler())
    before = [next(batches) for _ in range(3)]
    batches = iter(taught(experiment).train_sampler())
    assert [next(batches) for _ in range(3)] == before


@pytest.mark.parametrize("kind", ["columns", "conversations"])
def test_rows_without_outputs(kind: str, tmp_path: Path) -> None:
    """From a run: the LM is frozen, so the full prompt writes what the teacher has written, and a second run, whose
    teacher is not asked again, finds the same. What the rows have no answers for is not measured."""
    rows = [{"instruction": f"keep only the {what}", "input": f"horse plum {what}"} for what in ("fruits", "animals")]
    if kind == "conversations":
        turns = [[("system", row["instruction"]), ("user", row["input"])] for row in rows]
        rows = [{"messages": [{"role": role, "content": text} for role, text in each]} for each in turns]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data: dict[str, Any] = {
        "name": "instructions",
        "files": {"train": str(file), "test": str(file)},
        "dev_examples": 0,
        "targets": "teacher",
    }
    data |= dict.fromkeys(("max_context_tokens", "max_query_tokens", "max_target_tokens"), 32)
    experiment: dict[str, Any] = {
        "method": {"name": "gist", "train": "none", "kl_weight": 1.0, "teacher_cache": True, "num_slots": 2},
        "data": {**data, "teacher": {"max_new_tokens": 8}},
        "lm": {"path": "builtin:toy_instructions", "bos": True},
        "trainer": {"max_steps": 3, "batch_size": 2},
        "evaluation": {"measure_cost": False, "bootstrap_resamples": 100},
    }
    runs = [promptcomp.fit(experiment, run_dir=tmp_path / name) for name in ("one", "two")]
    one, two = ((run.path / "predictions.jsonl").read_text(encoding="utf-8") for run in runs)
    assert one == two
    results = json.loads((runs[0].path / "results.json").read_text(encoding="utf-8"))
    split = results["splits"]["test"]
    assert split["metric"] == "teacher_rougeL"
    assert set(split["behaviour"]) == {"kl", "top1", "teacher_match", "teacher_rougeL"}
    assert {"exact_match", "rougeL"}.isdisjoint(split["rows"]["method"])
    assert split["rows"]["full_prompt"]["teacher_match"]["value"] == 1.0
    assert split["rows"]["full_prompt"]["kl"]["value"] == 0.0
    assert results["cost"]["seconds_to_first_step"] > 0
    prediction = read_predictions(runs[0].path / "predictions.jsonl")[0]
    assert prediction.reference is None
    assert prediction.texts is not None
    assert prediction.teacher == prediction.texts["full_prompt"]
    with pytest.raises(ConfigError, match="'output' is missing" if kind == "columns" else "expected user, assistant"):
        promptcomp.fit({**experiment, "data": {**data, "targets": "gold"}}, run_dir=tmp_path / "gold")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.teacher.top_p=0.9"], "no meaning at temperature 0"),
        (["data.teacher.seed=3"], "no meaning at temperature 0"),
        (["data.teacher.temperature=-1"], "data.teacher.temperature"),
        (["data.teacher.temperature=1", "data.teacher.top_p=0"], "data.teacher.top_p"),
        (["data.targets=gold", "data.teacher.temperature=1"], "set data.targets=teacher"),
        (["data.targets=gold", "data.metric=teacher_match"], "set data.targets=teacher"),
    ],
)
def test_settings_that_make_no_sense(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("gist", None, ["data.targets=teacher", *settings])


@pytest.mark.parametrize("setting", ["data.scoring=channel", "data.calibration=pmi"])
def test_demonstrations_that_are_not_answered(setting: str) -> None:
    with pytest.raises(ConfigError, match="need scoring 'direct' and calibration 'none'"):
        load("mend", None, ["data.targets=teacher", setting])


def test_the_same_weights_in_another_architecture_answer_anew() -> None:
    """A rotary base is no weight."""
    found = [AutoConfig.from_pretrained(locate("builtin:toy_instructions")) for _ in range(2)]
    hashes = [settings_hash(each) for each in found]
    assert hashes[0] == hashes[1] == settings_hash(LanguageModel.from_config(load("gist", None, FEW).lm).text_config)
    found[1].rope_parameters = {"rope_type": "default", "rope_theta": 777.0}
    assert settings_hash(found[1]) != hashes[0]


def test_tokens_that_the_lm_does_not_have_are_one_sentence() -> None:
    taught(load("gist", None, FEW))
    kept_file().write_text(
        kept_file().read_text(encoding="utf-8").replace('"ids":[', '"ids":[999999,'), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="holds tokens that the LM does not have; remove the file"):
        taught(load("gist", None, FEW))
