"""How many publishes to one edge may be on their way: all while it is open, one probe while it is full.

A refusal closes the edge; the probe's success opens a small window that grows with each success and is gone
once nothing waits, so that an edge that has just been emptied by one message is not hit by a thousand.
"""

from __future__ import annotations


class EdgeWindow:
    """Counts of one edge (receiver) in one sidecar; with `ordered` never more than one is on its way, since two
    into an edge that is full for the first and open for the second change places."""

    def __init__(self, *, ordered: bool = False) -> None:
        self._ordered = ordered
        self._limit: int | None = None
        self.in_flight = 0

    @property
    def recovering(self) -> bool:
        return self._limit is not None

    def may_send(self) -> bool:
        if self._ordered and self.in_flight:
            return False
        return self._limit is None or self.in_flight < self._limit

    def sent(self) -> None:
        self.in_flight += 1

    def stored(self, *, waiting: int) -> None:
        """A publish was stored; `waiting` messages still wait locally for this edge."""
        self.in_flight -= 1
        if self._limit is None:
            return
        self._limit = None if waiting == 0 else self._limit + 1 if self._limit else 2

    def refused(self) -> None:
        """The edge is full: nothing more until the probe."""
        self.in_flight -= 1
        self._limit = 0

    def unanswered(self) -> None:
        """A publish got no answer: it is repeated by itself and neither opens nor closes the edge."""
        self.in_flight -= 1

    def may_probe(self) -> bool:
        """One probe at a time."""
        return self._limit == 0 and self.in_flight == 0
