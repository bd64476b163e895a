"""Servers beside each other under load: one table and one picture of what `promptcomp bench --server` has measured.

    python benchmarks/server_loads.py OUT NAME=DIR [NAME=DIR ...]

DIR is a folder of `bench --server ... --rounds 1 -o DIR`. Measure the servers in turn, round by round, so that a change
of the machine's speed meets all of them, and give every round. OUT.json (for docs/results) and OUT.png are written.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from recorded import write

from promptcomp import plotting

WAYS = {"full": "full prompt", "cached": "cached", "compressed": "compressed"}
LINES = ("-", "--", ":")


def main() -> None:
    """Read the rounds, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("rounds", nargs="+", metavar="NAME=DIR")
    given = parser.parse_args()
    found: dict[tuple[str, str, int], list[tuple[float, float, int]]] = {}
    for each in given.rounds:
        name, _, folder = each.partition("=")
        for load in json.loads((Path(folder) / "load.json").read_text(encoding="utf-8"))["loads"]:
            one = load["requests_per_second"]["median"], load["first_token_ms"]["median"], load["failed"]
            found.setdefault((name, load["way"], load["concurrency"]), []).append(one)
    servers = list(dict.fromkeys(name for name, _, _ in found))
    places = sorted({place for _, _, place in found})
    rows = []
    for server in servers:
        for way, title in WAYS.items():
            for place in places:
                if runs := found.get((server, way, place)):
                    rates, firsts, failed = map(list, zip(*runs, strict=True))
                    rows.append({
                        "server": server, "in front of the question": title, "at a time": str(place),
                        "first token": f"{statistics.median(firsts) / 1000:.2f} s",
                        "requests/s": f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})",
                        "failed": str(sum(failed)),
                    })  # fmt: skip
    write(given.out.with_suffix(".json"), {}, rows)
    with plotting.drawing():
        figure, axes = plotting.panel(7, 4.5)
        for line, server in zip(LINES, servers, strict=False):
            for number, (way, title) in enumerate(WAYS.items()):
                runs_at = {place: found[server, way, place] for place in places if (server, way, place) in found}
                look: dict[str, Any] = {"color": plotting.COLOURS[number]}
                rates_at = {place: [rate for rate, _, _ in runs] for place, runs in runs_at.items()}
                axes.plot(
                    list(rates_at), [statistics.median(rates) for rates in rates_at.values()],
                    label=f"{title}, {server}", marker=plotting.MARKERS[number], linestyle=line, **look,
                )  # fmt: skip
                for place, rates in rates_at.items():
                    plotting.interval(axes, place, (min(rates), max(rates)), **look)
        axes.set_xscale("log", base=2)
        plotting.ticks_at(axes, {place: str(place) for place in places})
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests at a time")
        axes.set_ylabel("requests/s")
        axes.legend()
        plotting.save(figure, given.out.parent, given.out.stem)


if __name__ == "__main__":
    main()
