"""How many requests and tokens may go out in a minute."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

WINDOW = 60.0
"""Seconds that the limits are counted over."""


class Slot:
    """A request that was let through; its tokens are put right when the reply tells them."""

    __slots__ = ("time", "tokens")

    def __init__(self, time: float, tokens: int) -> None:
        self.time = time
        self.tokens = tokens


class RateLimiter:
    """Lets requests through one after another so that no 60 seconds hold more than the limits.

    Args:
        requests_per_minute: most requests in any 60 seconds; None: no limit.
        tokens_per_minute: most tokens (prompt and completion) in any 60 seconds; None: no limit. A request that is
            larger than the limit by itself goes out alone.
        clock: seconds, monotonic.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._recent: deque[Slot] = deque()
        self._paused_until = float("-inf")
        self._turn = asyncio.Lock()  # first come, first served

    async def acquire(self, tokens: int = 0) -> Slot:
        """Wait until a request of about `tokens` tokens may go out."""
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                await self._sleep(wait)
            slot = Slot(self._clock(), tokens)
            if self.requests_per_minute is not None or self.tokens_per_minute is not None:
                self._recent.append(slot)
            return slot

    def pause(self, seconds: float) -> None:
        """Let nothing through for `seconds`: the server has asked everybody to wait."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _wait(self, tokens: int) -> float:
        """Seconds until something may change; 0: go."""
        now = self._clock()
        if now < self._paused_until:
            return self._paused_until - now
        while self._recent and self._recent[0].time + WINDOW <= now:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        used = sum(slot.tokens for slot in self._recent)
        full = self.requests_per_minute is not None and len(self._recent) >= self.requests_per_minute
        full = full or (self.tokens_per_minute is not None and used + tokens > self.tokens_per_minute)
        # A little more than the rest of the window: a float may otherwise land just short of it and wait for nothing.
        return self._recent[0].time + WINDOW - now + 1e-3 if full else 0.0
