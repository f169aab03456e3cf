"""The acks of a lane that the broker has not confirmed: repeated until it does, or until their limit.

A single server handles the acks of one consumer in the order in which they come. So of those that leave in one write
only the last asks for a confirmation, which then is one of them all; that saves the broker and us an answer for each of
the others. Whenever something is not as it should be (no answer, nobody there, the connection broke) each of them is
repeated, and confirmed, by itself. Servers of a cluster confirm each one: there the consumer may move between two acks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from headrace.edge.nats_link import NatsLink
from headrace.edge.structured_log import get_logger
from headrace.edge.sweep_timer import NEVER, SweepTimer
from headrace.ports import AckUnknown
from headrace.wire.jetstream import AckSubject, parse_ack_subject

log = get_logger(__name__)

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
Tell = Callable[[Any, AckUnknown | None], None]
# ack subject, tell, about
_Fresh = tuple[bytes, Tell, Any]


class AckGroup:
    """The acks of one consumption that leave in the next write."""

    __slots__ = ("acks",)

    def __init__(self) -> None:
        self.acks: list[_Fresh] = []


class _Ack:
    """One that is confirmed by itself."""

    __slots__ = ("about", "absent_since", "deadline", "key", "subject", "tell", "tries", "try_at")

    def __init__(self, fresh: _Fresh, deadline: float, try_at: float) -> None:
        self.subject, self.tell, self.about = fresh
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
        self._turn: list[AckGroup] = []
        self._written: dict[bytes, tuple[float, list[_Fresh]]] = {}
        """Groups by the token of their last, and when each is to be repeated one by one."""
        self._slots: dict[bytes, _Ack] = {}
        self._number = 0
        self._count = 0
        self._settled: asyncio.Future[None] | None = None
        self._recovering: set[bytes] = set()
        self._recovery_end = 0.0
        self._unsettled: dict[MessageKey, bytes] = {}
        self._recovery_limit: asyncio.TimerHandle | None = None
        self._timer = SweepTimer(self._sweep)

    def __len__(self) -> int:
        return self._count

    async def confirmed(self) -> None:
        """Returns when none is without an answer."""
        while self._count:
            if self._settled is None:
                self._settled = self._loop.create_future()
            await asyncio.shield(self._settled)

    @property
    def any_unsettled(self) -> bool:
        """Whether an ack was repeated and is not confirmed."""
        return bool(self._unsettled)

    @property
    def recovering(self) -> bool:
        return bool(self._recovering)

    def unsettled(self, stream: str, consumer: str) -> int:
        """Acks of that consumer that were repeated and not confirmed."""
        if not self._unsettled:
            return 0
        return sum(key[0] == stream and key[1] == consumer for key in self._unsettled)

    def claim(self, facts: AckSubject, subject: bytes) -> bool:
        """Whether a delivery was acknowledged before the connection broke; then it is acknowledged anew here."""
        if not self._unsettled:
            return False
        token = self._unsettled.get((facts.stream, facts.consumer, facts.stream_sequence))
        slot = self._slots.get(token) if token is not None else None
        if token is None or slot is None:
            return False
        slot.subject = subject
        slot.absent_since = 0.0
        self._write(token, slot)
        return True

    def add(self, subject: bytes, group: AckGroup, tell: Tell, about: Any) -> None:
        """`group` is that of the consumption which the ack's message came from."""
        self._count += 1
        if not self._link.up:
            now = self._loop.time()
            self._alone((subject, tell, about), now + DOWN_LIMIT_S, now + REPEAT_AFTER_S)
            return
        if not group.acks:
            if not self._turn:
                self._link.write_at_end(self._commands)
            self._turn.append(group)
        group.acks.append((subject, tell, about))

    def _alone(self, fresh: _Fresh, deadline: float, try_at: float) -> tuple[bytes, _Ack]:
        self._number += 1
        token = b"a%d" % self._number
        slot = self._slots[token] = _Ack(fresh, deadline, try_at)
        self._timer.arm(try_at)
        return token, slot

    def _commands(self) -> bytes:
        """All acks of this turn."""
        commands: list[bytes] = []
        repeat_at = self._loop.time() + REPEAT_AFTER_S
        together = not self._link.clustered
        turn, self._turn = self._turn, []
        for group in turn:
            acks, group.acks = group.acks, []
            if together and len(acks) > 1:
                commands += [b"PUB %b 4\r\n+ACK\r\n" % fresh[0] for fresh in acks[:-1]]
                commands.append(self._confirmed_command(acks[-1][0], acks, repeat_at))
            else:
                commands += [self._confirmed_command(fresh[0], [fresh], repeat_at) for fresh in acks]
        return b"".join(commands)

    def _confirmed_command(self, subject: bytes, acks: list[_Fresh], repeat_at: float) -> bytes:
        self._number += 1
        token = b"a%d" % self._number
        self._written[token] = (repeat_at, acks)
        self._timer.arm(repeat_at)
        return b"PUB %b %b%b 4\r\n+ACK\r\n" % (subject, self._prefix, token)

    def answer(self, token: bytes, headers: bytes | None) -> None:
        """A confirmation (no headers) or a status (nobody listens)."""
        written = self._written.pop(token, None)
        if written is not None:
            if headers is None:
                for _, tell, about in written[1]:
                    self._tell(tell, about, None)
            else:
                for separate in self._separate(written[1], self._loop.time() + FIRST_BACKOFF_S):
                    separate.absent_since, separate.tries = self._loop.time(), 1
            return
        slot = self._slots.get(token)
        if slot is None:
            return
        if headers is not None:
            now = self._loop.time()
            slot.absent_since = slot.absent_since or now
            slot.try_at = now + min(REPEAT_LIMIT_S, FIRST_BACKOFF_S * 2**slot.tries)
            slot.tries += 1
            self._timer.arm(slot.try_at)
            self._extend_recovery()
            return
        del self._slots[token]
        self._tell(slot.tell, slot.about, None)
        if slot.key is not None:
            self._settle(token, slot.key)

    def _separate(self, acks: list[_Fresh], try_at: float) -> list[_Ack]:
        """From now on each is confirmed by itself."""
        deadline = try_at + LIMIT_S - REPEAT_AFTER_S
        return [self._alone(fresh, deadline, try_at)[1] for fresh in acks]

    def _separate_all(self) -> None:
        now = self._loop.time()
        written, self._written = self._written, {}
        turn, self._turn = self._turn, []
        for _, acks in written.values():
            self._separate(acks, now)
        for group in turn:
            acks, group.acks = group.acks, []
            self._separate(acks, now)

    def _tell(self, tell: Tell, about: Any, error: AckUnknown | None) -> None:
        self._count -= 1
        if not self._count and self._settled is not None:
            self._settled.set_result(None)
            self._settled = None
        try:
            tell(about, error)
        except Exception:
            log.exception("the outcome of an acknowledgement could not be told")

    def disconnected(self) -> None:
        """Nothing is repeated until the reconnect; the longer limit holds."""
        self._separate_all()
        deadline = self._loop.time() + DOWN_LIMIT_S
        for slot in self._slots.values():
            slot.deadline = deadline
        self._recovering.clear()
        self._cancel_recovery_limit()

    def reconnected(self) -> None:
        """Repeats all; calls `on_recovered` at once if there are none."""
        now = self._loop.time()
        self._separate_all()
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
        self._separate_all()
        self._timer.cancel()
        self._recovering.clear()
        self._unsettled.clear()
        self._cancel_recovery_limit()
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            self._tell(slot.tell, slot.about, AckUnknown(cause))

    def _write(self, token: bytes, slot: _Ack) -> None:
        self._link.write(b"PUB %b %b%b 4\r\n+ACK\r\n" % (slot.subject, self._prefix, token))

    def _sweep(self, now: float) -> float:
        following, up, repeated = NEVER, self._link.up, False
        for token, (repeat_at, acks) in list(self._written.items()):
            if now < repeat_at:
                following = repeat_at  # the oldest are first
                break
            del self._written[token]
            self._separate(acks, now)
        for token, slot in list(self._slots.items()):
            absent = slot.absent_since > 0
            if now >= slot.deadline or (absent and up and now - slot.absent_since >= ABSENT_LIMIT_S):
                del self._slots[token]
                cause = "no responders" if absent else "not confirmed in time"
                self._tell(slot.tell, slot.about, AckUnknown(cause, no_responders=absent))
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
            facts = parse_ack_subject(slot.subject)
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
