"""The acks of a lane that the broker has not confirmed: repeated until it does, or until their limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.edge.nats_link import NatsLink
from headrace.edge.sweep_timer import NEVER, SweepTimer
from headrace.ports import AckUnknown
from headrace.wire.jetstream import AckSubject, parse_ack_subject

LIMIT_S = 30.0
"""While the server can be reached; about the ack wait, after which it delivers the message again anyway."""
DOWN_LIMIT_S = 120.0
"""While it cannot."""
ABSENT_LIMIT_S = 5.0
"""While the server says that nobody listens on the ack's subject (a consumer that is gone, or not up yet)."""
REPEAT_AFTER_S = 0.5
REPEAT_LIMIT_S = 2.0
FIRST_BACKOFF_S = 0.05
RECOVERY_LIMIT_S = 5.0
QUIET_S = 0.2
"""A server that has not answered a repeated ack for so long does not know the message as delivered: its consumer
lost the last moments before a kill -9. It answers only after it has delivered the message again."""
TOKEN_LETTER = b"a"


# stream, consumer, stream sequence
MessageKey = tuple[str, str, int]


class _Ack:
    __slots__ = ("absent_since", "deadline", "future", "key", "subject", "tries", "try_at")

    def __init__(self, future: asyncio.Future[None], subject: bytes, deadline: float, try_at: float) -> None:
        self.future, self.subject = future, subject
        self.deadline, self.try_at = deadline, try_at
        self.tries = 0
        self.absent_since = 0.0
        self.key: MessageKey | None = None


class AckBook:
    """After a reconnect every unconfirmed ack is repeated first; `on_recovered` is called when the broker has
    confirmed them, or falls silent (0.2 s, 5 s at most), and only then may pulls begin, or it would deliver those
    messages again. Those it delivers again all the same are claimed: acknowledged under their new subject. Whoever
    pulls asks for `unsettled` more than its credit, since the server may wait for just that; `on_unsettled` is
    called when there are more of them."""

    def __init__(
        self,
        link: NatsLink,
        prefix: bytes,
        *,
        on_recovered: Callable[[], None],
        on_unsettled: Callable[[], None],
    ) -> None:
        self._link, self._prefix = link, prefix
        self._on_recovered, self._on_unsettled = on_recovered, on_unsettled
        self._loop = asyncio.get_running_loop()
        self._slots: dict[bytes, _Ack] = {}
        self._number = 0
        self._recovering: set[bytes] = set()
        self._recovery_end = 0.0
        self._unsettled: dict[MessageKey, bytes] = {}
        self._recovery_limit: asyncio.TimerHandle | None = None
        self._timer = SweepTimer(self._sweep)

    def __len__(self) -> int:
        return len(self._slots)

    def futures(self) -> list[asyncio.Future[None]]:
        return [slot.future for slot in self._slots.values() if not slot.future.done()]

    @property
    def recovering(self) -> bool:
        return bool(self._recovering)

    def unsettled(self, stream: str, consumer: str) -> int:
        """Acks of that consumer that were repeated and not confirmed."""
        if not self._unsettled:
            return 0
        return sum(key[0] == stream and key[1] == consumer for key in self._unsettled)

    def claim(self, facts: AckSubject, subject: str) -> bool:
        """Whether a delivery was acknowledged before the connection broke; then it is acknowledged anew here."""
        if not self._unsettled:
            return False
        token = self._unsettled.get((facts.stream, facts.consumer, facts.stream_sequence))
        slot = self._slots.get(token) if token is not None else None
        if token is None or slot is None:
            return False
        slot.subject = subject.encode()
        slot.absent_since = 0.0
        self._write(token, slot)
        return True

    def add(self, subject: str) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._number += 1
        token = b"a%d" % self._number
        now = self._loop.time()
        limit = LIMIT_S if self._link.up else DOWN_LIMIT_S
        slot = self._slots[token] = _Ack(future, subject.encode(), now + limit, now + REPEAT_AFTER_S)
        if self._link.up:
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
                slot.try_at = now + min(REPEAT_LIMIT_S, FIRST_BACKOFF_S * 2**slot.tries)
                slot.tries += 1
                self._timer.arm(slot.try_at)
                self._extend_recovery()
            return
        slot = self._slots.pop(token, None)
        if slot is not None:
            if not slot.future.done():
                slot.future.set_result(None)
            if slot.key is not None:
                self._settle(token, slot.key)

    def disconnected(self) -> None:
        """Nothing is repeated until the reconnect; the longer limit holds."""
        deadline = self._loop.time() + DOWN_LIMIT_S
        for slot in self._slots.values():
            slot.deadline = deadline
        self._recovering.clear()
        self._cancel_recovery_limit()

    def reconnected(self) -> None:
        """Repeats all; calls `on_recovered` at once if there are none."""
        now = self._loop.time()
        self._unsettled.clear()
        for token, slot in self._slots.items():
            slot.deadline = now + LIMIT_S
            slot.try_at = now + REPEAT_AFTER_S
            slot.absent_since, slot.tries = 0.0, 0
            self._repeat(token, slot)
        if not self._slots:
            self._on_recovered()
            return
        self._recovering = set(self._slots)
        self._recovery_end = now + RECOVERY_LIMIT_S
        self._extend_recovery()
        self._timer.arm(now + REPEAT_AFTER_S)

    def end_all(self, cause: str) -> None:
        """Nothing more will be confirmed."""
        self._timer.cancel()
        self._recovering.clear()
        self._unsettled.clear()
        self._cancel_recovery_limit()
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            self._give_up(slot, AckUnknown(cause))

    @staticmethod
    def _give_up(slot: _Ack, error: AckUnknown) -> None:
        if not slot.future.done():
            slot.future.set_exception(error)
            slot.future.exception()  # whoever does not look leaves it to the redelivery

    def _write(self, token: bytes, slot: _Ack) -> None:
        self._link.write(b"PUB %b %b%b 4\r\n+ACK\r\n" % (slot.subject, self._prefix, token))

    def _sweep(self, now: float) -> float:
        following, up, repeated = NEVER, self._link.up, False
        for token, slot in list(self._slots.items()):
            absent = slot.absent_since > 0
            if now >= slot.deadline or (absent and up and now - slot.absent_since >= ABSENT_LIMIT_S):
                del self._slots[token]
                cause = "no responders" if absent else "not confirmed in time"
                self._give_up(slot, AckUnknown(cause, no_responders=absent))
                if slot.key is not None:
                    self._settle(token, slot.key)
                continue
            if up and now >= slot.try_at:
                repeated = True
                self._repeat(token, slot)
                slot.tries += 1
                slot.try_at = now + min(REPEAT_LIMIT_S, REPEAT_AFTER_S * 2**slot.tries)
            following = min(following, slot.try_at if up else slot.deadline)
        if repeated and not self._recovering:
            self._on_unsettled()
        return following

    def _repeat(self, token: bytes, slot: _Ack) -> None:
        if slot.key is None:
            facts = parse_ack_subject(slot.subject.decode())
            slot.key = (facts.stream, facts.consumer, facts.stream_sequence)
        self._unsettled[slot.key] = token
        self._write(token, slot)

    def _settle(self, token: bytes, key: MessageKey) -> None:
        self._unsettled.pop(key, None)
        if token in self._recovering:
            self._recovering.discard(token)
            if self._recovering:
                self._extend_recovery()
            else:
                self._end_recovery()

    def _extend_recovery(self) -> None:
        if not self._recovering:
            return
        self._cancel_recovery_limit()
        until = min(self._recovery_end, self._loop.time() + QUIET_S)
        self._recovery_limit = self._loop.call_at(until, self._end_recovery)

    def _end_recovery(self) -> None:
        self._recovering.clear()
        self._cancel_recovery_limit()
        self._on_recovered()

    def _cancel_recovery_limit(self) -> None:
        if self._recovery_limit is not None:
            self._recovery_limit.cancel()
            self._recovery_limit = None
