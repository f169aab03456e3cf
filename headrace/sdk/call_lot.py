"""Calls that came field by field, as `CallLot` has them, each made into what a call is read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import msgspec

from headrace.api.component.v1 import component_pb2

_NOTHING_KEPT = component_pb2.KeptSnapshot()


class LotCall(msgspec.Struct, eq=False):
    """A call of a lot; reads like `component/v1` Input."""

    call: int
    body: bytes
    content_type: str
    message_id: str
    execution_id: str
    traceparent: str
    timeout_ms: int
    attempt: int = 1
    wants_reply: bool = False
    baggage: str = ""
    headers: Mapping[str, str] = {}
    passthrough: Sequence[Any] = ()
    attachments: Sequence[Any] = ()
    snapshot: Any = _NOTHING_KEPT


def calls_of(request: component_pb2.ProcessRequest) -> Iterable[Any]:
    """Every call of a frame, in order."""
    if not request.HasField("lot"):
        return request.inputs
    lot = request.lot
    calls = map(
        LotCall,
        lot.calls,
        lot.bodies,
        repeat(lot.content_type),
        lot.message_ids,
        lot.execution_ids,
        lot.traceparents,
        repeat(lot.timeout_ms),
    )
    return chain(request.inputs, calls) if request.inputs else calls
