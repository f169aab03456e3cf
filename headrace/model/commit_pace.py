"""When messages that wait are stored one by one, and when as one batch.

Where every write is synced, a message alone costs one sync, and a batch a handful whatever its size: few go alone, at
once; many go together. Batches of one stream do not overlap in the broker, so one is under way at a time. What
comes meanwhile is the next one, which begins after a pause as long as the last one took: without it batches that follow
each other at once stay as small as they are, and the broker spends its time on their number.
"""

from __future__ import annotations

from dataclasses import dataclass

FEW = 8
"""So many may be under way one by one."""
LEAST = 16
"""Fewer are not worth a batch."""
ENOUGH = 480
"""So many wait for no pause."""
MOST = 500
"""Messages of one batch."""
MOST_BYTES = 4 * 1024 * 1024
LONGEST_PAUSE_S = 0.025


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now: send so many one by one, or a batch, or look again after `wait_s` (0: when something ends)."""

    singles: int = 0
    batch: bool = False
    wait_s: float = 0.0


NOTHING = Step()
BATCH = Step(batch=True)


class CommitPace:
    """Of one stream and one sender. Times are seconds on any steady clock."""

    def __init__(self) -> None:
        self.singles = 0
        """Under way, each alone."""
        self._began_at: float | None = None
        self._resume_at = 0.0

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self.singles and self._began_at is None

    def next_step(self, waiting: int, now: float) -> Step:
        """What to do with so many that wait."""
        if not waiting or self._began_at is not None:
            return NOTHING
        if waiting >= ENOUGH:
            return BATCH
        if now < self._resume_at:
            return Step(wait_s=self._resume_at - now)
        if waiting >= LEAST:
            return BATCH
        return Step(singles=min(waiting, max(0, FEW - self.singles)))

    def batch_began(self, now: float) -> None:
        self._began_at = now

    def batch_ended(self, now: float) -> None:
        """Stored or not."""
        took = now - (self._began_at if self._began_at is not None else now)
        self._began_at = None
        self._resume_at = now + min(took, LONGEST_PAUSE_S)
