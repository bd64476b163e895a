"""The picture of the README: how near an LM stays to itself behind the whole prompt, against the bytes that are kept.

Run: python benchmarks/picture.py. It reads docs/results/task_prompts.json (the figures of docs/results.md, with their
command) and writes docs/images/task_prompts.svg, which has a card of its own, dark where the reader's system is. The
panels stand one over the other, so that a phone shows it at a size that can be read. What is farther from the whole
prompt than no prompt stands at 0.
"""

from __future__ import annotations

import json
import math
import statistics
from html import escape
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "docs" / "results" / "task_prompts.json"
PICTURE = DATA.parents[1] / "images" / "task_prompts.svg"

_STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de; } .grid { stroke: #d8dee4; } .axis { stroke: #6e7781; }
  text { fill: #1f2328; font: 16px system-ui, sans-serif; } .small { fill: #57606a; font-size: 14px; }
  .title { font-size: 17px; font-weight: 600; } line, path { fill: none; stroke-width: 2; }
  .grid, .axis { stroke-width: 1; }
  .cartridge:not(.name) { stroke: #0550ae; } .dot.cartridge, .name.cartridge { fill: #0550ae; }
  path.range { fill: #0550ae; fill-opacity: 0.15; stroke: none; }
  .rival:not(.name) { stroke: #953800; } .dot.rival, .name.rival { fill: #953800; }
  .text:not(.name) { stroke: #57606a; } .dot.text, .name.text { fill: #57606a; }
  .full { fill: #1f2328; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d; } .grid { stroke: #262c36; } .axis { stroke: #8b949e; }
    text, .full { fill: #e6edf3; } .small { fill: #9da7b3; }
    .cartridge:not(.name) { stroke: #79c0ff; } .dot.cartridge, .name.cartridge { fill: #79c0ff; }
    path.range { fill: #79c0ff; fill-opacity: 0.2; }
    .rival:not(.name) { stroke: #ffa657; } .dot.rival, .name.rival { fill: #ffa657; }
    .text:not(.name) { stroke: #9da7b3; } .dot.text, .name.text { fill: #9da7b3; }
  }
"""
_WIDTH, _HEIGHT, _LEFT, _PANEL, _TALL = 480, 656, 62, 398, 186
_PANELS = (
    ("gap_closed", "distance to the whole prompt closed (KL)", 120),
    ("exact", "same answer, word for word", 364),
)
"""A measure, its name, and where its panel begins."""
_LINES = (
    ("cartridge", "cartridge", "cartridge"),
    ("attention matching without biases", "rival", "attention matching"),
    ("evicted cache (kvzip)", "rival", "evicted cache"),
    ("last tokens", "text", "its last tokens"),
)
"""What is kept at each number of slots: a row of the figures, its style, and its name."""
_POINTS = (("quantised cache (4 bits)", "4 bits"), ("one shot", "1 shot"), ("two shots", "2 shots"))


def main() -> None:
    """Draw the picture from the recorded figures."""
    PICTURE.write_text(draw(json.loads(DATA.read_text(encoding="utf-8"))), encoding="utf-8")


def draw(found: dict[str, Any]) -> str:
    """The SVG of the recorded figures: one panel for each measure, medians, bytes on a logarithmic axis."""
    figures: list[dict[str, Any]] = found["figures"]
    budgets = sorted({row["slots"] for row in figures})
    whole = _median(figures, "the whole text", "bytes", budgets[-1])
    prompts = len({row["task"] for row in figures})
    title = f"{prompts} task prompts as cartridges:", f"what {found['lm'].partition(',')[0]} keeps of them"
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="t d">',
        f'<title id="t">{escape(" ".join(title))}</title><desc id="d">{escape(_words(figures, budgets))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8"/>',
        *(f'<text class="title" x="18" y="{30 + 22 * line}">{escape(text)}</text>' for line, text in enumerate(title)),
        '<text class="small" x="18" y="76">medians and range of the prompts, held-out questions, one seed</text>',
    ]
    left = _LEFT
    low, high = math.log(_bytes(figures, budgets[0]) / 1.5), math.log(whole * 1.4)
    for measure, name, top in _PANELS:
        bottom = top + _TALL

        def at(size: float, share: float, bottom: int = bottom) -> tuple[float, float]:
            x = _LEFT + _PANEL * (math.log(size) - low) / (high - low)
            return round(x, 1), round(bottom - _TALL * max(share, 0), 1)

        parts.append(f'<text x="{left}" y="{top - 12}">{name}</text>')
        for share in (0, 0.25, 0.5, 0.75, 1):
            y = at(whole, share)[1]
            parts.append(f'<line class="grid" x1="{left}" x2="{left + _PANEL}" y1="{y}" y2="{y}"/>')
            if share in (0, 0.5, 1):
                parts.append(f'<text class="small" x="{left - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
        edges = [
            at(_bytes(figures, slots), edge(_all(figures, "cartridge", measure, slots)))
            for edge, order in ((max, budgets), (min, budgets[::-1]))
            for slots in order
        ]
        parts.append(f'<path class="range" d="M{" L".join(f"{x} {y}" for x, y in edges)} Z"/>')
        names: list[tuple[float, float, str, str]] = []
        for what, style, label in _LINES:
            points = [at(_bytes(figures, slots), _median(figures, what, measure, slots)) for slots in budgets]
            parts.append(f'<path class="{style}" d="M{" L".join(f"{x} {y}" for x, y in points)}"/>')
            parts += [f'<circle class="dot {style}" cx="{x}" cy="{y}" r="4.5"/>' for x, y in points]
            names.append((points[-1][1] + 5, points[-1][0] + 10, style, label))
        x, y = at(_bytes(figures, budgets[1]), _median(figures, "cartridge", measure, budgets[1]))
        parts.append(f'<text class="name cartridge" x="{x}" y="{y + 28}" text-anchor="middle">cartridge</text>')
        lowest = 0.0
        for y, x, style, label in sorted(names[1:]) if measure == "gap_closed" else ():
            lowest = max(y, lowest + 17)  # names do not cover each other
            parts.append(f'<text class="name {style}" x="{x}" y="{lowest}">{label}</text>')
        for what, label in _POINTS:
            x, y = at(*(_median(figures, what, key, budgets[-1]) for key in ("bytes", measure)))
            parts.append(f'<circle class="dot text" cx="{x}" cy="{y}" r="4.5"/>')
            below = 22 if y < bottom - 25 else -10
            parts.append(f'<text class="small" x="{x}" y="{y + below}" text-anchor="middle">{label}</text>')
        if all(name[0] >= bottom for name in names[1:]):
            parts.append(f'<text class="small" x="{left + 8}" y="{bottom - 12}">the other three: no answer</text>')
        x, y = at(whole, 1)
        parts.append(f'<rect class="full" x="{x - 5}" y="{y - 5}" width="10" height="10"/>')
        for slots in (*budgets, None):
            size_ = whole if slots is None else _bytes(figures, slots)
            x = at(size_, 0)[0]
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 5}"/>')
            if top == _PANELS[-1][-1]:
                for line, text in enumerate((_size(size_), "whole" if slots is None else f"{slots} slots")):
                    parts.append(
                        f'<text class="small" x="{x}" y="{bottom + 22 + 18 * line}" text-anchor="middle">{text}</text>'
                    )
        parts.append(f'<line class="axis" x1="{left}" x2="{left + _PANEL}" y1="{bottom}" y2="{bottom}"/>')
    where = f"command, and what is not known: {found['section'].partition('#')[0]}"
    parts.append(f'<text class="small" x="18" y="{_HEIGHT - 38}">keys and values in float32, logarithmic axis</text>')
    parts.append(f'<text class="small" x="18" y="{_HEIGHT - 16}">{where}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _all(figures: list[dict[str, Any]], what: str, key: str, slots: int) -> list[float]:
    return [row[key] for row in figures if (row["what"], row["slots"]) == (what, slots)]


def _median(figures: list[dict[str, Any]], what: str, key: str, slots: int) -> float:
    return statistics.median(_all(figures, what, key, slots))


def _bytes(figures: list[dict[str, Any]], slots: int) -> float:
    return _median(figures, "cartridge", "bytes", slots)


def _size(count: float) -> str:
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _words(figures: list[dict[str, Any]], budgets: list[int]) -> str:
    """What the picture shows, in words."""
    said = []
    for slots in budgets:
        gap, exact = (_median(figures, "cartridge", key, slots) for key in ("gap_closed", "exact"))
        said.append(
            f"{slots} slots ({_size(_bytes(figures, slots))}): {gap:.3f} of the distance, {exact:.0%} of answers"
        )
    return f"Medians of cartridges: {'; '.join(said)}."


if __name__ == "__main__":
    main()
