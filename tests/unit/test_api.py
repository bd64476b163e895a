"""The Python API: the examples of docs/python.md, and what they leave out. Nothing it prints, nothing it hides."""

from __future__ import annotations

import copy
import doctest
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import peft
import pyarrow as pa
import pytest
import torch
import transformers
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer, LongT5Config, LongT5ForConditionalGeneration

import promptcomp
from promptcomp import ConfigError
from promptcomp.api import SweepRun
from promptcomp.datamodules.instruction.instruction_config import InstructionColumns
from promptcomp.datamodules.sources.instruction_sources import RowsInMemory
from promptcomp.memory import KVCache
from promptcomp.sweeps import running, study
from tests.prompt_runs import DATA, save_lm, save_run
from tests.sweep_states import one_dimension

LM = str(resources.files("promptcomp") / "assets" / "toy_instructions")
ROWS = [{"instruction": "keep only the fruits", "input": "horse plum", "output": "plum"}] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples of the page have been run: runs/gist, runs/again, mine."""
    folder, page = tmp_path_factory.mktemp("api"), Path(__file__).parents[2] / "docs" / "python.md"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        found = doctest.testfile(str(page), module_relative=False, globs={"lm": LM}, optionflags=options)
    assert found.attempted > 15
    assert not found.failed
    return folder


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(LM)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(LM)


def test_importing_costs_nothing_and_every_name_is_there() -> None:
    code = "import sys, promptcomp; assert not {'torch', 'lightning', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in promptcomp.__all__:
        assert not isinstance(getattr(promptcomp, name), type(sys)), f"{name} is a module"


def test_a_run_shows_what_it_found(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = promptcomp.load_run(folder / "runs" / "gist")
    figure = run.plot()
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_xlabel() == "optimiser step"
    assert run.metrics["step"].tolist() == [2]
    assert {"low", "high"} <= set(run.scores)
    assert not capfd.readouterr().out


def test_tables_without_pandas_are_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert promptcomp.load_run(folder / "runs" / "gist").metrics[0]["step"] == 2


def test_an_evaluation_is_loaded_too_and_a_run_without_results_says_so(folder: Path, tmp_path: Path) -> None:
    assert promptcomp.load_run(folder / "runs" / "again").results.method == "gist"
    assert "without results" in repr(promptcomp.Run(tmp_path))
    with pytest.raises(ConfigError, match="no such run directory"):
        promptcomp.load_run(tmp_path / "nowhere")


def test_training_in_half_precision_changes_no_weight_that_is_measured(tmp_path: Path) -> None:
    few = {"num_train_tasks": 4, **DATA["world"]}
    tree = {
        "method": {"name": "mend", "num_slots": 2, "kl_weight": 0},
        "data": {**DATA, "world": few},
        "lm": {"path": str(save_lm(tmp_path / "lm", "gpt2"))},
        "trainer": {"max_steps": 1, "batch_size": 2, "precision": "bf16-true"},
        "evaluation": {"measure_cost": False, "bootstrap_resamples": 100},
        "output_dir": str(tmp_path / "runs"),
    }
    (tmp_path / "half.yaml").write_text(json.dumps(tree), encoding="utf-8")
    run = promptcomp.fit(tmp_path / "half.yaml")
    again = promptcomp.evaluate(run)
    assert run.results.splits["test"].rows == again.results.splits["test"].rows
    assert run.results.size == again.results.size


def test_an_evaluation_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    run, output = save_run(tmp_path / "run", save_lm(tmp_path / "lm", "gpt2"), {"name": "no_prompt"}), tmp_path / "new"
    wanted = {"data__num_demonstrations": 0, "evaluation__rivals": [{"name": "shuffled"}]}
    for place in (output, None):
        with pytest.raises(ConfigError, match="shuffled needs two different contexts"):
            promptcomp.evaluate(run, output=place, **wanted)
    assert not output.exists()
    assert not any((run / "evaluations").iterdir())
    quick = {"evaluation__measure_cost": False, "evaluation__bootstrap_resamples": 100}
    assert promptcomp.evaluate(run, output=output, **quick).results.splits


def test_trained_tensors_compress_as_their_run_does(folder: Path) -> None:
    run = folder / "runs" / "gist"
    whole, tensors = promptcomp.load_compressor(run), promptcomp.load_compressor(run / "export")
    answers = [each.compress("keep only the fruits").generate("horse plum shirt apple") for each in (whole, tensors)]
    assert answers[0] == answers[1]


def test_what_was_saved_goes_into_a_fresh_model(folder: Path, tokenizer: Any) -> None:
    fresh = AutoModelForCausalLM.from_pretrained(LM)
    opened = promptcomp.load_compressor(folder / "mine", model=fresh, tokenizer=tokenizer)
    assert opened.compress("keep only the fruits").generate("horse plum") == "plum"
    with pytest.raises(ConfigError, match="together"):
        promptcomp.load_compressor(folder / "mine", model=fresh)


def test_dev_rows_are_measured_and_a_second_fit_goes_on(model: Any, tokenizer: Any) -> None:
    compressor = promptcomp.TextCompressor.from_model(model, tokenizer, "gist", num_slots=1, train="none")
    before = model.get_input_embeddings().weight.clone()
    few: dict[str, Any] = {"trainer__max_steps": 2, "trainer__batch_size": 2, "trainer__eval_every": 1}
    first = compressor.fit(ROWS, ROWS[:1], **few).metrics["dev/loss"].tolist()
    second = compressor.fit(ROWS, ROWS[:1], optim__lr=0.1, **few).metrics["dev/loss"].tolist()
    assert len(first) == len(second) == 2
    assert second[-1] != first[-1]
    assert (model.get_input_embeddings().weight == before).all()


def test_a_control_compresses_as_it_is(model: Any, tokenizer: Any) -> None:
    compressor = promptcomp.TextCompressor.from_model(model, tokenizer, "full_prompt")
    assert compressor.compress("keep only the fruits").info.slots >= 4
    with pytest.raises(ConfigError, match="nothing to train"):
        compressor.fit(ROWS)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"instruction": "a"}], {}, r"rows\[0\]: 'output' is missing"),
        (["a"], {}, r"rows\[0\]: expected a dictionary, not str"),
        ({"instruction": ["a"], "output": ["b"]}, {}, "rows: expected rows .*, not dict"),
        (None, {}, "rows: expected rows .*, not NoneType"),
        ([{"instruction": "a", "output": "\ud83d"}], {}, r"rows\[0\]: 'output' has half a character"),
        (pd.DataFrame([["a", "b", "c"]], columns=["instruction", "output", "output"]), {}, "'output' occurs twice"),
        (ROWS, {"method__num_slots": 3}, "give their settings to from_model"),
        (ROWS, {"trainer__max_step": 3}, "did you mean 'max_steps'"),
        (ROWS, {"trainer__devices": 2}, "leave out trainer__devices"),
    ],
)
def test_mistakes_have_one_message(
    model: Any, tokenizer: Any, rows: Any, settings: dict[str, Any], message: str
) -> None:
    compressor = promptcomp.TextCompressor.from_model(model, tokenizer, "gist", train="none")
    with pytest.raises(ConfigError, match=message):
        compressor.fit(rows, **settings)


def test_rows_in_memory_come_in_every_form_under_names_of_their_own() -> None:
    rows = [{"q": "a", "input": "b", "output": "c"}, {"q": "a", "input": None, "output": "d"}]
    table = pd.DataFrame([{**rows[0]}, {**rows[1], "input": float("nan")}])
    others = [datasets.Dataset.from_list(rows), pa.Table.from_pylist(rows)]
    forms: list[Any] = [rows, iter(rows), table, table.astype("string"), *others]
    for form in forms:
        read = RowsInMemory(InstructionColumns(instruction="q"), train=form).rows("train")
        assert [(row.instruction, row.input, row.output) for row in read] == [("a", "b", "c"), ("a", "", "d")]
    assert RowsInMemory(None, True, dev=[{"instruction": "", "output": "x"}]).rows("dev")[0].output == "x"


def test_a_model_in_memory_needs_its_tokenizer_and_settings_are_read_as_elsewhere(model: Any, tokenizer: Any) -> None:
    opened = promptcomp.TextCompressor.from_model(model, tokenizer, "gist", num_slots="4", train="none")
    assert opened.experiment.method.num_slots == 4  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"method\.num_slots = 'four'"):
        promptcomp.TextCompressor.from_model(model, tokenizer, "gist", num_slots="four")
    with pytest.raises(ConfigError, match="needs the tokenizer"):
        promptcomp.TextCompressor.from_model(model, None, "gist")  # type: ignore[arg-type]


def _asked(model: Any) -> tuple[list[bool], list[bool]]:
    return [each.training for each in model.modules()], [each.requires_grad for each in model.parameters()]


@pytest.mark.parametrize("method", ["gist", "mend"])
def test_a_users_model_comes_back_as_it_was(tokenizer: Any, method: str, request: pytest.FixtureRequest) -> None:
    transformers.utils.logging.enable_progress_bar()
    request.addfinalizer(transformers.utils.logging.disable_progress_bar)
    model = AutoModelForCausalLM.from_pretrained(LM).train()
    model.model.layers[0].requires_grad_(False).eval()
    before, state, threads = _asked(model), torch.get_rng_state(), torch.get_num_threads()
    weights = [each.clone() for each in model.parameters()]
    settings = {"train": "none"} if method == "gist" else {}
    compressor = promptcomp.TextCompressor.from_model(model, tokenizer, method, num_slots=2, **settings)
    assert _asked(model) == before
    compressor.fit(ROWS, trainer__max_steps=1, trainer__batch_size=2, trainer__threads=threads + 1)
    prompt = compressor.compress("keep only the fruits")
    model.train()  # as a user may; dropout or not, answers are the same
    assert prompt.generate("horse plum") == prompt.generate("horse plum")
    model.model.layers[0].eval()
    assert _asked(model) == before
    assert all(map(torch.equal, model.parameters(), weights))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_dropout_of_a_model_in_training_mode_changes_no_memory_and_no_answer() -> None:
    tokenizer, hf = AutoTokenizer.from_pretrained(LM), AutoModelForCausalLM.from_pretrained(LM)
    compressor = promptcomp.TextCompressor.from_model(hf, tokenizer, "full_prompt")
    for layer in hf.model.layers:
        layer.self_attn.attention_dropout = 0.9
    whole = compressor.compress("keep only the fruits")
    hf.train()
    again = compressor.compress("keep only the fruits")
    assert isinstance(whole.memory, KVCache)
    assert isinstance(again.memory, KVCache)
    assert all(torch.equal(a, b) for a, b in zip(whole.memory.layers[-1], again.memory.layers[-1], strict=True))
    assert again.generate("horse plum") == whole.generate("horse plum") == "=> plum"


def test_two_compressors_share_a_model(tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(LM)
    first = promptcomp.TextCompressor.from_model(model, tokenizer, "gist", num_slots=1)
    promptcomp.TextCompressor.from_model(model, tokenizer, "mend", num_slots=2)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    first.fit(ROWS, trainer__max_steps=1, trainer__batch_size=2, optim__lr=1e-2)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before)
    promptcomp.TextCompressor.from_model(model, tokenizer, "gist", train="lora")
    with pytest.raises(ConfigError, match="load the LM anew for each compressor"):
        first.fit(ROWS, trainer__max_steps=1, trainer__batch_size=2)
    with pytest.raises(ConfigError, match="has adapters already"):
        promptcomp.TextCompressor.from_model(model, tokenizer, "gist", train="lora")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
def test_what_is_no_model_is_told(tokenizer: Any) -> None:
    hf = AutoModelForCausalLM.from_pretrained(LM)
    tuned = peft.get_peft_model(copy.deepcopy(hf), peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2))
    longt5 = LongT5ForConditionalGeneration(
        LongT5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    for given, words, message in [
        (LM, tokenizer, "expected a model of transformers .*, not str"),
        (torch.nn.Linear(2, 2), tokenizer, "expected a model of transformers .*, not Linear"),
        (hf, LM, "expected a tokenizer of transformers, not str"),
        (tuned, tokenizer, "reads a trained prompt of peft"),
        (copy.deepcopy(hf).to("meta"), tokenizer, "it is on the meta device"),
        (
            hf.model,
            tokenizer,
            "LlamaModel predicts no tokens; load the model with AutoModelForCausalLM.from_pretrained",
        ),
        (longt5, tokenizer, "encoder-decoder models of type 'longt5' are not supported; known: t5, mt5"),
    ]:
        with pytest.raises(ConfigError, match=message):
            promptcomp.TextCompressor.from_model(given, words, "full_prompt")
        if given is not LM:  # where its name will do
            with pytest.raises(ConfigError, match=message):
                promptcomp.distill(given, "keep only", tokenizer=words)
    adapted = peft.get_peft_model(hf, peft.LoraConfig("CAUSAL_LM", target_modules=["q_proj"]))
    compressor = promptcomp.TextCompressor.from_model(adapted, tokenizer, "full_prompt")
    assert compressor.compress("keep only the fruits").generate("horse plum") == "=> plum"


def test_the_prompt_of_a_model_in_half_precision_is_read_again(tokenizer: Any, tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(LM, dtype=torch.bfloat16)
    prompt = promptcomp.TextCompressor.from_model(hf, tokenizer, "full_prompt").compress("keep only the fruits")
    prompt.save(tmp_path / "a.safetensors")
    assert promptcomp.load_prompt(tmp_path / "a.safetensors").generate("horse plum") == prompt.generate("horse plum")


def test_settings_of_opening_a_model_are_not_ignored(model: Any, tokenizer: Any) -> None:
    for name, value in {"layers": 1, "dtype": "bfloat16", "attn_implementation": "eager", "from_scratch": {}}.items():
        with pytest.raises(ConfigError, match=f"lm.{name}: a model in memory is taken as it is"):
            promptcomp.TextCompressor.from_model(model, tokenizer, "full_prompt", **{f"lm__{name}": value})


def test_tokens_without_an_embedding(model: Any) -> None:
    """A token for padding alone, as many add it, does no harm."""
    longer = AutoTokenizer.from_pretrained(LM)
    longer.add_special_tokens({"pad_token": "[PAD]"})
    assert longer.pad_token_id == model.get_input_embeddings().num_embeddings
    compressor = promptcomp.TextCompressor.from_model(model, longer, "full_prompt")
    prompt = compressor.compress("keep only the fruits")
    assert prompt.generate(["horse plum", "plum horse apple"])[0] == prompt.generate("horse plum")
    longer.add_tokens(["zebra"])
    with pytest.raises(ConfigError, match="token 238 has no embedding: the LM's table has 237 rows"):
        prompt.generate("zebra plum")
    gist = promptcomp.TextCompressor.from_model(model, longer, "gist", train="none")
    with pytest.raises(ConfigError, match="has no embedding"):
        gist.fit([{**ROWS[0], "output": "zebra plum"}] * 2, trainer__max_steps=1, trainer__batch_size=2)
    model.config.eos_token_id = 238
    with pytest.raises(ConfigError, match="token 238 has no embedding"):
        promptcomp.TextCompressor.from_model(model, longer, "autocompressor", train="none")


def test_what_is_no_path_is_told() -> None:
    for call, given, what in (
        (promptcomp.fit, None, "an experiment that is no dictionary"),
        (promptcomp.sweep, 5, "a sweep that is no dictionary"),
        (promptcomp.evaluate, 5, "a run"),
        (promptcomp.load_run, None, "a run"),
        (promptcomp.compare, ["a", "b"], "a run"),
        (promptcomp.load_prompt, None, "a prompt"),
        (promptcomp.load_compressor, None, "a compressor"),
    ):
        with pytest.raises(ConfigError, match=f"{what} must be a path, not {type(given).__name__}"):
            call(given)


def test_weights_in_float16_are_not_trained(model: Any, tokenizer: Any) -> None:
    half = promptcomp.TextCompressor.from_model(model.half(), tokenizer, "gist", train="none")
    with pytest.raises(ConfigError, match=r"float16 has too small a range to train in it \(gist\); .*model\.float\(\)"):
        half.fit([ROWS[0]] * 2, trainer__max_steps=1, trainer__batch_size=2)


def test_a_run_leaves_the_process_as_it_was(folder: Path, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    states, seed = (
        (torch.get_rng_state(), random.getstate(), np.random.get_state()[1]),
        os.environ.get("PL_GLOBAL_SEED"),
    )
    promptcomp.fit(promptcomp.load_run(folder / "runs" / "gist").config, run_dir=tmp_path / "run")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert os.environ.get("PL_GLOBAL_SEED") == seed


def test_several_devices_are_left_to_the_command() -> None:
    with pytest.raises(ConfigError, match="trainer__devices=1"):
        promptcomp.fit("gist", trainer__devices=2, trainer__accelerator="cpu")
    with pytest.raises(ConfigError, match="rationales"):
        promptcomp.TextCompressor.from_model(
            AutoModelForCausalLM.from_pretrained(LM), AutoTokenizer.from_pretrained(LM), "step_by_step"
        )


def test_a_sweep_is_planned_as_the_command_plans_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(running, "run_sweep", lambda *given, **options: asked.append((*given, options)) or True)
    monkeypatch.setattr(study, "read_state", lambda directory: one_dimension(directory.path))
    found = promptcomp.sweep(
        "gist_tokens", output=tmp_path, workers=2, method__num_slots=[1, 2], trainer__max_steps=5, sweep__seeds=2
    )
    config, directory, options = asked[0]
    assert config.space["method.num_slots"].values == (1, 2)
    assert (config.set["trainer.max_steps"], config.seeds, options["workers"]) == (5, 2, 2)
    assert found.path == directory.path == tmp_path
    monkeypatch.setattr(running, "run_sweep", lambda *given, **options: False)
    with pytest.raises(KeyboardInterrupt, match="the same call continues"):
        promptcomp.sweep(
            {"experiment": "gist", "space": {"optim.lr": [1e-3]}}, output=tmp_path, optim__lr="1e-4..1e-2:steps=3"
        )
    with pytest.raises(ConfigError, match="output="):
        promptcomp.sweep({"experiment": "gist"}, optim__lr=[1e-3, 1e-2])


def test_values_of_a_sweep_are_those_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(running, "run_sweep", lambda config, *_, **__: asked.append(config) or True)
    monkeypatch.setattr(study, "read_state", lambda directory: one_dimension(directory.path))
    goals = [{"metric": "exact_match"}, {"metric": "size.memory_slots", "direction": "minimize"}]
    promptcomp.sweep(
        "gist_tokens", output=tmp_path, method__num_slots=np.array([1, 2]), optim__lr=[0.25],
        trainer__max_steps=np.int64(3), lm__path=Path(LM), sweep__objectives=goals, sweep__seeds=2,
        sweep__constraints=[{"metric": "retained", "at_least": 0.5}],
    )  # fmt: skip
    (config,) = asked
    assert config.space["method.num_slots"].values == (1, 2)
    assert config.space["optim.lr"].values == (0.25,)
    assert (config.set["trainer.max_steps"], config.set["lm.path"]) == (3, LM)
    metrics = [each.metric for each in (*config.objectives, *config.constraints)]
    assert metrics == ["exact_match", "size.memory_slots", "retained"]
    with pytest.raises(ConfigError, match=r"optim__lr=\[\] holds no value to try"):
        promptcomp.sweep("gist_tokens", output=tmp_path, optim__lr=[])
    with pytest.raises(ConfigError, match="workers=0"):
        promptcomp.sweep("gist_tokens", output=tmp_path, workers=0)


def test_a_sweeps_tables_and_pictures(tmp_path: Path) -> None:
    found = SweepRun(one_dimension(tmp_path))
    assert found.best == {"method.num_slots": found.points["method.num_slots"][0]}
    assert len(found.trials) == len(found.state.trials)
    assert "method.num_slots" in found.trials
    assert all(isinstance(figure, Figure) for figure in found.plot().values())
    assert "num_slots" in repr(found)
