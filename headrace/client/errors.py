"""What the client raises: a class for each family of reasons, one for each gRPC status, all below `HeadraceError`.

    try:
        client.publish("orders")
    except WrongState as error:
        print(error.reason, error.message, error.next_step)

Each has `message`, `reason` (UPPER_CASE, stable: what programs look at), `next_step`, and where one field of the
request is wrong `field` and `value`; `violations` lists all wrong fields, `metadata` what else the mesh says.

The way back of `headrace.edge.error_interceptor`: the class follows the status code, `reason`, `next_step` and
field violations follow the details. What carries no details of ours (nobody listens, a deadline passed on this
side) gets a reason and a next step here.
"""

from __future__ import annotations

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from headrace.model.errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    Damaged,
    DeadlineExceeded,
    Exhausted,
    FieldViolation,
    HeadraceError,
    InvalidInput,
    NotFound,
    OutOfRange,
    Unavailable,
    WrongState,
)

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "Conflict",
    "Damaged",
    "DeadlineExceeded",
    "Exhausted",
    "FieldViolation",
    "HeadraceError",
    "InvalidInput",
    "NotFound",
    "OutOfRange",
    "Unavailable",
    "WrongState",
    "error_of_call",
    "error_of_status",
]

MESH_UNREACHABLE = "MESH_UNREACHABLE"
_STATUS_DETAILS_KEY = "grpc-status-details-bin"
_CLASSES: dict[str, type[HeadraceError]] = {
    kind.code: kind
    for kind in (
        InvalidInput,
        NotFound,
        AlreadyExists,
        WrongState,
        Conflict,
        Exhausted,
        DeadlineExceeded,
        Unavailable,
        Damaged,
        Cancelled,
        OutOfRange,
    )
}


def error_of_status(status: status_pb2.Status) -> HeadraceError:
    """The error that a google.rpc.Status tells of."""
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    for detail in status.details:
        _unpack(detail, info)
        _unpack(detail, request)
    metadata = dict(info.metadata)
    next_step = metadata.pop("next_step", "")
    message = status.message
    if next_step:  # the text of a status ends in the next step, for those who see only the text
        message = message.removesuffix(f". {next_step}")
    name = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    kind = _CLASSES.get(name, HeadraceError)
    return kind(
        message or name.lower().replace("_", " "),
        reason=info.reason or name,
        next_step=next_step,
        violations=[FieldViolation(item.field, item.description) for item in request.field_violations],
        metadata=metadata,
    )


def error_of_call(error: grpc.aio.AioRpcError, address: str) -> HeadraceError:
    """The error that a failed call tells of; `address` is the mesh's, for the message."""
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_DETAILS_KEY and isinstance(value, bytes):
            return error_of_status(status_pb2.Status.FromString(value))
    code = error.code()
    if code == grpc.StatusCode.UNAVAILABLE:
        return Unavailable(
            f"no mesh answers at {address}",
            reason=MESH_UNREACHABLE,
            next_step="Start one with `headrace up`, or name it with --address HOST:PORT",
            metadata={"cause": error.details() or ""},
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(
            f"{address} did not answer in time", next_step="See what it does with `headrace status`"
        )
    kind = _CLASSES.get(code.name, HeadraceError)
    return kind(error.details() or code.name.lower(), reason=code.name)


def _unpack(detail: any_pb2.Any, into: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> None:
    if detail.Is(into.DESCRIPTOR):
        detail.Unpack(into)
