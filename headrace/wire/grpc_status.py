"""What gRPC says in headers of HTTP/2: requests, answers, and how a call ended (gRPC's doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

from headrace.wire import http2_frames as h2
from headrace.wire.http2_headers import Header

NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
OK, CANCELLED, UNKNOWN = 0, 1, 2
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 12, 13, 14

_OF_HTTP = {400: INTERNAL, 401: 16, 403: 7, 404: UNIMPLEMENTED, 429: UNAVAILABLE, 502: UNAVAILABLE,
            503: UNAVAILABLE, 504: UNAVAILABLE}  # fmt: skip
_OF_RESET = {h2.REFUSED_STREAM: UNAVAILABLE, h2.CANCEL: CANCELLED, h2.ENHANCE_YOUR_CALM: RESOURCE_EXHAUSTED}
_PRINTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
CONTENT_TYPE = b"application/grpc"

Ending = tuple[str, str]
"""Name of the status and message."""


def request_headers(method: str) -> list[Header]:
    """Of a call without a deadline; `method` is `/package.Service/Method`."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", CONTENT_TYPE),
        (b"user-agent", b"headrace"),
    ]


def answer_headers() -> list[Header]:
    """The first block of an answer."""
    return [(b":status", b"200"), (b"content-type", CONTENT_TYPE)]


def trailers(status: int, message: str = "") -> list[Header]:
    """The last block of an answer."""
    told = [(b"grpc-status", b"%d" % status)]
    return [*told, (b"grpc-message", quote(message, safe=_PRINTED).encode())] if message else told


def ending_of(headers: list[Header]) -> Ending:
    """How a call ended, from its last block."""
    found = dict(headers)
    status = found.get(b"grpc-status")
    if status is None:
        http = found.get(b":status", b"200")
        if http == b"200":
            return NAMES[UNKNOWN], "the stream ended without a status"
        code = _OF_HTTP.get(int(http) if http.isdigit() else 0, UNKNOWN)
        return NAMES[code], f"HTTP status {http.decode('ascii', 'replace')}"
    number = int(status) if status.isdigit() and len(status) < 4 else UNKNOWN
    name = NAMES[number] if number < len(NAMES) else NAMES[UNKNOWN]
    return name, unquote_to_bytes(found.get(b"grpc-message", b"")).decode("utf-8", "replace")


def ending_of_reset(code: int) -> Ending:
    """How a call ended whose stream was reset."""
    return NAMES[_OF_RESET.get(code, INTERNAL)], f"the stream was reset (HTTP/2 error {code})"


def is_informational(headers: list[Header]) -> bool:
    """A block of status 1xx, which says nothing yet."""
    return any(name == b":status" and value[:1] == b"1" for name, value in headers)


def answer_problem(headers: list[Header]) -> str:
    """Why the first block of an answer is none of gRPC; empty when it is."""
    found = dict(headers)
    if found.get(b":status") != b"200":
        return f"HTTP status {found.get(b':status', b'none').decode('ascii', 'replace')}"
    kind = found.get(b"content-type", b"")
    if not kind.startswith(CONTENT_TYPE):
        return f"content type {kind[:100]!r}"
    return ""
