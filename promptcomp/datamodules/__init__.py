"""Data: one configuration section for each kind, and the datamodule that each section describes."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.base import ContextDataModule, ExampleInfo, ICLConfig
from promptcomp.datamodules.hub import HFData, HFSource
from promptcomp.datamodules.icl import ICLDataModule
from promptcomp.datamodules.instruction import InstructionDataModule
from promptcomp.datamodules.instruction_config import InstructionConfig
from promptcomp.datamodules.instruction_sources import AlpacaPlusData, HeldOutSource, InstructionsData
from promptcomp.datamodules.metaicl import MetaICLData, MetaICLSource
from promptcomp.datamodules.rationale import RationaleDataModule
from promptcomp.datamodules.rationale_config import RationaleConfig
from promptcomp.datamodules.rationale_sources import (
    FilesSource,
    FolderSource,
    HubSource,
    RationaleFilesData,
    RationaleFolderData,
    RationaleHFData,
)
from promptcomp.datamodules.records import Problem, tell_error
from promptcomp.datamodules.sampler import Draw, StepSampler
from promptcomp.datamodules.tables import TableData, TableSource
from promptcomp.datamodules.tasks import InstructionSource, RationaleSource, TaskSource
from promptcomp.datamodules.text import TextConfig, TextDataModule, load_texts
from promptcomp.datamodules.toy import ToySource
from promptcomp.datamodules.toy_sections import ToyICLData
from promptcomp.datamodules.toy_instruction_data import ToyInstructionsData
from promptcomp.datamodules.toy_instructions import ToyInstructionSource
from promptcomp.datamodules.toy_rationales import ToyRationaleData, ToyRationaleSource

DATASETS: dict[str, type[Config]] = {
    "toy_icl": ToyICLData,
    "metaicl": MetaICLData,
    "hf_icl": HFData,
    "table_icl": TableData,
    "alpaca_plus": AlpacaPlusData,
    "instructions": InstructionsData,
    "toy_instructions": ToyInstructionsData,
    "text": TextConfig,
    "toy_rationales": ToyRationaleData,
    "rationale_folder": RationaleFolderData,
    "rationale_files": RationaleFilesData,
    "rationale_hf": RationaleHFData,
}
"""Data sections by the `name` that a configuration gives."""


def build_source(config: ICLConfig) -> TaskSource:
    """The tasks that a section of in-context-learning data describes.

    Raises:
        ConfigError: files are missing or bad, or the section is of no known kind.
    """
    if isinstance(config, ToyICLData):
        return ToySource(config.world)
    if isinstance(config, MetaICLData):
        return MetaICLSource(config)
    if isinstance(config, HFData):
        return HFSource(config)
    if isinstance(config, TableData):
        return TableSource(config)
    raise ConfigError(f"data section {type(config).__name__} is not registered")


def build_instructions(config: InstructionConfig) -> InstructionSource:
    """The rows that a section of instruction data describes.

    Raises:
        ConfigError: files are missing, or the section is of no known kind.
    """
    if isinstance(config, ToyInstructionsData):
        return ToyInstructionSource(config.world)
    if isinstance(config, AlpacaPlusData | InstructionsData):
        return HeldOutSource(config)
    raise ConfigError(f"data section {type(config).__name__} is not registered")


def build_rationales(config: RationaleConfig) -> RationaleSource:
    """The rows that a section of rationale data describes.

    Raises:
        ConfigError: files are missing or bad, or the section is of no known kind.
    """
    if isinstance(config, ToyRationaleData):
        return ToyRationaleSource(config.world)
    if isinstance(config, RationaleFolderData):
        return FolderSource(config)
    if isinstance(config, RationaleFilesData):
        return FilesSource(config)
    if isinstance(config, RationaleHFData):
        return HubSource(config)
    raise ConfigError(f"data section {type(config).__name__} is not registered")


def file_problems(config: Config) -> list[Problem]:
    """What is wrong with the files alone, where another mistake keeps the section's datamodule from being made."""
    found: list[Problem] = []
    try:
        if isinstance(config, TextConfig):
            load_texts(config, found)
        elif isinstance(config, ICLConfig):
            build_source(config).check(found)
        elif isinstance(config, InstructionConfig):
            build_instructions(config).check(found)
        elif isinstance(config, RationaleConfig):
            build_rationales(config).check(found)
    except ConfigError as error:
        tell_error(error, found)
    return found


def build_datamodule(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    batch_size: int,
    window: int | None,
    query_in_encoder: bool = False,
    writes_bos: bool | None = None,
) -> ContextDataModule:
    """The datamodule that a data section describes.

    Args:
        config: One of the sections in `DATASETS`.
        tokenizer: The LM's tokenizer.
        seed: The run's seed.
        batch_size: Contexts of one micro-batch over all processes.
        window: Most positions the LM can read; None: no limit.
        query_in_encoder: Whether an encoder reads the queries (instruction data then closes them with EOS).
        writes_bos: Whether the LM puts BOS in front of a context; None: as the tokenizer itself does.

    Raises:
        ConfigError: files are missing or bad, or budgets do not fit the window.
    """
    if isinstance(config, TextConfig):
        return TextDataModule(config, tokenizer, seed=seed, batch_size=batch_size, window=window)
    if isinstance(config, ICLConfig):
        return ICLDataModule(config, build_source(config), tokenizer, seed=seed, batch_size=batch_size, window=window)
    if isinstance(config, InstructionConfig):
        return InstructionDataModule(
            config,
            build_instructions(config),
            tokenizer,
            seed=seed,
            batch_size=batch_size,
            window=window,
            query_in_encoder=query_in_encoder,
            writes_bos=writes_bos,
        )
    if isinstance(config, RationaleConfig):
        source = build_rationales(config)
        return RationaleDataModule(
            config,
            source,
            tokenizer,
            seed=seed,
            batch_size=batch_size,
            window=window,
            query_in_encoder=query_in_encoder,
        )
    raise ConfigError(f"data section {type(config).__name__} is not registered")


__all__ = [
    "DATASETS",
    "ContextDataModule",
    "Draw",
    "ExampleInfo",
    "ICLConfig",
    "ICLDataModule",
    "InstructionConfig",
    "InstructionDataModule",
    "RationaleConfig",
    "RationaleDataModule",
    "StepSampler",
    "TextDataModule",
    "build_datamodule",
    "build_instructions",
    "build_rationales",
    "build_source",
    "file_problems",
]
