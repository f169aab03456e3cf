"""The order of one slot: which of its inputs may be called, and which may be committed.

Messages of one key are called one after the other, those of different keys side by side; whatever they become is
committed in the order of the stream. Every delivery carries its number among all of its consumer: numbers without a
hole mean that this owner has seen everything that was stored for the slot, which is what lets a commit speak for all
that came before it.

Numbers without a hole are no proof where two who believe that they own a slot pull from its one consumer, and let it
begin anew behind each other's back. So it is remembered what was committed here: what comes again and is not among it
was passed over, and is taken in then, out of its order, rather than lost.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from enum import Enum

REMEMBERED = 8_192
"""Sequences committed last; more than come again after any failure."""


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
        self.holes = 0
        """Messages that came after later ones of the slot."""
        self._number = 0
        self._newest = 0
        self._committed: deque[int] = deque()
        self._known: set[int] = set()
        self._forgotten = covered
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
        self._number = number
        if sequence in self._keys:
            return Arrival.KNOWN
        if self.is_covered(sequence):
            return Arrival.COVERED
        self._keys[sequence] = key
        if sequence < max(self._newest, self.covered):
            self.holes += 1
            self._keys = OrderedDict(sorted(self._keys.items()))
        self._newest = max(self._newest, sequence)
        chain = self._chains.get(key)
        if chain is None:
            self._chains[key] = deque((sequence,))
            return Arrival.CALL
        chain.append(sequence)
        return Arrival.WAIT

    def is_covered(self, sequence: int) -> bool:
        """Whether it was committed, here or by an earlier owner, as far as is remembered."""
        return sequence <= self.covered and (sequence <= self._forgotten or sequence in self._known)

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

    def committed(self, sequences: Sequence[int]) -> None:
        """These are committed, the first of what was committable, and with them all that came before."""
        for sequence in sequences:
            del self._keys[sequence]
            self._ended.discard(sequence)
            self._known.add(sequence)
            self._committed.append(sequence)
            self.covered = max(self.covered, sequence)
        while len(self._committed) > REMEMBERED:
            oldest = self._committed.popleft()
            self._known.discard(oldest)
            self._forgotten = max(self._forgotten, oldest)
