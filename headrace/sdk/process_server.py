"""`Process` on a socket of its own, over our own HTTP/2 framing: the same gRPC on the wire, without gRPC's threads.

Any gRPC client can call it; everything but `Process` is served on the component's main socket only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from headrace.api.component.v1.component_pb2 import ProcessRequest, ProcessResponse
from headrace.edge.component_frames import MAX_MESSAGE_BYTES, METHOD
from headrace.edge.http2_transport import Http2Transport
from headrace.wire import grpc_status
from headrace.wire.http2_connection import Http2Connection
from headrace.wire.http2_frames import CANCEL, NO_ERROR
from headrace.wire.http2_headers import Header
from headrace.wire.http2_stream import Http2Stream

log = logging.getLogger(__name__)

EOF = grpc.aio.EOF
LONG_TURN_NS = 2_000_000
"""After so long others get their turn, also while frames wait."""
SUFFIX = ".process"
"""The socket's path is that of the main one with this behind."""
MAX_CONNECTIONS = 8
MAX_STREAMS = 8

Process = Callable[["ProcessCall"], Awaitable[None]]


class ProcessServer:
    """`start`, then `stop`. `process` serves one call: what gRPC's servicer does with its context."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self, path: str) -> None:
        """OSError where the socket cannot be opened."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connected, path)

    def _connected(self) -> asyncio.Protocol:
        if len(self._connections) >= MAX_CONNECTIONS:
            return _Refused()
        connection = _Connection(self._process, self._connections.discard)
        self._connections.add(connection)
        return connection.transport

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, waits for those that run, then ends them."""
        if self._server is not None:
            self._server.close()
        tasks = [call.task for connection in self._connections for call in connection.calls if call.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for connection in list(self._connections):
            connection.transport.close(NO_ERROR, "the component ends")


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Connection:
    """One connection and its calls."""

    def __init__(self, process: Process, on_over: Callable[[_Connection], None]) -> None:
        self._process, self._on_over = process, on_over
        self.calls: set[ProcessCall] = set()
        http2 = Http2Connection(max_message=MAX_MESSAGE_BYTES, accept=self._accept, max_streams=MAX_STREAMS)
        self.transport = Http2Transport(http2, on_read=self._go_on, on_writable=self._go_on, on_lost=self._lost)

    def _accept(self, stream: Http2Stream) -> ProcessCall:
        call = ProcessCall(stream, self.transport, self._process, self.calls.discard)
        self.calls.add(call)
        return call

    def _go_on(self) -> None:
        for call in self.calls:
            call.go_on()

    def _lost(self, cause: str) -> None:
        self._on_over(self)
        for call in list(self.calls):
            call.reset_received(CANCEL)


class CallAborted(Exception):
    """`abort` was called: the call is over, with that status."""


class ProcessCall:
    """One call of `Process`: owner of its stream, and what `ProcessStream` takes for its RPC."""

    def __init__(
        self, stream: Http2Stream, transport: Http2Transport, process: Process, on_over: Callable[[ProcessCall], None]
    ) -> None:
        self._stream, self._transport, self._process, self._on_over = stream, transport, process, on_over
        self._loop = asyncio.get_running_loop()
        self._messages: deque[bytes] = deque()
        self._half_closed = False
        self._over = False
        self._reading: asyncio.Future[None] | None = None
        self._turn_ns = 0
        self._writing: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    # What ProcessStream asks for

    async def read(self) -> Any:
        """The next ProcessRequest, or EOF once the sidecar has half-closed and all is read."""
        messages = self._messages
        while not messages:
            if self._half_closed:
                return EOF
            self._reading = self._loop.create_future()
            await self._reading
            self._turn_ns = monotonic_ns()
        if monotonic_ns() - self._turn_ns > LONG_TURN_NS:
            await asyncio.sleep(0)
            self._turn_ns = monotonic_ns()
            if not messages:
                return EOF  # it was reset meanwhile
        raw = messages.popleft()
        if not messages:
            self._stream.return_window()
        try:
            return ProcessRequest.FromString(raw)
        except DecodeError:
            await self.abort(grpc.StatusCode.INTERNAL, "a message that is no ProcessRequest")

    async def write(self, frame: ProcessResponse) -> None:
        """Returns once there is room for the next."""
        self._stream.send(frame.SerializeToString())
        self._transport.flush()
        while self._full and not self._over:
            self._writing = self._loop.create_future()
            await self._writing

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Ends the call with that status; never returns."""
        self._finish(code.value[0], details)
        raise CallAborted(details)

    def go_on(self) -> None:
        """There may be room again."""
        waits = self._writing
        if waits is not None and not waits.done() and (self._over or not self._full):
            waits.set_result(None)

    @property
    def _full(self) -> bool:
        return self._stream.blocked or self._transport.paused

    # What the sidecar sends (StreamOwner)

    @property
    def behind(self) -> bool:
        return bool(self._messages)

    def headers_received(self, headers: list[Header], ends: bool) -> None:
        if self.task is not None:
            return  # trailers of the client: gRPC knows none
        found = dict(headers)
        path = found.get(b":path", b"")
        if found.get(b":method") != b"POST" or not found.get(b"content-type", b"").startswith(grpc_status.CONTENT_TYPE):
            self._stream.send_headers([(b":status", b"415")], end=True)
            self._end()
        elif path != METHOD.encode():
            known = f"{path[:200].decode('ascii', 'replace')} is served on the component's main socket, if at all"
            self._refuse(grpc_status.UNIMPLEMENTED, known)
        elif found.get(b"grpc-encoding", b"identity") != b"identity":
            self._refuse(grpc_status.UNIMPLEMENTED, "messages must not be compressed")
        else:
            self._stream.send_headers(grpc_status.answer_headers())
            self.task = self._loop.create_task(self._run(), name="process")

    def message_received(self, message: bytes) -> None:
        if not self._over:
            self._messages.append(message)
            self._wake()

    def end_received(self) -> None:
        self._half_closed = True
        self._wake()

    def message_refused(self, reason: str, *, too_large: bool) -> None:
        self._finish(grpc_status.RESOURCE_EXHAUSTED if too_large else grpc_status.INTERNAL, reason)
        if self.task is not None:
            self.task.cancel()

    def reset_received(self, code: int) -> None:
        self._end()
        if self.task is not None:
            self.task.cancel()

    async def _run(self) -> None:
        status, details = grpc_status.OK, ""
        try:
            await self._process(self)
        except CallAborted:
            return
        except asyncio.CancelledError:
            status, details = grpc_status.CANCELLED, "the call was cancelled"
            raise
        except Exception as error:
            log.exception("the call of Process failed")
            status, details = grpc_status.UNKNOWN, f"{type(error).__name__}: {error}"[:2000]
        finally:
            self._finish(status, details)

    def _wake(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    def _refuse(self, status: int, details: str) -> None:
        """An answer that is all trailers."""
        self._stream.send_headers([*grpc_status.answer_headers(), *grpc_status.trailers(status, details)], end=True)
        self._end()

    def _finish(self, status: int, details: str) -> None:
        if self._over:
            return
        self._stream.send_headers(grpc_status.trailers(status, details), end=True)
        self._end()

    def _end(self) -> None:
        """Nothing more is written; what the sidecar still sends is passed by."""
        if self._over:
            return
        self._over = True
        self._messages.clear()
        self._half_closed = True
        self._on_over(self)
        self.go_on()
        self._wake()
        if not self._stream.ended_there and not self._stream.blocked:
            self._stream.reset(NO_ERROR)
        self._transport.flush()
