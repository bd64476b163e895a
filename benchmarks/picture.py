"""The picture of the README: how near an LM stays to itself behind the whole prompt, against the bytes that are kept.

Run: python benchmarks/picture.py. It reads docs/images/smollm2_cartridge.json (the figures of docs/results.md, with
their command) and writes the SVG beside it, which has a card of its own, dark where the reader's system is. The panels
stand one over the other, so that a phone shows it at a size that can be read.
"""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "docs" / "images" / "smollm2_cartridge.json"
PICTURE = DATA.with_suffix(".svg")

_STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de; } .grid { stroke: #d8dee4; } .axis { stroke: #6e7781; }
  text { fill: #1f2328; font: 16px system-ui, sans-serif; } .small { fill: #57606a; font-size: 14px; }
  .title { font-size: 17px; font-weight: 600; } line, path { fill: none; stroke-width: 2; }
  .grid, .axis { stroke-width: 1; } .none { stroke: #57606a; stroke-dasharray: 5 4; }
  .cartridge:not(.name) { stroke: #0550ae; } .dot.cartridge, .name.cartridge { fill: #0550ae; }
  .first:not(.name) { stroke: #953800; } .dot.first, .name.first { fill: #953800; }
  .full { fill: #1f2328; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d; } .grid { stroke: #262c36; } .axis { stroke: #8b949e; }
    text, .full { fill: #e6edf3; } .small { fill: #9da7b3; } .none { stroke: #9da7b3; }
    .cartridge:not(.name) { stroke: #79c0ff; } .dot.cartridge, .name.cartridge { fill: #79c0ff; }
    .first:not(.name) { stroke: #ffa657; } .dot.first, .name.first { fill: #ffa657; }
  }
"""
_WIDTH, _HEIGHT, _LEFT, _PANEL, _TALL = 480, 604, 62, 398, 160
_PANELS = (("top1", "same likeliest next token", 136), ("same_answer", "same answer, word for word", 350))
"""A measure, its name, and where its panel begins."""
_LINES = (("cartridge", "cartridge", "cartridge"), ("first tokens", "first", "its first tokens"))


def main() -> None:
    """Draw the picture from the recorded figures."""
    PICTURE.write_text(draw(json.loads(DATA.read_text(encoding="utf-8"))), encoding="utf-8")


def draw(found: dict[str, Any]) -> str:
    """The SVG of the recorded figures: one panel for each measure, bytes on a logarithmic axis."""
    per_token, tokens = found["bytes_per_token"], found["prompt_tokens"]
    title = f"A prompt of {tokens} tokens as a cartridge,", f"{found['lm']}: what stays the same?"
    questions = f"{found['held_out_questions']} held-out questions, greedy answers, one seed;"
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="t d">',
        f'<title id="t">{escape(" ".join(title))}</title><desc id="d">{escape(_words(found))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8"/>',
        *(f'<text class="title" x="18" y="{30 + 22 * line}">{escape(text)}</text>' for line, text in enumerate(title)),
        f'<text class="small" x="18" y="76">{questions}</text>',
        '<text class="small" x="18" y="95">keys and values in float32, logarithmic axis</text>',
    ]
    left = _LEFT
    for measure, name, top in _PANELS:
        bottom = top + _TALL

        def at(size: float, share: float, bottom: int = bottom) -> tuple[float, float]:
            low, high = math.log(3 * per_token), math.log(1500 * per_token)
            x = _LEFT + _PANEL * (math.log(size) - low) / (high - low)
            return round(x, 1), round(bottom - _TALL * share, 1)

        parts.append(f'<text x="{left}" y="{top - 12}">{name}</text>')
        for share in (0, 0.5, 1):
            y = at(per_token * 3, share)[1]
            parts.append(f'<line class="grid" x1="{left}" x2="{left + _PANEL}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="small" x="{left - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
        none = at(per_token * 3, found["no_context"][measure])[1]
        parts.append(f'<line class="none" x1="{left}" x2="{left + _PANEL}" y1="{none}" y2="{none}"/>')
        parts.append(f'<text class="small" x="{left + _PANEL - 4}" y="{none + 18 if none < bottom - 20 else none - 7}" '
                     'text-anchor="end">no prompt</text>')  # fmt: skip
        for what, style, label in _LINES:
            rows = sorted((row for row in found["rows"] if row["what"] == what), key=lambda row: row["slots"])
            points = [at(row["slots"] * per_token, row[measure]) for row in rows]
            parts.append(f'<path class="{style}" d="M{" L".join(f"{x} {y}" for x, y in points)}"/>')
            parts += [f'<circle class="dot {style}" cx="{x}" cy="{y}" r="4.5"/>' for x, y in points]
            x, y = points[1]
            parts.append(f'<text class="name {style}" x="{x}" y="{y + (26 if what == "cartridge" else -10)}" '
                         f'text-anchor="middle">{label}</text>')  # fmt: skip
        x, y = at(tokens * per_token, 1)
        parts.append(f'<rect class="full" x="{x - 5}" y="{y - 5}" width="10" height="10"/>')
        parts.append(f'<text x="{left + _PANEL}" y="{y + 26}" text-anchor="end">whole prompt</text>')
        for slots in (*sorted({row["slots"] for row in found["rows"]}), tokens):
            x = at(slots * per_token, 0)[0]
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 5}"/>')
            if top != _PANELS[-1][-1]:
                continue
            parts.append(f'<text class="small" x="{x}" y="{bottom + 22}" text-anchor="middle">'
                         f"{_size(slots * per_token)}</text>")  # fmt: skip
            parts.append(f'<text class="small" x="{x}" y="{bottom + 40}" text-anchor="middle">{slots} slots</text>'
                         .replace(f"{tokens} slots", f"{tokens} tokens"))  # fmt: skip
        parts.append(f'<line class="axis" x1="{left}" x2="{left + _PANEL}" y1="{bottom}" y2="{bottom}"/>')
    where = f"command, and what is not known: {found['section'].partition('#')[0]}"
    parts.append(f'<text class="small" x="18" y="{_HEIGHT - 16}">{where}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _size(count: float) -> str:
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _words(found: dict[str, Any]) -> str:
    """What the picture shows, in words."""
    rows = [row for row in found["rows"] if row["what"] == "cartridge"]
    said = [
        f"{row['slots']} slots ({_size(row['slots'] * found['bytes_per_token'])}): next token {row['top1']:.1%}, "
        f"whole answer {row['same_answer']:.0%}"
        for row in rows
    ]
    none = found["no_context"]
    return f"{'; '.join(said)}; no prompt: next token {none['top1']:.1%}, whole answer {none['same_answer']:.0%}."


if __name__ == "__main__":
    main()
