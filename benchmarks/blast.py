"""Saturating load from a process of its own that takes as little of the machine as can be: stimuli are made beforehand,
sent by the hundred in one write each, and only the broker's answers are counted.

The parent (`Blast`) makes ids and bodies, and puts them into a file; the child reads it, says it is ready, and sends
when told. Singles, up to 512 of them unanswered; where the broker syncs every write, atomic batches of 256, two of them
under way. A full edge halves the window and makes a pause of 20 ms, then what was refused goes first: the edge stays
full, and the broker is not kept busy with refusals.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.api.message.v1 import message_pb2
from headrace.edge.parent_death import tied_command
from headrace.model import message_ids, subjects
from headrace.ports import BatchMessage
from headrace.wire import jetstream

Body = bytes | Callable[[int], bytes]
"""The same for all stimuli, or made from the number of each."""
WINDOW = 512
LEAST_WRITE = 64
BATCH = 256
BATCHES = 2
FULL_PAUSE_S = 0.02
GROWTH = 0.1
QUIET_LIMIT_S = 30.0
START_LIMIT_S = 20.0
CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"raw"}\r\n'


class Sent(msgspec.Struct):
    """What the child says when all is stored; `cpu_s` is its own processor time for it."""

    refused: int
    cpu_s: float


class Row(msgspec.Struct, array_like=True):
    """One stimulus but for the moment of its sending."""

    identity: str
    rest: bytes


class Order(msgspec.Struct):
    """What the child is given for one stretch."""

    subject: str
    together: bool
    rows: list[Row]


class Blast:
    """A child that sends to one flow's ingress; `async with`. `together`: in batches."""

    def __init__(
        self, broker: tuple[str, int], flow: str, trigger: str, body: Body, content_type: str, *, together: bool
    ) -> None:
        self._broker = broker
        self._flow, self._trigger = flow, trigger
        self._body, self._content_type = body, content_type
        self._together = together
        self._run = uuid.uuid4().hex
        self._index = 0
        self._folder = tempfile.TemporaryDirectory(prefix="hr-blast-")
        self._child: asyncio.subprocess.Process

    async def __aenter__(self) -> Blast:
        host, port = self._broker
        command = [sys.executable, "-m", "benchmarks.blast", host, str(port)]
        pipe = asyncio.subprocess.PIPE
        self._child = await asyncio.create_subprocess_exec(*tied_command(command), stdin=pipe, stdout=pipe)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()
        await self._child.wait()
        self._folder.cleanup()

    async def prepare(self, count: int) -> None:
        """Makes the next `count` stimuli ready in the child."""
        rows = [self._row(index) for index in range(self._index, self._index + count)]
        self._index += count
        subject = subjects.ingress_subject("default", self._flow, self._trigger)
        file = Path(self._folder.name) / "order"
        file.write_bytes(msgspec.msgpack.encode(Order(subject, self._together, rows)))
        await self._say(str(file))
        if await self._hear(START_LIMIT_S) != b"ready\n":
            raise RuntimeError("the load could not be made ready; see above")

    def _row(self, index: int) -> Row:
        stimulus = message_ids.stimulus_id(self._flow, "inject", f"{self._run}{index}")
        identity = message_ids.first_message_id(stimulus, self._trigger)
        body = self._body(index) if callable(self._body) else self._body
        envelope = message_pb2.Envelope(
            id=identity, execution_id=message_ids.execution_id(stimulus), body=body, content_type=self._content_type
        )
        return Row(identity, envelope.SerializeToString())

    async def send(self) -> Sent:
        """Sends what was made ready; answers when the broker has stored all of it."""
        await self._say("send")
        return msgspec.json.decode(await self._hear(), type=Sent)

    async def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line.encode() + b"\n")
        await self._child.stdin.drain()

    async def _hear(self, limit_s: float | None = None) -> bytes:
        assert self._child.stdout is not None
        async with asyncio.timeout(limit_s):
            return await self._child.stdout.readline()


def _stamp() -> bytes:
    """The field of an envelope that says when it was sent; as long now as in three hundred years."""
    return message_pb2.Envelope(sent_at_unix_ns=time.time_ns()).SerializeToString()


class _Sender:
    """The child's side: a blocking socket. `_units` are what is answered once each: stimuli, or batches of them."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=QUIET_LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._inbox = f"bench.{uuid.uuid4().hex}"
        self._socket.sendall(CONNECT + f"SUB {self._inbox}.* 1\r\n".encode())
        self._buffer = b""
        self._asked = -1
        self._number = 0
        self._units: Sequence[tuple[list[bytes], list[bytes]]] = ()
        self._again: deque[int] = deque()
        self._held_until = 0.0
        self._window, self._smallest, self._largest = 0.0, 0, 0
        self.refused = self._answered = 0

    def load(self, order: Order) -> None:
        """Everything but the stamps; they are of one length."""
        stamp = len(_stamp())
        size = BATCH if order.together else 1
        self._units = [
            self._unit(order, order.rows[first : first + size], index, stamp)
            for index, first in enumerate(range(0, len(order.rows), size))
        ]

    def _unit(self, order: Order, rows: list[Row], index: int, stamp: int) -> tuple[list[bytes], list[bytes]]:
        """What stands before each stamp, and what after it."""
        heads = []
        self._number += 1
        batch = f"{self._inbox}.{self._number}".encode()
        for number, row in enumerate(rows, 1):
            last = number == len(rows)
            if order.together:
                message = BatchMessage(order.subject, b"", message_id=row.identity)
                head = jetstream.batch_headers(message, batch, number, last=last)
            else:
                head = f"NATS/1.0\r\nNats-Msg-Id: {row.identity}\r\n\r\n".encode()
            reply = f"{self._inbox}.{index} " if last else ""
            sizes = f"{len(head)} {len(head) + stamp + len(row.rest)}"
            heads.append(f"HPUB {order.subject} {reply}{sizes}\r\n".encode() + head)
        return heads, [row.rest + b"\r\n" for row in rows]

    def send(self, *, together: bool) -> None:
        """Until each unit was answered with its storage."""
        most, least = (BATCHES, 1) if together else (WINDOW, LEAST_WRITE)
        self._window, self._smallest, self._largest = float(most), least, most
        following, count = 0, len(self._units)
        self.refused = self._answered = 0
        while self._answered < count:
            under_way = following - self._answered - len(self._again)
            room = int(self._window) - under_way
            if time.monotonic() >= self._held_until and room >= min(least, len(self._again) + count - following) > 0:
                again = [self._again.popleft() for _ in range(min(room, len(self._again)))]
                fresh = min(room - len(again), count - following)
                self._write([*again, *range(following, following + fresh)])
                following += fresh
                under_way += len(again) + fresh
            self._read(idle=under_way == 0)

    def _write(self, indexes: list[int]) -> None:
        parts: list[bytes] = []
        stamp = _stamp()
        for index in indexes:
            for head, rest in zip(*self._units[index], strict=True):
                parts += (head, stamp, rest)
        self._socket.settimeout(QUIET_LIMIT_S)
        self._socket.sendall(b"".join(parts))

    def _read(self, *, idle: bool) -> None:
        """What the broker says; with nothing under way, or a pause to keep, no longer than that."""
        held = self._held_until - time.monotonic()
        if idle and held > 0:
            time.sleep(held)
            return
        self._socket.settimeout(max(held, 0.001) if held > 0 else QUIET_LIMIT_S)
        try:
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            if held > 0:
                return
            raise
        if not data:
            raise ConnectionError("the broker has closed the connection of the load")
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        for line in lines:
            if line.startswith(b"{"):
                self._settle(stored=b'"error"' not in line)
            elif line.startswith(b"MSG"):
                self._asked = int(line.split(b" ", 2)[1].rpartition(b".")[2])
            elif line.startswith(b"PING"):
                self._socket.sendall(b"PONG\r\n")
            elif line.startswith((b"HMSG", b"-ERR")):
                raise ConnectionError(f"the broker does not take the load: {line.decode()} {lines}"[:1500])

    def _settle(self, *, stored: bool) -> None:
        if stored:
            self._answered += 1
            self._window = min(self._largest, self._window + GROWTH)
            return
        self.refused += len(self._units[self._asked][0])
        self._again.append(self._asked)
        if (now := time.monotonic()) >= self._held_until:
            self._held_until = now + FULL_PAUSE_S
            self._window = max(self._smallest, self._window / 2)


def main() -> None:
    """The child: a line with a file's path, then one that says `send`; again and again until the input ends."""
    sender = _Sender(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        order = msgspec.msgpack.decode(Path(line.strip()).read_bytes(), type=Order)
        sender.load(order)
        gc.collect()
        gc.freeze()
        gc.disable()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        began = time.process_time()
        sender.send(together=order.together)
        sent: dict[str, Any] = {"refused": sender.refused, "cpu_s": time.process_time() - began}
        sys.stdout.write(json.dumps(sent) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
