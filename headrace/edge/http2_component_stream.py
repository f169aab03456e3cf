"""`Http2ComponentStream`: the batched `Process` stream to one component, gRPC on the wire, over our own HTTP/2 framing.

grpc.aio hands every message through two threads and a handful of callbacks: 0.3 ms a round trip, where a socket takes
0.07. Here a frame is written in the turn in which it was made, and what a read brought is handed on in that read.
The server may be any gRPC server.
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError

from headrace.edge.component_frames import (
    MAX_MESSAGE_BYTES,
    MAX_QUEUED,
    METHOD,
    ComponentFrames,
    OnClosed,
    OnEvents,
    OnSpans,
)
from headrace.edge.http2_transport import Http2Transport
from headrace.edge.structured_log import get_logger
from headrace.ports import StreamClosed
from headrace.wire.grpc_status import answer_problem, ending_of, ending_of_reset, is_informational, request_headers
from headrace.wire.http2_connection import Http2Connection
from headrace.wire.http2_frames import CANCEL
from headrace.wire.http2_headers import Header
from headrace.wire.http2_stream import Http2Stream

log = get_logger(__name__)

# A turn writes no more at once; the rest waits until the socket has taken that.
TURN_BYTES = 1024 * 1024


class Http2ComponentStream(ComponentFrames):
    """`path` is the component's Unix socket."""

    behind = False  # what is read is handed on at once

    def __init__(
        self,
        path: str,
        *,
        on_events: OnEvents,
        on_closed: OnClosed,
        on_spans: OnSpans | None = None,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        super().__init__(on_events=on_events, on_closed=on_closed, on_spans=on_spans, max_queued=max_queued)
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._connection = Http2Connection(max_message=MAX_MESSAGE_BYTES)
        self._transport = Http2Transport(
            self._connection, on_read=self._after_read, on_writable=self._flush, on_lost=self._lost
        )
        self._stream: Http2Stream | None = None
        self._answered = False
        self._scheduled = False
        self._half_closed = False
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()

    async def start(self, timeout_s: float = 5.0) -> None:
        """Opens the call; StreamClosed when the component cannot be reached within the limit."""
        self._stream = self._connection.open(self, request_headers(METHOD))
        try:
            async with asyncio.timeout(timeout_s):
                await self._loop.create_unix_connection(lambda: self._transport, self._path)
                await self._settled
        except StreamClosed:
            raise
        except TimeoutError as error:
            self._transport.close()
            raise StreamClosed(f"the component did not answer within {timeout_s:g} s", "DEADLINE_EXCEEDED") from error
        except OSError as error:
            self._transport.close()
            raise StreamClosed(f"the component cannot be reached: {error}", "UNAVAILABLE") from error
        except BaseException:
            self._transport.close()
            raise
        self._started = True

    async def close(self, timeout_s: float = 2.0) -> None:
        """See the port."""
        self._closing = True
        if self._started and self._cause is None:
            self._flush()
            await asyncio.wait({self._over}, timeout=timeout_s)
        if self._stream is not None:
            self._stream.reset(CANCEL)
        self._transport.close()
        self._end(StreamClosed("the stream is closed", "CANCELLED"))

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Writes what waits, as far as the socket and the component's windows go."""
        self._scheduled = False
        stream, transport = self._stream, self._transport
        if stream is None or self._cause is not None or not self._started:
            return
        written = 0
        try:
            while (self._queue or self._unsent_pings) and not stream.blocked and not transport.paused:
                if written > TURN_BYTES:
                    self._wake()
                    break
                frame = self._next_frame()
                written += len(frame)
                stream.send(frame)
        except Exception as error:
            log.exception("writing to the component failed")
            self._fail(StreamClosed(f"writing to the component failed: {error!r}", "INTERNAL"))
            return
        if self._closing and not self._half_closed and not self._waiting:
            self._half_closed = True
            stream.end()
        transport.flush()

    def _after_read(self) -> None:
        if self._connection.settled and not self._settled.done():
            self._settled.set_result(None)
        if self._queue or self._unsent_pings or self._closing:
            self._flush()

    # What the component sends (StreamOwner)

    def headers_received(self, headers: list[Header], ends: bool) -> None:
        if ends:
            code, message = ending_of(headers)
            self._finish(StreamClosed(message or ("the component ended the stream" if code == "OK" else code), code))
        elif not self._answered and not is_informational(headers):
            self._answered = True
            problem = answer_problem(headers)
            if problem:
                self._fail(StreamClosed(f"the component's answer is none of gRPC: {problem}", "UNKNOWN"))

    def message_received(self, message: bytes) -> None:
        try:
            self._take(message)
        except DecodeError:
            self._fail(StreamClosed("the component sent what is no ProcessResponse", "DATA_LOSS"))

    def end_received(self) -> None:
        self._finish(StreamClosed("the component ended the stream without a status", "UNKNOWN"))

    def message_refused(self, reason: str, *, too_large: bool) -> None:
        code = "RESOURCE_EXHAUSTED" if too_large else "INTERNAL"
        self._fail(StreamClosed(f"the component sent {reason}", code))

    def reset_received(self, code: int) -> None:
        name, message = ending_of_reset(code)
        away = self._connection.going_away
        self._finish(StreamClosed(f"{message}: {away[1]}" if away and away[1] else message, name))

    def _lost(self, cause: str) -> None:
        self._finish(StreamClosed(cause, "UNAVAILABLE"))

    def _fail(self, cause: StreamClosed) -> None:
        """Ends it from here."""
        if self._stream is not None:
            self._stream.reset(CANCEL)
        self._finish(cause)

    def _finish(self, cause: StreamClosed) -> None:
        self._end(cause)
        if not self._settled.done():
            self._settled.set_exception(cause)
            self._settled.exception()  # nobody need be waiting
        if not self._over.done():
            self._over.set_result(None)
        self._transport.flush()
        self._loop.call_soon(self._transport.close)
