"""The acks of a lane that the broker has not confirmed: repeated until it does, or until their limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.edge.nats_tap import NatsTap
from headrace.edge.sweep_timer import NEVER, SweepTimer
from headrace.ports import AckUnknown

LIMIT_S = 30.0
"""While the server can be reached; about the ack wait, after which it delivers the message again anyway."""
ABSENT_LIMIT_S = 5.0
"""While the server says that nobody listens on the ack's subject (a consumer that is gone, or not up yet)."""
REPEAT_AFTER_S = 2.0
FIRST_BACKOFF_S = 0.05
RECOVERY_LIMIT_S = 5.0
TOKEN_LETTER = b"a"


class _Ack:
    __slots__ = ("absent_since", "deadline", "future", "subject", "tries", "try_at")

    def __init__(self, future: asyncio.Future[None], subject: bytes, deadline: float, try_at: float) -> None:
        self.future, self.subject = future, subject
        self.deadline, self.try_at = deadline, try_at
        self.tries = 0
        self.absent_since = 0.0


class AckBook:
    """After a reconnect every unconfirmed ack is repeated first; `on_recovered` is called when the broker has
    confirmed them (or after 5 s), and only then may pulls begin, or it would deliver those messages again."""

    def __init__(self, tap: NatsTap, prefix: bytes, *, on_recovered: Callable[[], None]) -> None:
        self._tap, self._prefix, self._on_recovered = tap, prefix, on_recovered
        self._loop = asyncio.get_running_loop()
        self._slots: dict[bytes, _Ack] = {}
        self._number = 0
        self._recovering: set[bytes] = set()
        self._recovery_limit: asyncio.TimerHandle | None = None
        self._timer = SweepTimer(self._sweep)

    def __len__(self) -> int:
        return len(self._slots)

    def futures(self) -> list[asyncio.Future[None]]:
        return [slot.future for slot in self._slots.values() if not slot.future.done()]

    @property
    def recovering(self) -> bool:
        return bool(self._recovering)

    def add(self, subject: str) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._number += 1
        token = b"a%d" % self._number
        now = self._loop.time()
        slot = self._slots[token] = _Ack(future, subject.encode(), now + LIMIT_S, now + REPEAT_AFTER_S)
        if self._tap.up:
            self._write(token, slot)
        self._timer.arm(slot.try_at)
        return future

    def answer(self, token: bytes, headers: bytes | None) -> None:
        """A confirmation (no headers) or a status (nobody listens)."""
        if headers is not None:
            slot = self._slots.get(token)
            if slot is not None:
                now = self._loop.time()
                slot.absent_since = slot.absent_since or now
                slot.try_at = now + min(REPEAT_AFTER_S, FIRST_BACKOFF_S * 2**slot.tries)
                slot.tries += 1
                self._timer.arm(slot.try_at)
            return
        slot = self._slots.pop(token, None)
        if slot is not None:
            if not slot.future.done():
                slot.future.set_result(None)
            if self._recovering:
                self._settle(token)

    def disconnected(self) -> None:
        self._recovering.clear()
        self._cancel_recovery_limit()

    def reconnected(self) -> None:
        """Repeats all; calls `on_recovered` at once if there are none."""
        now = self._loop.time()
        for token, slot in self._slots.items():
            slot.deadline = now + LIMIT_S
            slot.try_at = now + REPEAT_AFTER_S
            slot.absent_since, slot.tries = 0.0, 0
            self._write(token, slot)
        if not self._slots:
            self._on_recovered()
            return
        self._recovering = set(self._slots)
        self._recovery_limit = self._loop.call_later(RECOVERY_LIMIT_S, self._end_recovery)
        self._timer.arm(now + REPEAT_AFTER_S)

    def end_all(self, cause: str) -> None:
        self._timer.cancel()
        self._recovering.clear()
        self._cancel_recovery_limit()
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            if not slot.future.done():
                slot.future.set_exception(AckUnknown(cause))

    def _write(self, token: bytes, slot: _Ack) -> None:
        self._tap.write(b"PUB %b %b%b 4\r\n+ACK\r\n" % (slot.subject, self._prefix, token))

    def _sweep(self, now: float) -> float:
        if not self._tap.up:
            return NEVER  # the reconnect sets new limits
        following = NEVER
        for token, slot in list(self._slots.items()):
            absent = slot.absent_since > 0
            if now >= slot.deadline or (absent and now - slot.absent_since >= ABSENT_LIMIT_S):
                del self._slots[token]
                if not slot.future.done():
                    cause = "no responders" if absent else "not confirmed in time"
                    slot.future.set_exception(AckUnknown(cause, no_responders=absent))
                self._settle(token)
                continue
            if now >= slot.try_at:
                self._write(token, slot)
                slot.try_at = now + REPEAT_AFTER_S
            following = min(following, slot.try_at)
        return following

    def _settle(self, token: bytes) -> None:
        if token in self._recovering:
            self._recovering.discard(token)
            if not self._recovering:
                self._end_recovery()

    def _end_recovery(self) -> None:
        self._recovering.clear()
        self._cancel_recovery_limit()
        self._on_recovered()

    def _cancel_recovery_limit(self) -> None:
        if self._recovery_limit is not None:
            self._recovery_limit.cancel()
            self._recovery_limit = None
