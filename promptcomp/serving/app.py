"""The server as an ASGI application: requests are read and checked here, and answered by the engine's thread."""

from __future__ import annotations

import asyncio
import hmac
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import prometheus_client as prometheus
import torch
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from promptcomp.chat.local_lm import end_tokens
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import PromptFormat
from promptcomp.errors import is_out_of_memory
from promptcomp.evaluation.formatting import many
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.generation import Settings
from promptcomp.plain import shown
from promptcomp.prompts.prompt_files import DEFAULT_NEW_TOKENS, PromptReader, next_position
from promptcomp.serving import STOPPING, Refusal, ServeOptions
from promptcomp.serving.engine import Continuation, Engine, Event
from promptcomp.serving.protocol import PROMPT_FIELD, AnswerText, Body, Form, error_body, event, read_body
from promptcomp.serving.registry import Registry, StoredPrompt

_GONE = 499
"""Status in the counts of a request whose client has left."""
_T = TypeVar("_T")


class Counters:
    """What Prometheus is told."""

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "promptcomp_requests", "Requests for answers by status.", ["status"], registry=registry
        )
        count = partial(prometheus.Counter, registry=registry)
        self.prompt_tokens = count("promptcomp_prompt_tokens", "Tokens of queries and slots in front of them.")
        self.tokens = count("promptcomp_generated_tokens", "Tokens of answers.")
        seconds = partial(prometheus.Histogram, registry=registry)
        self.first_token = seconds("promptcomp_first_token_seconds", "From a request to its first token.")
        self.answer = seconds("promptcomp_answer_seconds", "From a request to the end of its answer.")
        gauges = {
            "running": ("Answers that are being written.", lambda: len(engine.running)),
            "waiting": ("Requests that wait.", lambda: len(engine.waiting)),
            "batch_size": ("Answers at a time; less than asked for after memory ran out.", lambda: engine.rows),
        }
        for name, (text, value) in gauges.items():
            prometheus.Gauge(f"promptcomp_{name}", text, registry=registry).set_function(value)


@dataclass(slots=True)
class _Answering:
    """A request and its answer on their way."""

    wanted: Continuation
    events: asyncio.Queue[Event]
    text: AnswerText
    form: Form
    stored: int
    """Slots in front of the query."""
    began: float
    reason: str | None = None

    def counts(self) -> dict[str, Any]:
        """The usage that clients are told."""
        asked, made = self.stored + len(self.wanted.ids), len(self.text.ids)
        cached = {"cached_tokens": self.stored}
        total = {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
        return {**total, "prompt_tokens_details": cached}


class App:
    """One LM and a registry behind HTTP; `asgi` is the application.

    Args:
        lm: in eval mode, on its device, with a tokenizer.
        name: that requests know it by.
        registry: of the prompts that it reads.
        options: the limits.
        key: that requests must carry; None: none.
    """

    def __init__(
        self, lm: LanguageModel, name: str, registry: Registry, options: ServeOptions, key: str | None = None
    ) -> None:
        assert lm.tokenizer is not None
        self.lm, self.name, self.registry, self._options, self._key = lm, name, registry, options, key
        self._plain = PromptReader(lm, PromptFormat("{input}", "", end_tokens(lm, chat=True)))
        self.engine = Engine(lm, options.batch_size, options.cache_tokens, options.max_waiting)
        self._counters = Counters(self.engine)
        self.asgi = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/completions", partial(self._counted, False), methods=["POST"]),
                Route("/v1/chat/completions", partial(self._counted, True), methods=["POST"]),
            ],
            exception_handlers={Refusal: _refused, HTTPException: _refused, Exception: _refused},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.engine.start()
        yield
        await asyncio.to_thread(self.engine.stop)

    async def _health(self, _: Request) -> Response:
        alive = self.engine.is_alive
        said = {"status": "ok" if alive else "dead", "model": self.name, "running": len(self.engine.running)}
        return JSONResponse(said, 200 if alive else 503)

    async def _metrics(self, _: Request) -> Response:
        return Response(prometheus.generate_latest(self._counters.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        found = await asyncio.to_thread(self._cards)
        return JSONResponse({"object": "list", "data": [card for card in found.values() if isinstance(card, dict)]})

    async def _model(self, request: Request) -> Response:
        self._check_key(request)
        name = request.path_params["name"]
        found = (await asyncio.to_thread(self._cards)).get(name)
        if found is None:
            raise self._unknown(name)
        if isinstance(found, str):
            raise Refusal(422, found, "prompt_not_usable")
        return JSONResponse(found)

    def _cards(self) -> dict[str, dict[str, Any] | str]:
        """What clients are told of each model by its name; a sentence in place of one that cannot be used here."""
        card = {"object": "model", "created": 0, "owned_by": "promptcomp", "max_model_len": self.lm.window}
        cards: dict[str, dict[str, Any] | str] = {self.name: {"id": self.name, **card}}
        for prompt, info in self.registry.infos().items():
            name = f"{self.name}:{prompt}"
            if isinstance(info, str):
                cards[name] = info
                continue
            said = {"method": info.method, "slots": info.slots, "source_tokens": info.source_tokens}
            cards[name] = {"id": name, **card, "parent": self.name, **said}
        return cards

    def _unknown(self, model: str) -> Refusal:
        told = f"{self.name}, or {self.name}:PROMPT for a compressed prompt"
        return Refusal(404, f"there is no model {shown(model)} here; known: {told}", "model_not_found")

    async def _counted(self, chat: bool, request: Request) -> Response:
        try:
            response = await self._answer(request, chat)
        except ClientDisconnect:
            response = Response(status_code=_GONE)
        except Exception as error:
            self._counters.requests.labels(error.status if isinstance(error, Refusal) else 500).inc()
            raise
        self._counters.requests.labels(response.status_code).inc()
        return response

    async def _answer(self, request: Request, chat: bool) -> Response:
        self._check_key(request)
        body = read_body(await self._content(request), chat)
        prompt = await self._prompt(body)
        answering = self._wanted(body, prompt, chat)
        self.engine.submit(answering.wanted)
        try:
            first = await _unless_gone(request, self._next(answering))
            if first is None:
                return Response(status_code=_GONE)
            if body.stream:
                with_usage = bool(body.stream_options and body.stream_options.include_usage)
                pieces = self._pieces(answering, first, bool(body.return_token_ids), with_usage)
                end = BackgroundTask(setattr, answering.wanted, "unwanted", True)  # also where the client has gone
                answering = None  # type: ignore[assignment]
                return StreamingResponse(
                    pieces, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}, background=end
                )
            whole = await _unless_gone(request, self._rest(answering, first))
            if whole is None:
                return Response(status_code=_GONE)
            ids = answering.text.ids if body.return_token_ids else None
            return JSONResponse({**answering.form.answer(whole, answering.reason, ids), "usage": answering.counts()})
        finally:
            if answering is not None:
                answering.wanted.unwanted = True

    def _check_key(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), (self._key or "").encode())
        if self._key is not None and not is_right:
            said = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            raise Refusal(401, said, "invalid_api_key")

    async def _content(self, request: Request) -> bytes:
        most, content = self._options.max_body, b""
        too_large = Refusal(413, f"the body is larger than {most:,} bytes", "body_too_large")
        told = request.headers.get("content-length", "")
        if told.isdecimal() and (len(told) > len(str(most)) or int(told) > most):
            raise too_large
        try:
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise too_large
        except asyncio.CancelledError:  # the rest has not come, and the server ends
            raise Refusal(*STOPPING) from None
        return content

    async def _prompt(self, body: Body) -> StoredPrompt | None:
        named = (body.kv_transfer_params or {}).get(PROMPT_FIELD)
        if not isinstance(named, str | None):
            said = f"kv_transfer_params.{PROMPT_FIELD}: {shown(named)} is no name of a prompt"
            raise Refusal(400, said, "invalid_request")
        model, colon, behind = body.model.partition(":")
        if model == self.name and colon and named not in (None, behind):
            said = f"model names the prompt {shown(behind)}, kv_transfer_params {shown(named)}; name one"
            raise Refusal(400, said, "invalid_request")
        if model != self.name:
            raise self._unknown(body.model)
        wanted = behind if colon else named
        return None if wanted is None else await asyncio.to_thread(self.registry.find, wanted)

    def _wanted(self, body: Body, prompt: StoredPrompt | None, chat: bool) -> _Answering:
        """
        Raises:
            Refusal: the query cannot be read, or is too long (400).
        """
        try:
            ids = self._ids(body, prompt, chat)
        except ConfigError as error:
            raise Refusal(400, str(error), "invalid_request") from None
        memory, options = None if prompt is None else prompt.memory, self._options
        front = next_position(self.lm, memory)
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        room = options.max_tokens
        if asked is not None and asked > room:
            said = f"max_tokens {asked}: answers of this server have at most {room} tokens (serve --max-tokens)"
            raise Refusal(400, said, "context_length_exceeded")
        if front is not None and self.lm.window is not None:
            room = min(room, self.lm.window - front - len(ids))
        if room < (asked or 1):
            answer = many(asked or 1, "token")
            said = f"an answer of {answer} behind a query of {len(ids)} does not fit: there is room for {max(0, room)}"
            raise Refusal(400, said, "context_length_exceeded")
        reader = self._plain if prompt is None else prompt.reader
        slots = 0 if memory is None else int(memory.num_slots[0])
        seed = random.getrandbits(63) if body.seed is None else body.seed
        settings = Settings(
            max_new_tokens=min(DEFAULT_NEW_TOKENS, room) if asked is None else asked,
            stop_ids=() if body.ignore_eos else reader.format.stop_ids,
            temperature=body.heat,
            top_p=1.0 if body.top_p is None else body.top_p,
            generator=torch.Generator(reader.device).manual_seed(seed),
        )
        events, loop = asyncio.Queue[Event](), asyncio.get_running_loop()
        positions = slots + self.lm.num_bos + len(ids) + settings.max_new_tokens
        tell = partial(_tell, loop, events)
        wanted = Continuation(memory, ids, settings, positions, tell)
        self._counters.prompt_tokens.inc(slots + len(ids))
        form = Form(body.model, chat=chat, stream=bool(body.stream))
        return _Answering(wanted, events, AnswerText(reader.tokenizer, body.stops), form, slots, time.perf_counter())

    def _ids(self, body: Body, prompt: StoredPrompt | None, chat: bool) -> tuple[int, ...]:
        """The token ids of a request, written as the prompt, or the LM's chat template, has them.

        Raises:
            ConfigError: there is nothing to go on from.
            Refusal: what cannot stand behind this prompt.
        """
        given: Any = body.prompt[0] if isinstance(body.prompt, list) and len(body.prompt) == 1 else body.prompt
        reader = self._plain if prompt is None else prompt.reader
        if chat:
            assert body.messages is not None
            turns = [{"role": turn.role, "content": turn.text} for turn in body.messages]
            if prompt is not None:
                if [turn["role"] for turn in turns] != ["user"]:
                    said = "behind a compressed prompt a chat has one turn, the user's text"
                    raise Refusal(400, said, "invalid_request")
                given = turns[0]["content"]
            elif not reader.tokenizer.chat_template:
                raise Refusal(400, "this LM has no chat template; use /v1/completions", "no_chat_template")
            else:
                try:
                    given = reader.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                except Exception as error:  # whatever a template raises
                    said = f"the chat template refuses these messages: {error}"
                    raise Refusal(400, said, "invalid_request") from None
                given = given.removeprefix(reader.tokenizer.bos_token or "") if self.lm.num_bos else given
        if isinstance(given, str):
            return reader.query_ids(given)
        if isinstance(given, int):
            given = [given]
        if not given or not all(isinstance(token, int) and 0 <= token < self.lm.vocab_size for token in given):
            said = f"prompt: give one text, or token ids from 0 to {self.lm.vocab_size - 1}"
            raise Refusal(400, said, "invalid_request")
        return tuple(given)

    async def _next(self, answering: _Answering) -> str:
        """The next piece of the text; `answering.reason` is set when it was the last.

        Raises:
            Refusal: there will be no answer.
        """
        counters, now = self._counters, await answering.events.get()
        if isinstance(now, Refusal):
            raise now
        if isinstance(now, Exception):
            if is_out_of_memory(now):
                raise Refusal(503, "out of memory; ask for fewer max_tokens", "out_of_memory", 5)
            raise Refusal(500, str(now) if isinstance(now, ConfigError) else "internal error", "internal_error")
        if isinstance(now, str):
            piece, answering.reason = answering.text.end(), now
        else:
            piece = answering.text.add(now)
            counters.tokens.inc()
            if len(answering.text.ids) == 1:
                counters.first_token.observe(time.perf_counter() - answering.began)
            if answering.text.stopped:
                answering.reason = "stop"
        if answering.reason is not None:
            counters.answer.observe(time.perf_counter() - answering.began)
        return piece

    async def _rest(self, answering: _Answering, text: str) -> str:
        while answering.reason is None:
            text += await self._next(answering)
        return text

    async def _pieces(self, answering: _Answering, piece: str, with_ids: bool, with_usage: bool) -> AsyncIterator[str]:
        told = 0
        try:
            while True:
                if piece or answering.reason is not None or told == 0:
                    ids = answering.text.ids[told:] if with_ids else None
                    told = len(answering.text.ids)
                    yield event(answering.form.answer(piece, answering.reason, ids))
                if answering.reason is not None:
                    break
                piece = await self._next(answering)
            if with_usage:
                yield event(answering.form.usage(answering.counts()))
            yield "data: [DONE]\n\n"
        except Refusal as error:
            yield event(error_body(error))
        finally:
            answering.wanted.unwanted = True


def _tell(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], what: Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, what)


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T | None:
    """What some work gives; None, and the work is left, where the client has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    done, left = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        return await done if done.done() else None
    finally:
        done.cancel()
        left.cancel()


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        error = Refusal(error.status_code, str(error.detail), code)
    if not isinstance(error, Refusal):  # the server logs it
        error = Refusal(500, "internal error", "internal_error")
    again = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error_body(error), error.status, again)
