"""In front of vLLM's HTTP server: requests that name a compressed prompt, checked and written out.

An ASGI middleware (vLLM: `--middleware`) that speaks to the server it stands before by its public interface alone:
`/v1/models` (which also says whether the caller's key is good) and `/tokenize`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from promptcomp.plain import trimmed
from promptcomp.vllm_connector.shelf import FIELD, PLACEHOLDER, PromptShelf, Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_ABOUT_BODY = (b"content-length", b"content-type", b"transfer-encoding", b"content-encoding")
_NOT_WITH_SLOTS = ("echo", "prompt_logprobs", "suffix", "prompt_embeds")
_TYPES = {400: "BadRequestError", 404: "NotFoundError", 422: "UnprocessableEntityError"}


class _Answered(Exception):
    """The server itself has answered, with something else than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body


class PromptGate:
    """Adds slots and template to requests with `"kv_transfer_params": {"promptcomp": "NAME"}`; others pass unread."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self._shelf: PromptShelf | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        path = str(scope.get("path", ""))
        place = next((known for known in (CHAT, COMPLETIONS) if path.endswith(known)), None)
        if scope["type"] != "http" or scope["method"] != "POST" or place is None:
            await self.app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = _named(body)
        if request is not None:
            try:
                body = json.dumps(await self._written(scope, path.removesuffix(place), request, place)).encode()
            except Refused as error:
                said = {"message": str(error), "type": _TYPES[error.status], "param": None, "code": error.status}
                await _answer(send, error.status, json.dumps({"error": said}).encode())
                return
            except _Answered as answer:
                await _answer(send, answer.status, answer.body)
                return
            scope = _with_body(scope, body)
        given = False

        async def again() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    async def _written(self, scope: Scope, root: str, request: dict[str, Any], place: str) -> dict[str, Any]:
        """The request as vLLM takes it.

        Raises:
            Refused: with the status that says why.
            _Answered: the caller may not ask, or the server cannot take the query apart.
        """
        models = (await self._ask(scope, "GET", f"{root}/v1/models"))["data"]
        card: dict[str, Any] = next((each for each in models if each["id"] == request.get("model")), {})
        if self._shelf is None:
            self._shelf = await asyncio.to_thread(PromptShelf, scope["app"].state.vllm_config)
        transfer = request["kv_transfer_params"]
        found = await asyncio.to_thread(self._shelf.find, transfer[FIELD], card.get("parent") and card["root"])
        if used := [name for name in _NOT_WITH_SLOTS if request.get(name) not in (None, False, "")]:
            raise Refused(f"{used[0]} cannot be used with a compressed prompt, whose slots have no tokens", 400)

        async def ids(query: Any) -> list[int]:
            if not isinstance(query, str):
                return _whole(query)
            own = trimmed(query, found.info.get("trims"))
            text = found.info["query"].replace("{input}", own) if own else found.info["empty_query"]
            body = {"model": request.get("model"), "prompt": text, "add_special_tokens": False}
            return _whole((await self._ask(scope, "POST", f"{root}/tokenize", body))["tokens"])

        front = [PLACEHOLDER] * found.slots
        if not request.get("stop_token_ids"):
            request["stop_token_ids"] = list(found.info.get("stop_ids", ()))
        if place == CHAT:
            transfer["prompt_token_ids"] = front + await ids(_only_turn(request.get("messages")))
            return request
        asked = request.get("prompt")
        if isinstance(asked, list) and asked and isinstance(asked[0], str | list):
            request["prompt"] = [front + await ids(query) for query in asked]
        else:
            request["prompt"] = front + await ids(asked)
        return request

    async def _ask(self, scope: Scope, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        """What the server answers the same caller."""
        body = b"" if content is None else json.dumps(content).encode()
        inner = _with_body({**scope, "method": method, "path": path, "raw_path": path.encode()}, body)
        status, parts, given = 500, [], asyncio.Event()

        async def receive() -> MutableMapping[str, Any]:
            if given.is_set():  # the server listens for a client that goes away; this one does not
                await asyncio.Event().wait()
            given.set()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            parts.append(message.get("body", b""))

        await self.app(inner, receive, send)
        if status != 200:
            raise _Answered(status, b"".join(parts))
        return json.loads(b"".join(parts))


def _named(body: bytes) -> dict[str, Any] | None:
    """The request, where it names a prompt."""
    if FIELD.encode() not in body:
        return None
    try:
        request = json.loads(body)
        return request if FIELD in request["kv_transfer_params"] else None
    except (ValueError, KeyError, TypeError, RecursionError):  # the server will say what is wrong with it
        return None


def _only_turn(messages: Any) -> str:
    """The text of a chat's only turn."""
    match messages:
        case [{"role": "user", "content": str(text) | [{"type": "text", "text": str(text)}]}]:
            return text
    raise Refused("behind a compressed prompt a chat has one turn, the user's text", 400)


def _whole(ids: Any) -> list[int]:
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise Refused("a query is empty, or neither text nor token ids", 400)
    return ids


def _with_body(scope: Scope, body: bytes) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _ABOUT_BODY]
    about = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    return {**scope, "headers": headers + about}


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
