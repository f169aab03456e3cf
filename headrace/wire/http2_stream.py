"""One gRPC stream of an HTTP/2 connection: messages out under the peer's windows, messages in under ours."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from headrace.wire.http2_frames import (
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    HEADERS,
    LARGEST_WINDOW,
    MESSAGE_PREFIX,
    ConnectionFault,
    data_header,
    frame,
    message_header,
    message_prefix,
    reset,
)
from headrace.wire.http2_headers import Header, write_headers

if TYPE_CHECKING:
    from headrace.wire.http2_connection import Http2Connection


class StreamOwner(Protocol):
    """Who uses a stream. Called synchronously while bytes are read; must not raise."""

    def headers_received(self, headers: list[Header], ends: bool) -> None:
        """The first block, and the trailers; `ends`: the peer sends nothing more."""

    def message_received(self, message: bytes) -> None:
        """One gRPC message, without its prefix."""

    def end_received(self) -> None:
        """The peer ended its side without trailers."""

    def message_refused(self, reason: str, *, too_large: bool) -> None:
        """The peer sent a message that is compressed or too large. Nothing more is read: reset the stream."""

    def reset_received(self, code: int) -> None:
        """The peer ended the stream at once. Not called once both sides have ended."""

    @property
    def behind(self) -> bool:
        """True while it has messages that it has not taken: the peer gets no further window."""


class Http2Stream:
    """`send` any number of messages; what the peer gives no window for waits here: see `blocked`."""

    owner: StreamOwner

    def __init__(self, connection: Http2Connection, number: int, window: int) -> None:
        self._connection = connection
        self.number = number
        self.window = window
        """What the peer takes of this stream at present."""
        self._pending: deque[memoryview] = deque()
        self._last: bytes | None = None
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = MESSAGE_PREFIX
        self._refused = False
        self._unreturned = 0
        self.ended_here = False
        self.ended_there = False

    @property
    def blocked(self) -> bool:
        """Whether something waits for the peer's window."""
        return bool(self._pending)

    # Out

    def send_headers(self, headers: list[Header], *, end: bool = False) -> None:
        """The first block, or (with `end`) the trailers: these leave after all that waits."""
        block = write_headers(headers, without_table=self._connection.without_table())
        whole = frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), self.number, block)
        if end:
            self._finish(whole)
        else:
            self._connection.out.append(whole)

    def send(self, message: bytes) -> None:
        """One gRPC message."""
        size = len(message)
        whole = size + MESSAGE_PREFIX
        connection = self._connection
        if self._pending or whole > self.window or whole > connection.window or whole > connection.max_frame:
            self._pending.append(memoryview(message_prefix(size) + message))
            self.push()
            return
        self.window -= whole
        connection.window -= whole
        connection.out.append(message_header(size, self.number))
        connection.out.append(message)

    def end(self) -> None:
        """Half-closes, after all that waits."""
        self._finish(data_header(0, END_STREAM, self.number))

    def _finish(self, last: bytes) -> None:
        self._last = last
        if not self._pending:
            self.push()

    def push(self) -> None:
        """Sends what waits, as far as the windows go."""
        connection, pending = self._connection, self._pending
        while pending:
            size = min(len(pending[0]), self.window, connection.window, connection.max_frame)
            if size <= 0:
                return
            part = pending[0]
            connection.out.append(data_header(size, 0, self.number))
            connection.out.append(bytes(part[:size]))
            self.window -= size
            connection.window -= size
            if size == len(part):
                pending.popleft()
            else:
                pending[0] = part[size:]
        if self._last is not None:
            connection.out.append(self._last)
            self._last = None
            self.ended_here = True
            connection.forget_ended(self)

    def reset(self, code: int) -> None:
        """Ends it at once, both ways; the owner hears nothing more."""
        if self._connection.streams.pop(self.number, None) is not None:
            self._drop()
            self._connection.out.append(reset(self.number, code))

    def reset_received(self, code: int) -> None:
        self._drop()
        self.owner.reset_received(code)

    def _drop(self) -> None:
        self.ended_here = self.ended_there = True
        self._pending.clear()
        self._parts.clear()
        unreturned, self._unreturned = self._unreturned, 0
        self._connection.return_window(None, unreturned)

    def widen(self, increment: int) -> None:
        """The peer takes so many more bytes."""
        self.window += increment
        if self.window > LARGEST_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "a window beyond its largest size")
        if self._pending:
            self.push()

    # In

    def data_received(self, data: bytes, cost: int) -> None:
        """The payload of a DATA frame; `cost` is what it took of the window."""
        self._unreturned += cost
        if self._unreturned > self._connection.stream_window:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "more data than the window of the stream")
        if self._refused:
            return
        if not self._parts and len(data) >= MESSAGE_PREFIX:
            size = int.from_bytes(data[1:5], "big")
            if size and size + MESSAGE_PREFIX == len(data) and not data[0] and size <= self._connection.max_message:
                self.owner.message_received(data[MESSAGE_PREFIX:])
                self.return_window()
                return
        if data:
            self._parts.append(data)
            self._held += len(data)
            if self._held >= self._needed:
                self._cut()
        self.return_window()

    def _cut(self) -> None:
        """Hands over what is whole. A large message is joined once, when the last of it is there."""
        data = b"".join(self._parts)
        self._parts.clear()
        at, size = 0, len(data)
        self._needed = MESSAGE_PREFIX
        while size - at >= MESSAGE_PREFIX:
            length = int.from_bytes(data[at + 1 : at + 5], "big")
            if data[at] or length > self._connection.max_message:
                self._refused = True
                self._held = 0
                if data[at]:
                    self.owner.message_refused("a compressed message", too_large=False)
                else:
                    limit = self._connection.max_message
                    self.owner.message_refused(f"a message of {length} bytes, more than {limit}", too_large=True)
                return
            end = at + MESSAGE_PREFIX + length
            if end > size:
                self._needed = end - at
                break
            if not length:
                self._connection.chores += 1
            self.owner.message_received(data[at + MESSAGE_PREFIX : end])
            at = end
            if self._refused or self.number not in self._connection.streams:
                return  # the owner reset it
        self._held = size - at
        if self._held:
            self._parts.append(data[at:] if at else data)

    def return_window(self) -> None:
        """Lets the peer send on, once half of the window is used up and the owner is not behind."""
        if self._unreturned * 2 >= self._connection.stream_window and not self.owner.behind:
            increment, self._unreturned = self._unreturned, 0
            self._connection.return_window(None if self.ended_there else self, increment)

    def end_received(self) -> bool:
        """The peer's side is over; whether a message was cut by that."""
        self.ended_there = True
        return bool(self._held) and not self._refused
