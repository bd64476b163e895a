"""The chat client against a real HTTP server that fails in every way."""

from __future__ import annotations

import asyncio
import gzip
import sys
from pathlib import Path
from typing import Any

import pytest

from promptcomp.chat.client import ChatClient, Endpoint, EndpointError, Message, RateLimiter, RefusedError, StoppedError
from promptcomp.chat.replies import Reply, retry_after
from promptcomp.errors import ConfigError
from promptcomp.serving import ServeOptions
from tests.judge_server import Answer, JudgeServer, Rule, completion, fault, serving

pytest.importorskip("openai")

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def _endpoint(server: JudgeServer, **changes: Any) -> Endpoint:
    values = {"model": "m", "base_url": server.url, "retries": 3, "first_wait": 0.01, "timeout": 5.0, **changes}
    return Endpoint(**values)


def _ask(endpoint: Endpoint) -> tuple[Reply, ChatClient]:
    async def ask() -> tuple[Reply, ChatClient]:
        async with ChatClient(endpoint) as client:
            return await client.complete(HELLO, max_tokens=7), client

    return asyncio.run(ask())


def _first(answer: Answer) -> Rule:
    """Fails once, then answers."""
    return lambda number, _: answer if number == 1 else completion("fine")


def test_a_reply_with_its_usage() -> None:
    with serving(lambda *_: completion("fine")) as server:
        reply, _ = _ask(_endpoint(server))
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("fine", 100, 10)
    assert (reply.finish_reason, reply.model) == ("stop", "judge-2026")
    assert server.requests == [{"model": "m", "messages": HELLO, "max_tokens": 7, "temperature": 0.0}]


def test_a_server_that_tells_no_usage_and_says_nothing() -> None:
    with serving(lambda *_: completion(None, usage=False)) as server:
        reply, _ = _ask(_endpoint(server))
    assert (reply.text, reply.prompt_tokens) == ("", None)


@pytest.mark.parametrize(
    "answer",
    [
        fault(500),
        fault(503),
        fault(408),
        fault(429),
        Answer(200, b"<html>Welcome</html>", {"Content-Type": "text/html"}),
        Answer(200, b'{"choices": [{"mess'),
        Answer(200, b'{"choices": []}'),
        Answer(200, b'{"choices": [{}]}'),
        Answer(200, b"[]"),
        Answer(200, b"null"),
        Answer(200, b""),
        Answer(200, b"x" * 1000, drop=True),
        Answer(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}),
    ],
)
def test_passing_faults_are_tried_again(answer: Answer) -> None:
    with serving(_first(answer)) as server:
        reply, client = _ask(_endpoint(server))
    assert reply.text == "fine"
    assert (len(server.requests), client.failed) == (2, 1)


def test_a_right_body_with_a_wrong_content_type_is_taken() -> None:
    with serving(lambda *_: Answer(200, completion("fine").body, {"Content-Type": "text/plain"})) as server:
        assert _ask(_endpoint(server))[0].text == "fine"


def test_a_slow_answer_is_tried_again() -> None:
    slow = completion("late")
    slow.delay = 1.0
    with serving(_first(slow)) as server:
        reply, _ = _ask(_endpoint(server, timeout=0.4))
    assert (reply.text, len(server.requests)) == ("fine", 2)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (fault(500, "boom"), "status 500 (boom)"),
        (Answer(200, b"<html>Hi", {"Content-Type": "text/html"}), "answers with HTML (text/html: <html>Hi)"),
        (Answer(200, b'{"cho'), "no complete JSON"),
        (Answer(200, b'{"choices": []}'), "without choices"),
    ],
)
def test_lasting_faults_end_with_their_reason(answer: Answer, words: str) -> None:
    with serving(lambda *_: answer) as server, pytest.raises(EndpointError) as error:
        _ask(_endpoint(server, retries=2))
    assert words in str(error.value)
    assert "(3 tries)" in str(error.value)
    assert len(server.requests) == 3


def test_a_server_that_is_down() -> None:
    with serving() as server:
        endpoint = _endpoint(server, retries=1)
    with pytest.raises(EndpointError, match=r"cannot be reached .*2 tries"):
        _ask(endpoint)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (fault(401, "bad key"), EndpointError, "set the key in OPENAI_API_KEY"),
        (fault(403, "not you"), EndpointError, "the key is refused"),
        (fault(404, "what?"), EndpointError, "check the model's name and the server's URL"),
        (fault(400, "too long"), RefusedError, "refuses the request (400: too long)"),
        (fault(429, "pay", code="insufficient_quota"), EndpointError, "no quota left"),
        (fault(429, headers={"Retry-After": "86400"}), EndpointError, "asks to wait 86400 s"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(answer: Answer, kind: type[Exception], words: str) -> None:
    with serving(lambda *_: answer) as server, pytest.raises(kind) as error:
        _ask(_endpoint(server))
    assert words in str(error.value)
    assert len(server.requests) == 1


def test_retry_after_is_honoured_by_everybody() -> None:
    async def ask_two(endpoint: Endpoint) -> None:
        async with ChatClient(endpoint) as client:
            first = asyncio.create_task(client.complete(HELLO, max_tokens=1))
            while not server.requests or client.failed == 0:
                await asyncio.sleep(0.01)
            await asyncio.gather(first, client.complete(HELLO, max_tokens=1))

    with serving(_first(fault(429, headers={"Retry-After": "0.5"}))) as server:
        asyncio.run(ask_two(_endpoint(server)))
    assert len(server.requests) == 3
    assert min(server.times[1:]) - server.times[0] > 0.45


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:30 GMT"}, 20.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
    ],
)
def test_forms_of_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=10.0) == seconds


def test_newer_models_are_asked_in_their_way() -> None:
    def rule(_: int, request: dict[str, Any]) -> Answer:
        for name in ("max_tokens", "temperature"):
            if name in request:
                return fault(400, f"Unsupported: {name}", param=name, code="unsupported_parameter")
        return completion("fine")

    with serving(rule) as server:
        reply, client = _ask(_endpoint(server))
    assert reply.text == "fine"
    assert server.requests[-1] == {"model": "m", "messages": HELLO, "max_completion_tokens": 7}
    assert len(client.notes) == 1


def test_to_stop_ends_a_wait_at_once() -> None:
    async def stop(endpoint: Endpoint) -> None:
        async with ChatClient(endpoint) as client:
            asked = asyncio.create_task(client.complete(HELLO, max_tokens=1))
            while client.failed == 0:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(client.complete(HELLO, max_tokens=1))
            await asyncio.sleep(0.05)
            client.stop()
            for task in (asked, waiting):
                with pytest.raises(StoppedError):
                    await task

    with serving(lambda *_: fault(429, headers={"Retry-After": "60"})) as server:
        asyncio.run(stop(_endpoint(server)))
    assert len(server.requests) == 1  # whoever waited to the end would have asked again


def test_the_key_goes_into_the_header_and_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: completion("fine")) as server:
        _ask(_endpoint(server))
        monkeypatch.setenv("MY_KEY", "sesame")
        _ask(_endpoint(server, api_key_env="MY_KEY"))
    assert [headers["authorization"] for headers in server.headers] == ["Bearer none", "Bearer sesame"]


@pytest.mark.parametrize("key", ["sésame", "\udce9", "open\nsesame"])
def test_a_key_that_no_request_can_carry(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", key)
    endpoint = Endpoint("m", "http://localhost:1/v1", api_key_env="MY_KEY")
    file = tmp_path / "key"
    file.write_bytes(key.encode("utf-8", "replace") + "é\n".encode())
    served = (ServeOptions(api_key_env="MY_KEY"), ServeOptions(api_key_file=file))
    for use in (lambda: _ask(endpoint), *(options.api_key for options in served)):
        with pytest.raises(ConfigError, match=r"(variable MY_KEY|/key) holds characters that no request can") as error:
            use()
        assert "same" not in str(error.value)


def test_openai_itself_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="set it in the environment variable OPENAI_API_KEY"):
        _ask(Endpoint(model="m"))


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://", "http://[::1", "http://h:99999/v1", "http://h\n/v1", "file:///x"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http"):
        Endpoint(model="m", base_url=url)


@pytest.mark.parametrize("url", ["", "  "])
def test_an_empty_url_is_not_openais(url: str) -> None:
    with pytest.raises(ConfigError, match="URL is empty; leave it out"):
        Endpoint(model="m", base_url=url)


def test_credentials_in_the_url_are_used_and_never_told() -> None:
    with serving(lambda *_: fault(500, "boom")) as server:
        endpoint = _endpoint(server, base_url=server.url.replace("//", "//user:pass-word@"), retries=0)
        with pytest.raises(EndpointError) as error:
            _ask(endpoint)
    assert endpoint.url == server.url
    assert "pass-word" not in str(error.value)
    assert server.headers[0]["authorization"].startswith("Basic ")


def test_a_response_without_end_or_packed_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptcomp.chat.replies.MOST_BYTES", 2**16)
    body = completion("x" * 2**17).body
    for answer in (
        Answer(200, body),
        Answer(500, body),
        Answer(200, gzip.compress(body), {"Content-Encoding": "gzip"}),
    ):
        with serving(_first(answer)) as server:
            reply, client = _ask(_endpoint(server))
        assert (reply.text, client.failed) == ("fine", 1)
    with serving(lambda *_: Answer(200, body)) as server, pytest.raises(EndpointError, match="answers with more than"):
        _ask(_endpoint(server, retries=0))


def test_without_the_openai_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"promptcomp\[api\]"):
        _ask(Endpoint(model="m", base_url="http://127.0.0.1:9/v1"))


class _Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def _let_through(tokens: list[int], **limits: int) -> list[float]:
    clock = _Clock()
    limiter = RateLimiter(**limits, clock=clock, sleep=clock.sleep)

    async def acquire() -> list[float]:
        return [(await limiter.acquire(count)).time for count in tokens]

    return asyncio.run(acquire())


def test_requests_per_minute() -> None:
    times = _let_through([0] * 7, requests_per_minute=3)
    assert [round(t) for t in times] == [0, 0, 0, 60, 60, 60, 120]


def test_tokens_per_minute() -> None:
    times = _let_through([40, 50, 30, 500, 10], tokens_per_minute=100)
    assert [round(t) for t in times] == [0, 0, 60, 120, 180]


def test_no_limits_no_waits() -> None:
    assert _let_through([10**9] * 5) == [0.0] * 5


def test_a_pause_holds_everybody() -> None:
    clock = _Clock()
    limiter = RateLimiter(clock=clock, sleep=clock.sleep)
    limiter.pause(5)
    limiter.pause(2)
    assert asyncio.run(limiter.acquire()).time == 5
