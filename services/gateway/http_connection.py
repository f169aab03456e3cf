"""One connection of uvicorn's, with the limits it lacks: size and time of a request's head, number of connections, JSON
for its own refusals, and a call when it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.edge.sweep_timer import NEVER
from services.gateway.connection_rest import ConnectionRest, ResponseDate
from services.gateway.domain.refusals import Refusal, headers_too_large
from services.gateway.socket_reader import NO_READ
from services.gateway.whole_answers import WholeAnswers, whole_answers

MAX_HEAD_BYTES = 64 * 1024
HEAD_LIMIT_S = 10.0
MAX_CONNECTIONS = 10_000

CONNECTION = "headrace.connection"
ARRIVAL = "headrace.arrival"
CYCLE = "headrace.cycle"


class GatewayProtocol(HttpToolsProtocol):
    """One connection. Sets `scope[CONNECTION]` (itself), `scope[ARRIVAL]` and `scope[CYCLE]` (uvicorn's side of the
    request) for the endpoint."""

    rest: ConnectionRest
    date: ResponseDate

    on_gone: Callable[[], None] | None = None
    """Called once when the connection ends while a request is in work; set by the endpoint."""

    head_limit_s = HEAD_LIMIT_S

    read = NO_READ
    """Of the bytes in `data_received`."""

    between_requests = True

    idle_since = NEVER
    """When the last response was written, by the loop's clock; NEVER while a request is in work."""

    _arrival = NO_READ
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True
    _refused = False

    @property
    def body_arrived(self) -> bool:
        """True when the body of the request in work has been read to its end."""
        return self.cycle is not None and not self.cycle.more_body and not self.pipeline

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(whole_answers(transport))
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()
            return
        self._head_timer = self.loop.call_later(self.head_limit_s, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head_timer()
        super().connection_lost(exc)
        if self.on_gone is not None:
            self.on_gone()
            self.on_gone = None

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(headers_too_large(MAX_HEAD_BYTES))
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_limit_s, self._head_too_slow)

    async def wait_until_read(self, limit_s: float) -> None:
        """Returns when the caller has taken its response but for a small rest; past the limit the connection is
        cut, so that callers who do not read cannot pile up memory here."""
        if not self.flow.write_paused:
            return
        try:
            async with asyncio.timeout(limit_s):
                await self.flow.drain()
        except TimeoutError:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._arrival = self.read
        self.between_requests = False
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._end_head_timer()
        if self._head_bytes:  # else it came in one read, which is no larger than a head may be
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._refuse(headers_too_large(MAX_HEAD_BYTES))
                return
        self.date.refresh(self._arrival.at_unix_ns)
        scope = cast("dict[str, Any]", self.scope)
        scope[ARRIVAL] = self._arrival
        scope[CONNECTION] = self
        super().on_headers_complete()
        scope[CYCLE] = self.cycle

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.between_requests = True
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        cast("WholeAnswers", self.transport).flush()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        # As uvicorn does, but for a timer of its own for each response.
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self.idle_since = self.rest.begins()

    def _unset_keepalive_if_required(self) -> None:
        self.idle_since = NEVER

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal(400, "MALFORMED_REQUEST", "this is not an HTTP/1.1 request", close=True))

    def _unsupported_upgrade_warning(self) -> None:
        """Upgrades are not served: the request is handled as plain HTTP."""

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if not self._in_head:
            return
        message = f"the request's head did not arrive within {self.head_limit_s:g} s"
        self._refuse(Refusal(408, "HEAD_TOO_SLOW", message, close=True))

    def _refuse(self, refusal: Refusal) -> None:
        """Answers in the endpoint's place and ends the connection; nothing more is read from it. A request that
        had arrived whole gets its own answer first, and no other."""
        self._refused = True
        self._end_head_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body or cycle.response_started:
                cycle.keep_alive = False
                return
            cycle.disconnected = True
            cycle.message_event.set()
        if not self.transport.is_closing():
            self.transport.write(plain_response(refusal))
        self.transport.close()


def plain_response(refusal: Refusal) -> bytes:
    """A whole HTTP/1.1 response."""
    body = refusal.body()
    lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in refusal.headers()]
    lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
