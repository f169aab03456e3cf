"""When events that lead to nothing are too many: emits past the limit, events of calls that nobody made.

A few are normal (a late emit, an end after the time limit). A component that sends them for ever would cost its
sidecar a processor, so it is ended and its calls become attempts that crashed.
"""

from __future__ import annotations

FLOOD_PER_S = 2_000.0
FLOOD_BURST = 100_000.0


class FloodGauge:
    """A bucket that fills with time. Times are seconds on a steady clock."""

    def __init__(self, *, per_s: float = FLOOD_PER_S, burst: float = FLOOD_BURST) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._filled_at = 0.0

    def take(self, count: int, now: float) -> bool:
        """Counts useless events; False when they are a flood."""
        self._left = min(self._burst, self._left + (now - self._filled_at) * self._per_s) - count
        self._filled_at = now
        return self._left >= 0

    def start(self, now: float) -> None:
        """A new process begins with a full bucket."""
        self._left, self._filled_at = self._burst, now
