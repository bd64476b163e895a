"""The drawings of docs/concepts.md: what each method trains, what it reads, and what stays of the prompt.

Run: python benchmarks/drawings.py. A drawing is a list of rows of boxes, in the style of the README's picture, on a
card of its own that is dark where the reader's system is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "methods"

_STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de; } text { fill: #1f2328; font: 14px system-ui, sans-serif; }
  .small { fill: #57606a; font-size: 13px; } .title { font-size: 15px; font-weight: 600; }
  .box { fill: #f6f8fa; stroke: #6e7781; } .trained { fill: #ddf4ff; stroke: #0550ae; stroke-width: 2; }
  .slot { fill: #fff1e5; stroke: #953800; stroke-width: 2; }
  .frozen { fill: #f6f8fa; stroke: #6e7781; stroke-dasharray: 5 4; }
  .arrow { stroke: #57606a; stroke-width: 2; fill: none; } .head { fill: #57606a; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d; } text { fill: #e6edf3; } .small { fill: #9da7b3; }
    .box { fill: #161b22; stroke: #8b949e; } .trained { fill: #0c2d6b; stroke: #79c0ff; }
    .slot { fill: #4d2400; stroke: #ffa657; } .frozen { fill: #161b22; stroke: #8b949e; }
    .arrow { stroke: #9da7b3; } .head { fill: #9da7b3; }
  }
"""
_WIDTH, _HIGH, _TOP, _ROW = 640, 40, 62, 62


@dataclass(frozen=True)
class Drawing:
    """Rows of parts: "text", "slot:text", "trained:text", "frozen:text", or ">" for an arrow."""

    title: str
    text: str
    rows: tuple[tuple[str, ...], ...]


DRAWINGS = {
    "gist": Drawing(
        "Gist tokens",
        "The LM reads the prompt and then gist tokens. The query and the answer see the gist tokens and never the"
        " prompt; the keys and values at the gist tokens are what is kept. The LM, or adapters of it, is trained.",
        (
            ("prompt", "slot:gist tokens", ">", "trained:LM", ">", "slot:keys, values"),
            ("slot:keys, values", "query", ">", "trained:the same LM", ">", "answer"),
        ),
    ),
    "mend": Drawing(
        "MEND",
        "A distiller LM reads the demonstrations and slot embeddings; its states become vectors. The frozen LM "
        "reads the vectors in place of the demonstrations. Distiller, slot embeddings and projection are trained.",
        (
            ("demonstrations", "trained:slots", ">", "trained:distiller", ">", "slot:vectors"),
            ("slot:vectors", "query", ">", "frozen:LM, frozen", ">", "answer"),
        ),
    ),
    "step_by_step": Drawing(
        "Distilling step-by-step",
        "A teacher writes a label and a rationale for each question. A small student learns both as two tasks. "
        "When it is used it writes the label alone: no teacher, no long prompt, no rationale.",
        (
            ("few-shot prompt", "question", ">", "frozen:teacher", ">", "label, rationale"),
            ("question", ">", "trained:small student", ">", "label and rationale"),
            ("question", ">", "trained:small student", ">", "label"),
        ),
    ),
    "pool": Drawing(
        "Mean pooling",
        "An encoder, the LM with adapters, reads the context. Means of its states over equal spans, projected, "
        "are vectors for the LM without adapters. Adapters and projection are trained.",
        (
            ("context", ">", "trained:LM + adapters", ">", "means of spans", ">", "slot:vectors"),
            ("slot:vectors", "query", ">", "frozen:LM, frozen", ">", "answer"),
        ),
    ),
    "icae": Drawing(
        "ICAE and 500xCompressor",
        "The LM with adapters reads the context and trained memory tokens. Its final states at these tokens "
        "(ICAE), or their keys and values in every layer (500xCompressor), stand for the context in front of the "
        "LM without adapters.",
        (
            ("context", "trained:memory tokens", ">", "trained:LM + adapters", ">", "slot:memory"),
            ("slot:memory", "query", ">", "frozen:LM, frozen", ">", "answer"),
        ),
    ),
    "autocompressor": Drawing(
        "AutoCompressor",
        "The LM reads a context in segments. Behind each segment its states at summary tokens are vectors, which "
        "stand in front of all that it reads later. The LM, or adapters of it, and the summary tokens are "
        "trained.",
        (
            ("segment 1", "trained:summary tokens", ">", "trained:LM", ">", "slot:s1"),
            ("slot:s1", "segment 2", "trained:summary tokens", ">", "trained:LM", ">", "slot:s2"),
            ("slot:s1", "slot:s2", "query", ">", "trained:the same LM", ">", "answer"),
        ),
    ),
    "cartridge": Drawing(
        "Cartridge",
        "For one prompt alone: slots of keys and values are trained until the frozen LM answers questions behind "
        "them as it does behind the whole prompt. Nothing else is trained, and there is no compressor.",
        (
            ("whole prompt", "question", ">", "frozen:LM, frozen", ">", "its prediction"),
            ("slot:trained slots", "question", ">", "frozen:LM, frozen", ">", "the same, by KL"),
        ),
    ),
}


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, drawing in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw(drawing), encoding="utf-8")


def draw(drawing: Drawing) -> str:
    """The SVG: a row of boxes below each other; what is trained, what is kept and what is frozen have a colour each."""
    high = _TOP + _ROW * len(drawing.rows) + 22
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {high}" role="img" aria-labelledby="t d">',
        f'<title id="t">{escape(drawing.title)}</title><desc id="d">{escape(drawing.text)}</desc>',
        f'<style>{_STYLE}</style><rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{high - 1}" rx="8"/>',
        f'<text class="title" x="20" y="34">{escape(drawing.title)}</text>',
    ]
    for i, row in enumerate(drawing.rows):
        parts += _row(row, _TOP + i * _ROW)
    legend = (("trained", "trained"), ("slot", "kept of the prompt"), ("frozen", "frozen"))
    x = 20.0
    for kind, name in legend:
        parts.append(f'<rect class="{kind}" x="{x}" y="{high - 25}" width="14" height="12" rx="3"/>')
        parts.append(f'<text class="small" x="{x + 20}" y="{high - 14}">{name}</text>')
        x += 52 + 7 * len(name)
    return "\n".join([*parts, "</svg>\n"])


def _row(row: tuple[str, ...], y: float) -> Iterator[str]:
    """Boxes as wide as their words, arrows between them, over the whole width."""
    arrow, gap = 34.0, 6.0
    boxes = [part for part in row if part != ">"]
    free = _WIDTH - 40 - arrow * row.count(">") - gap * (len(row) - 1)
    letters = [max(len(part.rpartition(":")[2]), 3) + 3 for part in boxes]
    widths = iter(free * each / sum(letters) for each in letters)
    x = 20.0
    for part in row:
        if part == ">":
            middle = y + _HIGH / 2
            yield f'<path class="arrow" d="M{x + 3:.0f} {middle}H{x + arrow - 11:.0f}"/>'
            yield f'<path class="head" d="M{x + arrow - 3:.0f} {middle}l-10 -6v12z"/>'
            x += arrow + gap
            continue
        kind, _, text = part.rpartition(":")
        width = next(widths)
        yield f'<rect class="{kind or "box"}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_HIGH}" rx="5"/>'
        yield f'<text x="{x + width / 2:.1f}" y="{y + 25}" text-anchor="middle">{escape(text)}</text>'
        x += width + gap


if __name__ == "__main__":
    main()
