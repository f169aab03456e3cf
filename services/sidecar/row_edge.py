"""Lots of sealed messages on the way over one plain edge, without an object for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.ports import LaneFull, PublishRefused, PublishUnknown, Stored
from services.sidecar.outbox import Outbox, Outgoing

Row = tuple[bytes, str, str, Any]
"""Payload, message id, traceparent, and what it is about."""


class RowEdge:
    """`on_stored` gets what a row is about once the broker has it. A row that the broker does not simply take goes on
    as the message that `as_outgoing` makes of it: the outbox gets it with the answer, or to be sent."""

    def __init__(
        self,
        outbox: Outbox,
        subject: str,
        on_stored: Callable[[Any], None],
        as_outgoing: Callable[[Any], Outgoing],
    ) -> None:
        self._outbox, self._subject = outbox, subject
        self._edge = outbox.edge(subject)
        self._on_stored, self._as_outgoing = on_stored, as_outgoing

    @property
    def is_open(self) -> bool:
        """Nothing waits for the edge, and all that comes may go at once."""
        return not (self._edge.waiting or self._edge.window.recovering)

    def put(self, lot: list[Row]) -> None:
        """Sends them now."""
        outbox, edge, subject = self._outbox, self._edge, self._subject
        publish, answered = outbox.lane.publish_told, self._answered
        for payload, message_id, traceparent, about in lot:
            try:
                publish(subject, payload, answered, about, message_id=message_id, traceparent=traceparent)
            except (LaneFull, ValueError):
                outbox.put(self._as_outgoing(about))
                continue
            outbox.unsettled += 1
            edge.window.in_flight += 1

    def _answered(self, about: Any, answer: Stored | PublishRefused | PublishUnknown) -> None:
        edge, outbox = self._edge, self._outbox
        window = edge.window
        if type(answer) is not Stored or answer.duplicate or edge.waiting or edge.troubled or window.recovering:
            outbox.answered(self._as_outgoing(about), answer)
            return
        window.in_flight -= 1
        self._on_stored(about)
        outbox.one_settled()
