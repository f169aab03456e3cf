"""Inputs that give their credit back before they are acknowledged.

Where every write is synced, an input waits much longer for its outputs to be stored, and for its own removal, than for
its component. If it held its credit all that time, a step would do one thing after the other: pull as much as its
prefetch, call, store, remove, and pull again. So an input whose call is over makes room for another, as long as
not too many do.
"""

from __future__ import annotations

LEAST_PREFETCH = 16
"""Below it a step is meant to have little in work, and gains nothing: so few are no batch."""
MOST = 512
"""With the prefetch it stays below what the broker hands out without an acknowledgement."""
MOST_BYTES = 8 * 1024 * 1024


class EarlyCredit:
    """Of one step. Ids are those of inputs that are held."""

    def __init__(self, prefetch: int) -> None:
        self._most = MOST if prefetch >= LEAST_PREFETCH else 0
        self._sizes: dict[str, int] = {}
        self._bytes = 0

    def take(self, message_id: str, size: int) -> bool:
        """Whether the credit of an input of `size` bytes is given back now."""
        if len(self._sizes) >= self._most or self._bytes + size > MOST_BYTES or message_id in self._sizes:
            return False
        self._sizes[message_id] = size
        self._bytes += size
        return True

    def give_back(self, message_id: str) -> bool:
        """The input is settled; True if its credit was given back before."""
        size = self._sizes.pop(message_id, None)
        if size is None:
            return False
        self._bytes -= size
        return True
