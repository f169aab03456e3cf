"""Measures this step's hops, as ARCHITECTURE.md defines their phases: one record of each attempt, made when it is over.

Nothing else is done on the path: what histograms, traces and the memory of executions want of records they take from
lots of them, a moment later (`headrace.edge.span_log`). Repeated deliveries and attempts give no samples: they would
measure the trouble, not the path.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from headrace.api.message.v1.message_pb2 import Origin
from headrace.edge.clock_pair import read_clocks
from headrace.edge.span_log import SpanLog
from headrace.model import trace_context
from headrace.model.hop_record import HopOutcome, HopRecord, Site
from headrace.model.record_lot import RecordLot
from services.sidecar.hop_tally import ARRIVAL, CALL, END, WAY_OUT, HopTally

if TYPE_CHECKING:
    from headrace.edge.hop_recorder import HopRecorder
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.domain.delivery import Problem
    from services.sidecar.held_input import HeldInput
    from services.sidecar.outbox import Outgoing


class HopPhases:
    """Where `span_log` is wanted by nobody else, or there is none, records are made for the histograms alone, and the
    trace context of an input is passed on as it came. `inputs` are those that are held: whoever asks the recorder is
    told of their arrival, too."""

    def __init__(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        recorder: HopRecorder,
        *,
        span_log: SpanLog | None = None,
        instance: str = "",
        inputs: Callable[[], Iterable[HeldInput]] = tuple,
    ) -> None:
        self._traces = span_log is not None and span_log.wanted
        self._log = log = span_log if span_log is not None else SpanLog()
        self._tally = HopTally(plan, step, recorder)
        log.tallies.append(self._tally.take)
        recorder.before_telling = self._tell_all
        self._inputs = inputs
        self._flow = plan.flow
        self.site = self._site = step_site(plan, step, instance)
        self._senders = {known.name: step_site(plan, known) for known in plan.steps}
        self._origins = {
            Origin.ORIGIN_UNSPECIFIED: Site("headrace-gateway", plan.workspace, plan.flow),
            Origin.ORIGIN_TICK: (ticker := Site("headrace-orchestrator", plan.workspace, plan.flow)),
            Origin.ORIGIN_INJECTED: ticker,
        }
        self._keyed = step.keyed
        self._has_receivers = bool(step.receivers)

    def _tell_all(self) -> None:
        """The histograms are up to date after it."""
        self._log.hand_over()
        for held in self._inputs():
            self.arrived(held)

    def arrived(self, held: HeldInput) -> None:
        """Counts the arrival of an input now, unless that was done, instead of with its record. For those that are held
        for long, and those of which there will be no record."""
        if held.arrival_counted:
            return
        held.arrival_counted = True
        delivery, envelope = held.delivery, held.envelope
        if delivery.attempt > 1:
            return
        self._tally.arrived(
            envelope.sender,
            envelope.sent_at_unix_ns,
            envelope.input_stored_at_unix_ns,
            delivery.stored_at_unix_ns,
            delivery.received_at_unix_ns,
            envelope.execution_id,
        )

    def output_written(self, held: HeldInput, outgoing: Outgoing) -> None:
        """The broker has an output; refused and unanswered tries are part of the way out."""
        written, before = outgoing.written_at_mono_ns, held.written_at_mono_ns
        if not before:
            held.written_at_mono_ns = written
            return
        if written > before:
            held.written_at_mono_ns, written = written, before
        self._one_more_way_out(held, written)

    def reply_written(self, held: HeldInput) -> int:
        """A reply leaves now (Unix nanoseconds); the gateway records how long it took to arrive."""
        held.replied = True
        if held.written_at_mono_ns:
            self._one_more_way_out(held, held.written_at_mono_ns)
        unix_ns, held.written_at_mono_ns = read_clocks()
        return unix_ns

    def _one_more_way_out(self, held: HeldInput, written_at_mono_ns: int) -> None:
        """The record tells of what was written last."""
        if held.left_at_mono_ns and held.first_try:
            self._tally.ways_out.append(written_at_mono_ns - held.left_at_mono_ns)

    def began(self, held: HeldInput) -> None:
        """The next attempt begins: from here on its span is the parent of whatever it sends."""
        delivery = held.delivery
        context = delivery.traceparent
        held.began_at_mono_ns = time.monotonic_ns() if held.calls > 1 else delivery.received_at_mono_ns
        if not self._traces:
            held.traceparent = context
            return
        if not (len(context) == 55 and context[2] == context[35] == context[52] == "-"):
            context = self._new_context(held.envelope.execution_id)
            if not context:
                return
        held.number = number = held.number or held.attempt
        message_id = held.message_id
        # As `process_span_id` has it, of the first attempt.
        span = message_id[16:] if number == 1 and len(message_id) == 32 else os.urandom(8).hex()
        held.span_id = span
        held.traceparent = f"{context[:36]}{span}{context[52:]}"

    def _new_context(self, execution: str) -> str:
        """Of a message that came without one."""
        if len(execution) != 32:
            return ""
        sampled = self._log.sampler.begins(self._flow, execution)
        return trace_context.format_traceparent(execution, "0" * 16, sampled=sampled)

    def failed(
        self, held: HeldInput, problem: Problem | None, *, retry_after_s: float | None = None, rebound: bool = False
    ) -> None:
        """An attempt is over, and another one may follow."""
        self.arrived(held)
        if not held.span_id:
            return
        if rebound:
            outcome = HopOutcome.REBOUND
        else:
            outcome = HopOutcome.STUCK if retry_after_s is None else HopOutcome.RETRIED
        retry_after_ns = int(retry_after_s * 1e9) if retry_after_s else 0
        self._tell(held, outcome, problem, 0, time.monotonic_ns(), retry_after_ns, 0, 0)
        held.told = True

    def closed(self, held: HeldInput, confirmed: bool) -> None:
        """The input's acknowledgement has its answer (`confirmed`), or will get none."""
        problem = held.problem
        if not (held.calls or problem is not None):
            self.arrived(held)
            return
        if self._traces and not held.span_id:
            self.began(held)
        outcome = _PROCESSED
        if problem is not None:
            outcome = HopOutcome.HANDED_OVER if held.handed else HopOutcome.REJECTED
            outcome = HopOutcome.DEAD_LETTERED if held.dead else outcome
        written, samples, confirmed_at_unix_ns = held.written_at_mono_ns, 0, 0
        if held.first_try and held.left_at_mono_ns:
            samples = CALL
            if not (held.replied or held.handed or (self._has_receivers and held.outputs)):
                # It ends with its acknowledgement.
                if confirmed:
                    samples = CALL | WAY_OUT | END
                    confirmed_at_unix_ns = time.time_ns()
            elif written:
                samples = CALL | WAY_OUT
        if not held.arrival_counted and held.delivery.attempt == 1:
            samples |= ARRIVAL
        ended = time.monotonic_ns()
        written = written or held.acknowledged_at_mono_ns
        self._tell(held, outcome, problem, written, ended, 0, samples, confirmed_at_unix_ns)

    def _tell(
        self,
        held: HeldInput,
        outcome: HopOutcome,
        problem: Problem | None,
        written_at_mono_ns: int,
        ended_at_mono_ns: int,
        retry_after_ns: int,
        samples: int,
        confirmed_at_unix_ns: int,
    ) -> None:
        delivery, envelope, context = held.delivery, held.envelope, held.traceparent
        parent, sender, keyed = delivery.traceparent, envelope.sender, self._keyed
        code, text = (problem.code, problem.message) if problem is not None else ("", "")
        span_id = held.span_id
        sent_from = self._senders.get(sender) if sender else self._origins.get(envelope.origin)
        if sent_from is None and samples & ARRIVAL:
            # The record cannot name it.
            self.arrived(held)
            samples -= ARRIVAL
        record = _new_record(
            HopRecord,
            (
                self._site,
                sent_from,
                context[3:35],
                # Where the message had none, one was made up that has no parent.
                parent[36:52] if parent[35:36] == "-" else "",
                span_id,
                span_id != "" and context[54] in "13579bdf",
                held.message_id,
                held.execution_id or envelope.execution_id,
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
                envelope.input_stored_at_unix_ns,
                confirmed_at_unix_ns,
                samples,
            ),
        )
        if span_id or not self._traces:
            self._log.add(record)
        else:
            # Nothing that could be traced.
            self._tally.take(RecordLot((record,)))


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
