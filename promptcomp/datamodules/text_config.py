"""The section of plain text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from promptcomp.datamodules.sections import DataConfig, Lengths, Reader
from promptcomp.datamodules.sources.records import Found

if TYPE_CHECKING:
    from promptcomp.datamodules.text import TextDataModule


class TextConfig(DataConfig):
    """Plain text, cut into pseudo-demonstrations and completions."""

    name: Literal["text"] = "text"
    paths: tuple[Path, ...] = ()
    """Files: .txt (documents between blank lines) or .jsonl, .json, .csv, .tsv, .parquet (one document a row)."""
    hub: str | None = None
    """A dataset of the Hugging Face hub, or a folder that `datasets` can load; instead of `paths`."""
    hub_config: str | None = None
    """Configuration of the hub's dataset ("en" of allenai/c4)."""
    hub_split: str = "validation"
    """Split of the hub's dataset (MEND uses C4's validation split)."""
    text_column: str = "text"
    """Column or key with the text."""
    context_share: float = Field(default=0.8, gt=0, lt=1)
    """Share of a document's tokens that becomes the context."""
    min_tokens: int = Field(default=16, ge=4)
    """Documents with fewer tokens are passed over."""
    max_tokens: int = Field(default=1024, ge=4)
    """Longer documents are cut on the right."""
    dev_documents: int = Field(default=64, ge=0)
    """Documents that are held out as the dev split (chosen by a fixed seed); 0 = no dev split."""

    @model_validator(mode="after")
    def _one_source(self) -> TextConfig:
        if bool(self.paths) == (self.hub is not None):
            raise ValueError("give either `paths` or `hub`")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is larger than max_tokens {self.max_tokens}")
        return self

    def build(self, reader: Reader) -> TextDataModule:
        """See the base class."""
        from promptcomp.datamodules.text import TextDataModule

        return TextDataModule(
            self, reader.tokenizer, seed=reader.seed, batch_size=reader.batch_size, window=reader.window
        )

    def check_files(self, found: Found) -> None:
        """See the base class."""
        from promptcomp.datamodules.text import load_texts

        load_texts(self, found)

    def lengths(self, window: int | None) -> Lengths:
        """The longest document."""
        context = round(self.context_share * self.max_tokens)
        return Lengths(context, self.max_tokens - context, self.max_tokens - context)
