"""The JSON that JetStream answers: to publishes (ADR-22), and to requests for messages, consumers and purges.

A module of its own, since it is not compiled (tools/compiled_modules.py): msgspec reads the annotations of its Structs.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TypeVar

import msgspec

from headrace.ports import Kept

MESSAGE_NOT_FOUND = 10037

D = TypeVar("D")


class MalformedAnswer(ValueError):
    """The broker (or somebody else on the subject) sent what is none of JetStream's forms."""


class ApiError(msgspec.Struct, frozen=True):
    """`err_code` is JetStream's own, `code` resembles HTTP's."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """Answer to a publish; `error` is set when nothing was stored."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


_decode_pub_ack = msgspec.json.Decoder(PubAck).decode


def parse_pub_ack(payload: bytes) -> PubAck:
    """Parses the JSON answer to a publish; MalformedAnswer if it is none."""
    try:
        answer = _decode_pub_ack(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedAnswer(f"not a publish acknowledgement: {payload[:120]!r}") from error
    if answer.seq == 0 and answer.error is None:
        raise MalformedAnswer(f"not a publish acknowledgement: {payload[:120]!r}")
    return answer


class _KeptMessage(msgspec.Struct, frozen=True):
    seq: int = 0
    data: str = ""


class _MessageAnswer(msgspec.Struct, frozen=True):
    message: _KeptMessage | None = None
    error: ApiError | None = None


def parse_message_answer(payload: bytes) -> Kept | None:
    """The message, None where there is none; MalformedAnswer for an error or what is no answer."""
    try:
        answer = msgspec.json.decode(payload, type=_MessageAnswer)
        if answer.message is not None:
            return Kept(answer.message.seq, b64decode(answer.message.data))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise MalformedAnswer(f"not a message: {payload[:120]!r}") from error
    if answer.error is not None and answer.error.err_code == MESSAGE_NOT_FOUND:
        return None
    raise MalformedAnswer(f"{answer.error.description} ({answer.error.err_code})" if answer.error else "no message")


class _Floor(msgspec.Struct, frozen=True):
    consumer_seq: int = 0
    stream_seq: int = 0


class _ConsumerAnswer(msgspec.Struct, frozen=True):
    ack_floor: _Floor | None = None
    error: ApiError | None = None


class _PurgeAnswer(msgspec.Struct, frozen=True):
    success: bool = False
    purged: int = 0
    error: ApiError | None = None


def parse_ack_floor(payload: bytes) -> tuple[int, int]:
    """Number of the delivery and stream sequence up to which all is acknowledged; MalformedAnswer for an error."""
    answer = _decoded(payload, _ConsumerAnswer)
    if answer.ack_floor is None:
        raise MalformedAnswer(f"{answer.error.description} ({answer.error.err_code})" if answer.error else "no floor")
    return answer.ack_floor.consumer_seq, answer.ack_floor.stream_seq


def parse_purged(payload: bytes) -> int:
    """How many messages were removed; MalformedAnswer for an error."""
    answer = _decoded(payload, _PurgeAnswer)
    if not answer.success:
        raise MalformedAnswer(f"{answer.error.description} ({answer.error.err_code})" if answer.error else "no success")
    return answer.purged


def _decoded(payload: bytes, kind: type[D]) -> D:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedAnswer(f"not an answer: {payload[:120]!r}") from error
