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
from promptcomp.endpoints.replies import Reply

__all__ = [
    "AskingStopped",
    "ChatClient",
    "Crew",
    "Endpoint",
    "EndpointError",
    "Message",
    "RateLimiter",
    "RefusedError",
    "Reply",
    "StoppedError",
    "Usage",
]
