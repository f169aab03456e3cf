"""Whether an instance has had nothing to do for so long that it may sleep. The orchestrator decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# However short a timeout is: a step that works must not be told idle between two messages.
SHORTEST_S = 0.1


class Idleness:
    """`on_change` is called when `idle` becomes true, and when work ends that. A timer at most once a timeout; while
    there is work it costs a comparison each time the instance becomes empty or is no longer."""

    def __init__(self, timeout_s: float, on_change: Callable[[], None]) -> None:
        self._timeout_s = max(timeout_s, SHORTEST_S)
        self._on_change = on_change
        self._empty_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._began = False
        self.idle = False

    def begin(self, *, empty: bool) -> None:
        """It works from now on."""
        self._began = True
        self.occupancy_changed(empty=empty)

    def occupancy_changed(self, *, empty: bool) -> None:
        """It holds nothing (any more), or something (again)."""
        if not self._began:
            return
        if not empty:
            self._empty_since = None
            if self.idle:
                self.idle = False
                self._on_change()
        elif self._empty_since is None:
            loop = asyncio.get_running_loop()
            self._empty_since = loop.time()
            if self._timer is None:
                self._timer = loop.call_later(self._timeout_s, self._look)

    def close(self) -> None:
        """Tells nothing any more."""
        self._began = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._empty_since is None:
            return
        loop = asyncio.get_running_loop()
        left_s = self._empty_since + self._timeout_s - loop.time()
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._look)
        elif not self.idle:
            self.idle = True
            self._on_change()
