"""Commands on their way to a NATS server: gathered, so that one turn of the loop makes one write; and its PINGs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.edge.joined_writes import write_together
from headrace.wire.nats_protocol import PING


class GatheredWrites:
    """What is written while no connection stands, or is under way when it breaks, is lost: whoever writes repeats."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._closers: list[Callable[[], bytes]] = []
        self._ping: asyncio.Future[bool] | None = None
        self._unanswered: list[asyncio.Future[bool] | None] = []

    def open(self, transport: asyncio.Transport) -> None:
        """A connection stands."""
        self._transport = transport

    def close(self) -> None:
        """It broke: pings that wait end in ConnectionError."""
        self._transport = None
        self._out.clear()
        self._closers.clear()
        pings, self._unanswered = [*self._unanswered, self._ping], []
        self._ping = None
        for ping in pings:
            if ping is not None:
                _break(ping)

    @property
    def backlog(self) -> int:
        """Bytes the operating system has not taken yet."""
        return int(self._transport.get_write_buffer_size()) if self._transport is not None else 0

    @property
    def waiting(self) -> bool:
        """Whether something is still to be taken by the operating system."""
        return bool(self._out or self.backlog)

    def write(self, command: bytes) -> None:
        """Queues whole commands."""
        out = self._out
        if not out:
            self._loop.call_soon(self.write_now)
        out.append(command)

    def write_all(self, parts: list[bytes]) -> None:
        """Queues what is together whole commands."""
        out = self._out
        if not out:
            self._loop.call_soon(self.write_now)
        out += parts

    def write_at_end(self, commands: Callable[[], bytes]) -> None:
        """Asks for commands when this turn's write is made: for what is better written together. Forgotten if the
        connection breaks first."""
        if not self._out:
            self.write(b"")
        self._closers.append(commands)

    def write_now(self) -> None:
        out, ping, transport = self._out, self._ping, self._transport
        if self._closers:
            closers, self._closers = self._closers, []
            out += [commands() for commands in closers]
        if ping is not None:
            self._ping = None
            out.append(PING)
        if not out:
            return
        if transport is not None:
            write_together(transport, out)
            if ping is not None:
                self._unanswered.append(ping)
        elif ping is not None:
            _break(ping)
        out.clear()

    def ping(self) -> asyncio.Future[bool]:
        """See `NatsLink.ping`."""
        if self._ping is None:
            self._ping = self._loop.create_future()
            self.write(b"")
        return self._ping

    def beat(self) -> int:
        """A PING that nobody waits for; answers how many such have no answer yet."""
        self.write_now()
        if self._transport is not None:
            self._transport.write(PING)
            self._unanswered.append(None)
        return sum(ping is None for ping in self._unanswered)

    def ponged(self) -> None:
        """The server's answer to the oldest PING."""
        ping = self._unanswered.pop(0) if self._unanswered else None
        if ping is not None and not ping.done():
            ping.set_result(True)


def _break(ping: asyncio.Future[bool]) -> None:
    if not ping.done():
        ping.set_exception(ConnectionError("the connection to the broker broke"))
        ping.exception()  # nobody need be waiting any more
