"""Tables over finished runs (no torch is imported)."""

from promptcomp.comparing.comparison import Comparison, Row, SeedMean, SplitComparison, compare
from promptcomp.comparing.comparison_table import FORMATS, print_comparison

__all__ = ["FORMATS", "Comparison", "Row", "SeedMean", "SplitComparison", "compare", "print_comparison"]
