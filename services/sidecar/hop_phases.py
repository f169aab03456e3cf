"""Measures the phases of this step's hops, as ARCHITECTURE.md defines them, and hands them to the recorder.

What only the receiver of a message can know (when it was stored) is recorded by the receiver under the
sender's name. Repeated deliveries and attempts are left out: they would measure the trouble, not the path.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from headrace.api.message.v1.message_pb2 import Origin
from headrace.edge.clock_pair import read_clocks
from headrace.model import trace_context
from headrace.model.hop_record import HopOutcome, HopRecord, Site

if TYPE_CHECKING:
    from headrace.edge.hop_recorder import HopRecorder
    from headrace.edge.span_log import SpanLog
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from headrace.model.histogram import Histogram
    from headrace.ports import Delivery
    from headrace.wire.envelope import Envelope
    from services.sidecar.domain.delivery import Problem
    from services.sidecar.held_input import HeldInput
    from services.sidecar.outbox import Outgoing

INGRESS_SENDER = "gateway"
MAX_SENDERS = 64


class HopPhases:
    """Samples below zero are clock skew; the histograms count them as such. With a `span_log` each attempt is also told
    there, once, as a HopRecord; without one the trace context of an input is passed on as it came."""

    def __init__(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        recorder: HopRecorder,
        *,
        span_log: SpanLog | None = None,
        instance: str = "",
    ) -> None:
        self._log = span_log if span_log is not None and span_log.wanted else None
        self._flow = plan.flow
        self.site = self._site = step_site(plan, step, instance)
        self._senders = {known.name: step_site(plan, known) for known in plan.steps}
        self._origins = {
            Origin.ORIGIN_UNSPECIFIED: Site("headrace-gateway", plan.workspace, plan.flow),
            Origin.ORIGIN_TICK: (ticker := Site("headrace-orchestrator", plan.workspace, plan.flow)),
            Origin.ORIGIN_INJECTED: ticker,
        }
        self._keyed = step.keyed
        self._step = step.name
        self._has_receivers = bool(step.receivers)
        self._revision_of = {known.name: known.pin.digest for known in plan.steps}
        self._recorder = recorder
        own = partial(recorder.phase, step.name, revision=step.pin.digest)
        self._queue, self._in, self._component, self._out = map(
            own, ("queue", "sidecar-in", "component", "sidecar-out")
        )
        self._terminal, self._whole = own("publish"), own("hop")
        """Of an input without output: its acknowledgement, and its whole hop."""
        self._of_senders: dict[str, tuple[Histogram, Histogram]] = {}

    def _record_hop(self, histogram: Histogram, ns: int, envelope: Envelope, now_unix_ns: int, context: str) -> None:
        histogram.record(ns)
        if ns < 0:
            return
        trace_id = b""
        if self._log is not None and histogram.may_mark(ns, now_unix_ns):
            trace_id = trace_context.sampled_trace(context)
        histogram.mark(ns, now_unix_ns, envelope.execution_id, trace_id)

    def _sender(self, name: str) -> tuple[Histogram, Histogram]:
        """What is known of whoever sends to this step: its publishes, and its whole hops."""
        revision, phase = self._revision_of.get(name, ""), self._recorder.phase
        made = phase(name, "publish", self._step, revision), phase(name, "hop", self._step, revision)
        if len(self._of_senders) < MAX_SENDERS:
            self._of_senders[name] = made
        return made

    def received(self, delivery: Delivery, envelope: Envelope) -> None:
        """An input was read: its waiting time, and the publish of whoever sent it."""
        if delivery.attempt > 1:
            return
        stored_at = delivery.stored_at_unix_ns
        self._queue.record(delivery.received_at_unix_ns - stored_at)
        sent_at, input_stored_at = envelope.sent_at_unix_ns, envelope.input_stored_at_unix_ns
        if not (sent_at or input_stored_at):
            return
        sender = envelope.sender
        publishes, hops = self._of_senders.get(sender or INGRESS_SENDER) or self._sender(sender or INGRESS_SENDER)
        if sent_at:
            publishes.record(stored_at - sent_at)
        if input_stored_at:
            if not sender:
                hops = self._recorder.phase("", "hop", self._step)
            self._record_hop(
                hops, stored_at - input_stored_at, envelope, delivery.received_at_unix_ns, delivery.traceparent
            )

    def called(self, held: HeldInput) -> None:
        """A call ended for good."""
        entered = held.entered_at_mono_ns
        if entered and held.first_try:
            self._in.record(entered - held.delivery.received_at_mono_ns)
            self._component.record(held.left_at_mono_ns - entered)

    def output_written(self, held: HeldInput, outgoing: Outgoing) -> None:
        """The broker has an output; refused and unanswered tries are part of the way out."""
        written = outgoing.written_at_mono_ns
        if written > held.written_at_mono_ns:
            held.written_at_mono_ns = written
        if held.left_at_mono_ns and held.first_try:
            self._out.record(written - held.left_at_mono_ns)

    def row_written(self, held: HeldInput) -> None:
        """As `output_written`, of an input that goes its common way."""
        if held.left_at_mono_ns:
            self._out.record(held.written_at_mono_ns - held.left_at_mono_ns)

    def reply_written(self, held: HeldInput) -> int:
        """A reply leaves now (Unix nanoseconds); the gateway records how long it took to arrive."""
        held.replied = True
        unix_ns, held.written_at_mono_ns = read_clocks()
        if held.left_at_mono_ns and held.first_try:
            self._out.record(held.written_at_mono_ns - held.left_at_mono_ns)
        return unix_ns

    def acknowledged(self, held: HeldInput) -> None:
        """An input without output or reply ends with its acknowledgement."""
        if held.replied or held.handed or (self._has_receivers and held.outputs):
            return
        if held.left_at_mono_ns and held.first_try:
            written_at_mono_ns = held.acknowledged_at_mono_ns
            self._out.record(written_at_mono_ns - held.left_at_mono_ns)
            self._terminal.record(time.monotonic_ns() - written_at_mono_ns)
            now_ns = time.time_ns()
            whole_ns = now_ns - held.delivery.stored_at_unix_ns
            self._record_hop(self._whole, whole_ns, held.envelope, now_ns, held.traceparent)

    # Spans

    def began(self, held: HeldInput) -> None:
        """The next attempt begins: from here on its span is the parent of whatever it sends."""
        delivery = held.delivery
        context = delivery.traceparent
        if self._log is None:
            held.traceparent = context
            return
        held.number = held.number or held.attempt
        held.began_at_mono_ns = time.monotonic_ns() if held.calls > 1 else delivery.received_at_mono_ns
        if not trace_context.looks_like_traceparent(context):
            context = self._new_context(held.envelope.execution_id)
            if not context:
                return
        known = held.number == 1 and len(held.message_id) == 32
        span = held.span_id = trace_context.process_span_id(held.message_id) if known else os.urandom(8).hex()
        held.traceparent = f"{context[:36]}{span}{context[52:]}"

    def _new_context(self, execution: str) -> str:
        """Of a message that came without one."""
        assert self._log is not None
        if len(execution) != 32:
            return ""
        sampled = self._log.sampler.begins(self._flow, execution)
        return trace_context.format_traceparent(execution, "0" * 16, sampled=sampled)

    def failed(
        self, held: HeldInput, problem: Problem | None, *, retry_after_s: float | None = None, rebound: bool = False
    ) -> None:
        """An attempt is over, and another one may follow."""
        if self._log is None or not held.span_id:
            return
        if rebound:
            outcome = HopOutcome.REBOUND
        else:
            outcome = HopOutcome.STUCK if retry_after_s is None else HopOutcome.RETRIED
        retry_after_ns = int(retry_after_s * 1e9) if retry_after_s else 0
        self._tell(held, outcome, problem, 0, time.monotonic_ns(), retry_after_ns)

    def closed(self, held: HeldInput) -> None:
        """The input's acknowledgement has its answer, or will get none."""
        if self._log is None or not (held.calls or held.problem):
            return
        if not held.span_id:
            self.began(held)
            if not held.span_id:
                return
        problem, outcome = held.problem, _PROCESSED
        if problem is not None:
            outcome = HopOutcome.HANDED_OVER if held.handed else HopOutcome.REJECTED
            outcome = HopOutcome.DEAD_LETTERED if held.dead else outcome
        self._tell(
            held, outcome, problem, held.written_at_mono_ns or held.acknowledged_at_mono_ns, time.monotonic_ns(), 0
        )

    def _tell(
        self,
        held: HeldInput,
        outcome: HopOutcome,
        problem: Problem | None,
        written_at_mono_ns: int,
        ended_at_mono_ns: int,
        retry_after_ns: int,
    ) -> None:
        assert self._log is not None
        delivery, envelope, context = held.delivery, held.envelope, held.traceparent
        parent, sender, keyed = delivery.traceparent, envelope.sender, self._keyed
        code, text = (problem.code, problem.message) if problem is not None else ("", "")
        self._log.add(
            _new_record(
                HopRecord,
                (
                    self._site,
                    self._senders.get(sender) if sender else self._origins.get(envelope.origin),
                    context[3:35],
                    # Where the message had none, one was made up that has no parent.
                    parent[36:52] if parent[35:36] == "-" else "",
                    held.span_id,
                    context[54] in "13579bdf",
                    held.message_id,
                    envelope.execution_id,
                    held.number,
                    not held.told,
                    delivery.attempt,
                    held.in_doubt,
                    len(held.outputs) if self._has_receivers else 0,
                    held.replied,
                    outcome,
                    code,
                    text,
                    retry_after_ns,
                    held.slot.lease.slot if keyed and held.slot is not None else -1,
                    envelope.sent_at_unix_ns,
                    delivery.stored_at_unix_ns,
                    delivery.received_at_unix_ns,
                    delivery.received_at_mono_ns,
                    held.began_at_mono_ns,
                    held.entered_at_mono_ns,
                    held.left_at_mono_ns,
                    written_at_mono_ns,
                    ended_at_mono_ns,
                ),
            )
        )
        held.told = True


_PROCESSED = HopOutcome.PROCESSED
# A NamedTuple from a tuple that has its fields in order: half the cost of calling the class.
_new_record = tuple.__new__


def step_site(plan: DeploymentPlan, step: StepPlan, instance: str = "") -> Site:
    """Where the spans of a step come from."""
    return Site(
        service=step.pin.component,
        workspace=plan.workspace,
        flow=plan.flow,
        version=plan.version,
        deployment=plan.deployment,
        step=step.name,
        component=step.pin.component,
        revision=step.pin.digest,
        revision_number=step.pin.revision_number,
        instance=instance,
    )
