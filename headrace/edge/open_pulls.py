"""How many messages the open pull requests of one consumer may still bring."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class OpenPull:
    """One request: messages left, and when it was made (loop time)."""

    left: int
    made_at: float


class OpenPulls:
    """The server serves requests first come first served, so a delivery counts against the oldest one; a status
    ends its request with whatever that had left. Being wrong for a moment is healed when a request ends."""

    __slots__ = ("_pulls", "asked")

    def __init__(self) -> None:
        self._pulls: dict[bytes, OpenPull] = {}
        self.asked = 0

    def add(self, token: bytes, batch: int, now: float) -> None:
        self._pulls[token] = OpenPull(batch, now)
        self.asked += batch

    def count_deliveries(self, count: int) -> None:
        while count and self._pulls:
            oldest, pull = next(iter(self._pulls.items()))
            taken = min(count, pull.left)
            pull.left -= taken
            self.asked -= taken
            count -= taken
            if not pull.left:
                del self._pulls[oldest]

    def end(self, token: bytes) -> OpenPull | None:
        """Takes out a request that the server ended; None if it is not known (any more)."""
        pull = self._pulls.pop(token, None)
        if pull is not None:
            self.asked -= pull.left
        return pull

    def clear(self) -> None:
        self._pulls.clear()
        self.asked = 0
