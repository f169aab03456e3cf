"""The publishes of a lane that wait for the broker's answer: slots, deadlines, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from headrace.edge.nats_link import NatsLink
from headrace.edge.structured_log import get_logger
from headrace.edge.sweep_timer import NEVER, SweepTimer
from headrace.ports import BatchMessage, PublishRefused, PublishUnknown, Row, Stored
from headrace.wire import jetstream
from headrace.wire.jetstream_answers import MalformedAnswer, parse_pub_ack
from headrace.wire.nats_protocol import CRLF, Frame

log = get_logger(__name__)

Answer = Stored | PublishRefused | PublishUnknown
Tell = Callable[[Any, Answer], None]

TellStored = Callable[[list[Any]], None]

# tell, about, bytes of the payload, deadline, command (kept only while it waits for the connection), and who is told of
# many that were stored
_Slot = tuple[Tell, Any, int, float, bytes | None, TellStored | None]

ZERO, BRACE = b"0}"
HEADER_SIZE = len("NATS/1.0\r\nNats-Msg-Id: \r\ntraceparent: \r\n\r\n")


class PublishBook:
    """Each is told its answer once. Written publishes end in PublishUnknown when the connection comes back, since
    their answers cannot; those made while it was down are written then."""

    def __init__(self, link: NatsLink, prefix: bytes, *, max_count: int, max_bytes: int) -> None:
        self._link, self._prefix = link, prefix
        self._max_count, self._max_bytes = max_count, max_bytes
        self._loop = asyncio.get_running_loop()
        self._slots: dict[bytes, _Slot] = {}
        self._bytes = 0
        self._number = 0
        # What a good answer of this stream says before its number; none is like the first.
        self._plain = b"\x00"
        self._room: asyncio.Future[None] | None = None
        self._timer = SweepTimer(self._sweep)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes_waiting(self) -> int:
        return self._bytes

    def is_full(self, size: int) -> bool:
        """Whether a payload of that size has to wait; one that is alone never has."""
        count = len(self._slots)
        return count >= self._max_count or (count > 0 and self._bytes + size > self._max_bytes)

    async def room(self) -> None:
        """Returns when a payload of at most the broker's maximum size is let in."""
        while self.is_full(self._link.max_payload):
            await self._next_answer()

    async def answered(self) -> None:
        """Returns when none waits."""
        while self._slots:
            await self._next_answer()

    async def _next_answer(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()
        await asyncio.shield(self._room)

    def add(self, subject: bytes, header: bytes, payload: bytes, timeout_s: float, tell: Tell, about: Any) -> None:
        """`header` is a whole header block; the payload follows it."""
        self._number += 1
        token = b"%d" % self._number
        size, header_size = len(payload), len(header)
        command = b"HPUB %b %b%b %d %d\r\n%b%b\r\n" % (
            subject,
            self._prefix,
            token,
            header_size,
            header_size + size,
            header,
            payload,
        )
        self._write(token, command, size, timeout_s, tell, about)

    def add_batch(
        self, messages: Sequence[BatchMessage], headers: Sequence[bytes], timeout_s: float, tell: Tell, about: Any
    ) -> None:
        """All leave in one write; only the last is answered, whatever happened to the others."""
        self._number += 1
        token = b"%d" % self._number
        reply = b"%b%b " % (self._prefix, token)
        commands = []
        for number, (message, header) in enumerate(zip(messages, headers, strict=True), 1):
            size = len(header)
            to = b"%b %b" % (message.subject.encode(), reply if number == len(messages) else b"")
            whole = size + len(message.payload)
            commands.append(b"HPUB %b%d %d\r\n%b%b\r\n" % (to, size, whole, header, message.payload))
        size = sum(len(message.payload) for message in messages)
        self._write(token, b"".join(commands), size, timeout_s, tell, about)

    def add_rows(self, subject: bytes, rows: Sequence[Row], timeout_s: float, tell: Tell, stored: TellStored) -> bool:
        """All in one write; False: none, since they want a look each (the connection is down, there is no room for all
        of them, one is too large, or has an id or traceparent that is not printable ASCII)."""
        payloads, ids, traces, abouts = zip(*rows, strict=True)
        sizes = list(map(len, payloads))
        size, text = sum(sizes), "".join(ids + traces)
        if (
            not self._link.up
            or not (text.isascii() and text.isprintable())
            or not all(traces)
            or len(self._slots) + len(rows) > self._max_count
            or self._bytes + size > self._max_bytes
            or max(sizes) + len(text) + HEADER_SIZE > self._link.max_payload
        ):
            return False
        deadline = self._loop.time() + timeout_s
        slots, number = self._slots, self._number
        to = f"HPUB {subject.decode()} {self._prefix.decode()}"
        commands: list[bytes] = []
        for payload, own, message_id, traceparent, about in zip(payloads, sizes, ids, traces, abouts, strict=True):
            number += 1
            slots[b"%d" % number] = (tell, about, own, deadline, None, stored)
            head = HEADER_SIZE + len(message_id) + len(traceparent)
            line = (
                f"{to}{number} {head} {head + own}\r\n"
                f"NATS/1.0\r\nNats-Msg-Id: {message_id}\r\ntraceparent: {traceparent}\r\n\r\n"
            )
            commands += (line.encode(), payload, CRLF)
        self._number = number
        self._bytes += size
        self._link.write_all(commands)
        if deadline < self._timer.at:
            self._timer.arm(deadline)
        return True

    def _write(self, token: bytes, command: bytes, size: int, timeout_s: float, tell: Tell, about: Any) -> None:
        deadline = self._loop.time() + timeout_s
        if self._link.up:
            self._slots[token] = (tell, about, size, deadline, None, None)
            self._link.write(command)
        else:
            self._slots[token] = (tell, about, size, deadline, command, None)
        self._bytes += size
        if deadline < self._timer.at:
            self._timer.arm(deadline)

    def answers(self, frames: list[Frame]) -> list[Frame]:
        """What one read brought on the inbox; answers those that are for nobody here (also what comes too late)."""
        pop, skip = self._slots.pop, len(self._prefix)
        plain, after = self._plain, len(self._plain)
        others: list[Frame] = []
        lot: list[Any] = []
        told: TellStored | None = None
        for frame in frames:
            _, subject, _, payload, headers = frame
            slot = pop(subject[skip:], None)
            if slot is None:
                others.append(frame)
                continue
            tell, about, size, _, _, stored = slot
            self._bytes -= size
            if (
                stored is not None
                and payload.startswith(plain)
                and payload[after:-1].isdigit()
                and payload[after] != ZERO
                and payload[-1] == BRACE
            ):
                if stored is not told:
                    _tell_stored(told, lot)
                    lot, told = [], stored
                lot.append(about)
                continue
            try:
                tell(about, self._read(payload, stored) if headers is None or payload else _status(headers))
            except Exception:
                log.exception("an answer could not be told")
        _tell_stored(told, lot)
        if self._room is not None and len(others) < len(frames):
            self._wake()
        return others

    def _read(self, payload: bytes, stored: TellStored | None) -> Answer:
        answer = _read(payload)
        if stored is not None and type(answer) is Stored and not answer.duplicate:
            plain = payload[: payload.rfind(b":") + 1]
            if plain.endswith(b'"seq":'):
                self._plain = plain
        return answer

    def reconnected(self) -> None:
        for token, (tell, about, size, deadline, command, _) in list(self._slots.items()):
            if command is None:
                self._end(token, "the connection broke before the broker answered")
            else:
                self._link.write(command)
                self._slots[token] = (tell, about, size, deadline, None, None)

    def end_all(self, cause: str) -> None:
        """Nothing more will be answered."""
        self._timer.cancel()
        for token in list(self._slots):
            self._end(token, cause)

    def _sweep(self, now: float) -> float:
        following = NEVER
        for token, slot in list(self._slots.items()):
            if slot[3] <= now:
                written = slot[4] is None
                self._end(token, "no answer in time" if written else "the connection did not come back in time")
            elif slot[3] < following:
                following = slot[3]
        return following

    def _end(self, token: bytes, cause: str) -> None:
        slot = self._slots.pop(token, None)
        if slot is None:
            return
        self._bytes -= slot[2]
        self._wake()
        try:
            slot[0](slot[1], PublishUnknown(cause))
        except Exception:
            log.exception("an answer could not be told")

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)


def _tell_stored(stored: TellStored | None, lot: list[Any]) -> None:
    if stored is not None:
        try:
            stored(lot)
        except Exception:
            log.exception("answers could not be told", count=len(lot))


def _read(payload: bytes) -> Answer:
    try:
        ack = parse_pub_ack(payload)
    except MalformedAnswer as error:
        return PublishUnknown(str(error))
    if ack.error is None:
        return Stored(ack.seq, ack.duplicate)
    if ack.error.err_code in jetstream.REPEATABLE:
        return PublishUnknown(f"{ack.error.description} ({ack.error.err_code})")
    return PublishRefused(ack.error.err_code, ack.error.description)


def _status(headers: bytes) -> Answer:
    code, text = jetstream.parse_status(headers)
    absent = code == jetstream.NO_RESPONDERS
    return PublishUnknown("no responders" if absent else f"{text} ({code})", no_responders=absent)
