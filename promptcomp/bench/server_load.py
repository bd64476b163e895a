"""A server under load: time to first token, tokens/s and requests/s behind the full prompt, cached and compressed."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from promptcomp import __version__, plotting
from promptcomp.bench import BenchPlan, LoadPlan
from promptcomp.bench.measurements import Spread
from promptcomp.chat.client import Endpoint
from promptcomp.chat.replies import shorten
from promptcomp.config import ConfigError
from promptcomp.documents import read_json
from promptcomp.errors import first_line
from promptcomp.evaluation.formatting import many, ms_text
from promptcomp.files import read_text, write_atomic
from promptcomp.plain import csv_text, say, telling
from promptcomp.terminal import open_table

Way = Literal["full", "cached", "compressed"]
WAYS: dict[Way, str] = {"full": "full prompt", "cached": "cached", "compressed": "compressed"}
"""Titles: the text begins anew with every request; it is always the same, or kept by the server; its slots."""
QUERY = "What matters most in this?"
"""Where no queries are given."""
_PLACE = "{input}"
_SHOWN = 3
"""Kinds of failures of one load that are shown, the most frequent ones."""
_PATIENCE = 600
"""Seconds without a word from the server after which a request has failed."""
Body = dict[str, Any]


@dataclass(slots=True)
class TimedReply:
    """What became of one request."""

    first: float = 0.0
    """Seconds to its first token."""
    tokens: int = 0
    error: str = ""


@dataclass(slots=True)
class Load:
    """One way at so many requests at a time."""

    way: Way
    concurrency: int
    first_token_ms: Spread
    """Over all requests."""
    tokens_per_second: Spread
    """Of all answers, over the rounds."""
    requests_per_second: Spread
    tokens: float
    """Mean of an answer."""
    failed: int = 0


@dataclass(slots=True)
class ServerBench:
    """All loads of one server."""

    server: str
    model: str
    requests: int
    rounds: int
    new_tokens: int
    version: str = __version__
    loads: list[Load] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """How many requests have failed, which no figure counts, and what the server said."""


def requests_of(load: LoadPlan, new_tokens: int) -> dict[Way, Callable[[str], Body]]:
    """The ways that were asked for: each gives the request of a query.

    Raises:
        ConfigError: a file cannot be read, or a request has no place for the query.
    """
    common = {"max_tokens": new_tokens, "temperature": 0} | ({"ignore_eos": True} if load.ignore_eos else {})

    def asked(model: str, text: Callable[[], str] | None = None) -> Callable[[str], Body]:
        def body(query: str) -> Body:
            front = "" if text is None else text()
            if load.completions:
                return {**common, "model": model, "prompt": f"{front}{query}"}
            turns = [{"role": "system", "content": front}] if front else []
            return {**common, "model": model, "messages": [*turns, {"role": "user", "content": query}]}

        return body

    ways: dict[Way, Callable[[str], Body]] = {}
    if load.text is not None:
        content = read_text(load.text, "prompt")
        ways["full"] = asked(str(load.model), lambda: f"[{uuid.uuid4().hex[:8]}] {content}")
        ways["cached"] = asked(str(load.model), lambda: content)
    if load.cached is not None:
        ways["cached"] = asked(load.cached)
    if load.compressed is not None and load.compressed.endswith(".json"):
        tree = read_json(Path(load.compressed), "request")
        if _PLACE not in json.dumps(tree):
            raise ConfigError(f"{load.compressed}: has no {_PLACE}, where the query goes")
        if not isinstance(tree, dict) or not isinstance(tree.get("model"), str) or not {"prompt", "messages"} & {*tree}:
            raise ConfigError(f"{load.compressed}: is no request; it has a model, and a prompt or messages")
        ways["compressed"] = lambda query: {**_filled(tree, query), **common}
    elif load.compressed is not None:
        ways["compressed"] = asked(load.compressed)
    return ways


def _filled(value: Any, query: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, query) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, query) for each in value]
    return value.replace(_PLACE, query) if isinstance(value, str) else value


def _client(endpoint: Endpoint) -> Any:
    """The openai package's client of a server.

    Raises:
        ConfigError: the openai package is not installed.
    """
    try:
        import openai
    except ImportError:
        raise ConfigError("a server is asked with the openai package; pip install 'promptcomp[api]'") from None
    key = endpoint.key() or "none"
    return openai.AsyncOpenAI(api_key=key, base_url=endpoint.url, max_retries=0, timeout=_PATIENCE)


async def _ask(client: Any, body: Body) -> TimedReply:
    """One request, to its end."""
    start, reply, rest = time.perf_counter(), TimedReply(), dict(body)
    what = "messages" if "messages" in body else "prompt"
    kind = client.chat.completions if what == "messages" else client.completions
    said: Any = {what: rest.pop(what, ""), "model": rest.pop("model")}
    try:
        pieces = 0
        stream = await kind.create(**said, stream=True, stream_options={"include_usage": True}, extra_body=rest)
        async for piece in stream:
            if piece.choices:
                reply.first = reply.first or time.perf_counter() - start
                pieces += 1
            if piece.usage is not None:
                reply.tokens = piece.usage.completion_tokens
        reply.tokens = reply.tokens or pieces
        if not pieces:
            reply.error = "the stream has no piece of an answer"
    except Exception as error:  # openai passes on those of its HTTP library (httpx or httpx2) and of JSON
        reply.error = shorten(first_line(error))
        if "Timeout" in type(error).__name__:
            reply.error = f"nothing came from it for {_PATIENCE} seconds"
    return reply


async def _ask_all(client: Any, bodies: Sequence[Body], concurrency: int) -> tuple[list[TimedReply], float]:
    """The replies, and the seconds that they took, with so many requests at any time."""
    left, found = iter(bodies), list[TimedReply]()

    async def place() -> None:
        for body in left:
            found.append(await _ask(client, body))

    start = time.perf_counter()
    await asyncio.gather(*(place() for _ in range(concurrency)))
    return found, time.perf_counter() - start


_Rounds = dict[tuple[Way, int], list[tuple[list[TimedReply], float]]]
"""By way and requests at a time: of each round the replies, and the seconds that they took."""


async def _measure(
    endpoint: Endpoint,
    load: LoadPlan,
    ways: dict[Way, Callable[[str], Body]],
    queries: Sequence[str],
    rounds: _Rounds,
    on_point: Callable[[str], None],
) -> None:
    """Add to `rounds` what is found, measurement by measurement."""
    order = random.Random(0)
    async with _client(endpoint) as client:
        for way, body in ways.items():
            if error := (await _ask(client, body(queries[0]))).error:  # this one also fills the server's caches
                raise ConfigError(f"{endpoint.url}: refuses the {WAYS[way]}: {error}")
        for number in range(load.rounds):
            for way, places in order.sample(list(rounds), len(rounds)):
                on_point(f"round {number + 1} of {load.rounds}: {WAYS[way]}, {places} at a time")
                count = max(load.requests, places)
                bodies = [ways[way](queries[i % len(queries)]) for i in range(count)]
                rounds[way, places].append(await _ask_all(client, bodies, places))


def _sum_up(rounds: _Rounds, bench: ServerBench) -> None:
    """
    Raises:
        ConfigError: all requests have failed.
    """
    for (way, places), measured in rounds.items():
        replies = [reply for found, _ in measured for reply in found]
        good = [reply for reply in replies if not reply.error]
        for error, count in Counter(reply.error for reply in replies if reply.error).most_common(_SHOWN):
            failed = f"{count} of {many(len(replies), 'request')} failed"
            bench.errors.append(f"{WAYS[way]}, {places} at a time: {failed}: {error}")
        if not good:
            continue
        kept = [([reply for reply in found if not reply.error], seconds) for found, seconds in measured]
        bench.loads.append(
            Load(
                way,
                places,
                Spread.of([1000 * reply.first for reply in good]),
                Spread.of([sum(reply.tokens for reply in found) / seconds for found, seconds in kept]),
                Spread.of([len(found) / seconds for found, seconds in kept]),
                sum(reply.tokens for reply in good) / len(good),
                len(replies) - len(good),
            )
        )
    if bench.errors and not bench.loads:
        raise ConfigError(f"{bench.server}: {'; '.join(bench.errors)}")


def run_server_bench(
    load: LoadPlan, loads: Sequence[int], plan: BenchPlan, output: Path | None, console: Console, as_json: bool
) -> ServerBench:
    """Measure a server and show the table; with `output` also write load.json, load.csv and the picture.

    Raises:
        ConfigError: a mistake in the options, or the server refuses.
        KeyboardInterrupt: it was stopped; what was measured by then has been shown.
    """
    from promptcomp.prompts.sources import read_queries

    endpoint = Endpoint(str(load.model or load.compressed), load.server, load.api_key_env)
    ways = requests_of(load, plan.new_tokens)
    queries = [QUERY] if load.queries is None else [query.text for query in read_queries(load.queries)]
    bench = ServerBench(endpoint.url, endpoint.model, load.requests, load.rounds, plan.new_tokens)
    rounds: _Rounds = {(way, places): [] for way in ways for places in loads}
    try:
        with telling(console, "asking ...") as tell:
            asyncio.run(_measure(endpoint, load, ways, queries, rounds, tell))
    except KeyboardInterrupt:
        done = sum(map(len, rounds.values()))
        if done and not as_json:
            say(console, f"stopped after {done} of {load.rounds * len(rounds)} measurements; nothing was written")
            _sum_up(rounds, bench)
            _print(bench, console)
        raise
    _sum_up(rounds, bench)
    if as_json:
        print(json.dumps(asdict(bench)))
    else:
        _print(bench, console)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_atomic(output / "load.json", json.dumps(asdict(bench), indent=1) + "\n")
        write_atomic(output / "load.csv", csv_text(("way", "concurrency", *_COLUMNS), _cells(bench)))
        _plot(bench, output)
        say(console, f"written to {output}")
    return bench


_COLUMNS: dict[str, Callable[[Load], str]] = {
    "first token": lambda load: ms_text(load.first_token_ms.median),
    "tokens/s": lambda load: f"{load.tokens_per_second.median:,.1f}",
    "requests/s": lambda load: f"{load.requests_per_second.median:,.2f}",
    "failed": lambda load: str(load.failed),
}


def _cells(bench: ServerBench) -> Iterator[list[str]]:
    for load in bench.loads:
        yield [WAYS[load.way], str(load.concurrency), *(text(load) for text in _COLUMNS.values())]


def _print(bench: ServerBench, console: Console) -> None:
    what = f"answers of at most {bench.new_tokens} tokens, {many(bench.rounds, 'round')}"
    say(console, f"{bench.model} at {bench.server}: {what}")
    first = {load.concurrency: load.requests_per_second.median for load in reversed(bench.loads) if load.way == "full"}
    table = open_table(None, ["way"], ["at a time", *_COLUMNS, "vs full"])
    for load, cells in zip(bench.loads, _cells(bench), strict=True):
        whole = first.get(load.concurrency)
        against = f"{load.requests_per_second.median / whole:.2f}x" if whole else "-"
        table.add_row(*cells, against, style="bold" if load.way == "compressed" else "")
    console.print(table)
    for error in bench.errors:
        say(console, error)


def _plot(bench: ServerBench, folder: Path) -> list[Path]:
    with plotting.drawing():
        figure, axes = plotting.panel(6, 4)
        for number, (way, title) in enumerate(WAYS.items()):
            loads = [load for load in bench.loads if load.way == way]
            look: dict[str, Any] = {"color": plotting.COLOURS[number]}
            places = [load.concurrency for load in loads]
            if loads:
                rates = [load.requests_per_second.median for load in loads]
                axes.plot(places, rates, label=title, marker=plotting.MARKERS[number], **look)
            for load in loads:
                rate = load.requests_per_second
                plotting.interval(axes, load.concurrency, (rate.low, rate.high), **look)
        axes.set_xscale("log", base=2)
        plotting.ticks_at(axes, {load.concurrency: str(load.concurrency) for load in bench.loads})
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests at a time")
        axes.set_ylabel("requests/s")
        axes.set_title(f"{bench.model} at {bench.server}")
        axes.legend()
        return plotting.save(figure, folder, "load")
