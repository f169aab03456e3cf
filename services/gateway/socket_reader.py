"""The reading side of a connection: hands bytes to the HTTP protocol, and says when they came."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from headrace.edge.arrival_stamp import ArrivalPeek
from headrace.edge.clock_pair import read_clocks

if TYPE_CHECKING:
    from services.gateway.http_connection import GatewayProtocol

READ_BYTES = 64 * 1024
# One for all connections: between filling and emptying it the loop does nothing else.
_BUFFER = memoryview(bytearray(READ_BYTES))


class SocketRead(NamedTuple):
    """One read: when its first byte was at the socket (0: the kernel does not say), and when it was read."""

    arrived_at_unix_ns: int
    at_unix_ns: int
    at_mono_ns: int


NO_READ = SocketRead(0, 0, 0)


class SocketReader(asyncio.BufferedProtocol):
    """In front of one GatewayProtocol.

    A buffered protocol, because it is asked for its buffer right before the read: only then does the kernel
    still have the stamp of the bytes that start a request.
    """

    def __init__(self, http: GatewayProtocol) -> None:
        self._http = http
        self._peek: ArrivalPeek | None = None
        self._arrived_at_unix_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            self._peek = ArrivalPeek(connection.fileno())
        self._http.connection_made(transport)  # type: ignore[arg-type]

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._peek is not None and self._http.between_requests:
            self._arrived_at_unix_ns = self._peek.first_unix_ns()
        else:
            self._arrived_at_unix_ns = 0
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._http.read = SocketRead(self._arrived_at_unix_ns, *read_clocks())
        self._http.data_received(bytes(_BUFFER[:nbytes]))

    def eof_received(self) -> None:
        self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._peek is not None:
            self._peek.release()
            self._peek = None
        self._http.connection_lost(exc)
