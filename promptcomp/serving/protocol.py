"""OpenAI's protocol: what a request may say, the text of an answer while it is written, and what is sent back."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from promptcomp.config import Config
from promptcomp.documents import parse_json
from promptcomp.language_model import text_of
from promptcomp.plain import shown
from promptcomp.serving import Refusal

PROMPT_FIELD = "promptcomp"
"""The field of `kv_transfer_params` that names a prompt, here as with the connector of vLLM."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    # of vLLM
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "add_generation_prompt": (True,),
    **dict.fromkeys(("use_beam_search", "continue_final_message"), (False,)),
    **dict.fromkeys(("stop_token_ids", "bad_words", "allowed_token_ids", "logits_processors"), ([],)),
    **dict.fromkeys(("prompt_embeds", "prompt_logprobs", "structured_outputs", "chat_template"), ()),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), ()),
}
"""What changes answers and is not offered, with the values that ask for nothing (as null does)."""
_MOST_STOPS, _LONGEST_STOP = 16, 1000


class ChatPart(Config):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str


class ChatTurn(Config):
    """A message of a chat."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[ChatPart]

    @property
    def text(self) -> str:
        """All of its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Config):
    """What comes with a stream."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class Body(Config):
    """A request, of which keys that change nothing here are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str
    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    """Completions: a text, or token ids that are read as they are; also as the only one of a list."""
    messages: list[ChatTurn] | None = None
    """Chats."""
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    kv_transfer_params: dict[str, Any] | None = None
    ignore_eos: bool | None = None
    """As vLLM has it: write as many tokens as were asked for."""
    return_token_ids: bool | None = None
    """As vLLM has it: the answer's tokens beside its text."""

    @property
    def heat(self) -> float:
        """The temperature; OpenAI's default is 1."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]


def read_body(content: bytes, chat: bool) -> Body:
    """
    Raises:
        Refusal: no such request (400).
    """
    try:
        tree = parse_json(content)
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON: {error}", "invalid_json") from None
    if not isinstance(tree, dict):
        raise Refusal(400, "the body is no JSON object", "invalid_json")
    for name, empty in _ONLY.items():
        given = tree.get(name)
        # Python takes 0 for False, and logprobs=0 asks for those of the chosen tokens
        same = (given == each and isinstance(given, bool) == isinstance(each, bool) for each in empty)
        if given is not None and not any(same):
            raise Refusal(400, f"{name}={shown(given)} is not offered here; leave it out", "unsupported_parameter")
    try:
        body = Body.model_validate(tree)
    except ValidationError as error:
        # of what a field may be, the one that came furthest; its type's name is no place in the request
        first = max(error.errors(include_url=False), key=lambda each: len(each["loc"]))
        where = ".".join(str(part) for part in first["loc"] if part != "str" and "[" not in str(part))
        raise Refusal(400, f"{where}: {first['msg']}", "invalid_request") from None
    if len(body.stops) > _MOST_STOPS or any(len(stop) > _LONGEST_STOP for stop in body.stops):
        said = f"stop: at most {_MOST_STOPS} texts of {_LONGEST_STOP} characters each"
        raise Refusal(400, said, "invalid_request")
    if (body.messages if chat else body.prompt) is None:
        raise Refusal(400, f"{'messages' if chat else 'prompt'} is missing", "invalid_request")
    return body


class AnswerText:
    """The text of an answer while it is written; what is given out of it never changes later.

    Args:
        tokenizer: the LM's.
        stops: texts before which it ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.ids: list[int] = []
        self.stopped = False
        """A stop text has come."""
        self._tokenizer, self._stops, self._text, self._given = tokenizer, stops, "", 0
        self._from = self._read = 0

    def add(self, token: int) -> str:
        """The text that is sure with one more token."""
        self.ids.append(token)
        # decoded behind a few tokens: by itself a token may lose a space, or be a part of a letter
        before, now = self._decode(self._from, self._read), self._decode(self._from, len(self.ids))
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self._take(now[len(before) :])
            self._from, self._read = self._read, len(self.ids)
        held = max((n for stop in self._stops for n in range(1, len(stop)) if self._text.endswith(stop[:n])), default=0)
        return self._give(len(self._text) - (0 if self.stopped else held))

    def end(self) -> str:
        """What is left."""
        if not self.stopped:
            before, now = self._decode(self._from, self._read), self._decode(self._from, len(self.ids))
            self._take(now[len(before) :])
        return self._give(len(self._text))

    def _decode(self, first: int, last: int) -> str:
        return text_of(self._tokenizer, self.ids[first:last])

    def _take(self, piece: str) -> None:
        begin = max(0, len(self._text) - max(map(len, self._stops), default=0))
        self._text += piece
        places = [place for stop in self._stops if (place := self._text.find(stop, begin)) >= 0]
        if places:
            self._text, self.stopped = self._text[: min(places)], True

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece


class Form:
    """The form of the answers to one request.

    Args:
        model: as the request names it.
        chat: whether it is a chat.
        stream: whether they come in pieces.
    """

    def __init__(self, model: str, *, chat: bool, stream: bool) -> None:
        kind = "chat.completion" if chat else "text_completion"
        self._chat, self._stream, self._begun = chat, stream, False
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if chat and stream else kind,
            "created": int(time.time()),
            "model": model,
        }

    def answer(self, text: str, reason: str | None, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """One document: an answer, or a piece of it (`reason`: why it ended)."""
        said: dict[str, Any] = {"text": text}
        if self._chat:
            role = {} if self._begun else {"role": "assistant"}
            said = {"delta" if self._stream else "message": {**role, "content": text}}
        self._begun = True
        known = {} if ids is None else {"token_ids": list(ids)}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason, **known}
        return {**self._head, "choices": [choice]}

    def usage(self, counts: dict[str, Any]) -> dict[str, Any]:
        """The last piece of a stream that was asked for its counts."""
        return {**self._head, "choices": [], "usage": counts}


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def error_body(error: Refusal) -> dict[str, Any]:
    """A refusal in OpenAI's form."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}
