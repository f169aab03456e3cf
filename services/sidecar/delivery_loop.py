"""From a delivered message to its acknowledgement: the loop of one instance, against the two ports only.

Everything here runs in callbacks of the loop: deliveries and events come as lists, are handled at once, and
what has to be written leaves in the same turn. Nothing waits for anything else, so there is no task per
message. Bounded by the credit of the consumption: at most `prefetch` inputs are held.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.message_ids import output_message_id
from headrace.ports import ComponentStream, Consumption, Delivery, JetStreamLane
from headrace.wire.envelope import Envelope, MalformedMessage, decode_envelope
from services.sidecar.call_dispatch import CallDispatch
from services.sidecar.domain.delivery import (
    Ending,
    Outcome,
    Problem,
    check_output,
    check_reply,
    decide,
    error_status,
)
from services.sidecar.domain.ended_calls import EndedCalls
from services.sidecar.domain.sender_memory import SenderMemory
from services.sidecar.held_input import HeldInput, Phase
from services.sidecar.settlement import LateContext, Settlement, failed_attempt
from services.sidecar.timers import Timers

TIMEOUT = "TIMEOUT"

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.hop_phases import HopPhases
    from services.sidecar.outbox import Outbox
    from services.sidecar.reply_sender import ReplySender

log = get_logger(__name__)

COUNTERS = (
    "received", "processed", "emitted", "emitted_late", "replied", "rejected", "dead_lettered", "retried", "rebounds",
    "redelivered", "duplicates", "refused_full", "republished", "timeouts", "crashed_calls", "late_ignored",
    "acks_unconfirmed",
)  # fmt: skip


def new_counters() -> dict[str, int]:
    """All counters of an instance at zero."""
    counters: dict[str, int] = defaultdict(int)
    counters.update(dict.fromkeys(COUNTERS, 0))
    return counters


class DeliveryLoop:
    """`on_finished` is called when the component finished a call, `on_occupancy` when the loop gets its first held
    input or has settled its last. Messages up to stream sequence `redelivered_until` were delivered before."""

    def __init__(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        lane: JetStreamLane,
        outbox: Outbox,
        replies: ReplySender,
        hops: HopPhases,
        timers: Timers,
        counters: dict[str, int],
        *,
        on_finished: Callable[[], None],
        on_occupancy: Callable[[], None],
        redelivered_until: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._step = step
        self._lane = lane
        self._timers = timers
        self._counters = counters
        self._hops = hops
        self._on_finished = on_finished
        self._on_occupancy = on_occupancy
        self._redelivered_until = redelivered_until
        self._clock = clock
        self._memory = SenderMemory(plan.duplicate_window_s)
        self._dispatch = CallDispatch(step, clock)
        self._ended: EndedCalls[LateContext] = EndedCalls()
        self._held: dict[str, HeldInput] = {}
        self._consumption: Consumption | None = None
        self._to_release = 0
        self._closed = False
        self._outbox = outbox
        self._replies = replies
        self._settlement = Settlement(
            plan, step, lane, outbox, replies, self._memory, hops, counters, clock=clock, on_settled=self._settled
        )
        self._extend_every_s = plan.ack_wait_s / 3
        limits = [self._extend_every_s / 2, 1.0] + ([step.timeout_s / 10] if step.timeout_s > 0 else [])
        self._sweep_every_s = max(0.01, min(limits))
        self._sweeping = False

    @property
    def held(self) -> int:
        """Messages pulled and not yet acknowledged."""
        return len(self._held)

    @property
    def empty(self) -> bool:
        """Nothing held, and no late emit on its way."""
        return not self._held and self._outbox.unsettled == 0

    @property
    def problem(self) -> str:
        """Why nothing comes from the broker; empty while all is well."""
        return self._consumption.problem if self._consumption is not None else ""

    def start_pulling(self) -> None:
        """Idempotent. The consumer must exist; until it does the lane keeps asking."""
        if self._consumption is None:
            self._consumption = self._lane.consume(
                subjects.flow_stream(self._plan.workspace, self._plan.flow),
                subjects.step_consumer(self._plan.deployment, self._step.name),
                credit=self._step.prefetch,
                on_deliveries=self.on_deliveries,
            )

    def close(self) -> None:
        """From here on what is held is left to be delivered again."""
        self._closed = True

    async def stop_pulling(self) -> None:
        """Asks for no more; what was delivered is handled on."""
        if self._consumption is not None:
            await self._consumption.stop()

    # Intake

    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        now = self._clock()
        fresh: list[HeldInput] = []
        for delivery in deliveries:
            self._counters["received"] += 1
            if delivery.attempt == 1 and delivery.stream_sequence <= self._redelivered_until:
                delivery.attempt = 2  # the broker's own count began anew when the messages were reclaimed
            if delivery.attempt > 1:
                self._counters["redelivered"] += 1
            held = self._take(delivery, now)
            if held is not None:
                fresh.append(held)
        if fresh:
            self._arm_sweep()
            self._dispatch.submit(fresh)

    def _take(self, delivery: Delivery, now: float) -> HeldInput | None:
        try:
            envelope = decode_envelope(delivery.payload)
        except MalformedMessage as error:
            self._take_unreadable(delivery, str(error), now)
            return None
        message_id = envelope.id
        known = self._held.get(message_id)
        if known is not None:
            self._counters["duplicates"] += 1
            if known.delivery.stream_sequence == delivery.stream_sequence:
                known.delivery, known.extended_at = delivery, now
            else:
                known.also.append(delivery)
            self._release()
            return None
        if self._memory.is_finished(message_id, now):
            self._counters["duplicates"] += 1
            self._settlement.acknowledge_again(delivery, self._release)
            return None
        self._hops.received(delivery, envelope)
        return self._hold(HeldInput(delivery, envelope, message_id, now))

    def _take_unreadable(self, delivery: Delivery, message: str, now: float) -> None:
        # Its id must be the same at each delivery, so that it is dead-lettered once.
        message_id = delivery.message_id or output_message_id(str(delivery.stream_sequence), "", "", self._step.name)
        if message_id in self._held:
            self._release()
            return
        held = self._hold(HeldInput(delivery, Envelope(id=message_id), message_id, now))
        problem = Problem("MALFORMED_MESSAGE", message)
        self._settlement.dead_letter_unreadable(delivery, held, problem)

    def _hold(self, held: HeldInput) -> HeldInput:
        self._held[held.message_id] = held
        if len(self._held) == 1:
            self._on_occupancy()
        return held

    # Component

    def component_ready(self, stream: ComponentStream) -> None:
        """The (re)started component takes calls from now on."""
        self._dispatch.component_ready(stream)

    def component_lost(self, cause: str) -> None:
        """The component is gone: its calls become new attempts once it is back. Nothing is lost."""
        if self._closed:
            return  # ended on purpose: what is left is delivered again, to whoever is next
        self._ended.clear()
        for held in self._dispatch.component_lost():
            self._counters["crashed_calls"] += 1
            problem = Problem("COMPONENT_DIED", f"the component {cause} while it worked on this message", 502)
            self._end(held, Outcome(Ending.COMPONENT_DIED, problem, alone=held.alone))

    def on_events(self, events: Sequence[Any]) -> None:
        """Events of the Process stream, in order."""
        running = self._dispatch.running
        ended = False
        for event in events:
            held = running.get(event.call)
            kind = event.WhichOneof("kind")
            if held is None:
                self._late(event, kind)
            elif kind == "data":
                self._collect(held, event.data)
            elif kind == "end":
                self._dispatch.finished(event.call)
                held.entered_at_mono_ns = event.end.started_at_mono_ns
                held.left_at_mono_ns = event.end.ended_at_mono_ns
                self._end(held, self._outcome(held))
                self._on_finished()
                ended = True
            elif kind == "reply":
                problem = check_reply(len(event.reply.body), event.reply.status)
                held.refused = held.refused or problem
                held.reply = held.reply or event.reply
            elif kind == "error":
                held.failure = event.error
            elif kind == "rebound":
                held.rebound = event.rebound
            elif kind == "snapshot":
                self._counters["snapshots"] += 1
        if ended:
            self._dispatch.send_what_may_go()

    def _collect(self, held: HeldInput, emit: Any) -> None:
        if held.refused is None:
            held.refused = check_output(len(held.outputs), len(emit.body))
        if held.refused is None:
            held.outputs.append(emit)

    def _late(self, event: Any, kind: str | None) -> None:
        context = self._ended.find(event.call, self._clock())
        if context is None or kind != "data" or check_output(context.next_index, len(event.data.body)) is not None:
            self._counters["late_ignored"] += 1
            return
        self._settlement.publish_late(context, event.data)

    @staticmethod
    def _outcome(held: HeldInput) -> Outcome:
        if held.failure is not None:
            failure = held.failure
            problem = Problem(
                failure.code or "COMPONENT_ERROR",
                failure.message or "the component failed",
                error_status(failure.status),
            )
            return Outcome(Ending.FAILED, problem, retryable=failure.retryable)
        if held.rebound is not None:
            return Outcome(Ending.REBOUND, asked_delay_ms=held.rebound.delay_ms)
        if held.refused is not None:
            return Outcome(Ending.OUTPUT_REFUSED, held.refused)
        return Outcome(Ending.DONE)

    # Decisions carried out

    def _end(self, held: HeldInput, outcome: Outcome) -> None:
        decision = decide(outcome, held.trail(), self._step.retry)
        if decision.deliver:
            self._hops.called(held)
            if self._step.receivers:
                self._ended.add(held.call, LateContext(held), self._clock())
            self._deliver(held)
            return
        problem = decision.error or outcome.problem
        if problem is not None:
            held.attempts.append(failed_attempt(held.attempt, problem))
            self._counters["timeouts"] += problem.code == TIMEOUT
        held.failures += decision.counts_as_failure
        held.rebounds += decision.counts_as_rebound
        held.crashes += decision.counts_as_crash
        if decision.retry_after_s is not None:
            self._retry(held, decision.retry_after_s, rebound=decision.counts_as_rebound)
            return
        assert decision.error is not None
        self._counters["rejected"] += decision.rejected
        self._hops.called(held)
        self._settlement.give_up(held, decision.error, dead_letter=decision.dead_letter)

    def _deliver(self, held: HeldInput) -> None:
        try:
            self._settlement.deliver(held)
        except MalformedMessage as error:
            # What is under way already is settled by itself; the input must not be held for ever.
            problem = Problem("OUTPUT_REFUSED", error.message)
            held.attempts.append(failed_attempt(held.attempt, problem))
            self._settlement.give_up(held, problem, dead_letter=True)

    def _retry(self, held: HeldInput, delay_s: float, *, rebound: bool) -> None:
        self._counters["rebounds" if rebound else "retried"] += 1
        if delay_s <= 0:
            self._dispatch.submit([held])
            return
        held.phase = Phase.RETRYING
        self._timers.later(delay_s, partial(self._dispatch.submit, [held]))

    def _settled(self, held: HeldInput) -> None:
        self._held.pop(held.message_id, None)
        self._counters["processed"] += not held.dead
        self._release()
        if not self._held:
            self._on_occupancy()

    def _release(self) -> None:
        # One call for all that end in the same turn of the loop.
        self._to_release += 1
        if self._to_release == 1:
            self._timers.later(0, self._release_all)

    def _release_all(self) -> None:
        count, self._to_release = self._to_release, 0
        if self._consumption is not None and count:
            self._consumption.release(count)

    # Time limits

    def _arm_sweep(self) -> None:
        if not self._sweeping and self._held:
            self._sweeping = True
            self._timers.later(self._sweep_every_s, self._sweep)

    def _sweep(self) -> None:
        """Extends what is held for long, abandons calls over their limit. Runs only while something is held."""
        self._sweeping = False
        now = self._clock()
        for held in self._dispatch.expired(now):
            limit = f"{self._step.timeout_s:g} s"
            problem = Problem(TIMEOUT, f"step {self._step.name} took longer than {limit}", 504)
            self._end(held, Outcome(Ending.TIMED_OUT, problem))
        for held in self._held.values():
            if now - held.extended_at >= self._extend_every_s:
                held.extended_at = now
                self._lane.extend(held.delivery)
                for copy in held.also:
                    self._lane.extend(copy)
        self._dispatch.send_what_may_go()
        self._arm_sweep()
