"""JetStream's own wire forms: ack subjects, headers, status lines, requests. Its JSON answers: jetstream_answers.py.

Sources: ADR-15 (ack subject, v1 and v2), ADR-13 (pull requests), and what nats-server 2.15.1 sends.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from headrace.ports import BatchMessage, Fence
from headrace.wire.jetstream_answers import MalformedAnswer

ACK_PREFIX = "$JS.ACK."
ACK = b"+ACK"
IN_PROGRESS = b"+WPI"

EDGE_FULL = 10077
MESSAGE_TOO_LARGE = 10054
TEMPORARILY_UNAVAILABLE = 10008
DUPLICATE_IN_PROCESS = 10158
BATCH_INCOMPLETE = 10176
TOO_MANY_BATCHES = 10210
REPEATABLE = frozenset({TEMPORARILY_UNAVAILABLE, DUPLICATE_IN_PROCESS, BATCH_INCOMPLETE, TOO_MANY_BATCHES})
"""Answers that mean: repeat with the same id (10158: another publish of this id has no outcome yet; 10176: a part
of the batch did not arrive; 10210: more batches at once than the broker takes)."""
MAX_BATCH_MESSAGES = 1_000

HEARTBEAT = 100
NO_MESSAGES = 404
REQUEST_TIMEOUT = 408
CONFLICT = 409
NO_RESPONDERS = 503

_ID_HEADER = "Nats-Msg-Id: "
_TRACE_HEADER = "traceparent: "


class AckSubject(NamedTuple):
    """What the reply subject of a delivery tells; `stored_at_unix_ns` is the broker's clock."""

    stream: str
    consumer: str
    delivered: int
    stream_sequence: int
    consumer_sequence: int
    stored_at_unix_ns: int
    pending: int


def parse_ack_subject(ack_subject: bytes) -> AckSubject:
    """Parses `$JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>` (v1) and
    `$JS.ACK.<domain>.<account>.<stream>. ... .<pending>[.<token>]` (v2); MalformedAnswer for anything else."""
    subject = ack_subject.decode("utf-8", "replace")
    parts = subject.split(".")
    count = len(parts)
    if parts[0] != "$JS" or count < 9 or parts[1] != "ACK":
        raise MalformedAnswer(f"not an ack subject: {subject}")
    first = 2 if count == 9 else 4
    if count == 10 or count > 12:
        raise MalformedAnswer(f"not an ack subject: {subject}")
    try:
        return AckSubject(
            parts[first],
            parts[first + 1],
            int(parts[first + 2]),
            int(parts[first + 3]),
            int(parts[first + 4]),
            int(parts[first + 5]),
            int(parts[first + 6]),
        )
    except ValueError as error:
        raise MalformedAnswer(f"not an ack subject: {subject}") from error


def ack_prefix(stream: str, consumer: str) -> bytes:
    """What the ack subjects of a consumer's deliveries begin with, in the form that servers send (v1)."""
    return f"{ACK_PREFIX}{stream}.{consumer}.".encode()


def delivery_numbers(ack_subject: bytes, after: int = 0) -> tuple[int, int, int, int]:
    """What is needed of each delivery: how often it was delivered, its sequences in the stream and of the consumer, and
    when it was stored. `after`: the length of its `ack_prefix`, where it has it; all else is read by
    `parse_ack_subject`."""
    parts = ack_subject[after:].split(b".") if after else []
    if len(parts) == 5:
        try:
            return int(parts[0]), int(parts[1]), int(parts[2]), int(parts[3])
        except ValueError:
            pass
    facts = parse_ack_subject(ack_subject)
    return facts.delivered, facts.stream_sequence, facts.consumer_sequence, facts.stored_at_unix_ns


def parse_status(header: bytes) -> tuple[int, str]:
    """Code and text of an inline status (`NATS/1.0 408 Request Timeout`); (0, "") for plain headers."""
    line = header.partition(b"\r\n")[0].decode("utf-8", "replace")
    parts = line.split(" ", 2)
    if len(parts) < 2 or parts[0] != "NATS/1.0" or not parts[1].isdigit():
        return 0, ""
    return int(parts[1]), parts[2] if len(parts) == 3 else ""


_OUR_HEADERS = len(b"NATS/1.0\r\nNats-Msg-Id: \r\ntraceparent: \r\n\r\n") + 32 + 55
_BEFORE_ID, _BEFORE_TRACE = "NATS/1.0\r\nNats-Msg-Id: ", "\r\ntraceparent: "
_ID_AT, _TRACE_AT = 23, 70


def delivery_headers(header: bytes) -> tuple[str, str]:
    """As `parse_delivery_headers`; a block that `publish_headers` made of an id of 32 characters and a traceparent is
    cut by place."""
    if len(header) == _OUR_HEADERS and header.isascii():
        text = header.decode()
        if text.startswith(_BEFORE_ID) and text.startswith(_BEFORE_TRACE, _ID_AT + 32) and text.count("\r\n") == 4:
            return text[_ID_AT : _ID_AT + 32], text[_TRACE_AT : _TRACE_AT + 55]
    return parse_delivery_headers(header)


def parse_delivery_headers(header: bytes) -> tuple[str, str]:
    """Message id and traceparent of a delivered message; empty where absent."""
    message_id = traceparent = ""
    for line in header.decode("utf-8", "replace").split("\r\n"):
        if line.startswith(_ID_HEADER):
            message_id = line[13:]
        elif line.startswith(_TRACE_HEADER):
            traceparent = line[13:]
    return message_id, traceparent


def publish_headers(message_id: str, traceparent: str, fence: Fence | None = None) -> bytes:
    """Header block of a publish; ValueError if a value holds control characters (it would end the line)."""
    if not (message_id.isprintable() and traceparent.isprintable()):
        raise ValueError("a message id or traceparent holds control characters")
    if fence is not None:
        lines = [f"{name}: {value}\r\n" for name, value in fence_headers(fence).items()]
        if traceparent:
            lines.append(f"traceparent: {traceparent}\r\n")
        return f"NATS/1.0\r\nNats-Msg-Id: {message_id}\r\n{''.join(lines)}\r\n".encode()
    if traceparent:
        return f"NATS/1.0\r\nNats-Msg-Id: {message_id}\r\ntraceparent: {traceparent}\r\n\r\n".encode()
    return f"NATS/1.0\r\nNats-Msg-Id: {message_id}\r\n\r\n".encode()


def fence_headers(fence: Fence) -> dict[str, str]:
    """What makes the broker refuse a publish unless the fence's subject ends with the expected message."""
    return {
        "Nats-Expected-Last-Subject-Sequence": str(fence.sequence),
        "Nats-Expected-Last-Subject-Sequence-Subject": fence.subject,
    }


def batch_headers(message: BatchMessage, batch: bytes, number: int, *, last: bool) -> bytes:
    """Header block of one message of an atomic batch (ADR-50), `number` from 1; ValueError as `publish_headers`."""
    if not (message.message_id.isprintable() and message.traceparent.isprintable()):
        raise ValueError("a message id or traceparent holds control characters")
    lines = [b"NATS/1.0\r\nNats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\n" % (batch, number)]
    if message.message_id:
        lines.append(f"Nats-Msg-Id: {message.message_id}\r\n".encode())
    if message.traceparent:
        lines.append(f"traceparent: {message.traceparent}\r\n".encode())
    if message.rollup:
        lines.append(b"Nats-Rollup: sub\r\n")
    if message.expected_last is not None:
        lines.append(b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % message.expected_last)
    if last:
        lines.append(b"Nats-Batch-Commit: 1\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def last_message_request(stream: str, subject: str) -> tuple[str, bytes]:
    """Subject and payload of the request for the newest message on a subject."""
    return f"$JS.API.STREAM.MSG.GET.{stream}", msgspec.json.encode({"last_by_subj": subject})


def consumer_request(stream: str, consumer: str) -> tuple[str, bytes]:
    """Subject and payload of the request for what a consumer is at."""
    return f"$JS.API.CONSUMER.INFO.{stream}.{consumer}", b""


def purge_request(stream: str, subject: str, sequence: int) -> tuple[str, bytes]:
    """Subject and payload of the request to remove what a subject holds up to a sequence."""
    return f"$JS.API.STREAM.PURGE.{stream}", msgspec.json.encode({"filter": subject, "seq": sequence + 1})


def pull_subject(stream: str, consumer: str) -> str:
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def pull_request(batch: int, *, expires_s: float, heartbeat_s: float) -> bytes:
    """A pull for up to `batch` messages; the server wants the heartbeat at most half of the expiry."""
    return b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (batch, int(expires_s * 1e9), int(heartbeat_s * 1e9))
