"""Calls that ended a while ago: what a component emits after its function returned still belongs to them.

Bounded in time and number; an emit for a call that is not here any more cannot be attributed and is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

KEPT_S = 60.0
KEPT_CALLS = 10_000

T = TypeVar("T")


class EndedCalls(Generic[T]):
    """Call number to whatever is needed to publish a late emit. Times are seconds on a steady clock. The newest half of
    `kept_calls` is there for certain, and for `kept_s`."""

    def __init__(self, *, kept_s: float = KEPT_S, kept_calls: int = KEPT_CALLS) -> None:
        self._kept_s = kept_s
        self._half = max(1, kept_calls // 2)
        self._young: dict[int, tuple[float, T]] = {}
        self._old: dict[int, tuple[float, T]] = {}
        self._turned_at = 0.0

    def add(self, call: int, context: T, now: float) -> None:
        if len(self._young) >= self._half or now - self._turned_at > self._kept_s:
            self._old, self._young, self._turned_at = self._young, {}, now
        self._young[call] = (now, context)

    def add_all(self, contexts: Mapping[int, T], now: float) -> None:
        """As `add` of each."""
        if len(self._young) + len(contexts) > self._half or now - self._turned_at > self._kept_s:
            self._old, self._young, self._turned_at = self._young, {}, now
        self._young.update({call: (now, context) for call, context in contexts.items()})

    def find(self, call: int, now: float) -> T | None:
        """The context of a call, unless it ended too long ago."""
        found = self._young.get(call) or self._old.get(call)
        return None if found is None or now - found[0] > self._kept_s else found[1]

    def forget(self, call: int) -> None:
        """The call failed after all: nothing more of it counts."""
        self._young.pop(call, None)
        self._old.pop(call, None)

    def clear(self) -> None:
        self._young.clear()
        self._old.clear()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
