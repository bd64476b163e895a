"""The methods by name. Sections and registry need no torch; modules are imported when they are made."""

from typing import TYPE_CHECKING

from promptcomp.config import with_installed
from promptcomp.lightning_modules.autocompressor_config import AutocompressorConfig
from promptcomp.lightning_modules.controls_config import (
    FullPromptConfig,
    MetaICLConfig,
    NoPromptConfig,
    PromptTuningConfig,
)
from promptcomp.lightning_modules.encoder_config import IcaeConfig, PoolConfig
from promptcomp.lightning_modules.gist_config import GistConfig
from promptcomp.lightning_modules.mend_config import MendConfig
from promptcomp.lightning_modules.method_config import MethodConfig, OptimConfig
from promptcomp.lightning_modules.step_by_step_config import FinetuneConfig, StepByStepConfig

__all__ = ["METHODS", "MethodConfig", "OptimConfig"]

_OWN: tuple[type[MethodConfig], ...] = (
    MendConfig,
    GistConfig,
    PoolConfig,
    IcaeConfig,
    AutocompressorConfig,
    FullPromptConfig,
    NoPromptConfig,
    PromptTuningConfig,
    MetaICLConfig,
    StepByStepConfig,
    FinetuneConfig,
)
if TYPE_CHECKING:
    METHODS: dict[str, type[MethodConfig]]
    """The section of every method, also of other installed packages, by its name."""


def __getattr__(name: str) -> dict[str, type[MethodConfig]]:
    """The registry is filled when it is first asked for, as sections of other packages import files of this one."""
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    own = {each.model_fields["name"].default: each for each in _OWN}
    return globals().setdefault(name, with_installed("promptcomp.methods", own, MethodConfig))
