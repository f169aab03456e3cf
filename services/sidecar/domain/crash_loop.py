"""When crashes of a component are a loop: five within a minute and not one finished message between them."""

from __future__ import annotations

from collections import deque

from services.sidecar.domain.retry_delay import restart_delay_s

LOOP_CRASHES = 5
LOOP_WITHIN_S = 60.0
HEALTHY_S = 30.0


class CrashRecord:
    """Times are seconds on a steady clock."""

    def __init__(self) -> None:
        self._crashes: deque[float] = deque(maxlen=LOOP_CRASHES)
        self._in_a_row = 0
        self._started_at: float | None = None

    def started(self, now: float) -> None:
        self._started_at = now

    def finished_message(self) -> None:
        """A message was finished: whatever crashed before was no loop, and the back-off begins anew."""
        self._crashes.clear()
        self._in_a_row = 0

    def crashed(self, now: float, *, blamed: bool = False) -> float:
        """Notes a crash; answers the delay in seconds before the next start. `blamed`: a message that ran alone did
        it, so that the others need not wait longer for it."""
        if self._started_at is not None and now - self._started_at >= HEALTHY_S:
            self._in_a_row = 0
            self._crashes.clear()
        self._started_at = None
        self._in_a_row = 1 if blamed else self._in_a_row + 1
        self._crashes.append(now)
        return restart_delay_s(self._in_a_row)

    def is_loop(self, now: float) -> bool:
        """True while the last five crashes lie within a minute and nothing was finished since the first."""
        return len(self._crashes) == LOOP_CRASHES and now - self._crashes[0] <= LOOP_WITHIN_S

    def is_healthy(self, now: float) -> bool:
        """True when the present process has run for half a minute, or has finished a message since the loop."""
        return self._started_at is not None and (now - self._started_at >= HEALTHY_S or not self._crashes)
