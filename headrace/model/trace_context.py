"""W3C Trace Context (version 00) and Baggage as they travel with messages, and the span ids of a hop.

A trace id is the caller's, else the execution's id; a caller's context never feeds an id of ours (DESIGN section 1).
The ids of spans that everybody must agree on are parts of the message id, which is a hash: whoever needs one cuts it
out, and nothing more has to travel. What the `traceparent` of a message names is the span that sent it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_BAGGAGE_BYTES = 8_192
MAX_BAGGAGE_MEMBERS = 64
"""The least that W3C Baggage asks every hop to carry; more is left out."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
# RFC 7230 token, optional white space, `=`, printable ASCII without the separators; properties likewise.
_MEMBER = re.compile(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*=[ \t]*[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
    r"(?:[ \t]*;[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*=[ \t]*[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*)?)*"
)


class TraceContext(NamedTuple):
    """32 and 16 lower-case hex digits, neither all zero."""

    trace_id: str
    span_id: str
    sampled: bool


def parse_traceparent(value: str) -> TraceContext | None:
    """None for what is no valid traceparent. Of versions above 00 the fields of 00 are read; ff is invalid."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


def format_traceparent(trace_id: str, span_id: str, *, sampled: bool) -> str:
    """Version 00."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def looks_like_traceparent(value: str) -> bool:
    """Cheap: whether its parts can be cut out by place. True of everything that `format_traceparent` made."""
    return len(value) == 55 and value[2] == value[35] == value[52] == "-"


def sampled_trace(traceparent: str) -> bytes:
    """Its trace id where it is sampled; b"" where it is not, or is no traceparent."""
    if not looks_like_traceparent(traceparent) or traceparent[54] not in "13579bdf":
        return b""
    try:
        return bytes.fromhex(traceparent[3:35])
    except ValueError:
        return b""


def bounded_baggage(value: str) -> str:
    """The members of a `baggage` header that are well formed, in order, as far as they fit; "" for none.

    Nothing of it is decoded. Members beyond the limits, and malformed ones, are left out.
    """
    kept: list[str] = []
    size = 0
    for part in value[: 4 * MAX_BAGGAGE_BYTES].split(","):
        member = part.strip(" \t")
        if not member or _MEMBER.fullmatch(member) is None:
            continue
        size += len(member) + bool(kept)
        if size > MAX_BAGGAGE_BYTES or len(kept) == MAX_BAGGAGE_MEMBERS:
            break
        kept.append(member)
    return ",".join(kept)


def publish_span_id(message_id: str) -> str:
    """Of the span that carried this message from its sender to the broker."""
    return message_id[:16]


def process_span_id(message_id: str) -> str:
    """Of the first attempt of this message at its step."""
    return message_id[16:]


def queue_span_id(message_id: str) -> str:
    """Of the wait of this message's first delivery."""
    return message_id[8:24]


def root_span_id(stimulus: str) -> str:
    """Of the span that a stimulus begins with."""
    return stimulus[:16]
