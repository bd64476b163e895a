"""Language models behind an OpenAI-compatible HTTP endpoint: one careful chat client for whatever needs one."""

from promptcomp.endpoints.client import (
    ChatClient,
    Endpoint,
    EndpointError,
    Message,
    RefusedError,
    StoppedError,
    Usage,
)
from promptcomp.endpoints.crew import AskingStopped, Crew
from promptcomp.endpoints.limits import RateLimiter
from promptcomp.endpoints.records import Entry, RecordFile, now
from promptcomp.endpoints.replies import Reply
from promptcomp.endpoints.session import BYTES_PER_TOKEN, AskingSession, Prices

__all__ = [
    "BYTES_PER_TOKEN",
    "AskingSession",
    "AskingStopped",
    "ChatClient",
    "Crew",
    "Endpoint",
    "EndpointError",
    "Entry",
    "Message",
    "Prices",
    "RateLimiter",
    "RecordFile",
    "RefusedError",
    "Reply",
    "StoppedError",
    "Usage",
    "now",
]
