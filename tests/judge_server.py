"""An OpenAI-compatible chat server on loopback that judges by a simple rule and can misbehave in every way."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_SHOWN = re.compile(
    r"<task>\n(.*?)\n</task>.*<answer_a>\n(.*?)\n</answer_a>.*<answer_b>\n(.*?)\n</answer_b>", re.DOTALL
)


@dataclass
class Answer:
    """What goes over the wire."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    """Close the connection half way through the body."""


Rule = Callable[[int, dict[str, Any]], Answer]


def longer(first: str, second: str) -> str:
    """The longer answer wins."""
    return "tie" if len(first) == len(second) else ("A" if len(first) > len(second) else "B")


def shown(request: dict[str, Any]) -> tuple[str, str, str]:
    """Task and both answers in a request."""
    found = _SHOWN.search(request["messages"][1]["content"])
    assert found is not None
    return found[1], found[2], found[3]


def completion(content: str | None, finish: str = "stop", usage: bool = True) -> Answer:
    """A chat completion with this text."""
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-2026",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Answer(body=json.dumps(body).encode())


def fault(status: int, message: str = "no", headers: dict[str, str] | None = None, **error: Any) -> Answer:
    """An error in OpenAI's form."""
    return Answer(status, json.dumps({"error": {"message": message, **error}}).encode(), headers or {})


def judge(_: int, request: dict[str, Any]) -> Answer:
    """The honest rule."""
    _, first, second = shown(request)
    return completion(json.dumps({"reason": "It is longer.", "choice": longer(first, second)}))


class JudgeServer:
    """The server; `rule` may be changed while it runs."""

    def __init__(self, rule: Rule = judge) -> None:
        self.rule = rule
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def asked(self) -> Counter[str]:
        """How often each task was asked about."""
        return Counter(shown(request)[0] for request in self.requests)

    def answer(self, request: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            number = len(self.requests)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        answer = self.rule(number, request)
        time.sleep(answer.delay)
        with self._lock:
            self.at_once -= 1
        return answer


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/chat/completions"
            answer = server.answer(json.loads(raw), {k.lower(): v for k, v in self.headers.items()})
            try:
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body[: len(answer.body) // 2] if answer.drop else answer.body)
            except OSError:  # the client has gone
                self.close_connection = True
            if answer.drop:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    return Handler


@contextmanager
def serving(rule: Rule = judge) -> Iterator[JudgeServer]:
    """A running server."""
    server = JudgeServer(rule)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
