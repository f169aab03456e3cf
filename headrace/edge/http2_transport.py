"""The socket of an HTTP/2 connection: reads into it, writes what it has to say, one write a turn, and ends it when the
peer breaks the protocol or makes us work or keep more than it may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from headrace.edge.joined_writes import write_together
from headrace.edge.structured_log import get_logger
from headrace.wire.http2_connection import Http2Connection
from headrace.wire.http2_frames import ENHANCE_YOUR_CALM, INTERNAL_ERROR, NO_ERROR, ConnectionFault

log = get_logger(__name__)

HIGH_WATER = 256 * 1024
# Beyond one largest message only answers to what the peer asked can wait: it asks and does not read.
MAX_BACKLOG = 24 * 1024 * 1024
# Frames that carry nothing (pings, settings, empty messages) may come so often.
MAX_CHORES = 20_000
CHORES_S = 1.0


class Http2Transport(asyncio.Protocol):
    """`on_read` is called after each read, before what it brought is answered; `on_writable` when the socket takes
    bytes again; `on_lost` once, with the cause, when the connection is over (also after `close`)."""

    def __init__(
        self,
        connection: Http2Connection,
        *,
        on_read: Callable[[], None],
        on_writable: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._on_read, self._on_writable, self._on_lost = on_read, on_writable, on_lost
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._cause = ""
        self._chores_seen, self._looked_at = 0, self._loop.time()
        self.paused = False
        """The socket takes nothing at present: send no further messages."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        self.flush()

    def data_received(self, data: bytes) -> None:
        connection = self._connection
        try:
            connection.feed(data)
            if connection.chores - self._chores_seen > MAX_CHORES:
                self._check_chores()
            self._on_read()
        except ConnectionFault as fault:
            self.fail(fault)
        except Exception as error:
            log.exception("reading from the component's stream failed")
            self.fail(ConnectionFault(INTERNAL_ERROR, f"reading failed: {error!r}"))
        else:
            if connection.out:
                self.flush()

    def _check_chores(self) -> None:
        now = self._loop.time()
        if now - self._looked_at < CHORES_S:
            raise ConnectionFault(ENHANCE_YOUR_CALM, f"over {MAX_CHORES} frames without a message within a second")
        self._chores_seen, self._looked_at = self._connection.chores, now

    def flush(self) -> None:
        """Writes what the connection has to say."""
        out, transport = self._connection.out, self._transport
        if transport is None or not out:
            return
        write_together(transport, out)
        out.clear()
        if self.paused and transport.get_write_buffer_size() > MAX_BACKLOG:
            self._cause = self._cause or f"the peer does not read: over {MAX_BACKLOG} bytes wait for it"
            transport.abort()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._on_writable()

    def fail(self, fault: ConnectionFault) -> None:
        """Tells the peer why, and ends it at once."""
        self._cause = self._cause or str(fault)
        self.close(fault.code, str(fault))

    def close(self, code: int = NO_ERROR, text: str = "") -> None:
        """Says goodbye as far as the socket takes it, and ends it at once."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._connection.go_away(code, text)
            transport.write(b"".join(self._connection.out))
            transport.abort()
        self._connection.out.clear()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_lost(self._cause or (f"the connection broke: {error}" if error else "the peer closed the connection"))
