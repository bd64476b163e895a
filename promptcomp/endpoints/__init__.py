"""Language models behind an OpenAI-compatible HTTP endpoint: one careful chat client for whatever needs one."""

from promptcomp.endpoints.client import (
    ChatClient,
    Endpoint,
    EndpointError,
    Message,
    RefusedError,
    Reply,
    StoppedError,
    Usage,
)
from promptcomp.endpoints.limits import RateLimiter

__all__ = [
    "ChatClient",
    "Endpoint",
    "EndpointError",
    "Message",
    "RateLimiter",
    "RefusedError",
    "Reply",
    "StoppedError",
    "Usage",
]
