"""The few private seams of nats-py 2.16.0 (pinned) that the hot path stands on, kept in one place.

Why private: through the public API a message costs 25 to 30 µs each way (an asyncio queue, a task wake-up and
a header parser per message; a future and a flusher turn per publish). Here a message of a tapped subscription
goes from the parser straight to a synchronous handler, and everything written in one turn of the loop leaves in
one write. Three traps of nats-py are stepped round:

- `flush` writes its PING ahead of what is still in its pending list, so that its PONG proves nothing;
- a PONG for a future that was cancelled (a flush that timed out) ends the read loop for good;
- a reconnect waits for the old socket's write buffer to drain, for ever if the peer hangs: it is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from headrace.edge.structured_log import get_logger
from headrace.model.errors import InvalidInput

log = get_logger(__name__)

# subject, reply, payload, header block (None if there is none)
Handler = Callable[[bytes, bytes, bytes, bytes | None], None]


class NatsTap:
    """Synchronous reads and gathered writes on one connected nats-py client.

    `on_down` when the connection breaks, `on_up` when it stands again (subscriptions restored), `on_closed`
    when it never will. All are called synchronously on the loop.
    """

    def __init__(
        self,
        connection: Client,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._nc: Any = connection
        self._on_up, self._on_down, self._on_closed = on_up, on_down, on_closed
        self._handlers: dict[int, Handler] = {}
        self._out: list[bytes] = []
        self._ping: asyncio.Future[bool] | None = None
        self._open_pings: set[asyncio.Future[bool]] = set()
        self._came_up: asyncio.Future[None] | None = None
        self._attached = False
        self._originals: dict[str, Any] = {}
        self._wrappers: dict[str, Any] = {}
        self._loop = asyncio.get_running_loop()
        self.up = False

    def attach(self) -> None:
        """Takes over; InvalidInput when the client is not connected over TCP."""
        nc = self._nc
        if not nc.is_connected or not isinstance(nc._transport, TcpTransport):
            raise InvalidInput.at("connection", repr(nc), "is not connected over TCP", next_step="Connect it first")
        wrappers = {
            "_process_msg": self._process_msg,
            "_process_pong": self._process_pong,
            "_process_op_err": self._process_op_err,
            "_disconnected_cb": self._disconnected,
            "_reconnected_cb": self._reconnected,
            "_closed_cb": self._closed,
        }
        self._originals = {name: getattr(nc, name) for name in wrappers}
        for name, wrapper in wrappers.items():
            setattr(nc, name, wrapper)
        self._wrappers = wrappers
        self._attached = True
        self.up = True

    def detach(self) -> None:
        """Gives back what was taken over; subscriptions that are left are dropped."""
        self.write_now()
        self._attached = False
        self.up = False
        self._wake()
        for sid in list(self._handlers):
            self.forget(sid)
        for name, original in self._originals.items():
            if getattr(self._nc, name) == self._wrappers[name]:
                setattr(self._nc, name, original)

    @property
    def max_payload(self) -> int:
        return int(self._nc.max_payload)

    @property
    def write_backlog(self) -> int:
        """Bytes the operating system has not taken yet."""
        writer = self._nc._transport._io_writer
        return int(writer.transport.get_write_buffer_size()) if self.up and writer is not None else 0

    def subscribe(self, subject: str, handler: Handler) -> int:
        """Registers with the client (which restores it after a reconnect) and writes the SUB in order."""
        nc = self._nc
        nc._sid += 1
        sid = int(nc._sid)
        # A subscription with a future has no task and no queue of its own.
        nc._subs[sid] = Subscription(nc, sid, subject, future=self._loop.create_future())
        self._handlers[sid] = handler
        if self.up:
            self.write(f"SUB {subject}  {sid}\r\n".encode())
        return sid

    def unsubscribe(self, sid: int) -> None:
        """Withdraws interest; what is on its way is still handed over until `forget`."""
        self._nc._subs.pop(sid, None)
        if self.up:
            self.write(b"UNSUB %d\r\n" % sid)

    def forget(self, sid: int) -> None:
        if self._nc._subs.pop(sid, None) is not None and self._nc.is_connected:
            self._nc._transport.write(b"UNSUB %d\r\n" % sid)
        self._handlers.pop(sid, None)

    def write(self, command: bytes) -> None:
        """Queues whole commands; all of one turn of the loop leave in one write. Lost if the connection breaks."""
        out = self._out
        if not out:
            self._loop.call_soon(self.write_now)
        out.append(command)

    def write_now(self) -> None:
        ping, self._ping = self._ping, None
        out = self._out
        if ping is not None:
            out.append(b"PING\r\n")
        if not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self.up and self._nc.is_connected:
            try:
                self._nc._transport.write(data)
            except (OSError, RuntimeError, AttributeError) as error:
                # The transport is closing; nats-py notices by itself and reconnects.
                log.debug("write to a closing connection", error=repr(error))
            if ping is not None:
                self._nc._pongs.append(ping)
                self._open_pings.add(ping)
                ping.add_done_callback(self._open_pings.discard)
        elif ping is not None:
            self._break(ping)

    def ping(self) -> asyncio.Future[bool]:
        """Resolves when the server has read everything written up to the end of this turn of the loop (which
        all callers of this turn share); ConnectionError if the connection breaks first. Shield it."""
        if self._ping is None:
            self._ping = self._loop.create_future()
            self.write(b"")
        return self._ping

    async def wait_up(self) -> None:
        """Returns when the connection stands; ConnectionError if it is closed for good."""
        while not self.up:
            if self._nc.is_closed or not self._attached:
                raise ConnectionError("the connection to the broker is closed")
            if self._came_up is None:
                self._came_up = self._loop.create_future()
            await asyncio.shield(self._came_up)

    def _wake(self) -> None:
        waiter, self._came_up = self._came_up, None
        if waiter is not None:
            waiter.set_result(None)

    @staticmethod
    def _break(ping: asyncio.Future[bool]) -> None:
        if not ping.done():
            ping.set_exception(ConnectionError("the connection to the broker broke"))
            ping.exception()  # nobody need be waiting any more

    async def _process_pong(self) -> None:
        nc = self._nc
        if nc._pongs:
            pong = nc._pongs.pop(0)
            if not pong.done():
                pong.set_result(True)
            nc._pongs_received += 1
            nc._pings_outstanding = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            await self._originals["_process_msg"](sid, subject, reply, data, headers)
            return
        try:
            handler(subject, reply, data, headers)
        except Exception:
            log.exception("a message could not be handled", subject=subject.decode("utf-8", "replace"))

    async def _process_op_err(self, error: Exception) -> None:
        if not (self._nc.is_closed or self._nc.is_reconnecting):
            self._mark_down()
            transport = self._nc._transport
            writer = transport._io_writer if transport is not None else None
            if writer is not None:
                writer.transport.abort()
        await self._originals["_process_op_err"](error)

    def _mark_down(self) -> None:
        if self.up:
            self.up = False
            self._out.clear()
            for ping in [*self._open_pings, *([self._ping] if self._ping else [])]:
                self._break(ping)
            self._ping = None
            self._on_down()

    async def _disconnected(self) -> None:
        self._mark_down()
        original = self._originals["_disconnected_cb"]
        if original is not None:
            await original()

    async def _reconnected(self) -> None:
        if self._attached:
            self.up = True
            self._wake()
            self._on_up()
        original = self._originals["_reconnected_cb"]
        if original is not None:
            await original()

    async def _closed(self) -> None:
        self._mark_down()
        if self._attached:
            self._on_closed()
        self._wake()
        original = self._originals["_closed_cb"]
        if original is not None:
            await original()
