"""A request that got past its checks: what it starts, until when it may take, and what its caller learns of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.types import Scope

from headrace.model.route import Route
from headrace.model.trace_context import bounded_baggage
from services.gateway.answer_book import Reservation
from services.gateway.domain.refusals import RawHeaders
from services.gateway.domain.request_headers import RequestHeaders
from services.gateway.http_connection import ARRIVAL
from services.gateway.ingress import Placement
from services.gateway.prepared_route import PreparedRoute, PreparedRoutes
from services.gateway.received_body import ReceivedBody
from services.gateway.root_spans import Root, RootSpans
from services.gateway.socket_reader import NO_READ, SocketRead


@dataclass(slots=True)
class AdmittedRequest:
    """`deadline` is the loop's clock."""

    prepared: PreparedRoute
    routes: PreparedRoutes
    headers: RequestHeaders
    received: ReceivedBody
    execution: str
    stimulus: str
    deadline: float
    arrival: SocketRead
    root: Root
    baggage: str
    written_at_mono_ns: int = 0
    answer_key: str = ""
    reservation: Reservation | None = field(default=None)

    @property
    def route(self) -> Route:
        return self.prepared.route

    def placed(self, route: Route) -> Placement:
        """Where its stimulus goes by a version of its flow."""
        prepared = self.prepared if route is self.prepared.route else self.routes.of(route)
        message_id = prepared.message_id(self.stimulus)
        slot = prepared.slot(self.headers, self.received.body, message_id)
        return Placement(route.trigger, message_id, self.root.traceparent, slot)

    @property
    def context_headers(self) -> RawHeaders:
        """What the caller learns of its trace; baggage comes back as it went in."""
        found = [(b"traceparent", self.root.traceparent.encode())]
        if self.baggage:
            found.append((b"baggage", self.baggage.encode()))
        return found


def admit(
    scope: Scope,
    prepared: PreparedRoute,
    routes: PreparedRoutes,
    headers: RequestHeaders,
    received: ReceivedBody,
    roots: RootSpans,
    stimulus: str,
    execution: str,
    now: float,
) -> AdmittedRequest:
    """Begins its root span and its time; `now` by the loop's clock."""
    route = prepared.route
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
        prepared=prepared,
        routes=routes,
        headers=headers,
        received=received,
        execution=execution,
        stimulus=stimulus,
        deadline=now + prepared.limit_s,
        arrival=arrival,
        root=root,
        baggage=bounded_baggage(headers.baggage) if headers.baggage else "",
    )
