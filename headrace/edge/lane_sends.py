"""Core publishes of a lane that want to know whether anybody listened.

The broker answers a publish with a reply subject at once, on the same connection, when nobody listens to it ("no
responders"), and says nothing otherwise: so what was not heard is known by the next PONG, at no cost but the subject.
"""

from __future__ import annotations

from collections.abc import Callable

SEND_LETTER = b"h"


class SendBook:
    """Callbacks of sends whose fate the next flush settles. Past `max_open` the oldest count as heard."""

    def __init__(self, prefix: bytes, max_open: int) -> None:
        self._prefix = prefix
        self._max_open = max_open
        self._open: dict[int, Callable[[], None]] = {}
        self._number = 0

    def add(self, on_unheard: Callable[[], None]) -> str:
        """The reply subject to publish with."""
        self._number += 1
        self._open[self._number] = on_unheard
        if len(self._open) > self._max_open:
            del self._open[next(iter(self._open))]
        return (self._prefix + SEND_LETTER + b"%d" % self._number).decode()

    def answer(self, token: bytes) -> None:
        """The broker's word that nobody listened; whatever else comes there means the same or nothing."""
        number = token[1:]
        callback = self._open.pop(int(number), None) if number.isdigit() else None
        if callback is not None:
            callback()

    @property
    def mark(self) -> int:
        """What was added so far; for `heard`."""
        return self._number

    def heard(self, mark: int) -> None:
        """A flush that began at `mark` is over: what was added before it and not answered was heard."""
        while self._open and (oldest := next(iter(self._open))) <= mark:
            del self._open[oldest]

    def clear(self) -> None:
        """The connection broke: nobody knows."""
        self._open.clear()
