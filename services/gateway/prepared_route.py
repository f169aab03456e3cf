"""What follows from a route for all requests of its flow, made once for each version of it."""

from __future__ import annotations

import os

from headrace.model import message_ids, subjects
from headrace.model.message_ids import StimulusIds
from headrace.model.route import Route
from headrace.model.slots import keying
from services.gateway.domain.request_headers import RequestHeaders

ACCEPT_LIMIT_S = 10.0
"""How long a stimulus of a flow that does not reply is offered to the broker."""
DRAWN_BYTES = 4_096
DRAWN_HEX = 32


class PreparedRoute:
    """Of one version of a route."""

    __slots__ = ("_drawn", "_keying", "_webhooks", "limit_s", "route")

    def __init__(self, route: Route, drawn: DrawnValues) -> None:
        self.route = route
        self.limit_s = route.reply_timeout_s if route.reply_timeout_s > 0 else ACCEPT_LIMIT_S
        self._drawn = drawn
        self._webhooks = StimulusIds(route.flow, "webhook", route.trigger)
        self._keying = keying(route.key, route.slots) if route.key or route.slots != 1 else None

    def stimulus(self, idempotency_key: str) -> str:
        """The id of what a request starts: the same one for each repeat under one key."""
        if idempotency_key:
            return message_ids.stimulus_id(self.route.flow, "key", idempotency_key)
        return self._webhooks.stimulus(self._drawn.next())

    def message_id(self, stimulus: str) -> str:
        """Of the message that carries it to the flow's entry."""
        return self._webhooks.first_message(stimulus)

    def slot(self, headers: RequestHeaders, body: bytes, message_id: str) -> int:
        """Of the entry."""
        if self._keying is None:
            return subjects.SINGLE_SLOT
        return self._keying.place(headers.passed, body, message_id).slot


class PreparedRoutes:
    """Of all flows: one each, of the newest version asked for."""

    def __init__(self) -> None:
        self._drawn = DrawnValues()
        self._of: dict[str, PreparedRoute] = {}

    def of(self, route: Route) -> PreparedRoute:
        """The same one as long as the route is the same object."""
        known = self._of.get(route.flow)
        if known is None or known.route is not route:
            known = self._of[route.flow] = PreparedRoute(route, self._drawn)
        return known


class DrawnValues:
    """Random values, 128 bits as 32 hex digits, drawn from the system many at a time: a draw is a system call."""

    def __init__(self) -> None:
        self._hex = ""
        self._at = 0

    def next(self) -> str:
        if self._at >= len(self._hex):
            self._hex, self._at = os.urandom(DRAWN_BYTES).hex(), 0
        self._at += DRAWN_HEX
        return self._hex[self._at - DRAWN_HEX : self._at]
