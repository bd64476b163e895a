"""Files of docs/results: a table as data, a line for each row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(file: Path, head: dict[str, Any], rows: Sequence[dict[str, str]], **more: Sequence[dict[str, Any]]) -> None:
    """Write a table, what is known of it, and further lists; the table is printed as Markdown too."""
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    parts += [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in found) + "\n ]"
        for name, found in {"rows": rows, **more}.items()
    ]
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    lines = [f"| {' | '.join(line)} |" for line in (rows[0], *(row.values() for row in rows))]
    print("\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]))
