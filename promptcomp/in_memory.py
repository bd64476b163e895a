"""Compressors in memory: of a finished run or an export, or of a user's own Hugging Face model and tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import lightning as L
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.api import Place, console_for, dotted, frame, step_series
from promptcomp.checkpoints.trained_state import DESCRIPTION, TENSORS
from promptcomp.config import ConfigError, build, dump, read_yaml, with_settings
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.instruction.instruction_config import InstructionConfig
from promptcomp.datamodules.instruction.instruction_module import InstructionDataModule
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.sources.instruction_sources import InstructionColumns, instruction_problems, to_instruction
from promptcomp.datamodules.tasks import InstructionRow, InstructionSource
from promptcomp.documents import read_json
from promptcomp.experiment import Experiment
from promptcomp.files import write_atomic
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.attention import Window
from promptcomp.prompts.compressing import Compressor, open_compressor
from promptcomp.prompts.prompt_files import CompressedPrompt
from promptcomp.prompts.sources import read_source
from promptcomp.run.callbacks import MetricsLogger, TrainingProgress
from promptcomp.run.opening import make_data, make_module, quiet
from promptcomp.run.processes import accelerator_of
from promptcomp.run.run_directory import RunDirectory
from promptcomp.run.trainer import loop_settings

Rows = Iterable[Mapping[str, Any]]
"""Dictionaries with `instruction`, `input` (may be left out) and `output`; or a DataFrame with such columns."""
_BUDGET = 256


class TextCompressor:
    """Compresses texts; `from_model` makes one of a model in memory, `load_compressor` opens a trained one.

    Args:
        inner: What compresses.
        device: Where: "auto", "cpu", "cuda", ...
    """

    def __init__(self, inner: Compressor, device: str = "auto") -> None:
        self._inner, self._device = inner, device
        self._series: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        experiment, run = self._inner.experiment, self._inner.run
        return f"TextCompressor({experiment.method.name} for {experiment.lm.path}, {run or 'in memory'})"

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
        """An untrained compressor for a model in memory. The model is used as it is, not copied: `fit` changes its
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
        own = {key if "__" in key or key == "seed" else f"method__{key}": value for key, value in settings.items()}
        text = model.config.get_text_config(decoder=True)
        window = None if text.is_encoder_decoder else Window.of(text).size
        room = _BUDGET if window is None else (window - settings.get("num_slots", 1) - 2) // 3
        budget = max(1, min(_BUDGET, room))
        limits = {f"max_{part}_tokens": budget for part in ("context", "query", "target")}
        tree = {
            "method": {"name": method},
            "data": {"name": "instructions", "files": {"train": "rows in memory"}, **limits},
            "lm": {"path": model.name_or_path or "in memory"},
        }
        experiment = build(Experiment, with_settings(tree, dotted(own)), source="from_model")
        lm = LanguageModel.from_parts(model, tokenizer, layout=experiment.lm.layout, bos=experiment.lm.bos)
        with quiet():
            module = make_module(experiment, (), lm)
            module.configure_model()
        return cls(Compressor(None, (experiment, _data(experiment, lm, {}), module.eval()), device), device)

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
        inner = self._inner
        tree = with_settings(inner.experiment.model_dump(mode="json"), dotted(settings))
        experiment = build(Experiment, tree, source="fit")
        if (experiment.method, experiment.lm) != (inner.experiment.method, inner.experiment.lm):
            raise ConfigError("the method and the LM are settled by then: give their settings to from_model")
        if not inner.module.method.trains:
            raise ConfigError(f"method {experiment.method.name!r} has nothing to train; compress with it as it is")
        splits = {"train": _read("rows", rows)} | ({} if dev is None else {"dev": _read("dev", dev)})
        module, config, lm = inner.module, experiment.trainer, inner.module.lm
        datamodule = _data(experiment, lm, splits)
        datamodule.check()
        if dev is not None:
            module.watch(datamodule.examples("dev"))
        module.max_steps, module.optim, module.seed = config.max_steps, experiment.optim, experiment.seed
        with quiet(), tempfile.TemporaryDirectory() as folder:
            series = RunDirectory(Path(folder))
            trainer = L.Trainer(
                accelerator=accelerator_of(config),
                devices=1,
                logger=MetricsLogger(series, 0),
                callbacks=[TrainingProgress(console_for(verbose), config.max_steps)],
                enable_checkpointing=False,
                default_root_dir=folder,
                **loop_settings(config, dev is not None),
            )
            try:
                trainer.fit(module.train(), datamodule=datamodule)
            except SystemExit as end:  # what Lightning makes of a Ctrl-C
                raise KeyboardInterrupt from end
            finally:
                self._series = step_series(series.metrics)
                self._inner = Compressor(inner.run, (experiment, datamodule, module.eval()), self._device)
        return self

    @property
    def metrics(self) -> Any:
        """The step series of the last `fit`: a DataFrame, without pandas a list of dictionaries."""
        return frame(self._series)

    def compress(
        self,
        text: str | None = None,
        *,
        demonstrations: Sequence[tuple[str, str]] | None = None,
        task: str | None = None,
        keep_text: bool = False,
    ) -> CompressedPrompt:
        """A compressed prompt, whose `generate(query)` answers with this model.

        Args:
            text: The prompt.
            demonstrations: Instead of a text: pairs (input, output), for runs on in-context learning.
            task: Whose prompt to take (prompt tuning with a prompt for each task).
            keep_text: Keep the text in the result and its file.

        Raises:
            ConfigError: the prompt is empty or too long, or the method reads none.
        """
        source = read_source(text=text, demonstrations=demonstrations, is_icl=self._inner.is_icl)
        return self._inner.compress(source, task=task, keep_text=keep_text).prompt

    def save(self, folder: Place) -> Path:
        """Write the trained parts and the configuration, which `load_compressor` reads.

        Raises:
            ConfigError: nothing is trained, or the folder holds something.
        """
        place, inner = Path(folder), self._inner
        if not inner.module.method.trains:
            raise ConfigError(f"method {inner.experiment.method.name!r} trains nothing that could be saved")
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ConfigError(f"{place} is not empty; name another folder")
        inner.module.export(place)
        write_atomic(place / "config.yaml", dump(inner.experiment))
        return place


def load_compressor(
    path: Place,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "auto",
) -> TextCompressor:
    """A trained compressor.

    Args:
        path: A run, its directory, or a folder of trained tensors: RUN/export, what `promptcomp checkpoint export
            --format tensors` or `TextCompressor.save` has written.
        model: With trained tensors: the LM they belong to, as it was before training; None: the one that they name.
        tokenizer: The model's.
        device: Where to compress and generate.

    Raises:
        ConfigError: nothing of the kind is there, or the tensors do not fit the model.
    """
    folder = Path(path)
    if not (folder / TENSORS).is_file():
        if model is not None:
            raise ConfigError(f"{folder}: model= goes with trained tensors; give the folder {folder / 'export'}")
        return TextCompressor(open_compressor(folder, device), device)
    if (model is None) != (tokenizer is None):
        raise ConfigError("give model and tokenizer together")
    named = [each for each in (folder / "config.yaml", folder.parent / "config.yaml") if each.is_file()]
    if not named:
        raise ConfigError(f"{folder}: has no config.yaml, which says how prompts are written; copy the run's there")
    experiment = build(Experiment, read_yaml(named[0]), source=str(named[0]))
    experiment = experiment.model_copy(update={"method": experiment.method.without_training()})
    description = read_json(folder / DESCRIPTION, "description of an export")
    with quiet():
        if model is None or tokenizer is None:
            lm = LanguageModel.from_config(experiment.lm)
        else:
            lm = LanguageModel.from_parts(model, tokenizer, layout=experiment.lm.layout, bos=experiment.lm.bos)
        module = make_module(experiment, tuple(description.get("task_names", ())), lm)
        module.configure_model()
        module.load_trained(folder)
        return TextCompressor(Compressor(None, (experiment, _data(experiment, lm, {}), module.eval()), device), device)


class _RowsInMemory(InstructionSource):
    """Rows by split."""

    def __init__(self, by_split: Mapping[str, Sequence[InstructionRow]]) -> None:
        self._by_split = by_split

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that were given."""
        return tuple(self._by_split)

    def rows(self, split: str) -> Sequence[InstructionRow]:
        """As they were given."""
        return self._by_split[split]


def _data(experiment: Experiment, lm: LanguageModel, rows: Mapping[str, Sequence[InstructionRow]]) -> ContextDataModule:
    """The rows as batches; without rows it still says how prompts and queries are written."""
    if not isinstance(experiment.data, InstructionConfig):
        return make_data(experiment)
    assert lm.tokenizer is not None
    trainer = experiment.trainer
    batch_size, bos = trainer.batch_size // trainer.accumulate, lm.bos_id is not None
    reader = Reader(lm.tokenizer, experiment.seed, batch_size, lm.window, lm.query_in_encoder, bos)
    return InstructionDataModule(experiment.data, _RowsInMemory(rows), reader)


def _read(name: str, rows: Any) -> list[InstructionRow]:
    """Rows as a user gives them.

    Raises:
        ConfigError: names the first bad one.
    """
    columns, found = InstructionColumns(), []
    for number, row in enumerate(rows.to_dict("records") if hasattr(rows, "to_dict") else rows):
        if not isinstance(row, Mapping):
            raise ConfigError(f"{name}[{number}]: expected a dictionary, not {type(row).__name__}")
        if problems := instruction_problems(row, columns, False):
            raise ConfigError(f"{name}[{number}]: {problems[0]}")
        found.append(to_instruction(row, columns, "rows"))
    return found
