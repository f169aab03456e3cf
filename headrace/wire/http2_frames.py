"""Frames of HTTP/2 (RFC 9113) as bytes, and the numbers in them."""

from __future__ import annotations

from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER = 9

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = (1 << 31) - 1
SMALLEST_MAX_FRAME = 16_384
LARGEST_MAX_FRAME = (1 << 24) - 1

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR = range(
    7
)
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(7, 12)

_SETTING = Struct(">HI")
_NUMBER = Struct(">I")
_TWO_NUMBERS = Struct(">II")
_HEADER = Struct(">BHBBI")
# A DATA frame that is one gRPC message: frame header, compression flag, length.
_WHOLE_MESSAGE = Struct(">BHBBIBI")
_MESSAGE_PREFIX = Struct(">BI")
MESSAGE_PREFIX = 5


class ConnectionFault(Exception):
    """The peer breaks the protocol, or one of our bounds: the connection ends. `code` is for its GOAWAY."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return _HEADER.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def data_header(size: int, flags: int, stream: int) -> bytes:
    """What stands before `size` bytes of a DATA frame."""
    return _HEADER.pack(size >> 16, size & 0xFFFF, DATA, flags, stream)


def message_header(size: int, stream: int) -> bytes:
    """What stands before a message of `size` bytes that fills one DATA frame."""
    whole = size + MESSAGE_PREFIX
    return _WHOLE_MESSAGE.pack(whole >> 16, whole & 0xFFFF, DATA, 0, stream, 0, size)


def message_prefix(size: int) -> bytes:
    """What stands before a message of `size` bytes in the stream of its bytes."""
    return _MESSAGE_PREFIX.pack(0, size)


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Name and value of each; ConnectionFault for a frame of a wrong size."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a SETTINGS frame of a wrong size")
    return [_SETTING.unpack_from(payload, at) for at in range(0, len(payload), _SETTING.size)]


def window_update(stream: int, increment: int) -> bytes:
    """Lets the peer send so many more bytes; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(increment))


def reset(stream: int, code: int) -> bytes:
    """Ends a stream at once."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def go_away(last_stream: int, code: int, text: str = "") -> bytes:
    """Ends the connection, for streams above `last_stream`."""
    return frame(GOAWAY, 0, 0, _TWO_NUMBERS.pack(last_stream, code) + text.encode()[:200])


def read_number(payload: bytes, size: int = 4) -> int:
    """The first 31 bits of a payload that must have `size` bytes."""
    if len(payload) != size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a frame of a wrong size")
    return int(_NUMBER.unpack_from(payload)[0]) & LARGEST_WINDOW


def read_go_away(payload: bytes) -> tuple[int, int, str]:
    """Last stream, code and text."""
    if len(payload) < _TWO_NUMBERS.size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a GOAWAY frame of a wrong size")
    last, code = _TWO_NUMBERS.unpack_from(payload)
    return last & LARGEST_WINDOW, code, payload[_TWO_NUMBERS.size :][:200].decode("utf-8", "replace")


def unpadded(payload: bytes, flags: int) -> bytes:
    """The payload without its padding."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "a frame with more padding than bytes")
    return payload[1 : len(payload) - payload[0]]
