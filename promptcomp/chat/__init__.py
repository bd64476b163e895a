"""Language models that answer questions: at an OpenAI-compatible endpoint or here, every answer kept in a file."""

from promptcomp.chat.answer_file import AnswerFile, FileHeader, KeptAnswer, now
from promptcomp.chat.client import ChatClient, Endpoint, EndpointError, Message, RefusedError, StoppedError, Usage
from promptcomp.chat.limits import RateLimiter
from promptcomp.chat.replies import Reply
from promptcomp.chat.session import BYTES_PER_TOKEN, AskingEstimate, AskingSession, AskingStopped, Prices, Writing

__all__ = [
    "BYTES_PER_TOKEN",
    "AnswerFile",
    "AskingEstimate",
    "AskingSession",
    "AskingStopped",
    "ChatClient",
    "Endpoint",
    "EndpointError",
    "FileHeader",
    "KeptAnswer",
    "Message",
    "Prices",
    "RateLimiter",
    "RefusedError",
    "Reply",
    "StoppedError",
    "Usage",
    "Writing",
    "now",
]
