"""A trained run as files for others: a Hugging Face model, adapters and prompts for peft, tensors by name."""

from pathlib import Path

from promptcomp.errors import ConfigError
from promptcomp.experiment import Experiment
from promptcomp.files import check_empty
from promptcomp.lightning_modules.method_config import ExportFormat
from promptcomp.run.configured import trained_experiment


def export_format(path: Path, folder: Path, wanted: ExportFormat | None) -> tuple[Experiment, ExportFormat]:
    """The configuration of a run that is to be exported, and the format; a mistake is told before torch is imported.

    Args: see `promptcomp.exports.export.export`.

    Raises:
        ConfigError: no run, no trained weights, `folder` holds something, or the method does not allow the format.
    """
    experiment = trained_experiment(path)
    formats = experiment.method.export_formats
    if not formats:
        raise ConfigError(f"method {experiment.method.name} has trained nothing that could be exported")
    chosen = wanted or formats[0]
    if chosen not in formats:
        raise ConfigError(
            f"method {experiment.method.name} as it was trained cannot be exported as {chosen!r}; "
            f"use --format {formats[0]}" + (f" or {formats[1]}" if len(formats) > 1 else "")
        )
    check_empty(folder)
    return experiment, chosen
