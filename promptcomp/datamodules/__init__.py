"""Data: one section of the configuration for each kind (without torch), and the datamodules that they build."""

from __future__ import annotations

from functools import cache

from promptcomp.datamodules.sections import DataConfig, TextConfig

DATASETS: dict[str, type[DataConfig]]
"""Data sections by the `name` that a configuration gives, those of installed packages included; collected when they are
first used, because such a package imports this one."""


def __getattr__(name: str) -> object:
    if name == "DATASETS":
        return _datasets()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _datasets() -> dict[str, type[DataConfig]]:
    from promptcomp.config import with_installed
    from promptcomp.datamodules import icl_config
    from promptcomp.datamodules.instruction import instruction_config
    from promptcomp.datamodules.rationale import rationale_config
    from promptcomp.toy import toy_sections

    own: tuple[type[DataConfig], ...] = (
        toy_sections.ToyICLData,
        icl_config.MetaICLData,
        icl_config.HFData,
        icl_config.TableData,
        instruction_config.AlpacaPlusData,
        instruction_config.InstructionsData,
        instruction_config.TaskFilesData,
        toy_sections.ToyInstructionsData,
        TextConfig,
        toy_sections.ToyRationaleData,
        rationale_config.RationaleFolderData,
        rationale_config.RationaleFilesData,
        rationale_config.RationaleHFData,
    )
    return with_installed("promptcomp.data", {str(s.model_fields["name"].default): s for s in own}, DataConfig)
