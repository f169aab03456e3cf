"""Messages for a component's test, as a sidecar would hand them over."""

from __future__ import annotations

import mimetypes
import uuid
from collections.abc import Mapping
from typing import Any, TypedDict

from headrace.api.component.v1 import component_pb2
from headrace.model.limits import MAX_BODY_BYTES
from headrace.sdk.body import JSON, encode_body
from headrace.sdk.testing.memory_transfers import MemoryTransfers


class MessageOptions(TypedDict, total=False):
    """What comes with a message; whatever is left out is as in the mesh's first attempt."""

    headers: Mapping[str, str] | None
    """Names become lower-case, as they come from the gateway."""
    content_type: str
    attempt: int
    wants_reply: bool
    """Whether a caller waits; true unless said otherwise."""
    message_id: str
    """Random unless given; so is `execution_id`."""
    execution_id: str
    timeout_s: float
    """0, the default: no limit."""
    snapshot: Any
    """What the step keeps already."""
    steps: Mapping[str, Any] | None
    """What earlier steps have emitted, by name."""
    attachments: Mapping[str, bytes] | None
    """By name."""


def input_of(call: int, value: Any, options: MessageOptions, transfers: MemoryTransfers) -> component_pb2.Input:
    """Bytes and text go in as they are, any other value as JSON; a body above 512 KiB by reference."""
    content_type = options.get("content_type", "")
    body, content_type = encode_body(value, content_type or (JSON if not isinstance(value, (bytes, str)) else ""))
    source = component_pb2.Input(
        call=call,
        body=body,
        content_type=content_type,
        headers={name.lower(): text for name, text in (options.get("headers") or {}).items()},
        message_id=options.get("message_id") or uuid.uuid4().hex,
        execution_id=options.get("execution_id") or uuid.uuid4().hex,
        attempt=options.get("attempt", 1),
        wants_reply=options.get("wants_reply", True),
        timeout_ms=round(options.get("timeout_s", 0.0) * 1000),
        passthrough=[_earlier(name, given) for name, given in (options.get("steps") or {}).items()],
    )
    for name, content in (options.get("attachments") or {}).items():
        kind = mimetypes.guess_type(name)[0] or ""
        source.attachments.append(transfers.put(content, name=name, content_type=kind))
    if len(body) > MAX_BODY_BYTES:
        source.attachments.append(transfers.put(body, content_type=content_type, is_body=True))
        source.body = b""
    if (snapshot := options.get("snapshot")) is not None:
        source.snapshot.json, source.snapshot.revision = encode_body(snapshot, JSON)[0].decode(), 1
    return source


def _earlier(step: str, value: Any) -> component_pb2.EarlierOutput:
    body, content_type = encode_body(value, "" if isinstance(value, (bytes, str)) else JSON)
    return component_pb2.EarlierOutput(step=step, body=body, content_type=content_type)
