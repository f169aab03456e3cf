"""Lots of sealed messages on the way over one plain edge, without an object for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.ports import PublishRefused, PublishUnknown, Row, Stored
from services.sidecar.outbox import Outbox, Outgoing

_STORED = Stored(0, False)


class RowEdge:
    """`on_stored` gets what rows are about once the broker has them. A row that the broker does not simply take goes on
    as the message that `as_outgoing` makes of it: the outbox gets it with the answer, or to be sent."""

    def __init__(
        self,
        outbox: Outbox,
        subject: str,
        on_stored: Callable[[list[Any]], None],
        as_outgoing: Callable[[Any], Outgoing],
    ) -> None:
        self._outbox, self._subject = outbox, subject
        self._edge = outbox.edge(subject)
        self._on_stored, self._as_outgoing = on_stored, as_outgoing
        self._tell, self._tell_stored = self._answered, self._all_stored

    @property
    def is_open(self) -> bool:
        """Nothing waits for the edge, and all that comes may go at once."""
        return not (self._edge.waiting or self._edge.window.recovering)

    def put(self, lot: list[Row]) -> None:
        """Sends them now."""
        outbox = self._outbox
        taken = outbox.lane.publish_rows(self._subject, lot, self._tell, self._tell_stored)
        outbox.unsettled += taken
        self._edge.window.in_flight += taken
        for row in lot[taken:]:
            outbox.put(self._as_outgoing(row[3]))

    def _answered(self, about: Any, answer: Stored | PublishRefused | PublishUnknown) -> None:
        if type(answer) is Stored and not answer.duplicate:
            self._all_stored([about])
        else:
            self._outbox.answered(self._as_outgoing(about), answer)

    def _all_stored(self, lot: list[Any]) -> None:
        edge, outbox = self._edge, self._outbox
        if edge.waiting or edge.troubled or edge.window.recovering:
            for about in lot:
                outbox.answered(self._as_outgoing(about), _STORED)
            return
        edge.window.in_flight -= len(lot)
        self._on_stored(lot)
        outbox.some_settled(len(lot))
