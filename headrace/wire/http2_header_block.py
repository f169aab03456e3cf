"""Header blocks of an HTTP/2 connection, put together from HEADERS and CONTINUATION frames and read."""

from __future__ import annotations

from headrace.wire import http2_frames as h2
from headrace.wire.http2_frames import ConnectionFault
from headrace.wire.http2_headers import Header, HeaderError, HeaderListTooLong, HeaderReader

MAX_HEADER_BYTES = 64 * 1024
MAX_BLOCK_FRAMES = 64

# Stream, fields, and whether the peer sends nothing more on it.
HeaderBlock = tuple[int, list[Header], bool]


class HeaderBlocks:
    """Every block is read, also of a stream that nobody knows: the table of headers belongs to the connection."""

    def __init__(self) -> None:
        self._reader = HeaderReader(MAX_HEADER_BYTES)
        self._parts: list[bytes] = []
        self._bytes = 0
        self._stream = 0
        self._ends = False
        self.open = False
        """A block was begun: nothing but its CONTINUATION may follow."""

    def begin(self, flags: int, stream: int, payload: bytes) -> HeaderBlock | None:
        """A HEADERS frame; the block once it is whole."""
        payload = h2.unpadded(payload, flags)
        if flags & h2.WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a HEADERS frame of a wrong size")
            payload = payload[5:]
        self._bytes = 0
        self._stream, self._ends, self.open = stream, bool(flags & h2.END_STREAM), True
        return self.go_on(flags, stream, payload)

    def go_on(self, flags: int, stream: int, payload: bytes) -> HeaderBlock | None:
        """A CONTINUATION frame; the block once it is whole."""
        if not self.open or stream != self._stream:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._parts.append(payload)
        self._bytes += len(payload)
        if self._bytes > MAX_HEADER_BYTES or len(self._parts) > MAX_BLOCK_FRAMES:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, f"a header block of over {MAX_HEADER_BYTES} bytes")
        if not flags & h2.END_HEADERS:
            return None
        block = b"".join(self._parts)
        self._parts.clear()
        self.open = False
        try:
            return stream, self._reader.read(block), self._ends
        except HeaderListTooLong as long:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, str(long)) from long
        except HeaderError as error:
            raise ConnectionFault(h2.COMPRESSION_ERROR, str(error)) from error
