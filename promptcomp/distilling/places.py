"""The files of a cartridge, looked at before anything heavy is imported: text, questions, outputs, work folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptcomp.config import ConfigError, build
from promptcomp.distilling.work_folder import WorkFolder
from promptcomp.language_model import LanguageModelConfig
from promptcomp.prompts.sources import read_queries, read_source

if TYPE_CHECKING:
    from promptcomp.distilling.distill_job import Distilled


class DistillPlaces:
    """What is read and written.

    Args:
        text: file of the prompt.
        output: file of the cartridge; of several, each has its number of slots in the name.
        questions: file of the user's questions; None: self-study.
        work: folder; None: beside the output.
        budgets: numbers of slots.
        force: replace an output that was made by somebody else.

    Raises:
        ConfigError: text or questions are missing, empty or not UTF-8.
    """

    def __init__(
        self, text: Path, output: Path, questions: Path | None, work: Path | None, budgets: Sequence[int], force: bool
    ) -> None:
        self.text = read_source(file=text).text
        if not self.text.strip():
            raise ConfigError(f"{text}: is empty or only white space; there is nothing to distill")
        self.questions = None if questions is None else [query.text for query in read_queries(questions)]
        several = len(budgets) > 1
        self.outputs = {k: output.with_stem(f"{output.stem}-{k}") if several else output for k in budgets}
        if not output.parent.is_dir():
            raise ConfigError(f"{output}: the folder {output.parent} does not exist; make it first")
        self.folder = WorkFolder(output.with_suffix(".distill") if work is None else work)
        self._force = force

    @staticmethod
    def lm(path: str, dtype: str) -> LanguageModelConfig:
        """The section of the LM.

        Raises:
            ConfigError: there is none of this name, or the dtype is unknown.
        """
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"--dtype {dtype!r} is not known; choose float32 or bfloat16")
        config = build(LanguageModelConfig, {"path": path, "dtype": dtype}, source="--lm")
        config.check_place()
        return config

    def check(self) -> None:
        """
        Raises:
            ConfigError: an output cannot be written, or is there already and was not made from this work folder.
        """
        for output in self.outputs.values():
            self.folder.check_output(output, self._force)

    def write(self, slots: int, found: Distilled) -> None:
        """Write a cartridge, whether it is finished or not."""
        found.prompt.save(self.outputs[slots], force=True)
        self.folder.wrote(self.outputs[slots])
