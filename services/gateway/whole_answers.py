"""The writing side of a connection: a response's head waits for its body, so that both leave in one write.

uvicorn writes them one after the other, which is two system calls here, two segments on the wire and two reads at the
caller: a fifth of what a small answer costs the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_HEAD = b"HTTP/1.1 "
_INTERIM = ord("1")


class WholeAnswers:
    """A transport in front of a connection's own. What looks like a response's head is held until something follows:
    more bytes, `flush` (the response is complete), or `close`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(_HEAD) and len(data) > len(_HEAD) and data[len(_HEAD)] != _INTERIM:
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Nothing follows for now."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._head = b""
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


def answer_at_once(
    cycle: RequestResponseCycle, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> bool:
    """What two ASGI messages would write, without the checks that `reply_headers` has made before; `headers` have the
    content-length. False, and nothing is done, where it is more than writing: uvicorn's own way has that."""
    if cycle.disconnected or cycle.response_started or not cycle.keep_alive or cycle.flow.write_paused:
        return False
    parts = [STATUS_LINE[status]]
    for name, value in cycle.default_headers:
        parts += (name, b": ", value, b"\r\n")
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts += (b"\r\n", body)
    cycle.waiting_for_100_continue = False
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(b"".join(parts))
    cast("WholeAnswers", cycle.transport).flush()
    cycle.message_event.set()
    cycle.on_response()
    return True


def whole_answers(transport: asyncio.Transport) -> asyncio.Transport:
    """As the type that uvicorn asks for; it uses nothing else of it."""
    return cast("asyncio.Transport", WholeAnswers(transport))
