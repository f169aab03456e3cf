"""What connections share while nothing comes on them: one timer that ends those which rest too long, and the date.

uvicorn makes a timer for each response and a wake-up ten times a second; both are a part of what a small request costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from email.utils import formatdate
from typing import Protocol

from uvicorn.server import ServerState

from headrace.edge.sweep_timer import NEVER, SweepTimer

KEEP_ALIVE_S = 75.0


class Resting(Protocol):
    """A connection."""

    idle_since: float

    def timeout_keep_alive_handler(self) -> None:
        """Closes it."""


class ConnectionRest:
    """Create inside the running loop. Closes connections that have rested for `KEEP_ALIVE_S`."""

    def __init__(self, connections: Iterable[Resting], limit_s: float = KEEP_ALIVE_S) -> None:
        self._connections, self._limit_s = connections, limit_s
        self._loop = asyncio.get_running_loop()
        self._timer = SweepTimer(self._sweep)

    def begins(self) -> float:
        """A connection rests from now on; answers the moment (the loop's clock)."""
        now = self._loop.time()
        if self._timer.at == NEVER:
            self._timer.arm(now + self._limit_s)
        return now

    def end(self) -> None:
        """The server closes; nothing is looked at any more."""
        self._timer.cancel()

    def _sweep(self, now: float) -> float:
        following = NEVER
        for connection in list(self._connections):
            due = connection.idle_since + self._limit_s
            if due <= now:
                connection.timeout_keep_alive_handler()
            elif due < following:
                following = due
        return following


class ResponseDate:
    """The `date` header of responses, made anew when a request comes in another second."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._second = 0

    def refresh(self, now_unix_ns: int) -> None:
        second = now_unix_ns // 1_000_000_000
        if second != self._second:
            self._second = second
            self._state.default_headers = [(b"date", formatdate(second, usegmt=True).encode())]
