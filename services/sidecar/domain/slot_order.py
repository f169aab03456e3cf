"""The order of one slot: which of its inputs may be called, and which may be committed.

Messages of one key are called one after the other, those of different keys side by side; whatever they become is
committed in the order of the stream. Every delivery carries its number among all of its consumer: numbers without a
hole mean that this owner has seen everything that was stored for the slot, which is what lets a commit speak for all
that came before it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum


class Arrival(Enum):
    """What to do with a delivery."""

    CALL = "call"
    """New, and nothing of its key is before it."""
    WAIT = "wait"
    """New; `ended` of the one before it will name it."""
    KNOWN = "known"
    """Held already: the broker delivered it again."""
    COVERED = "covered"
    """Committed before: acknowledge it, nothing else."""
    GAP = "gap"
    """Something was delivered to somebody else, or lost on its way: the consumer must begin anew."""


class SlotOrder:
    """Sequences are those of the stream; everything up to `covered` is committed."""

    def __init__(self, covered: int = 0) -> None:
        self.covered = covered
        self._number = 0
        self._newest = 0
        self._keys: OrderedDict[int, str] = OrderedDict()
        self._ended: set[int] = set()
        self._chains: dict[str, deque[int]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def restart(self) -> None:
        """The consumer begins anew: its next delivery is number 1, and what is held comes again."""
        self._number = 0

    def arrive(self, sequence: int, number: int, key: str) -> Arrival:
        """Takes a delivery in, unless it is a GAP: then nothing changed."""
        if number != self._number + 1:
            return Arrival.GAP
        held = sequence in self._keys
        if self.covered < sequence < self._newest and not held:
            return Arrival.GAP  # cannot be in a stream; if it were, it must not be taken out of order
        self._number = number
        if sequence <= self.covered:
            return Arrival.COVERED
        if held:
            return Arrival.KNOWN
        self._newest = sequence
        self._keys[sequence] = key
        chain = self._chains.get(key)
        if chain is None:
            self._chains[key] = deque((sequence,))
            return Arrival.CALL
        chain.append(sequence)
        return Arrival.WAIT

    def ended(self, sequence: int) -> int | None:
        """Its call is over for good; answers the next one of its key, which may be called now."""
        if sequence not in self._keys or sequence in self._ended:
            return None
        self._ended.add(sequence)
        chain = self._chains[self._keys[sequence]]
        chain.popleft()
        if chain:
            return chain[0]
        del self._chains[self._keys[sequence]]
        return None

    def committable(self) -> list[int]:
        """What may be committed next, in order: all that ended before the first that did not."""
        found = []
        for sequence in self._keys:
            if sequence not in self._ended:
                break
            found.append(sequence)
        return found

    def committed(self, through: int) -> None:
        """Everything up to here is committed. What was held of it has ended: it was committable."""
        while self._keys and (first := next(iter(self._keys))) <= through:
            del self._keys[first]
            self._ended.discard(first)
        self.covered = max(self.covered, through)
