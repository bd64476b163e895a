"""The value of an arithmetic expression that a model wrote, found without running anything.

The original (google-research/distilling-step-by-step) gives such text to Python's `eval`. Here it is parsed, and only
numbers, + - * /, signs and brackets are computed, within limits on length and depth.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence

MAX_LENGTH = 500
"""Characters; longer text is no equation."""
MAX_DEPTH = 50
TOLERANCE = 1e-6
"""Relative difference of two equal values."""

_CHARACTERS = re.compile(r"[0-9eE._+\-*/()\s]*", re.ASCII)
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value_of(text: str) -> float | int | None:
    """The value of an expression of numbers, + - * /, signs and brackets; None if it is anything else."""
    if len(text) > MAX_LENGTH or not _CHARACTERS.fullmatch(text):
        return None
    try:
        found = _value(ast.parse(text.strip(), mode="eval").body, 0)
        return found if math.isfinite(found) else None
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, MemoryError, RecursionError):
        return None


def _value(node: ast.expr, depth: int) -> float | int:
    """
    Raises:
        ValueError: a part that is not arithmetic, or too deep.
    """
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, depth + 1), _value(node.right, depth + 1))
    raise ValueError("not arithmetic")


def same_value(one: str, other: str, tolerance: float = TOLERANCE) -> bool:
    """Whether two expressions have the same value; what has no value equals nothing.

    Args:
        one: An expression.
        other: Another one.
        tolerance: Relative difference that is allowed; 0: none (the original).
    """
    values = value_of(one), value_of(other)
    if values[0] is None or values[1] is None:
        return False
    return math.isclose(values[0], values[1], rel_tol=tolerance, abs_tol=0.0)


def equation_accuracy(predictions: Sequence[str], labels: Sequence[str], tolerance: float = TOLERANCE) -> float:
    """Share of predictions with the value of their label; 0 for none."""
    pairs = list(zip(predictions, labels, strict=True))
    return sum(same_value(one, other, tolerance) for one, other in pairs) / len(pairs) if pairs else 0.0


def text_accuracy(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Share of predictions equal to their label, character by character (the original); 0 for none."""
    pairs = list(zip(predictions, labels, strict=True))
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else 0.0
