"""One connection to a NATS server, from its greeting to its end: TCP or TLS, CONNECT, frames in, bytes out."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, cast

from headrace.edge.broker_address import BrokerAddress
from headrace.wire.nats_protocol import PING, Frame, FrameReader, ProtocolError, connect_line, read_info


class SessionRefused(Exception):
    """The server does not let this client in, or says why it ends the connection."""


class NatsSession(asyncio.Protocol):
    """`on_frames` gets all frames of one read, synchronously; `on_end` is called once, when the connection is over.

    Both only after `open` has returned.
    """

    def __init__(
        self, on_frames: Callable[[list[Frame]], None], on_end: Callable[[NatsSession, BaseException | None], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self._on_frames, self._on_end = on_frames, on_end
        self._reader = FrameReader()
        self._greeting: asyncio.Future[Frame] = loop.create_future()
        self._welcome: asyncio.Future[None] = loop.create_future()
        self._early: list[Frame] = []
        self._opened = False
        self._cause: BaseException | None = None
        self.transport: asyncio.Transport
        self.info: dict[str, Any] = {}
        self.is_over = False

    @classmethod
    async def open(
        cls,
        address: BrokerAddress,
        name: str,
        on_frames: Callable[[list[Frame]], None],
        on_end: Callable[[NatsSession, BaseException | None], None],
    ) -> NatsSession:
        """Call it within a time limit. OSError, ProtocolError, or SessionRefused with the server's own words."""
        loop = asyncio.get_running_loop()
        session = cls(on_frames, on_end)
        await loop.create_connection(lambda: session, address.host, address.port)
        try:
            greeting = await session._greeting
            if greeting[1] != b"INFO":
                raise ProtocolError("something else than a NATS server answers")
            session.info = read_info(greeting[3])
            if address.tls or session.info.get("tls_required"):
                await session._start_tls(address)
            options = {"name": name, "lang": "headrace", "version": "1", "tls_required": address.tls}
            session.transport.write(connect_line({**options, **address.credentials()}) + PING)
            await session._welcome
            if session.is_over:
                raise session._cause or ConnectionError("the server closed the connection")
        except BaseException:
            session.abort()
            raise
        session._opened = True
        if session._early:
            loop.call_soon(on_frames, session._early)
        return session

    async def _start_tls(self, address: BrokerAddress) -> None:
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(
            self.transport, self, ssl.create_default_context(), server_hostname=address.host
        )
        if transport is None:
            raise ConnectionError("the connection broke before TLS stood")
        self.transport = transport

    def abort(self) -> None:
        """Ends it at once, whatever waits to be written."""
        with contextlib.suppress(AttributeError):
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._reader.feed(data)
        except ProtocolError as error:
            self._cause = error
            self.abort()
            return
        if self._opened:
            self._on_frames(frames)
        else:
            self._before_open(frames)

    def _before_open(self, frames: list[Frame]) -> None:
        for frame in frames:
            if not self._greeting.done():
                self._greeting.set_result(frame)
            elif self._welcome.done():
                self._early.append(frame)
            elif frame[1] == b"PONG":
                self._welcome.set_result(None)
            elif frame[1] == b"-ERR":
                self._welcome.set_exception(SessionRefused(said(frame[3])))
            elif frame[1] == b"INFO":
                self.info |= read_info(frame[3])

    def connection_lost(self, error: Exception | None) -> None:
        self.is_over = True
        cause = self._cause or error or ConnectionError("the server closed the connection")
        for waiting in (self._greeting, self._welcome):
            if not waiting.done():
                waiting.set_exception(cause)
                waiting.exception()  # nobody need be waiting
        if self._opened:
            self._on_end(self, cause)


def said(text: bytes) -> str:
    """The text of an -ERR."""
    return text.decode("utf-8", "replace").strip("'")
