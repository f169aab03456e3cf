"""Calls that ended a while ago: what a component emits after its function returned still belongs to them.

Bounded in time and number; an emit for a call that is not here any more cannot be attributed and is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

KEPT_S = 60.0
KEPT_CALLS = 10_000

T = TypeVar("T")


class EndedCalls(Generic[T]):
    """Call number to whatever is needed to publish a late emit. Times are seconds on a steady clock."""

    def __init__(self, *, kept_s: float = KEPT_S, kept_calls: int = KEPT_CALLS) -> None:
        self._kept_s = kept_s
        self._kept_calls = kept_calls
        self._calls: OrderedDict[int, tuple[float, T]] = OrderedDict()

    def add(self, call: int, context: T, now: float) -> None:
        self._calls[call] = (now, context)
        while len(self._calls) > self._kept_calls:
            self._calls.popitem(last=False)
        self._expire(now)

    def find(self, call: int, now: float) -> T | None:
        """The context of a call, unless it ended too long ago."""
        self._expire(now)
        found = self._calls.get(call)
        return None if found is None else found[1]

    def forget(self, call: int) -> None:
        """The call failed after all: nothing more of it counts."""
        self._calls.pop(call, None)

    def clear(self) -> None:
        self._calls.clear()

    def __len__(self) -> int:
        return len(self._calls)

    def _expire(self, now: float) -> None:
        while self._calls:
            ended_at, _ = next(iter(self._calls.values()))
            if now - ended_at <= self._kept_s:
                return
            self._calls.popitem(last=False)
