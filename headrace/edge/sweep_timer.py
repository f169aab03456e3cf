"""One loop timer for many deadlines: armed at the earliest known, it sweeps and is armed again for the rest."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

NEVER = math.inf
GRAIN_S = 0.005


class SweepTimer:
    """`sweep(now)` settles what is due and answers the next deadline (loop time), NEVER if there is none."""

    def __init__(self, sweep: Callable[[float], float]) -> None:
        self._sweep = sweep
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.at = NEVER
        """When it is armed for."""

    def arm(self, at: float) -> None:
        """Sees to it that a sweep runs at `at` or before."""
        if at < self.at:
            if self._timer is not None:
                self._timer.cancel()
            self.at = at
            self._timer = self._loop.call_at(at, self._run)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.at = None, NEVER

    def _run(self) -> None:
        self._timer, self.at = None, NEVER
        now = self._loop.time()
        following = self._sweep(now)
        if following < NEVER:
            self.arm(max(following, now + GRAIN_S))
