"""Bytes of Envelope, Reply and DeadLetter, with little Python per message.

An output that goes to several receivers differs only in its id and the time of writing: `encode_shared` makes
the common part once, `seal` appends those two fields (fields of a protobuf message may come in any order).
Malformed bytes raise `MalformedMessage`, never anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct

from google.protobuf.message import DecodeError, EncodeError

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.api.message.v1.message_pb2 import DeadLetter, Envelope, FailedAttempt, Origin, Passed, Reply, ReplyTo
from headrace.model.errors import InvalidInput

__all__ = [
    "Attachment",
    "DeadLetter",
    "Envelope",
    "FailedAttempt",
    "MalformedMessage",
    "Origin",
    "Passed",
    "Reply",
    "ReplyTo",
    "decode_dead_letter",
    "decode_envelope",
    "decode_reply",
    "encode_envelope",
    "encode_reply",
    "encode_shared",
    "is_common",
    "seal",
]

MAX_ID_BYTES = 127  # one length byte is enough
_ID_TAG = 0x0A  # field 1, length-delimited
_SENT_AT = Struct("<BQ")
_SENT_AT_TAG = 0x41  # field 8, fixed64


class MalformedMessage(InvalidInput):
    """Bytes that are no such message, or values that cannot be written as one."""

    default_reason = "MALFORMED_MESSAGE"


def encode_shared(
    *,
    execution_id: str,
    parent_id: str,
    body: bytes,
    content_type: str = "",
    headers: Mapping[str, str] | None = None,
    sender: str = "",
    reply_to: ReplyTo | None = None,
    incarnation: int = 0,
    input_stored_at_unix_ns: int = 0,
    in_doubt: bool = False,
    passthrough: Sequence[Passed] = (),
    baggage: str = "",
    origin: Origin.ValueType = Origin.ORIGIN_UNSPECIFIED,
    attachments: Sequence[Attachment] = (),
) -> bytes:
    """The part of an output that all its receivers share; `seal` completes it."""
    try:
        envelope = Envelope(
            execution_id=execution_id,
            parent_id=parent_id,
            body=body,
            content_type=content_type,
            headers=headers,
            sender=sender,
            reply_to=reply_to,
            incarnation=incarnation,
            input_stored_at_unix_ns=input_stored_at_unix_ns,
            in_doubt=in_doubt,
            passthrough=passthrough,
            baggage=baggage,
            origin=origin,
        )
        if attachments:
            envelope.attachments.extend(attachments)
        return envelope.SerializeToString()
    except (TypeError, ValueError, EncodeError) as error:
        raise MalformedMessage(f"the output cannot be written as an envelope: {error}") from error


def seal(shared: bytes, message_id: str, sent_at_unix_ns: int) -> bytes:
    """Envelope bytes for one receiver; the id is at most 127 bytes of ASCII, the time Unix nanoseconds."""
    raw = message_id.encode()
    if not 0 < len(raw) <= MAX_ID_BYTES:
        raise MalformedMessage(f"a message id has 1 to {MAX_ID_BYTES} bytes, not {len(raw)}")
    return b"%b%c%c%b%b" % (shared, _ID_TAG, len(raw), raw, _SENT_AT.pack(_SENT_AT_TAG, sent_at_unix_ns))


def encode_envelope(
    *,
    message_id: str,
    execution_id: str,
    sent_at_unix_ns: int,
    body: bytes,
    parent_id: str = "",
    content_type: str = "",
    headers: Mapping[str, str] | None = None,
    sender: str = "",
    reply_to: ReplyTo | None = None,
    incarnation: int = 0,
    origin: Origin.ValueType = Origin.ORIGIN_UNSPECIFIED,
) -> bytes:
    """Envelope bytes for a message with one receiver, for example a stimulus."""
    shared = encode_shared(
        execution_id=execution_id,
        parent_id=parent_id,
        body=body,
        content_type=content_type,
        headers=headers,
        sender=sender,
        reply_to=reply_to,
        incarnation=incarnation,
        origin=origin,
    )
    return seal(shared, message_id, sent_at_unix_ns)


def decode_envelope(raw: bytes) -> Envelope:
    """The envelope; MalformedMessage if it cannot be parsed or names no message or no execution."""
    try:
        envelope = Envelope.FromString(raw)
    except DecodeError as error:
        raise MalformedMessage(f"not an envelope ({len(raw)} bytes)") from error
    if not envelope.id or not envelope.execution_id:
        raise MalformedMessage(f"an envelope without {'execution_id' if envelope.id else 'id'} ({len(raw)} bytes)")
    return envelope


def is_common(envelope: Envelope, size: int, message_id: str, execution_id: str) -> bool:
    """Whether an envelope of `size` bytes has nothing but ids (two of them are known already), body, media type, sender
    and times. What each of these takes is taken off, and nothing may be left; a field that is longer than it
    could be, text that is not ASCII, and text of 128 characters and more count as out of the common, too."""
    parent, sender, content_type = envelope.parent_id, envelope.sender, envelope.content_type
    body_size = len(envelope.body)
    size -= len(message_id) + len(execution_id) + 4
    if parent:
        size -= len(parent) + 2
    if sender:
        size -= len(sender) + 2
    if content_type:
        size -= len(content_type) + 2
    if envelope.sent_at_unix_ns:
        size -= 9
    if envelope.input_stored_at_unix_ns:
        size -= 9
    if body_size:
        size -= body_size + (2 if body_size < 1 << 7 else 3 if body_size < 1 << 14 else 4)
    return size == 0


def encode_reply(
    *,
    execution_id: str,
    status: int,
    body: bytes,
    sent_at_unix_ns: int,
    content_type: str = "",
    headers: Mapping[str, str] | None = None,
    step: str = "",
    deployment: int = 0,
    version: int = 0,
    revision: str = "",
    input_stored_at_unix_ns: int = 0,
    traceparent: str = "",
    component: str = "",
    large_body: Attachment | None = None,
) -> bytes:
    """Reply bytes; `status` is an HTTP status, 100 to 599."""
    if not 100 <= status <= 599:
        raise MalformedMessage(f"status: {status} is not an HTTP status (100 to 599)")
    try:
        return Reply(
            execution_id=execution_id,
            status=status,
            headers=headers,
            body=body,
            content_type=content_type,
            step=step,
            deployment=deployment,
            version=version,
            sent_at_unix_ns=sent_at_unix_ns,
            revision=revision,
            input_stored_at_unix_ns=input_stored_at_unix_ns,
            traceparent=traceparent,
            component=component,
            large_body=large_body,
        ).SerializeToString()
    except (TypeError, ValueError, EncodeError) as error:
        raise MalformedMessage(f"the reply cannot be written: {error}") from error


def decode_reply(raw: bytes) -> Reply:
    """The reply; MalformedMessage if it cannot be parsed, names no execution or has no HTTP status."""
    try:
        reply = Reply.FromString(raw)
    except DecodeError as error:
        raise MalformedMessage(f"not a reply ({len(raw)} bytes)") from error
    if not reply.execution_id:
        raise MalformedMessage("a reply without execution_id")
    if not 100 <= reply.status <= 599:
        raise MalformedMessage(f"a reply with status {reply.status}")
    return reply


def decode_dead_letter(raw: bytes) -> DeadLetter:
    """The dead letter; MalformedMessage if it cannot be parsed or names no flow and step."""
    try:
        letter = DeadLetter.FromString(raw)
    except DecodeError as error:
        raise MalformedMessage(f"not a dead letter ({len(raw)} bytes)") from error
    if not letter.flow or not letter.step:
        raise MalformedMessage("a dead letter without flow and step")
    return letter
