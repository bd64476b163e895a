"""Compressing prompts with a trained run, or with trained tensors and a model in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.batch import Context
from promptcomp.checkpoints.hub import downloaded
from promptcomp.checkpoints.places import TENSORS
from promptcomp.checkpoints.trained_state import DESCRIPTION
from promptcomp.config import ConfigError, dump
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.icl import ICLDataModule
from promptcomp.datamodules.sources.instruction_sources import RowsInMemory
from promptcomp.documents import read_json
from promptcomp.errors import check_place
from promptcomp.experiment import Experiment
from promptcomp.files import Place, check_empty, write_atomic
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.language_model.lm_config import place_of
from promptcomp.language_model.loading import pick_device
from promptcomp.language_model.parts import in_memory, lent
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import Memory, memory_to
from promptcomp.prompts.artifact import PromptInfo, tokenizer_hash, weights_hash
from promptcomp.prompts.prompt_files import CompressedPrompt, PromptReader, describe_prompt
from promptcomp.prompts.sources import PromptSource, read_source
from promptcomp.rivals import NotMet, Reading, Rival, Setting
from promptcomp.run.configured import check_lm, exported_experiment, trained_experiment, with_lm
from promptcomp.run.opening import make_data, make_module, open_trained, quiet, set_threads
from promptcomp.run.run_directory import RunDirectory, weights_of


@dataclass(frozen=True, slots=True)
class Compression:
    """A compressed prompt and what it cost."""

    prompt: CompressedPrompt
    milliseconds: float
    """Time of compressing alone, without opening models."""
    kv_bytes: int
    """What the memory holds in the cache that the LM's decoder reads."""
    full_kv_bytes: int
    """What the uncompressed prompt would hold there."""


class Compressor:
    """A trained run that compresses prompts.

    Args:
        run: The run's directory (recorded in the prompts); None: it was trained in memory.
        parts: What `open_trained` gives.
        device: Where to compress and generate: "auto" (a GPU if there is one), "cpu", "cuda", ...
    """

    def __init__(
        self, run: Path | None, parts: tuple[Experiment, ContextDataModule, CompressionModule], device: str = "auto"
    ) -> None:
        self.run, self.source, self.device = run, str(run or "this compressor"), device
        self.use(*parts)

    @classmethod
    def load(
        cls,
        path: Place,
        *,
        model: PreTrainedModel | Place | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        device: str = "auto",
    ) -> Self:
        """A trained compressor. The data that it was trained on is not needed.

        Args:
            path: A run, its directory, a folder of trained tensors (RUN/export, what `promptcomp export --to tensors`
                or `TextCompressor.save` has written), or the repository of such a folder on a hub: "user/name".
            model: Where its LM is now; or, with trained tensors, the LM itself, as it was before training; None: the
                one that is named there.
            tokenizer: Of an LM in memory.
            revision: Branch, tag or commit of a repository.
            device: Where to compress and generate.

        Raises:
            ConfigError: nothing of the kind is there, or the LM is gone, another one, or does not fit the tensors.
        """
        check_place(path, "a compressor")
        folder = downloaded(Path(path), revision)
        place = model if model is None or isinstance(model, str | os.PathLike) else None
        hf = None if place is model else in_memory(model, tokenizer)
        is_export = (folder / TENSORS).is_file()
        if not is_export and hf is not None:
            raise ConfigError(f"{folder}: model= needs a folder of trained tensors; give {folder / 'export'}")
        if (hf is None) != (tokenizer is None):
            raise ConfigError("give model and tokenizer together")
        experiment = with_lm(exported_experiment(folder) if is_export else trained_experiment(folder), folder, place)
        if hf is None:
            check_lm(experiment, folder)
        described = folder if is_export else folder / "export"
        known: dict[str, Any] = {}
        if (described / DESCRIPTION).is_file():
            known = read_json(described / DESCRIPTION, "description of an export")
        names = tuple(known.get("task_names", ()))
        with quiet():
            if not is_export and experiment.method.has_task_prompts and not names:
                return cls(folder, open_trained(folder, experiment), device)
            set_threads(experiment)
            experiment = experiment.model_copy(update={"method": experiment.method.without_training()})
            lm = None
            if hf is None and (wanted := known.get("lm_hash")) is not None:
                lm = LanguageModel.from_config(experiment.lm)
                if weights_hash(lm.hf) != wanted:
                    raise ConfigError(
                        f"{folder}: was trained with another LM than {experiment.lm.path} (or the same in another "
                        "dtype); name the right one with --model"
                    )
            parts = untrained(experiment, hf, tokenizer, names, lm)
            if experiment.method.trains:
                parts[2].load_trained(folder if is_export else weights_of(RunDirectory(folder)))
            return cls(None if is_export else folder, parts, device)

    def save(self, folder: Place) -> Path:
        """Write the trained parts and the configuration, which `load` reads.

        Raises:
            ConfigError: nothing is trained, or the folder holds something.
        """
        place = Path(folder)
        if not self.module.method.trains:
            raise ConfigError(f"method {self.experiment.method.name!r} trains nothing that could be saved")
        check_empty(place, "name another folder")
        self.module.export(place)
        write_atomic(place / "config.yaml", dump(self.experiment))
        return place

    def use(self, experiment: Experiment, datamodule: ContextDataModule, module: CompressionModule) -> None:
        """Compress with these from now on."""
        self.experiment, self.datamodule, self.module = experiment, datamodule, module.to(pick_device(self.device))
        self.reader = PromptReader(module.lm, datamodule.prompt_format())
        self.__dict__.pop("_hashes", None)

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        return weights_hash(self.module.lm.hf), tokenizer_hash(self.reader.tokenizer)

    @property
    def is_icl(self) -> bool:
        """Whether the run's prompts are demonstrations."""
        return isinstance(self.datamodule, ICLDataModule)

    def context(self, source: PromptSource, task: str | None = None) -> Context:
        """The token ids of a prompt, as training would have written it.

        Raises:
            ConfigError: it is empty, has demonstrations where the data knows none, or the task is unknown.
        """
        if source.rows is not None:
            if not isinstance(self.datamodule, ICLDataModule):
                kind = self.experiment.data.name
                raise ConfigError(f"{self.source}: its data ({kind}) has no demonstrations; give the prompt as text")
            ids = self.datamodule.demonstration_ids(source.rows)
        elif source.text.strip():
            ids = self.datamodule.context_ids(source.text)
        else:
            ids = ()
        if not ids and self.module.method.reads_prompt:
            raise ConfigError("the prompt is empty or only white space; there is nothing to compress")
        row = torch.tensor([ids], dtype=torch.long, device=self.module.device)
        number = torch.tensor([self._task_number(task)], device=self.module.device)
        return Context(row, torch.ones_like(row, dtype=torch.bool), number)

    def _task_number(self, task: str | None) -> int:
        names = self.module.task_names
        if task is None:
            if self.module.method.has_task_prompts and len(names) > 1:
                raise ConfigError(f"{self.source}: has a prompt for each task; choose one with --task: {_list(names)}")
            return 0
        if task not in names:
            raise ConfigError(f"--task {task!r} is unknown; {self.source} knows {_list(names)}")
        return names.index(task)

    def compress(
        self,
        text: str | None = None,
        *,
        file: str | Path | None = None,
        demonstrations: Sequence[tuple[str, str]] | str | Path | None = None,
        task: str | None = None,
        slots: int | None = None,
        keep_text: bool = False,
    ) -> CompressedPrompt:
        """A compressed prompt, whose `generate(query)` answers with this model.

        Args:
            text: The prompt.
            file: A UTF-8 file with the prompt, instead of `text`.
            demonstrations: Pairs (input, output), or a JSON-lines file with `input` and `output`, instead of `text`.
            task: Whose prompt to take (prompt tuning with a prompt for each task).
            slots: One of the run's `method.budgets`; None: the largest.
            keep_text: Keep the prompt's text in the result and its file.

        Raises:
            ConfigError: the prompt is empty, unreadable or too long, or the method reads none.
        """
        if sum(value is not None for value in (text, file, demonstrations)) > 1:
            raise ConfigError("give one of text, file and demonstrations")
        source = read_source(text=text, file=file, demonstrations=demonstrations, is_icl=self.is_icl)
        return self.compression(source, task=task, slots=slots, keep_text=keep_text).prompt

    def compression(
        self,
        source: PromptSource,
        *,
        task: str | None = None,
        slots: int | None = None,
        keep_text: bool = False,
        rival: Rival | None = None,
    ) -> Compression:
        """A compressed prompt with what it cost; with `rival` what that makes of the prompt with the same LM.

        Raises:
            ConfigError: the prompt is empty or does not fit the LM's window, the method makes no memory, or it was not
                trained for so many slots.
        """
        if why := self.experiment.data.why_no_answers:
            raise ConfigError(f"{self.source}: nothing could be asked behind a compressed prompt, which {why}")
        self.module.choose_slots(slots)
        context = self.context(source, task)
        start = time.perf_counter()
        read = self.module.compress if rival is None else partial(self._rival_memory, rival)
        memory = self._memory(context, read)
        milliseconds = 1000 * (time.perf_counter() - start)
        if memory is None:
            method = self.experiment.method.name
            if rival is not None:
                raise ConfigError(f"{rival.label}: nothing of the prompt fits the budget; give more slots or bytes")
            raise ConfigError(f"{self.source}: its method ({method}) reads no prompt, so there is nothing to save")
        tokens = context.ids.shape[1]
        info = self._info(source, memory, tokens, task, keep_text)
        if rival is not None:
            settings = rival.model_dump(mode="json", exclude={"name"})
            info = info.model_copy(update={"method": rival.name, "settings": settings})
        lm = self.module.lm
        prompt = CompressedPrompt(memory, info, reader=self.reader)
        whole = (tokens + lm.num_bos) * lm.cost.kv_bytes_per_token
        return Compression(prompt, milliseconds, round(lm.kv_bytes(memory)), whole)

    def _rival_memory(self, rival: Rival, context: Context) -> Memory | None:
        setting = Setting(self.module.compress, context)
        own = self.module.compress(context) if getattr(rival, "slots", 0) is None else None
        try:
            return rival.memory(Reading(self.module.lm, context, own), setting).memory
        except NotMet as reason:
            raise ConfigError(f"{rival.label}: {reason}") from None

    def uncompressed(self, source: PromptSource) -> Memory | None:
        """The whole prompt as a memory of the same LM, for comparison (on the CPU)."""
        context = self.context(source)
        return self._memory(context, self.module.lm.encode)

    @torch.no_grad()
    def _memory(self, context: Context, read: Callable[[Context], Memory | None]) -> Memory | None:
        tokens, window = context.ids.shape[1], self.module.lm.window
        try:
            with lent(self.module):
                self.module.eval()
                memory = read(context)
        except ConfigError as error:
            if window is None or tokens + self.module.num_memory_slots(tokens) <= window:
                raise
            raise ConfigError(
                f"the prompt of {tokens} tokens does not fit the LM's window of {window}; shorten it ({error})"
            ) from None
        return None if memory is None else memory_to(memory, "cpu")  # waits for a GPU to finish

    def _info(self, source: PromptSource, memory: Memory, tokens: int, task: str | None, keep_text: bool) -> PromptInfo:
        experiment = self.experiment
        settings = experiment.method.model_dump(mode="json", exclude={"name"})
        return describe_prompt(
            self.reader,
            memory,
            source.text,
            self._hashes,
            method=experiment.method.name,
            lm=experiment.lm.model_copy(update={"path": place_of(experiment.lm.path)}),
            run=None if self.run is None else str(self.run.resolve()),
            lm_is_trained=experiment.method.lm_training != "none",
            source_tokens=tokens,
            text=source.text if keep_text else None,
            settings=settings if task is None else {**settings, "task": task},
        )


def untrained(
    experiment: Experiment,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    task_names: tuple[str, ...] = (),
    lm: LanguageModel | None = None,
    *,
    is_new: bool = False,
) -> tuple[Experiment, ContextDataModule, CompressionModule]:
    """As `open_trained`, before training and without rows; no model, no `lm`: the LM that the configuration names.

    Raises:
        ConfigError: where the model `is_new` to the configuration, settings that it would have to be opened with.
    """
    if is_new and model is not None:
        _check_settings(experiment.lm, in_memory(model))
    layout, bos = experiment.lm.layout, experiment.lm.bos
    with nullcontext() if model is None else lent(model):
        lm = lm if model is None else LanguageModel.from_parts(model, tokenizer, layout=layout, bos=bos)
        module, datamodule = make_module(experiment, task_names, lm), make_data(experiment, lm, RowsInMemory())
        module.configure_model()
        module.eval()
    return experiment, datamodule, module


def _check_settings(config: LanguageModelConfig, hf: PreTrainedModel) -> None:
    attention, dtype = hf.config._attn_implementation, str(hf.dtype).removeprefix("torch.")
    own = {"from_scratch": None, "layers": None, "revision": None, "dtype": dtype, "attn_implementation": attention}
    for name, value in own.items():
        if getattr(config, name) not in (None, value):
            raise ConfigError(
                f"lm.{name}: a model in memory is taken as it is ({name}: {value}), and not opened with other "
                "settings; leave it out"
            )


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "no task names"


def compress(
    run: str | Path,
    *,
    text: str | None = None,
    file: str | Path | None = None,
    demonstrations: Sequence[tuple[str, str]] | str | Path | None = None,
    task: str | None = None,
    slots: int | None = None,
    keep_text: bool = False,
    device: str = "auto",
) -> CompressedPrompt:
    """Compress one prompt with a trained run: `load_compressor(run).compress(...)`, which has the arguments in words.

    Raises:
        ConfigError: no such run, or a prompt that is empty, unreadable or too long.
    """
    compressor = Compressor.load(run, device=device)
    return compressor.compress(
        text, file=file, demonstrations=demonstrations, task=task, slots=slots, keep_text=keep_text
    )
