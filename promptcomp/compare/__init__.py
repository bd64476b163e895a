"""Tables over finished runs (no torch is imported)."""

from promptcomp.compare.comparison import Comparison, Row, SeedMean, SplitComparison, compare_runs
from promptcomp.compare.tables import FORMATS, print_comparison, render

__all__ = ["FORMATS", "Comparison", "Row", "SeedMean", "SplitComparison", "compare_runs", "print_comparison", "render"]
