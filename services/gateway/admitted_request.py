"""A request that got past its checks: what it starts, until when it may take, and what its caller learns of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from starlette.types import Scope

from headrace.model import message_ids
from headrace.model.route import Route
from headrace.model.slots import keying
from headrace.model.trace_context import bounded_baggage
from services.gateway.answer_book import Reservation
from services.gateway.domain.refusals import RawHeaders
from services.gateway.domain.request_headers import RequestHeaders
from services.gateway.http_server import ARRIVAL
from services.gateway.ingress import Placement
from services.gateway.received_body import ReceivedBody
from services.gateway.root_spans import Root, RootSpans
from services.gateway.socket_reader import NO_READ, SocketRead

ACCEPT_LIMIT_S = 10.0
"""How long a stimulus of a flow that does not reply is offered to the broker."""


@dataclass(slots=True)
class AdmittedRequest:
    """`deadline` is the loop's clock; `limit_s` what it was made of."""

    route: Route
    headers: RequestHeaders
    received: ReceivedBody
    execution: str
    stimulus: str
    deadline: float
    limit_s: float
    arrival: SocketRead
    root: Root
    baggage: str
    written_at_mono_ns: int = 0
    answer_key: str = ""
    reservation: Reservation | None = field(default=None)

    def placed(self, route: Route) -> Placement:
        """Where its stimulus goes by a version of its flow."""
        message_id = message_ids.first_message_id(self.stimulus, route.trigger)
        slot = keying(route.key, route.slots).place(self.headers.passed, self.received.body, message_id).slot
        return Placement(route.trigger, message_id, self.root.traceparent, slot)

    @property
    def context_headers(self) -> RawHeaders:
        """What the caller learns of its trace; baggage comes back as it went in."""
        found = [(b"traceparent", self.root.traceparent.encode())]
        if self.baggage:
            found.append((b"baggage", self.baggage.encode()))
        return found


def stimulus_of(route: Route, headers: RequestHeaders) -> str:
    """The id of what a request starts: the same one for each repeat under one key."""
    if headers.idempotency_key:
        return message_ids.stimulus_id(route.flow, "key", headers.idempotency_key)
    return message_ids.stimulus_id(route.flow, "webhook", secrets.token_hex(16))


def admit(
    scope: Scope,
    route: Route,
    headers: RequestHeaders,
    received: ReceivedBody,
    roots: RootSpans,
    stimulus: str,
    now: float,
) -> AdmittedRequest:
    """Begins its root span and its time; `now` by the loop's clock."""
    limit_s = route.reply_timeout_s if route.reply_timeout_s > 0 else ACCEPT_LIMIT_S
    execution = message_ids.execution_id(stimulus)
    arrival = scope.get(ARRIVAL, NO_READ)
    root = roots.begin(
        name=f"{scope['method']} /hook/{route.flow}",
        flow=route.flow,
        given=headers.traceparent,
        execution=execution,
        stimulus=stimulus,
        trigger=route.trigger,
        arrival=arrival,
        keyed=bool(headers.idempotency_key),
    )
    return AdmittedRequest(
        route=route,
        headers=headers,
        received=received,
        execution=execution,
        stimulus=stimulus,
        deadline=now + limit_s,
        limit_s=limit_s,
        arrival=arrival,
        root=root,
        baggage=bounded_baggage(headers.baggage) if headers.baggage else "",
    )
