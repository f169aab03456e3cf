"""An answer frame in which calls that ended with one output at most stand field by field (`EndedCalls`)."""

from __future__ import annotations

from typing import Any

from headrace.api.component.v1 import component_pb2
from headrace.sdk.event_frame import EventFrame

LEAST_LOT = 3
"""Fewer are cheaper one by one."""

# call, body, when it began and ended
_Row = tuple[int, bytes | None, int, int]


class LotFrame(EventFrame):
    """For a sidecar that has sent a lot."""

    __slots__ = ("_content_type", "_idle", "_rows")

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[_Row] = []
        self._idle: list[_Row] = []
        self._content_type: str | None = None

    def done(self, call: int, body: bytes | None, content_type: str, started_ns: int, ended_ns: int) -> None:
        if body is None:
            self._idle.append((call, None, started_ns, ended_ns))
            self.size += 32
            return
        if type(body) is bytes and self._is_of_all(content_type):
            self._rows.append((call, body, started_ns, ended_ns))
            self.size += len(body) + 64
            return
        super().done(call, body, content_type, started_ns, ended_ns)

    def _is_of_all(self, content_type: Any) -> bool:
        """Whether the lot has this media type; the first one decides."""
        if content_type == self._content_type:
            return True
        if self._content_type is not None or type(content_type) is not str or not content_type.isascii():
            return False
        self._content_type = content_type
        return True

    def finished(self) -> component_pb2.ProcessResponse:
        # Late events stand behind what they are late for.
        may_be_events = not self.response.events
        for rows in (self._rows, self._idle):
            if len(rows) < LEAST_LOT and may_be_events:
                for call, body, started_ns, ended_ns in rows:
                    super().done(call, body, self._content_type or "", started_ns, ended_ns)
            elif rows:
                calls, bodies, began, ended = zip(*rows, strict=True)
                lot = self.response.ended.add()
                lot.calls.extend(calls)
                lot.started_at_mono_ns.extend(began)
                lot.ended_at_mono_ns.extend(ended)
                if rows is self._rows:
                    lot.bodies.extend(bodies)
                    lot.content_type = self._content_type or ""
        return self.response
