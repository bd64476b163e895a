"""Tables over finished runs (no torch is imported)."""

from promptcomp.compare.comparison import Comparison, Row, SeedMean, SplitComparison, compare
from promptcomp.compare.tables import FORMATS, print_comparison, to_csv, to_json, to_markdown

__all__ = [
    "FORMATS",
    "Comparison",
    "Row",
    "SeedMean",
    "SplitComparison",
    "compare",
    "print_comparison",
    "to_csv",
    "to_json",
    "to_markdown",
]
