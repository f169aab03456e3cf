"""Keeps a call's status small enough for its trailers: beyond 8 KiB gRPC drops the answer as a whole."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

MESSAGE_COST = 2_000
"""Of the message in trailers, where each byte that is not printable ASCII takes three."""
DETAIL_BYTES = 2_500
TEXT_BYTES = 400
"""Of each description, path and value in the details."""
MARK = " ..."


def fitting(status: status_pb2.Status) -> status_pb2.Status:
    """The status itself where it fits, else one with shortened texts and as many of its first violations as fit."""
    message = _clipped(status.message, MESSAGE_COST)
    if message == status.message and status.ByteSize() <= DETAIL_BYTES:
        return status
    small = status_pb2.Status(code=status.code, message=message)
    left = DETAIL_BYTES
    for detail in status.details:
        shortened = _shortened(detail, left)
        if shortened is not None:
            left -= shortened.ByteSize()
            small.details.append(shortened)
    return small


def _shortened(detail: any_pb2.Any, left: int) -> any_pb2.Any | None:
    """None for one that only says the message again, and does not fit."""
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    if detail.Is(info.DESCRIPTOR):
        detail.Unpack(info)
        for key, value in list(info.metadata.items()):
            info.metadata[key] = _clipped(value, TEXT_BYTES)
        return _packed(info)
    if detail.Is(request.DESCRIPTOR):
        detail.Unpack(request)
        kept = error_details_pb2.BadRequest()
        for violation in request.field_violations:
            item = error_details_pb2.BadRequest.FieldViolation(
                field=_clipped(violation.field, TEXT_BYTES), description=_clipped(violation.description, TEXT_BYTES)
            )
            if kept.ByteSize() + item.ByteSize() > left and kept.field_violations:
                break
            kept.field_violations.append(item)
        return _packed(kept)
    return detail if detail.ByteSize() <= left else None


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _clipped(text: str, limit: int) -> str:
    """The text, or its beginning and a mark where it takes more than `limit`."""
    taken = 0
    for index, character in enumerate(text):
        taken += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))
        if taken > limit:
            return text[:index] + MARK
    return text
