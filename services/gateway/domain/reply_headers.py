"""What of a component's reply reaches the caller, checked: a reply can never split or break a response."""

from __future__ import annotations

import re
from collections.abc import Mapping

from services.gateway.domain import refusals
from services.gateway.domain.refusals import RawHeaders

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
MAX_REPLY_HEADER_BYTES = 32 * 1024
NO_BODY = frozenset({204, 304})
# Framing and the connection are the gateway's business, and so are its own headers.
_NOT_PASSED = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "content-length", "content-type", "date", "server", "traceparent", "baggage"}
    | {"headrace-execution", "headrace-version", "headrace-deployment", "headrace-replayed"}
)


def check_status(status: int, step: str, execution: str) -> int:
    """200 to 599, else Refusal 502."""
    if not 200 <= status <= 599:
        raise refusals.bad_reply(step, f"status {status}; use 200 to 599", execution)
    return status


def reply_headers(headers: Mapping[str, str], content_type: str, *, step: str, execution: str) -> RawHeaders:
    """Raw headers of the response; Refusal 502 for a name or value that HTTP forbids (CR, LF, ...).

    Values that Latin-1 cannot hold are sent as UTF-8, which HTTP clients pass through as opaque bytes.
    """
    raw: RawHeaders = []
    size = 0
    if content_type:
        raw.append((b"content-type", _value("content-type", content_type, step, execution)))
    for name, value in headers.items():
        lower = name.lower()
        if lower in _NOT_PASSED:
            continue
        if not _NAME.fullmatch(name):
            raise refusals.bad_reply(step, f"header name {name[:60]!r}", execution)
        encoded = _value(lower, value, step, execution)
        size += len(lower) + len(encoded)
        if size > MAX_REPLY_HEADER_BYTES:
            raise refusals.bad_reply(step, f"more than {MAX_REPLY_HEADER_BYTES} bytes of headers", execution)
        raw.append((lower.encode(), encoded))
    return raw


def _value(name: str, value: str, step: str, execution: str) -> bytes:
    if _BAD_VALUE.search(value):
        raise refusals.bad_reply(step, f"a control character in header {name}", execution)
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode()
