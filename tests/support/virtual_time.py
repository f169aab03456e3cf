"""An asyncio loop in virtual time: when nothing is ready, the clock jumps to the next timer.

No sockets and no threads: whatever runs here talks through memory. The same program takes the same steps each
time, and a day of waiting costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(Exception):
    """Everything waits and no timer is set: nothing can ever happen again."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """`time()` is virtual seconds from 0."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._clock_resolution = 1e-9
        self._selector = self

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """The loop's selector is the loop itself: waiting is jumping."""
        if timeout is None:
            raise Deadlock(f"at {self._now:.3f} s")
        if timeout > 0:
            self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a system call."""


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end on a loop of its own; Deadlock when it can never end."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
