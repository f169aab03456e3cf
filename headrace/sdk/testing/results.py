"""What came of a call: read from the same events that a sidecar would get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace.model.step_snapshot import Save
from headrace.sdk.event_frame import EventFrame
from headrace.sdk.log import LogLine


@dataclass(frozen=True, slots=True)
class Output:
    """One message emitted."""

    body: bytes
    content_type: str
    headers: dict[str, str]
    key: str = ""
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    """What goes along, by name."""
    references: tuple[Any, ...] = ()
    """`attachment_pb2.Attachment` of what goes along, and of a body above 512 KiB."""

    @property
    def sent_body(self) -> bytes:
        """As it stands in the message: empty where the body goes by reference."""
        return b"" if any(item.is_body for item in self.references) else self.body

    @property
    def value(self) -> Any:
        """The body decoded: JSON, text, or the bytes themselves, by its content type."""
        return _decoded(self.body, self.content_type)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the waiting caller."""

    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]

    @property
    def value(self) -> Any:
        return _decoded(self.body, self.content_type)


@dataclass(frozen=True, slots=True)
class Failure:
    """How the call failed; `status` 0 means that the component chose none."""

    code: str
    message: str
    status: int
    retryable: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """One save of the step's snapshot. `if_revision`: only over this revision; None in any case."""

    value: Any
    merge: bool
    if_revision: int | None


@dataclass(frozen=True, slots=True)
class ReboundAsked:
    """The component asks for this input again later."""

    reason: str
    delay_s: float


class CallResult:
    """One call. `outputs` also shows what the component emits after the function returned (late emits)."""

    def __init__(self, frame: EventFrame, logs: list[LogLine], stored: Mapping[str, bytes]) -> None:
        self._stored = stored
        self._events = frame.response.events
        self.logs = logs

    @property
    def outputs(self) -> list[Output]:
        found = (event.data for event in self._events if event.HasField("data"))
        return [output_of(emit, self._stored) for emit in found]

    @property
    def reply(self) -> Reply | None:
        """The first reply: the caller gets no other."""
        for event in self._events:
            if event.HasField("reply"):
                reply = event.reply
                body = self._stored[reply.large_body.id] if reply.HasField("large_body") else reply.body
                return Reply(reply.status or 200, body, reply.content_type, dict(reply.headers))
        return None

    @property
    def error(self) -> Failure | None:
        for event in self._events:
            if event.HasField("error"):
                error = event.error
                return Failure(error.code, error.message, error.status, error.retryable)
        return None

    @property
    def rebound(self) -> ReboundAsked | None:
        for event in self._events:
            if event.HasField("rebound"):
                return ReboundAsked(event.rebound.reason, event.rebound.delay_ms / 1000)
        return None

    @property
    def raw_saves(self) -> list[Save]:
        """As the mesh gets them."""
        found = (event.snapshot for event in self._events if event.HasField("snapshot"))
        return [Save(s.json.encode(), s.merge, s.if_revision if s.HasField("if_revision") else None) for s in found]

    @property
    def saves(self) -> list[Saved]:
        """What the call saved, in order."""
        found = (event.snapshot for event in self._events if event.HasField("snapshot"))
        return [
            Saved(msgspec.json.decode(s.json), s.merge, s.if_revision if s.HasField("if_revision") else None)
            for s in found
        ]

    @property
    def value(self) -> Any:
        """The value of the one output; AssertionError says what came instead."""
        outputs = self.outputs
        assert self.error is None, f"the call failed: {self.error}"
        assert len(outputs) == 1, f"the call made {len(outputs)} outputs"
        return outputs[0].value

    def __repr__(self) -> str:
        return f"CallResult(outputs={self.outputs}, reply={self.reply}, error={self.error}, rebound={self.rebound})"


def output_of(emit: Any, stored: Mapping[str, bytes]) -> Output:
    """An Emit of the contract, with the bytes of what it names."""
    references = tuple(emit.attachments)
    body = next((stored[item.id] for item in references if item.is_body), emit.body)
    files = {item.name: stored[item.id] for item in references if not item.is_body}
    return Output(body, emit.content_type, dict(emit.headers), emit.key, files, references)


def _decoded(body: bytes, content_type: str) -> Any:
    kind = content_type.partition(";")[0].strip()
    if kind == "application/json" or kind.endswith("+json"):
        return msgspec.json.decode(body)
    if kind.startswith("text/"):
        return body.decode()
    return body
