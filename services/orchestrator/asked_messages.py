"""What people ask for by when a message came and by its text: dead letters and stimuli alike."""

from __future__ import annotations

from typing import Any

from headrace.api.message.v1.message_pb2 import Envelope
from headrace.model.errors import InvalidInput

MAX_TEXT = 200


def asked_span(request: Any) -> tuple[int, int, str]:
    """`since` and `until` of a request in ns (0: open), and its `text`. InvalidInput names the field."""
    since, until = request.since.ToNanoseconds(), request.until.ToNanoseconds()
    if until and until <= since:
        raise InvalidInput.at("until", request.until.ToJsonString(), "is not after since")
    if len(request.text) > MAX_TEXT:
        raise InvalidInput.at("text", request.text[:60], f"is longer than {MAX_TEXT} characters")
    return since, until, request.text


def came_within(at_unix_ns: int, since_ns: int, until_ns: int) -> bool:
    """From `since` on and before `until`; 0 is open."""
    return at_unix_ns >= since_ns and (not until_ns or at_unix_ns < until_ns)


def has_text(envelope: Envelope, text: str) -> bool:
    """In its body or the value of a header."""
    return text.encode() in envelope.body or any(text in value for value in envelope.headers.values())
