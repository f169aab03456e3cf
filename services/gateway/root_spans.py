"""The root of each execution's trace: one span per request, from its first byte to the answer.

A caller's valid `traceparent` is the root's parent and gives the trace id; nothing of it feeds an id of ours. Without
anybody who takes records the caller's context is passed on as it came.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from headrace.model import trace_context
from headrace.model.hop_record import ReplyPart, RootRecord, Site
from headrace.model.message_ids import first_message_id

if TYPE_CHECKING:
    from headrace.edge.span_log import SpanLog
    from headrace.wire.envelope import Reply
    from services.gateway.domain.refusals import Refusal
    from services.gateway.reply_desk import ReceivedReply
    from services.gateway.socket_reader import SocketRead

MAX_SITES = 1_000


class Root(NamedTuple):
    """A request's place in its trace."""

    name: str
    flow: str
    execution: str
    context: trace_context.TraceContext
    parent_id: str
    arrival: SocketRead
    begun_at_unix_ns: int
    traceparent: str
    """What its message carries and its answer says."""


class RootSpans:
    """Of one gateway."""

    def __init__(self, span_log: SpanLog | None, workspace: str, instance: str) -> None:
        self._log = span_log if span_log is not None and span_log.wanted else None
        self._workspace, self._instance = workspace, instance
        self._sites: dict[str, Site] = {}
        self._steps: dict[tuple[str, str, int], Site] = {}

    def begin(
        self,
        *,
        name: str,
        flow: str,
        given: str,
        execution: str,
        stimulus: str,
        trigger: str,
        arrival: SocketRead,
        keyed: bool,
    ) -> Root:
        """`given` is the caller's traceparent, `name` says what was asked in few words. Of a `keyed` one there may be
        several with the same stimulus."""
        caller = trace_context.parse_traceparent(given) if given else None
        begun = time.time_ns()
        if self._log is None:
            span_id = trace_context.publish_span_id(first_message_id(stimulus, trigger))
            context = caller or trace_context.TraceContext(execution, span_id, True)
            return Root(name, flow, execution, context, "", arrival, begun, _written(context))
        if caller is None:
            trace_id, parent_id, sampled = execution, "", self._log.sampler.begins(flow, execution)
        else:
            trace_id, parent_id, sampled = caller
        span_id = os.urandom(8).hex() if keyed else trace_context.root_span_id(stimulus)
        context = trace_context.TraceContext(trace_id, span_id, sampled)
        return Root(name, flow, execution, context, parent_id, arrival, begun, _written(context))

    def recorded_trace(self, root: Root) -> bytes:
        """Its trace id, 16 bytes; b"" where nobody records it."""
        return bytes.fromhex(root.context.trace_id) if self._log is not None and root.context.sampled else b""

    def accepted(self, root: Root, written_at_mono_ns: int, *, duplicate: bool) -> None:
        """Answered 202 just now."""
        if self._log is not None:
            self._end(root, written_at_mono_ns, 202, duplicate=duplicate)

    def replied(self, root: Root, received: ReceivedReply, written_at_mono_ns: int) -> None:
        """A step's reply has been written to the caller just now."""
        if self._log is None:
            return
        reply = received.reply
        read_ns = received.read_at_unix_ns
        ended_ns = read_ns + time.monotonic_ns() - received.read_at_mono_ns
        part, link = self._reply_part(root, reply, read_ns)
        out = (("gateway-out", read_ns, ended_ns),)
        self._end(root, written_at_mono_ns, reply.status, more=out, reply=part, link=link, ended_at_unix_ns=ended_ns)

    def replayed(self, root: Root, reply: Reply | None) -> None:
        """The first answer to its Idempotency-Key was given again."""
        if self._log is not None:
            link = reply.traceparent if reply is not None else ""
            status = reply.status if reply is not None else 202
            self._end(root, 0, status, duplicate=True, link=link)

    def refused(self, root: Root, refusal: Refusal, written_at_mono_ns: int) -> None:
        """It ends in a refusal."""
        if self._log is not None:
            self._end(root, written_at_mono_ns, refusal.status, code=refusal.code, problem=refusal.message)

    def gone(self, root: Root, written_at_mono_ns: int) -> None:
        """Its caller went away before the answer came."""
        if self._log is not None:
            self._end(root, written_at_mono_ns, 499, code="CALLER_GONE", problem="the caller went away")

    def _end(
        self,
        root: Root,
        written_at_mono_ns: int,
        status: int,
        *,
        more: tuple[tuple[str, int, int], ...] = (),
        reply: ReplyPart | None = None,
        link: str = "",
        code: str = "",
        problem: str = "",
        duplicate: bool = False,
        ended_at_unix_ns: int = 0,
    ) -> None:
        assert self._log is not None
        arrival = root.arrival
        read_ns = arrival.at_unix_ns or root.begun_at_unix_ns
        started_ns = arrival.arrived_at_unix_ns or read_ns
        phases: tuple[tuple[str, int, int], ...] = ()
        if arrival.arrived_at_unix_ns:
            phases = (("queue", started_ns, read_ns),)
        if written_at_mono_ns and arrival.at_mono_ns:
            phases += (("gateway-in", read_ns, read_ns + written_at_mono_ns - arrival.at_mono_ns),)
        trace_id, span_id, sampled = root.context
        self._log.add(
            RootRecord(
                self._site(root.flow),
                "webhook",
                root.name,
                trace_id,
                root.parent_id,
                span_id,
                sampled,
                root.execution,
                started_ns,
                ended_at_unix_ns or time.time_ns(),
                phases + more,
                reply,
                link,
                status,
                code,
                problem,
                duplicate,
            )
        )

    def _site(self, flow: str) -> Site:
        found = self._sites.get(flow)
        if found is None:
            if len(self._sites) >= MAX_SITES:
                self._sites.clear()
            found = Site("headrace-gateway", self._workspace, flow, step="gateway", instance=self._instance)
            self._sites[flow] = found
        return found

    def _reply_part(self, root: Root, reply: Reply, read_ns: int) -> tuple[ReplyPart | None, str]:
        """How the reply came; or, where it belongs to another trace (the key's first request began it), its link."""
        context = trace_context.parse_traceparent(reply.traceparent)
        if context is None or not reply.sent_at_unix_ns:
            return None, ""
        if context.trace_id != root.context.trace_id:
            return None, reply.traceparent
        key = (root.flow, reply.step, reply.deployment)
        site = self._steps.get(key)
        if site is None:
            if len(self._steps) >= MAX_SITES:
                self._steps.clear()
            site = self._steps[key] = Site(
                service=reply.component or reply.step,
                workspace=self._workspace,
                flow=root.flow,
                version=reply.version,
                deployment=reply.deployment,
                step=reply.step,
                component=reply.component,
                revision=reply.revision,
            )
        return ReplyPart(site, context.span_id, reply.sent_at_unix_ns, read_ns), ""


def _written(context: trace_context.TraceContext) -> str:
    trace_id, span_id, sampled = context
    return trace_context.format_traceparent(trace_id, span_id, sampled=sampled)
