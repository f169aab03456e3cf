"""The publishes of a lane that wait for the broker's answer: slots, deadlines, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace.edge.nats_link import NatsLink
from headrace.edge.sweep_timer import NEVER, SweepTimer
from headrace.ports import BatchMessage, PublishRefused, PublishUnknown, Stored
from headrace.wire import jetstream


class _Slot:
    __slots__ = ("command", "deadline", "future", "size")

    def __init__(self, future: asyncio.Future[Stored], deadline: float, size: int, command: bytes | None) -> None:
        self.future, self.deadline, self.size = future, deadline, size
        self.command = command  # kept only while it waits for the connection


class PublishBook:
    """Written publishes end in PublishUnknown when the connection comes back, since their answers cannot; those
    made while it was down are written then."""

    def __init__(self, link: NatsLink, prefix: bytes, *, max_count: int, max_bytes: int) -> None:
        self._link, self._prefix = link, prefix
        self._max_count, self._max_bytes = max_count, max_bytes
        self._loop = asyncio.get_running_loop()
        self._slots: dict[bytes, _Slot] = {}
        self._bytes = 0
        self._number = 0
        self._room: asyncio.Future[None] | None = None
        self._timer = SweepTimer(self._sweep)

    def __len__(self) -> int:
        return len(self._slots)

    def futures(self) -> list[asyncio.Future[Stored]]:
        return [slot.future for slot in self._slots.values() if not slot.future.done()]

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
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    def add(self, subject: str, header: bytes, payload: bytes, timeout_s: float) -> asyncio.Future[Stored]:
        token = self._next_token()
        return self._write(token, self._command(subject, token, header, payload), len(payload), timeout_s)

    def add_batch(
        self, messages: Sequence[BatchMessage], headers: Sequence[bytes], size: int, timeout_s: float
    ) -> asyncio.Future[Stored]:
        """All leave in one write; only the last is answered, whatever happened to the others."""
        token = self._next_token()
        commands = [
            self._command(message.subject, b"", header, message.payload)
            for message, header in zip(messages[:-1], headers[:-1], strict=True)
        ]
        commands.append(self._command(messages[-1].subject, token, headers[-1], messages[-1].payload))
        return self._write(token, b"".join(commands), size, timeout_s)

    def _next_token(self) -> bytes:
        self._number += 1
        return b"%d" % self._number

    def _command(self, subject: str, token: bytes, header: bytes, payload: bytes) -> bytes:
        reply = b"%b%b " % (self._prefix, token) if token else b""
        header_size = len(header)
        whole = header_size + len(payload)
        return b"HPUB %b %b%d %d\r\n%b%b\r\n" % (subject.encode(), reply, header_size, whole, header, payload)

    def _write(self, token: bytes, command: bytes, size: int, timeout_s: float) -> asyncio.Future[Stored]:
        future: asyncio.Future[Stored] = self._loop.create_future()
        deadline = self._loop.time() + timeout_s
        if self._link.up:
            self._slots[token] = _Slot(future, deadline, size, None)
            self._link.write(command)
        else:
            self._slots[token] = _Slot(future, deadline, size, command)
        self._bytes += size
        self._timer.arm(deadline)
        return future

    def answer(self, token: bytes, payload: bytes, headers: bytes | None) -> None:
        """An answer on the inbox; one that comes too late finds no slot."""
        slot = self._take(token)
        if slot is None:
            return
        future = slot.future
        if future.done():
            return
        if headers is not None and not payload:
            code, text = jetstream.parse_status(headers)
            absent = code == jetstream.NO_RESPONDERS
            future.set_exception(
                PublishUnknown("no responders" if absent else f"{text} ({code})", no_responders=absent)
            )
            return
        try:
            ack = jetstream.parse_pub_ack(payload)
        except jetstream.MalformedAnswer as error:
            future.set_exception(PublishUnknown(str(error)))
            return
        if ack.error is None:
            future.set_result(Stored(ack.seq, ack.duplicate))
        elif ack.error.err_code in jetstream.REPEATABLE:
            future.set_exception(PublishUnknown(f"{ack.error.description} ({ack.error.err_code})"))
        else:
            future.set_exception(PublishRefused(ack.error.err_code, ack.error.description))

    def reconnected(self) -> None:
        for token, slot in list(self._slots.items()):
            if slot.command is None:
                self._end(token, "the connection broke before the broker answered")
            else:
                self._link.write(slot.command)
                slot.command = None

    def end_all(self, cause: str) -> None:
        """Nothing more will be answered."""
        self._timer.cancel()
        for token in list(self._slots):
            self._end(token, cause)

    def _sweep(self, now: float) -> float:
        following = NEVER
        for token, slot in list(self._slots.items()):
            if slot.deadline <= now:
                written = slot.command is None
                self._end(token, "no answer in time" if written else "the connection did not come back in time")
            elif slot.deadline < following:
                following = slot.deadline
        return following

    def _end(self, token: bytes, cause: str) -> None:
        slot = self._take(token)
        if slot is not None and not slot.future.done():
            slot.future.set_exception(PublishUnknown(cause))

    def _take(self, token: bytes) -> _Slot | None:
        slot = self._slots.pop(token, None)
        if slot is not None:
            self._bytes -= slot.size
            if self._room is not None:
                self._room.set_result(None)
                self._room = None
        return slot
