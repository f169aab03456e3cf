"""What this sidecar knows the broker has: confirmed outputs of unfinished inputs, and finished inputs.

The broker refuses repeated ids only while it remembers them, and forgets those of consumed messages when it
restarts (DESIGN section 4). So a redelivered input publishes only the outputs not yet confirmed, and an input
that was finished is only acknowledged. Bounded in time (the duplicate window) and in number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

DEFAULT_MAX_FINISHED = 100_000
DEFAULT_MAX_UNFINISHED = 10_000


class SenderMemory:
    """Times are seconds on any steady clock. An id is remembered for at least `window_s` and at most twice
    that, unless more than `max_finished` inputs finish within the window: then the oldest half goes early."""

    def __init__(
        self,
        window_s: float,
        *,
        max_finished: int = DEFAULT_MAX_FINISHED,
        max_unfinished: int = DEFAULT_MAX_UNFINISHED,
    ) -> None:
        self._window_s = window_s
        self._half = max(1, max_finished // 2)
        self._max_unfinished = max_unfinished
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._turned_at: float | None = None
        self._turn_at = -math.inf
        """When the oldest may be forgotten next."""
        self._confirmed: dict[bytes, tuple[float, set[str]]] = {}

    def confirm(self, input_id: str, output_id: str, now: float) -> None:
        """The broker has that output of an input that is not finished yet."""
        key = _key(input_id)
        known = self._confirmed.pop(key, None)
        outputs = known[1] if known is not None else set()
        outputs.add(output_id)
        self._forget_unfinished(now)
        self._confirmed[key] = (now, outputs)  # last in order: the oldest are forgotten first

    def is_confirmed(self, input_id: str, output_id: str) -> bool:
        known = self._confirmed.get(_key(input_id))
        return known is not None and output_id in known[1]

    @property
    def knows_outputs(self) -> bool:
        """Whether any input is unfinished with outputs confirmed: else there is nothing to ask for."""
        return bool(self._confirmed)

    def finish(self, input_id: str, now: float) -> None:
        """Every effect of the input is with the broker; only its acknowledgement may be open."""
        key = _key(input_id)
        if self._confirmed:
            self._confirmed.pop(key, None)
        if now >= self._turn_at or len(self._young) >= self._half:
            self._turn(now)
        self._young.add(key)

    def is_finished(self, input_id: str, now: float) -> bool:
        return self.finished_by(now)(input_id)

    def finished_by(self, now: float) -> Callable[[str], bool]:
        """`is_finished` for all that came together."""
        self._turn(now)
        young, old = self._young, self._old

        def is_known(input_id: str) -> bool:
            try:
                key = _unhex(input_id)
            except ValueError:
                key = input_id.encode()
            return key in young or key in old

        return is_known

    @property
    def size(self) -> int:
        """Inputs remembered."""
        return len(self._young) + len(self._old) + len(self._confirmed)

    def _turn(self, now: float) -> None:
        if self._turned_at is None:
            self._turned_at = now
        age_s = now - self._turned_at
        if age_s >= 2 * self._window_s:
            self._young, self._old, self._turned_at = set(), set(), now
        elif age_s >= self._window_s:
            self._old, self._young, self._turned_at = self._young, set(), self._turned_at + self._window_s
        elif len(self._young) >= self._half:
            self._old, self._young, self._turned_at = self._young, set(), now
        self._turn_at = self._turned_at + self._window_s

    def _forget_unfinished(self, now: float) -> None:
        while self._confirmed:
            oldest = next(iter(self._confirmed))
            too_many = len(self._confirmed) >= self._max_unfinished
            if not too_many and now - self._confirmed[oldest][0] < 2 * self._window_s:
                return
            del self._confirmed[oldest]


_unhex = bytes.fromhex


def _key(message_id: str) -> bytes:
    # 32 hex digits take half the memory as bytes; anything else is taken as it is.
    try:
        return _unhex(message_id)
    except ValueError:
        return message_id.encode()
