"""Cartridges of documents by self-study, and their rivals: how near an LM stays to itself behind the document.

Run: python benchmarks/documents.py WORK --lm smollm2. The documents are the descriptions of packages that promptcomp's
installation brings along (their versions are in the figures). The LM asks itself 128 questions about each; a quarter of
them is held out. WORK keeps all that is finished: a run that was stopped goes on, and other documents (--packages) or
budgets (--shares) may be made later. WORK/documents.json gets the figures of all documents that are there; printed are
their medians. docs/results/documents.json is such a file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from cartridge_tables import Text, make, report

from promptcomp.language_model import LanguageModelConfig
from promptcomp.language_model.loading import open_tokenizer

PACKAGES = ("filelock", "Jinja2", "packaging", "networkx", "joblib", "SQLAlchemy", "fsspec", "markdown-it-py")
"""Chosen before any was tried, for their lengths: about 360 to 1,730 tokens of SmolLM2."""
SECTION = "docs/results.md#real-models-cartridges-of-documents"
BESIDE = ("first half", "first quarter")


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--lm", default="smollm2")
    parser.add_argument("--packages", nargs="*", default=PACKAGES)
    parser.add_argument("--shares", nargs="*", type=int, default=(8, 16, 64), help="one slot for so many tokens")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", default="float32", help="of the LM's weights: float32, or bfloat16")
    given = parser.parse_args()
    tokenizer = open_tokenizer(LanguageModelConfig(path=given.lm)) if given.packages else None
    texts = (document(package, tokenizer, given.shares) for package in given.packages)
    make(texts, given.work, given.lm, "document", steps=given.steps, dtype=given.dtype)
    report(given.work, "documents", given, SECTION, "document", "document", BESIDE)


def document(package: str, tokenizer: Any, shares: Sequence[int]) -> Text:
    """A package's description, its first half and quarter, and a budget for each share."""
    found = distribution(package)
    whole = str(found.metadata.get_payload() or found.metadata["Description"]).strip()
    starts = tokenizer(whole, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    cut = {name: whole[: starts[len(starts) // part][0]] for name, part in zip(BESIDE, (2, 4), strict=True)}
    budgets = {f"1/{share}": max(2, len(starts) // share) for share in shares}
    return Text(f"{package} {found.version}", whole, budgets, cut)


if __name__ == "__main__":
    main()
