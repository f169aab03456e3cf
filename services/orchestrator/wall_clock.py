"""The wall clock, as a value that is passed in."""

from __future__ import annotations

import time


class WallClock:
    """Unix seconds."""

    def now(self) -> float:
        return time.time()
