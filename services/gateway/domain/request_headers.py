"""Which request headers travel with a stimulus, and what a caller may not set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from headrace.model.answer import MAX_KEY_LENGTH
from services.gateway.domain import refusals

MAX_PASSED_BYTES = 16 * 1024
MOST_DIGITS = 18
"""Of a content-length."""
DEFAULT_CONTENT_TYPE = "application/octet-stream"

# RFC 9110 section 7.6.1 (with the ones it obsoletes), framing, secrets, and what the envelope has elsewhere.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade expect".split()
)
_NOT_PASSED = _HOP_BY_HOP | frozenset(
    b"authorization cookie host content-length content-type traceparent tracestate baggage idempotency-key".split()
)
_OURS = b"headrace-"


@dataclass(slots=True)
class RequestHeaders:
    """What the gateway needs of a request's headers. `content_length` -1 means not given."""

    passed: dict[str, str]
    content_type: str = DEFAULT_CONTENT_TYPE
    content_length: int = -1
    traceparent: str = ""
    baggage: str = ""
    idempotency_key: str = ""

    @property
    def says_json(self) -> bool:
        """True for `application/json` and `application/<anything>+json`."""
        return _says_json(self.content_type)

    @property
    def says_form(self) -> bool:
        """True for `multipart/form-data`."""
        return (
            self.content_type[:9].lower() == "multipart"
            and self.content_type.partition(";")[0].strip().lower() == "multipart/form-data"
        )


@lru_cache(64)
def _says_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


def read_headers(raw: Sequence[tuple[bytes, bytes]]) -> RequestHeaders:
    """Reads lower-case raw headers; raises Refusal 400 or 431.

    Passed on: everything but hop-by-hop headers (also those that Connection names), `authorization`, `cookie`,
    framing, trace context and names that start with `headrace-`. Repeated headers are joined with a comma.
    Values are Latin-1, as HTTP has it.
    """
    passed: dict[str, str] = {}
    headers = RequestHeaders(passed)
    size = 0
    connection: set[str] = set()
    for name, value in raw:
        if name in _NOT_PASSED:
            if name == b"connection":
                connection.update(token.strip() for token in value.decode("latin-1").lower().split(","))
            else:
                _note(headers, name, value)
            continue
        if name.startswith(_OURS):
            continue
        size += len(name) + len(value)
        if size > MAX_PASSED_BYTES:
            raise refusals.headers_too_large(MAX_PASSED_BYTES)
        key, text = name.decode("latin-1"), value.decode("latin-1")
        passed[key] = f"{passed[key]}, {text}" if key in passed else text
    for name_ in connection:
        passed.pop(name_, None)
    return headers


def _note(headers: RequestHeaders, name: bytes, value: bytes) -> None:
    if name == b"content-type":
        headers.content_type = value.decode("latin-1") or DEFAULT_CONTENT_TYPE
    elif name == b"content-length":
        if not value.isdigit() or len(value) > MOST_DIGITS:
            raise refusals.bad_content_length(value.decode("latin-1"))
        headers.content_length = int(value)
    elif name == b"traceparent":
        # Given twice it is invalid (W3C Trace Context 3.2).
        headers.traceparent = value.decode("latin-1") if not headers.traceparent else "twice"
    elif name == b"baggage":
        text = value.decode("latin-1")
        headers.baggage = f"{headers.baggage},{text}" if headers.baggage else text
    elif name == b"idempotency-key":
        if headers.idempotency_key:
            raise refusals.bad_idempotency_key("is given twice")
        key = value.decode("latin-1").strip()
        if not key:
            raise refusals.bad_idempotency_key("is empty")
        if len(key) > MAX_KEY_LENGTH:
            raise refusals.bad_idempotency_key(f"has {len(key)} characters")
        headers.idempotency_key = key
