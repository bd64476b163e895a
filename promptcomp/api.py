"""The Python API: what the commands do, for notebooks and programs. Nothing is printed unless `verbose=True`.

Settings of a configuration are keywords with two underscores for a dot: `trainer__max_steps=100`. Every mistake is a
ConfigError with one message. What a run has found is an object of run/finished.py.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.config import ConfigError, build, flat, read_yaml, with_settings
from promptcomp.datamodules.instruction.instruction_config import InstructionConfig
from promptcomp.datamodules.sources.instruction_sources import RowsInMemory
from promptcomp.documents import experiment_file
from promptcomp.errors import check_place, did_you_mean
from promptcomp.experiment import Experiment
from promptcomp.files import Place, check_output
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.language_model.attention import Window
from promptcomp.language_model.parts import in_memory, lent
from promptcomp.plotting import drawing
from promptcomp.prompts.compressing import Compressor, untrained
from promptcomp.prompts.prompt_files import CompressedPrompt
from promptcomp.run import fitting
from promptcomp.run.callbacks import TrainingProgress
from promptcomp.run.configured import with_lm
from promptcomp.run.finished import Run, finished, load_run, step_series
from promptcomp.run.opening import as_before, make_data, quiet, set_threads
from promptcomp.run.processes import device_count, started_rank
from promptcomp.run.run_directory import RunDirectory
from promptcomp.run.trainer import make_trainer
from promptcomp.sweeps.state import SweepState
from promptcomp.terminal import PlainConsole, as_text, frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Iterable[Mapping[str, Any]]
"""Dictionaries with `instruction`, `input` (may be left out) and `output`; or a DataFrame or dataset with such columns
(`data__columns` names others)."""


@dataclass(frozen=True, slots=True, repr=False)
class SweepRun:
    """A sweep's directory and its results so far."""

    state: SweepState

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.state.directory.path

    @property
    def trials(self) -> Any:
        """One line for each trial: what was tried, the seed, how it ended, what was measured, its run directory."""
        return self._table("trials")

    @property
    def points(self) -> Any:
        """One line for each point, best first: what was tried and the objectives' means over seeds, with intervals."""
        return self._table("points")

    def _table(self, kind: str) -> Any:
        from promptcomp.sweeps.views.html_report import state_json

        rows = state_json(self.state)[kind]
        return frame({**row.pop("params"), **flat({k: v for k, v in row.items() if v != {}})} for row in rows)

    @property
    def best(self) -> dict[str, Any] | None:
        """Key -> value of the best point; None while there is none."""
        from promptcomp.sweeps.views.points import Summary

        best = Summary(self.state).best
        return None if best is None else dict(best.params)

    def plot(self) -> dict[str, Figure]:
        """Every plot of the sweep by name."""
        with drawing():
            from promptcomp.sweeps.views.plots import figures
            from promptcomp.sweeps.views.points import Summary

            return {each.name: each.figure for each in figures(Summary(self.state))}

    def __repr__(self) -> str:
        from promptcomp.sweeps.views.overview import print_state

        return as_text(lambda console: print_state(self.state, console))


def fit(
    what: Place | Mapping[str, Any] | Experiment,
    *,
    run_dir: Place | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Run:
    """Train a compressor (or a control) and evaluate it beside its bounds, as `promptcomp fit`; on one device.

    Args:
        what: A shipped experiment ("mend"; `promptcomp experiments` lists them), a YAML file, or a whole configuration.
        run_dir: Directory of the new run; None: one under `output_dir`.
        verbose: Print what the command prints.
        settings: Changes of the configuration: `trainer__max_steps=100`, `seed=3`.

    Raises:
        ConfigError: any mistake in the configuration or the data; several devices.
        KeyboardInterrupt: it was stopped; what it has done is saved, and `load_run(...).resume()` continues.
    """
    if isinstance(what, Experiment):
        what = what.model_dump(mode="json")
    source = "configuration" if isinstance(what, Mapping) else check_place(what, "an experiment that is no dictionary")
    tree = what if isinstance(what, Mapping) else read_yaml(experiment_file(source))
    experiment = build(Experiment, with_settings(tree, settings), source=source)
    if device_count(experiment.trainer) * experiment.trainer.num_nodes > 1 and started_rank() is None:
        raise ConfigError(
            "promptcomp.fit trains in this process, on one device: set trainer__devices=1, or use the command "
            "`promptcomp fit`, which starts a process for each device"
        )
    place = None if run_dir is None else Path(run_dir)
    return finished(lambda console: fitting.fit(experiment, place, console), verbose)


def evaluate(run: Place, *, output: Place | None = None, verbose: bool = False, **settings: Any) -> Run:
    """Evaluate a trained run again with other splits, data or seeds, in a new directory.

    Args:
        run: The run, or its directory.
        output: Directory for the new results; None: RUN/evaluations/<time>.
        verbose: Print what the command prints.
        settings: Changes of the configuration: `evaluation__splits=["unseen"]`.

    Raises:
        ConfigError: no trained run, or a mistake in the settings.
    """
    tree = load_run(run).config.model_dump(mode="json")
    experiment = with_lm(build(Experiment, with_settings(tree, settings), source=os.fspath(run)), Path(run))
    place = None if output is None else Path(output)
    return finished(lambda console: fitting.evaluate(Path(run), experiment, place, console), verbose)


def sweep(
    what: Place | Mapping[str, Any],
    *,
    output: Place | None = None,
    workers: int = 1,
    verbose: bool = False,
    **settings: Any,
) -> SweepRun:
    """Run or continue a sweep, as `promptcomp sweep`; each trial is a separate process.

    Args:
        what: A shipped sweep, a YAML file, a sweep's directory, or a sweep file's content.
        output: Its directory; None: sweeps/NAME.
        workers: Trials at a time on this machine.
        verbose: Print how it goes.
        settings: A list is what is tried (`method__num_slots=[2, 4]`), a text may be an interval ("1e-4..1e-2:log"),
            one value is for all trials, `sweep__seeds=3` is a key of the sweep itself.

    Returns:
        The tables `trials` and `points`, the values of the `best` point, the pictures of `plot()`.

    Raises:
        ConfigError: any mistake in the sweep or in one of its experiments.
        KeyboardInterrupt: it was stopped; the same call continues it.
    """
    from promptcomp.sweeps.checking import check, check_splits
    from promptcomp.sweeps.running import run_sweep
    from promptcomp.sweeps.study import read_state
    from promptcomp.sweeps.sweep_config import SweepConfig
    from promptcomp.sweeps.sweep_directory import SweepDirectory
    from promptcomp.sweeps.sweep_file import apply_words, find_sweep

    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"sweep: workers={workers!r} is no number of trials at a time; give 1 or more")
    if isinstance(what, Mapping):
        source, tree, folder = "sweep", dict(what), output
        if folder is None:
            raise ConfigError("a sweep without a file needs a directory: give output=")
    else:
        origin = find_sweep(check_place(what, "a sweep that is no dictionary"))
        source, tree, folder = origin.source, origin.tree, output or origin.directory or Path("sweeps") / origin.name
    for key, value in settings.items():
        dotted, (text, tried) = key.replace("__", "."), _as_word(key, value)
        tree = apply_words(tree, [f"{dotted}={text}"])
        if tried and dotted in tree.get("set", {}):  # one value in a list
            tree["space"] = {**(tree.get("space") or {}), dotted: [tree["set"].pop(dotted)]}
    config = build(SweepConfig, tree, source=source)
    check(config)
    check_splits(config)
    directory = SweepDirectory(Path(folder))
    if not run_sweep(config, directory, workers=workers, console=PlainConsole(quiet=not verbose)):
        raise KeyboardInterrupt("the sweep was stopped; finished trials are kept, and the same call continues it")
    return SweepRun(read_state(directory))


def _as_word(key: str, value: Any) -> tuple[str, bool]:
    """The value of a setting in a sweep's words, and whether it is a list of what is tried."""
    value = _plain(value) if hasattr(value, "tolist") else value
    if isinstance(value, str):
        return value, False
    if not isinstance(value, Sequence) or key.startswith("sweep__"):
        return json.dumps(value, default=_plain), False
    if not value:
        raise ConfigError(f"sweep: {key}={value!r} holds no value to try; give one or more, or leave it out")
    return ",".join(json.dumps(each, default=_plain) for each in value), True


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else os.fspath(value)


def distill(
    lm: Place | PreTrainedModel,
    text: str,
    *,
    slots: int | str | Sequence[int] = 64,
    questions: Sequence[str] | None = None,
    beside: Mapping[str, str] | None = None,
    output: Place | None = None,
    work: Place | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "auto",
    dtype: str = "float32",
    force: bool = False,
    verbose: bool = False,
    **settings: Any,
) -> dict[int, CompressedPrompt]:
    """Train the slots of one text until a frozen LM answers behind them as behind the text, as `promptcomp distill`.

    Args:
        lm: A folder, a hub name, or a causal LM in memory, which is not changed.
        text: The prompt or document.
        slots: One number of slots, or several ([16, 64] or "16,64"), which share the LM's answers.
        questions: To train on; None: the LM asks itself.
        beside: Other texts by their names, shorter prompts for example, that the cartridges are compared with.
        output: File of the cartridge (with several numbers of slots, each has its own in the name); None: no file.
        work: Folder of questions, answers and training states, to go on from; None: beside the output, or nowhere.
        tokenizer: Of an LM in memory.
        device: Where to train an LM that is not in memory.
        dtype: Of the weights of an LM that is not in memory: float32 or bfloat16.
        force: Replace files that are there.
        verbose: Print how it goes.
        settings: Fields of `promptcomp.distilling.DistillOptions`: `steps=50`, `kind="embeddings"`, `lr=1e-2`.

    Returns:
        The cartridges by their slots; `info.held_out` and `info.cost` say what each keeps and what it took.

    Raises:
        ConfigError: a mistake in the settings, or a text that does not fit them.
        KeyboardInterrupt: it was stopped; with `output` or `work` the same call goes on.
    """
    from promptcomp.distilling import DistillOptions
    from promptcomp.distilling.distill_job import DistillJob, DistillStopped, open_causal
    from promptcomp.distilling.work_folder import WorkFolder

    if unknown := settings.keys() - DistillOptions.__slots__:
        raise ConfigError(
            f"distill: {min(unknown)!r} is no setting; {did_you_mean(min(unknown), DistillOptions.__slots__)}"
        )
    asking = {"num_questions", "temperature", "ask_model", "ask_url", "ask_key_env"} & settings.keys()
    if questions is not None and asking:
        raise ConfigError(f"distill: {min(asking)!r} is for questions that an LM asks; leave it or `questions` out")
    numbers = map(str, slots) if isinstance(slots, Iterable) and not isinstance(slots, str) else [str(slots)]
    options = DistillOptions(slots=",".join(numbers), **settings)
    budgets = options.budgets()
    hf = None if isinstance(lm, str | os.PathLike) else in_memory(lm, tokenizer)
    path = str(lm) if hf is None else hf.name_or_path or "in memory"
    dtype = dtype if hf is None else str(hf.dtype).removeprefix("torch.")
    config = build(LanguageModelConfig, {"path": path, "dtype": dtype}, source="distill")
    if output is not None:
        check_output(Path(output), force=True)
    with tempfile.TemporaryDirectory() as passing:
        default = passing if output is None else Path(output).with_suffix(".distill")
        with WorkFolder(Path(default if work is None else work)) as folder:
            files = {} if output is None else folder.outputs(Path(output), budgets, force)
            model = open_causal(config, device) if hf is None else LanguageModel.from_parts(hf, tokenizer)
            console = PlainConsole(quiet=not verbose)
            try:
                found = DistillJob(model, config, text, questions, options, folder, console, beside).run(files)
            except DistillStopped as stop:
                raise KeyboardInterrupt(str(stop)) from None
    return {number: each.prompt for number, each in found.items()}


class TextCompressor(Compressor):
    """Compresses texts; `from_model` makes one of a model in memory, `load_compressor` opens a trained one."""

    _series: Sequence[dict[str, Any]] = ()

    def __repr__(self) -> str:
        name, lm = self.experiment.method.name, self.experiment.lm.path
        return f"TextCompressor({name} for {lm}, {self.run or 'in memory'})"

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        method: str = "gist",
        *,
        device: str = "auto",
        **settings: Any,
    ) -> Self:
        """An untrained compressor for a model in memory. The model is used directly, not copied: `fit` changes its
        weights where the method trains the LM (gist: `train="lm"`; "lora" adds adapters to it, "none" leaves it alone).

        Args:
            model: A causal LM, or a T5.
            tokenizer: Its tokenizer.
            method: "gist", "mend", "full_prompt", ...
            device: Where to compress and generate.
            settings: Keys of the method (`num_slots=4`), and of other sections: `data__template="plain"`, `seed=3`.
                The budgets of context, query and target are 256 tokens each, less where the LM's window is small.

        Raises:
            ConfigError: a mistake in the settings, or a family that is not supported.
        """
        hf = in_memory(model, tokenizer)
        if tokenizer is None:
            raise ConfigError("from_model needs the tokenizer of the model, and tokenizer is None")
        own = {key if "__" in key or key == "seed" else f"method__{key}": value for key, value in settings.items()}
        tree = {
            "method": {"name": method},
            "data": {"name": "instructions", "files": {"train": "rows in memory"}},
            "lm": {"path": hf.name_or_path or "in memory", "dtype": str(hf.dtype).removeprefix("torch.")},
        }
        slots = getattr(build(Experiment, with_settings(tree, own), source="from_model").method, "num_slots", 1)
        text = hf.config.get_text_config(decoder=True)
        window = None if text.is_encoder_decoder else Window.of(text).size
        room = 256 if window is None else max(1, min(256, (window - slots - 2) // 3))
        limits = {f"data__max_{part}_tokens": room for part in ("context", "query", "target")}
        experiment = build(Experiment, with_settings(tree, limits | own), source="from_model")
        with quiet():
            return cls(None, untrained(experiment, hf, tokenizer, is_new=True), device)

    def fit(self, rows: Rows, dev: Rows | None = None, *, verbose: bool = False, **settings: Any) -> Self:
        """Train on rows in memory, on one device; called again, it goes on from here with a new optimiser.

        The weights after the last step stay; a run (`promptcomp.fit`) chooses the best on dev, saves, resumes and
        evaluates, and this does not.

        Args:
            rows: What to train on.
            dev: What `dev/...` in `metrics` is measured on, every `trainer.eval_every` steps.
            verbose: Show how it goes.
            settings: `trainer__max_steps=200`, `trainer__batch_size=8`, `optim__lr=1e-4`, ...

        Raises:
            ConfigError: a bad row, a mistake in the settings, or nothing to train.
        """
        alone = {"trainer__devices": 1, "trainer__num_nodes": 1, "trainer__strategy": "auto"}
        if other := [key for key, value in alone.items() if settings.get(key, value) != value]:
            raise ConfigError(
                f"TextCompressor.fit trains on one device, in this process: leave out {other[0]}, or use the command "
                "`promptcomp fit`, which makes a run"
            )
        tree = with_settings(self.experiment.model_dump(mode="json"), {**settings, **alone})
        experiment, module = build(Experiment, tree, source="fit"), self.module
        if (experiment.method, experiment.lm) != (self.experiment.method, self.experiment.lm):
            raise ConfigError("the method and the LM are fixed when fit is called: give their settings to from_model")
        if not module.method.trains:
            raise ConfigError(f"method {experiment.method.name!r} has nothing to train; call compress at once")
        if not isinstance(data := experiment.data, InstructionConfig):
            raise ConfigError(
                "TextCompressor.fit takes rows of instructions alone; other data need a run: promptcomp.fit"
            )
        given = {"train": rows} if dev is None else {"train": rows, "dev": dev}
        source = RowsInMemory(getattr(data, "columns", None), data.allow_empty_instruction, **given)
        datamodule = make_data(experiment, module.lm, source)
        datamodule.check()
        if experiment.data.asks is not None:
            raise ConfigError("data.targets=teacher needs a run, which keeps the answers: give files to promptcomp.fit")
        if dev is not None:
            module.watch(datamodule.examples("dev"))
        module.max_steps, module.optim = experiment.trainer.max_steps, experiment.optim
        module.seed, progress = experiment.seed, TrainingProgress(PlainConsole(quiet=not verbose), module.max_steps)
        with quiet(), as_before(), lent(module), tempfile.TemporaryDirectory() as folder:
            set_threads(experiment)
            series = RunDirectory(Path(folder))
            trainer = make_trainer(experiment, series, datamodule, progress, resume=False, saves=False)
            try:
                trainer.fit(module.learning(), datamodule=datamodule)
            except SystemExit as end:  # what Lightning makes of a Ctrl-C
                raise KeyboardInterrupt from end
            finally:
                self._series = step_series(series.metrics)
                self.use(experiment, datamodule, module.eval())
        return self

    @property
    def metrics(self) -> Any:
        """The step series of the last `fit`: a DataFrame, without pandas a list of dictionaries."""
        return frame(self._series)


load_compressor = TextCompressor.load
