"""The endpoint `/hook/<flow>[/suffix]`: one HTTP request in, one stimulus out, one answer back.

A raw ASGI function, since it is on the path of every request. Order of things, each with its limit:

1. route, headers, room, body (nothing is kept of a request that fails here);
2. with an Idempotency-Key: the record (`answer_book`), which may already hold the answer;
3. the stimulus is published to the ingress until the broker has answered (`ingress`);
4. 202, or the wait for the reply (`reply_desk`), whose end by the deadline leaves the execution running.

A gateway that dies between 2 and 3 leaves a reservation that another request takes over (headrace.model.answer);
one that dies after 3 leaves an execution that runs, and whose answer the key finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, field
from functools import cached_property

from starlette.types import Receive, Scope, Send

from headrace.edge.structured_log import get_logger
from headrace.model import message_ids, subjects
from headrace.model.flow_rates import FlowRates
from headrace.model.route import Route
from headrace.model.slots import keying
from headrace.model.trace_context import bounded_baggage
from headrace.wire.envelope import Reply, ReplyTo, encode_shared
from services.gateway.answer_book import AnswerBook, FirstAnswer, Reservation
from services.gateway.answer_counts import ACCEPTED, REPEATED, REPLIED, AnswerCounts
from services.gateway.domain import refusals
from services.gateway.domain.admission import Admission
from services.gateway.domain.hook_path import parse_hook_path
from services.gateway.domain.refusals import RawHeaders, Refusal
from services.gateway.domain.request_headers import RequestHeaders, read_headers
from services.gateway.hop_log import HopLog
from services.gateway.http_server import ARRIVAL, CONNECTION
from services.gateway.ingress import STOPPED_STATES, Ingress, Placement, Stimulus
from services.gateway.large_replies import CutOff, LargeReplies
from services.gateway.received_body import BodyReceiver, ReceivedBody
from services.gateway.reply_desk import NoReply, ReceivedReply, ReplyDesk, Waiter
from services.gateway.request_body import BodyReader, CallerGone
from services.gateway.responses import send_accepted, send_refusal, send_reply
from services.gateway.root_spans import Root, RootSpans
from services.gateway.routes import RouteTable
from services.gateway.socket_reader import NO_READ, SocketRead

log = get_logger(__name__)

ACCEPT_LIMIT_S = 10.0
"""How long a stimulus of a flow that does not reply is offered to the broker."""
ANSWER_LOOK_S = 0.1


@dataclass(slots=True)
class _Work:
    """One request that got past its checks. `deadline` is the loop's clock; `limit_s` what it was made of."""

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


class Hook:
    """The ASGI application behind `/hook`. After `finish` every new request gets 503."""

    def __init__(
        self,
        *,
        workspace: str,
        gateway: str,
        routes: RouteTable,
        ingress: Ingress,
        desk: ReplyDesk,
        answers: AnswerBook,
        admission: Admission,
        hops: HopLog,
        counts: AnswerCounts,
        roots: RootSpans,
        bodies: BodyReceiver,
        large: LargeReplies,
        body_limit_s: float,
    ) -> None:
        self._roots = roots
        self._bodies, self._large = bodies, large
        self._routes = routes
        self._ingress = ingress
        self._desk = desk
        self._answers = answers
        self._admission = admission
        self._rates = FlowRates()
        self._hops = hops
        self._counts = counts
        self._body_limit_s = body_limit_s
        self._reply_subject = subjects.reply_subject(workspace, gateway)
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
            stimulus = _stimulus(route, headers)
            execution = message_ids.execution_id(stimulus)
            received = await self._bodies.receive(reader, headers, route, execution, arrived=arrived)
            await self._traced(
                _begin(scope, route, headers, received, self._roots, stimulus, self._loop.time()), scope, send
            )
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

    async def _traced(self, work: _Work, scope: Scope, send: Send) -> None:
        try:
            await self._handle(work, scope, send)
        except Refusal as refusal:
            refusal.traceparent = work.root.traceparent
            self._roots.refused(work.root, refusal, work.written_at_mono_ns)
            raise
        except CallerGone:
            self._roots.gone(work.root, work.written_at_mono_ns)
            raise

    async def _handle(self, work: _Work, scope: Scope, send: Send) -> None:
        if work.headers.idempotency_key:
            first = await self._reserve(work)
            if first is not None:
                await self._send_first(work, first, send)
                return
        if work.route.reply_timeout_s <= 0:
            duplicate = await self._publish(work, None)
            await send_accepted(send, work.execution, _context_headers(work))
            self._counts.answered(work.route.flow, 202, ACCEPTED)
            self._hops.accepted(work.route.flow, work.arrival, work.written_at_mono_ns)
            self._roots.accepted(work.root, work.written_at_mono_ns, duplicate=duplicate)
            return
        waiter = self._desk.expect(work.execution, work.deadline)
        connection = scope.get(CONNECTION)
        if connection is not None:
            connection.on_gone = waiter.caller_gone
        try:
            outcome = await self._publish_and_wait(work, waiter)
        finally:
            if connection is not None:
                connection.on_gone = None
            self._desk.forget(waiter)
        await self._answer(work, outcome, send)

    async def _answer(self, work: _Work, outcome: ReceivedReply | FirstAnswer | NoReply, send: Send) -> None:
        match outcome:
            case ReceivedReply():
                await self._send_reply(work, outcome.reply, send)
                self._counts.answered(work.route.flow, outcome.reply.status, REPLIED)
                self._hops.replied(
                    work.route.flow,
                    outcome.reply,
                    arrival=work.arrival,
                    written_at_mono_ns=work.written_at_mono_ns,
                    read_at_mono_ns=outcome.read_at_mono_ns,
                    read_at_unix_ns=outcome.read_at_unix_ns,
                    trace_id=self._roots.recorded_trace(work.root),
                )
                self._roots.replied(work.root, outcome, work.written_at_mono_ns)
            case FirstAnswer():
                await self._send_first(work, outcome, send)
            case NoReply.DEADLINE:
                raise refusals.no_reply(work.execution, work.limit_s)
            case NoReply.STOPPING:
                raise refusals.gateway_stopping(work.execution)
            case NoReply.CALLER_GONE:
                raise CallerGone

    async def _send_reply(self, work: _Work, reply: Reply, send: Send, *, replayed: bool = False) -> None:
        context = _context_headers(work)
        if not reply.HasField("large_body"):
            await send_reply(send, reply, context, replayed=replayed)
            return
        async with contextlib.aclosing(self._large.chunks(work.route.flow, reply)) as chunks:
            await send_reply(send, reply, context, replayed=replayed, large=chunks)

    async def _send_first(self, work: _Work, first: FirstAnswer, send: Send) -> None:
        if first.reply is None:
            await send_accepted(send, first.execution, _context_headers(work), replayed=True)
        else:
            await self._send_reply(work, first.reply, send, replayed=True)
        self._roots.replayed(work.root, first.reply)
        self._counts.answered(work.route.flow, 202 if first.reply is None else first.reply.status, REPEATED)

    async def _publish_and_wait(self, work: _Work, waiter: Waiter) -> ReceivedReply | FirstAnswer | NoReply:
        elsewhere = await self._publish(work, waiter)
        if not work.answer_key:
            return await waiter.outcome
        # The reply may go to another gateway, or get lost on its way; the record has it then.
        while elsewhere and not waiter.outcome.done():
            found = await self._answers.look(work.answer_key, work.execution)
            if found is not None:
                return found
            await asyncio.wait([waiter.outcome], timeout=ANSWER_LOOK_S)
        outcome = await waiter.outcome
        if outcome is NoReply.DEADLINE:
            return await self._answers.look(work.answer_key, work.execution) or outcome
        return outcome

    async def _reserve(self, work: _Work) -> FirstAnswer | None:
        key = message_ids.answer_key(work.route.flow, work.headers.idempotency_key)
        found = await self._answers.reserve(
            key, body_digest=work.received.digest, execution=work.execution, deadline=work.deadline
        )
        if isinstance(found, FirstAnswer):
            return found
        work.answer_key = key
        work.reservation = found
        return None

    async def _publish(self, work: _Work, waiter: Waiter | None) -> bool:
        """Publishes; frees or confirms the key. True if the broker had the stimulus already."""
        stimulus = Stimulus(
            route=work.route,
            execution=work.execution,
            shared=self._shared_envelope(work, replies=waiter is not None),
            deadline=work.deadline,
            place=lambda route: _placed(work, route),
        )
        try:
            stored = await self._ingress.publish(stimulus, waiter.is_over if waiter else _never)
        except Refusal as refusal:
            if refusal.status != 504:
                await self._let_go(work)
            raise
        work.written_at_mono_ns = stimulus.written_at_mono_ns
        if work.reservation is not None:
            await self._answers.accept(work.reservation, replies=waiter is not None)
        return stored.duplicate

    async def _let_go(self, work: _Work) -> None:
        """Nothing of it is stored, for certain. What was uploaded under a key may be a repeat's, too, and stays."""
        if work.reservation is not None:
            await self._answers.release(work.reservation)
        elif work.received.attachments:
            identities = [attachment.id for attachment in work.received.attachments]
            await self._bodies.uploads.take_back(work.route.flow, identities)

    def _shared_envelope(self, work: _Work, *, replies: bool) -> bytes:
        reply_to = ReplyTo(subject=self._reply_subject, answer_key=work.answer_key) if replies else None
        return encode_shared(
            execution_id=work.execution,
            parent_id="",
            body=work.received.body,
            content_type=work.received.content_type,
            headers=work.headers.passed,
            reply_to=reply_to,
            baggage=work.baggage,
            attachments=work.received.attachments,
        )


def _stimulus(route: Route, headers: RequestHeaders) -> str:
    if headers.idempotency_key:
        return message_ids.stimulus_id(route.flow, "key", headers.idempotency_key)
    return message_ids.stimulus_id(route.flow, "webhook", secrets.token_hex(16))


def _begin(
    scope: Scope,
    route: Route,
    headers: RequestHeaders,
    received: ReceivedBody,
    roots: RootSpans,
    stimulus: str,
    now: float,
) -> _Work:
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
    return _Work(
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


def _placed(work: _Work, route: Route) -> Placement:
    message_id = message_ids.first_message_id(work.stimulus, route.trigger)
    slot = keying(route.key, route.slots).place(work.headers.passed, work.received.body, message_id).slot
    return Placement(route.trigger, message_id, work.root.traceparent, slot)


def _never() -> bool:
    return False


def _context_headers(work: _Work) -> RawHeaders:
    """What the caller learns of its trace; baggage comes back as it went in."""
    found = [(b"traceparent", work.root.traceparent.encode())]
    if work.baggage:
        found.append((b"baggage", work.baggage.encode()))
    return found
