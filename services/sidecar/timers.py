"""Callbacks for later, owned: whoever has a `Timers` cancels all that is left of them in its stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Create inside the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, asyncio.TimerHandle] = {}
        self._next = 0
        self._closed = False

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Calls back once after the delay, in the loop; never after `close`."""
        if self._closed:
            return
        self._next += 1
        number = self._next

        def fire() -> None:
            self._pending.pop(number, None)
            callback()

        self._pending[number] = self._loop.call_later(delay_s, fire)

    def close(self) -> None:
        self._closed = True
        for handle in self._pending.values():
            handle.cancel()
        self._pending.clear()
