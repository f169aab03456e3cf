"""What one puller knows of a work queue: whether all that is stored up to some message was given to it, and is done.

Deliveries of a consumer are numbered without a hole, and first deliveries follow the order of the stream. So numbers
that reached us one after the other name everything that was stored between the first and the last of them, as long as
the broker still counts as we do: its floor (everything up to there is acknowledged) must be the delivery before our
oldest open one, by number and by place in the stream. Whoever else pulled, or let the consumer begin anew, shows in one
of the three.
"""

from __future__ import annotations

MAX_OPEN = 100_000
"""Deliveries remembered; more than any credit allows, unless acknowledgements are not confirmed."""


class DeliveryChain:
    """Of one consumer; `subject` is the one whose messages it is asked about."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._last = 0
        self._newest = 0
        self._open: dict[int, int] = {}
        """Sequence by number, without a hole from `_oldest` on: not confirmed, or after such a one."""
        self._oldest = 0
        self._done: set[int] = set()
        self._confirmed: set[int] = set()
        self._others: set[int] = set()
        self._below: tuple[int, int] | None = None

    def delivered(self, number: int, sequence: int, attempt: int, subject: str) -> None:
        """Takes a delivery in; what is no first one, or not the next, begins a new chain."""
        if number != self._last + 1 or attempt != 1 or sequence <= self._newest or len(self._open) >= MAX_OPEN:
            self._begin_anew()
        self._last = number
        if attempt != 1:
            return
        self._newest = sequence
        if not self._open:
            self._oldest = number
        self._open[number] = sequence
        if subject != self._subject:
            self._others.add(number)

    def _begin_anew(self) -> None:
        self._open.clear()
        self._done.clear()
        self._confirmed.clear()
        self._others.clear()
        self._below = None

    def done(self, number: int, sequence: int) -> None:
        """Everything that follows from it is with the broker."""
        if self._open.get(number) == sequence:  # a delivery of an earlier chain may have the number of another message
            self._done.add(number)

    def confirmed(self, number: int, sequence: int) -> None:
        """The broker confirmed its acknowledgement."""
        if self._open.get(number) != sequence:
            return
        self._confirmed.add(number)
        while (first := self._oldest) in self._confirmed:
            self._below = (first, self._open.pop(first))
            for numbers in (self._done, self._confirmed, self._others):
                numbers.discard(first)
            self._oldest += 1

    @property
    def ready(self) -> int:
        """How many in a row are done, from the oldest: more cannot be removed, whatever the broker's floor is."""
        number = self._oldest
        while number in self._done:
            number += 1
        return number - self._oldest

    def through(self, floor_number: int, floor_sequence: int) -> tuple[int, int]:
        """With the broker's floor: the stream sequence up to which everything on the subject is done (0: that is not
        known, or nothing), and how many messages of ours that are still stored that is."""
        oldest = self._oldest
        if not self._open or floor_number != oldest - 1 or floor_sequence >= self._open[oldest]:
            return 0, 0
        if self._below is not None and self._below[1] > floor_sequence:
            return 0, 0
        through = count = 0
        for number in range(oldest, oldest + self.ready):
            if number not in self._others:
                through = self._open[number]
                count += number not in self._confirmed
        return through, count
