"""An HTTP/2 connection without its socket: bytes in, calls of the streams' owners, bytes out.

It does what one long-lived gRPC stream on a Unix socket needs, for either side and any legal peer, and nothing more:
no push, no priorities, no compression. Everything is bounded: frames, header blocks, streams, windows, and what a peer
may make us answer without reading (the owner of the socket looks at `out` and `chores`).
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.wire import http2_frames as h2
from headrace.wire.http2_frames import ConnectionFault
from headrace.wire.http2_header_block import MAX_HEADER_BYTES, HeaderBlock, HeaderBlocks
from headrace.wire.http2_headers import TABLE_BYTES, Header
from headrace.wire.http2_stream import Http2Stream, StreamOwner

MAX_FRAME = 1024 * 1024
STREAM_WINDOW = 4 * 1024 * 1024

Accept = Callable[[Http2Stream], StreamOwner]


class Http2Connection:
    """`accept` makes the owner of a stream that the peer opens: with it this is the server's side.

    `feed` what was read; it raises ConnectionFault when the connection is of no use any more: then write
    `go_away(...)` and close.
    """

    def __init__(self, *, max_message: int, accept: Accept | None = None, max_streams: int = 8) -> None:
        self.max_message = max_message
        self.stream_window = STREAM_WINDOW
        self._accept, self._max_streams = accept, max_streams
        self._blocks = HeaderBlocks()
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = h2.FRAME_HEADER
        self._preface = accept is not None
        self._last_opened = 0
        self._peer_table, self._smaller_table = TABLE_BYTES, False
        self._peer_window = h2.DEFAULT_WINDOW
        self.window = h2.DEFAULT_WINDOW
        """What the peer takes on all streams together."""
        self._receivable = self._connection_window = STREAM_WINDOW * (max_streams if accept else 1)
        self.max_frame = h2.SMALLEST_MAX_FRAME
        self.streams: dict[int, Http2Stream] = {}
        self.settled = False
        """The peer has sent its SETTINGS: it speaks HTTP/2."""
        self.going_away: tuple[int, str] | None = None
        """Code and text with which the peer takes no more streams."""
        self.chores = 0
        """Frames so far that carried no message."""
        self.out: list[bytes] = []
        """What is to be written; the owner of the socket takes it."""
        if accept is None:
            self.out.append(h2.PREFACE)
            own = {h2.ENABLE_PUSH: 0}
        else:
            own = {h2.MAX_CONCURRENT_STREAMS: max_streams}
        own |= {h2.INITIAL_WINDOW_SIZE: STREAM_WINDOW, h2.MAX_FRAME_SIZE: MAX_FRAME}
        own |= {h2.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES}
        self.out.append(h2.settings(own))
        self.out.append(h2.window_update(0, self._connection_window - h2.DEFAULT_WINDOW))

    def open(self, owner: StreamOwner, headers: list[Header]) -> Http2Stream:
        """The client's side: a new stream."""
        self._last_opened = number = self._last_opened + 2 if self._last_opened else 1
        stream = self.streams[number] = Http2Stream(self, number, self._peer_window)
        stream.owner = owner
        stream.send_headers(headers)
        return stream

    def go_away(self, code: int, text: str) -> None:
        """The last that is written."""
        self.out.append(h2.go_away(self._last_opened if self._accept else 0, code, text))

    def without_table(self) -> bool:
        """Whether the next header block has to say that we use no table."""
        told, self._smaller_table = self._smaller_table, False
        return told

    def forget_ended(self, stream: Http2Stream) -> None:
        """Forgets a stream that both sides have ended."""
        if stream.ended_here and stream.ended_there:
            self.streams.pop(stream.number, None)

    def return_window(self, stream: Http2Stream | None, increment: int) -> None:
        """Lets the peer send so much more, on the connection and on a stream."""
        if increment:
            self._receivable += increment
            self.out.append(h2.window_update(0, increment))
            if stream is not None:
                self.out.append(h2.window_update(stream.number, increment))

    # In

    def feed(self, data: bytes) -> None:
        """Handles every frame that is whole now."""
        if self._parts:
            self._parts.append(data)
            self._held += len(data)
            if self._held < self._needed:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        at = self._take_preface(data) if self._preface else 0
        size = len(data)
        self._needed = h2.FRAME_HEADER
        while not self._preface and size - at >= h2.FRAME_HEADER:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > MAX_FRAME:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, f"a frame of {length} bytes, more than {MAX_FRAME}")
            begin = at + h2.FRAME_HEADER
            end = begin + length
            if end > size:
                self._needed = end - at
                break
            kind, flags = data[at + 3], data[at + 4]
            number = int.from_bytes(data[at + 5 : begin], "big") & h2.LARGEST_WINDOW
            at = end
            if kind == h2.DATA and self.settled and not self._blocks.open:
                self._data(data[begin:end], flags, number)
            else:
                self.chores += 1
                self._frame(kind, flags, number, data[begin:end])
        self._held = size - at
        if self._held:
            self._parts.append(data[at:] if at else data)

    def _take_preface(self, data: bytes) -> int:
        begun = data[: len(h2.PREFACE)]
        if begun != h2.PREFACE[: len(begun)]:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "the peer does not speak HTTP/2")
        if len(begun) < len(h2.PREFACE):
            return 0
        self._preface = False
        return len(begun)

    def _data(self, data: bytes, flags: int, number: int) -> None:
        cost = len(data)
        self._receivable -= cost
        if self._receivable < 0:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "more data than the window of the connection")
        if flags & h2.PADDED:
            data = h2.unpadded(data, flags)
        if not data:
            self.chores += 1
        stream = self.streams.get(number)
        if stream is None or stream.ended_there:
            self._check_was_open(number)
            self.return_window(None, cost)  # sent before the peer saw our reset
            return
        stream.data_received(data, cost)
        if flags & h2.END_STREAM and not stream.ended_there:
            self._end(stream)

    def _end(self, stream: Http2Stream) -> None:
        if stream.end_received():
            stream.owner.message_refused("a message that was cut short", too_large=False)
        else:
            stream.owner.end_received()
        self.forget_ended(stream)

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._blocks.open and kind != h2.CONTINUATION:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a header block is interrupted")
        if not self.settled and kind != h2.SETTINGS:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "the first frame is no SETTINGS frame")
        handle = _HANDLERS.get(kind)
        if handle is not None:
            handle(self, flags, number, payload)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "HEADERS of no stream")
        self._headers_read(self._blocks.begin(flags, number, payload))

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        self._headers_read(self._blocks.go_on(flags, number, payload))

    def _headers_read(self, block: HeaderBlock | None) -> None:
        if block is None:
            return
        number, headers, ends = block
        stream = self.streams.get(number) or self._accepted(number)
        if stream is None or stream.ended_there:
            return
        stream.owner.headers_received(headers, ends)
        if ends and number in self.streams:
            if self._accept is None:
                stream.ended_there = True  # its owner knows: these were the trailers
                self.forget_ended(stream)
            else:
                self._end(stream)

    def _accepted(self, number: int) -> Http2Stream | None:
        if self._accept is None or number <= self._last_opened:
            self._check_was_open(number)
            return None
        if not number % 2:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a stream of an even number")
        self._last_opened = number
        if len(self.streams) >= self._max_streams:
            self.out.append(h2.reset(number, h2.REFUSED_STREAM))
            return None
        stream = self.streams[number] = Http2Stream(self, number, self._peer_window)
        stream.owner = self._accept(stream)
        return stream

    def _check_was_open(self, number: int) -> None:
        """A frame of a stream that is over is passed by; of one that never was it ends the connection."""
        if not number % 2 or number > self._last_opened:
            raise ConnectionFault(h2.PROTOCOL_ERROR, f"a frame of stream {number}, which was never opened")

    def _priority(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 5 or not number:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a PRIORITY frame of a wrong size or of no stream")

    def _reset(self, flags: int, number: int, payload: bytes) -> None:
        code = h2.read_number(payload)
        stream = self.streams.pop(number, None)
        if stream is not None:
            stream.reset_received(code)
        else:
            self._check_was_open(number)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & h2.ACK:
            if payload:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, "an acknowledgement of settings with settings")
            return
        # Before anything that makes use of them: gRPC's server counts by what was acknowledged.
        self.out.append(h2.frame(h2.SETTINGS, h2.ACK, 0))
        self.settled = True
        for name, value in h2.read_settings(payload):
            self._set(name, value)

    def _set(self, name: int, value: int) -> None:
        if name == h2.INITIAL_WINDOW_SIZE:
            if value > h2.LARGEST_WINDOW:
                raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "an initial window beyond its largest size")
            change, self._peer_window = value - self._peer_window, value
            for stream in list(self.streams.values()):
                stream.widen(change)
        elif name == h2.MAX_FRAME_SIZE:
            if not h2.SMALLEST_MAX_FRAME <= value <= h2.LARGEST_MAX_FRAME:
                raise ConnectionFault(h2.PROTOCOL_ERROR, f"a largest frame of {value} bytes")
            self.max_frame = min(value, MAX_FRAME)
        elif name == h2.ENABLE_PUSH and (value > 1 or (value and self._accept is None)):
            raise ConnectionFault(h2.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        elif name == h2.HEADER_TABLE_SIZE:
            self._smaller_table = self._smaller_table or value < self._peer_table
            self._peer_table = value

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise ConnectionFault(h2.PROTOCOL_ERROR, "PUSH_PROMISE, which nobody allowed")

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "PING of a stream")
        if len(payload) != 8:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a PING frame of a wrong size")
        if not flags & h2.ACK:
            self.out.append(h2.frame(h2.PING, h2.ACK, 0, payload))

    def _go_away(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "GOAWAY of a stream")
        last, code, text = h2.read_go_away(payload)
        self.going_away = (code, text)
        if self._accept is None:
            for stream in [stream for stream in self.streams.values() if stream.number > last]:
                del self.streams[stream.number]
                stream.reset_received(h2.REFUSED_STREAM)

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        increment = h2.read_number(payload)
        if not increment:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
        if number:
            stream = self.streams.get(number)
            if stream is not None:
                stream.widen(increment)
            else:
                self._check_was_open(number)
            return
        self.window += increment
        if self.window > h2.LARGEST_WINDOW:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "a window beyond its largest size")
        for stream in list(self.streams.values()):
            stream.push()


_HANDLERS: dict[int, Callable[[Http2Connection, int, int, bytes], None]] = {
    h2.HEADERS: Http2Connection._headers,
    h2.PRIORITY: Http2Connection._priority,
    h2.RST_STREAM: Http2Connection._reset,
    h2.SETTINGS: Http2Connection._settings,
    h2.PUSH_PROMISE: Http2Connection._push_promise,
    h2.PING: Http2Connection._ping,
    h2.GOAWAY: Http2Connection._go_away,
    h2.WINDOW_UPDATE: Http2Connection._window_update,
    h2.CONTINUATION: Http2Connection._continuation,
}
