"""The endpoint `/hook/<flow>[/suffix]`: one HTTP request in, one stimulus out, one answer back.

A raw ASGI function, since it is on the path of every request. Route, headers, room and body are checked here, each
with its limit, and nothing is kept of a request that fails; what is admitted goes through `stimulus_exchange`.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import cached_property

from starlette.types import Receive, Scope, Send

from headrace.edge.structured_log import get_logger
from headrace.model import message_ids
from headrace.model.flow_rates import FlowRates
from headrace.model.route import Route
from services.gateway.admitted_request import admit
from services.gateway.answer_counts import AnswerCounts
from services.gateway.domain import refusals
from services.gateway.domain.admission import Admission
from services.gateway.domain.hook_path import parse_hook_path
from services.gateway.domain.refusals import Refusal
from services.gateway.domain.request_headers import RequestHeaders, read_headers
from services.gateway.http_connection import CONNECTION
from services.gateway.ingress import STOPPED_STATES
from services.gateway.large_replies import CutOff
from services.gateway.prepared_route import PreparedRoutes
from services.gateway.received_body import BodyReceiver
from services.gateway.request_body import BodyReader, CallerGone
from services.gateway.responses import send_refusal
from services.gateway.root_spans import RootSpans
from services.gateway.routes import RouteTable
from services.gateway.stimulus_exchange import StimulusExchange

log = get_logger(__name__)


class Hook:
    """The ASGI application behind `/hook`. After `finish` every new request gets 503."""

    def __init__(
        self,
        *,
        routes: RouteTable,
        admission: Admission,
        counts: AnswerCounts,
        roots: RootSpans,
        bodies: BodyReceiver,
        exchange: StimulusExchange,
        body_limit_s: float,
    ) -> None:
        self._routes = routes
        self._prepared = PreparedRoutes()
        self._admission = admission
        self._rates = FlowRates()
        self._counts = counts
        self._roots = roots
        self._bodies = bodies
        self._exchange = exchange
        self._body_limit_s = body_limit_s
        self.stopping = False
        self._idle = asyncio.Event()

    @property
    def requests_in_work(self) -> int:
        return self._admission.requests

    async def finish(self, limit_s: float) -> None:
        """Refuses new requests from now on; returns when none is in work, or past the limit."""
        self.stopping = True
        if not self._admission.requests:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._idle.wait()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()  # asked once: it costs a system call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = BodyReader(receive, self._admission, self._body_limit_s)
        entered = False
        try:
            if self.stopping:
                raise refusals.gateway_stopping()
            route, headers = self._check(scope)
            wait_s = self._rates.enter(route.flow, route.rate_limit, self._loop.time())
            if wait_s:
                raise refusals.rate_limited(route.flow, route.rate_limit, wait_s)
            self._admission.enter(route.flow)
            entered = True
            reader.flow = route.flow
            connection = scope.get(CONNECTION)
            arrived = connection is not None and connection.body_arrived
            prepared = self._prepared.of(route)
            stimulus = prepared.stimulus(headers.idempotency_key)
            execution = message_ids.execution_id(stimulus)
            received = await self._bodies.receive(reader, headers, route, execution, arrived=arrived)
            work = admit(
                scope,
                prepared,
                self._prepared,
                headers,
                received,
                self._roots,
                stimulus,
                execution,
                self._loop.time(),
            )
            await self._exchange.run(work, scope, send)
            if connection is not None:
                await connection.wait_until_read(self._body_limit_s)
        except Refusal as refusal:
            await self._refuse(refusal, scope, send, reader)
        except CallerGone:
            return
        except CutOff:
            scope[CONNECTION].transport.abort()
        except Exception:
            log.exception("request failed")
            await self._refuse(Refusal(500, "INTERNAL", "the gateway failed; see its log"), scope, send, reader)
        finally:
            if entered:
                self._admission.leave(reader.flow, reader.taken)
                if self.stopping and not self._admission.requests:
                    self._idle.set()

    async def _refuse(self, refusal: Refusal, scope: Scope, send: Send, reader: BodyReader) -> None:
        self._counts.refused(self._known_flow(scope), refusal)
        await send_refusal(send, refusal, reader)

    def _known_flow(self, scope: Scope) -> str:
        """The flow that a request is for; empty where there is none of that name."""
        try:
            flow, _ = parse_hook_path(scope["raw_path"].decode("ascii", "replace"))
        except Refusal:
            return ""
        return flow if self._routes.find(flow) is not None else ""

    def _check(self, scope: Scope) -> tuple[Route, RequestHeaders]:
        """What can be refused by the head alone."""
        if scope["method"] not in ("POST", "GET"):
            raise refusals.method_not_allowed(scope["method"])
        raw_path = scope["raw_path"].decode("ascii", "replace")
        flow, suffix = parse_hook_path(raw_path)
        route = self._routes.find(flow)
        if route is None or not route.trigger:
            raise refusals.unknown_flow(flow)
        if route.state in STOPPED_STATES:
            raise refusals.flow_stopped(flow, route.state)
        if route.refuses:
            raise refusals.flow_suspended(flow)
        headers = read_headers(scope["headers"])
        headers.passed["headrace-method"] = scope["method"]
        headers.passed["headrace-path"] = suffix
        headers.passed["headrace-query"] = scope["query_string"].decode("latin-1")
        return route, headers
