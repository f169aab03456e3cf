"""How inputs come to the delivery loop and how they are settled: of a plain step, from its one consumer.

A keyed step has a path of its own (`slot_path`); the loop between is the same for both.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from headrace.model import subjects
from headrace.model.message_ids import unreadable_id
from headrace.model.step_snapshot import StepSnapshot
from headrace.ports import Consumption, Delivery, JetStreamLane
from headrace.wire.envelope import Envelope, MalformedMessage, decode_envelope, is_common
from services.sidecar.closing import REPLY_LOST
from services.sidecar.dead_letters import DeadLetters
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.early_credit import EarlyCredit
from services.sidecar.domain.sender_memory import SenderMemory
from services.sidecar.error_step import error_step_of
from services.sidecar.held_input import HeldInput, Phase, wants_reply
from services.sidecar.outputs import LateContext, OutputMaker, late_context
from services.sidecar.plain_rows import PlainRows
from services.sidecar.plain_snapshots import PlainSnapshots
from services.sidecar.settlement import Settlement
from services.sidecar.stimulus_filing import closing_of
from services.sidecar.timers import Timers

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.hop_phases import HopPhases
    from services.sidecar.outbox import Blocked, Outbox
    from services.sidecar.reply_sender import ReplySender

COUNTERS = (
    "received", "processed", "emitted", "emitted_late", "replied", "rejected", "dead_lettered", "retried", "rebounds",
    "redelivered", "duplicates", "refused_full", "republished", "timeouts", "crashed_calls", "late_ignored",
    "acks_unconfirmed", "in_doubt", "late_refused", "failed", "unrouted",
    "handed_over",
)  # fmt: skip


def new_counters() -> dict[str, int]:
    """All counters of an instance at zero."""
    counters: dict[str, int] = defaultdict(int)
    counters.update(dict.fromkeys(COUNTERS, 0))
    return counters


class InputPath(Protocol):
    """What the delivery loop needs of a path. `submit` is the loop's: it takes inputs that may be called now."""

    submit: Callable[[list[HeldInput]], None]
    conflict: Callable[[HeldInput, Problem], None]
    """Also the loop's: what the input saved was refused after its outputs were stored."""

    @property
    def held(self) -> int:
        """Messages pulled and not yet acknowledged."""

    @property
    def held_back(self) -> int:
        """Of those: what is stuck, and what cannot go on before it."""

    @property
    def oldest_unix_ns(self) -> int:
        """When the oldest of what is held was stored; 0 while nothing is held."""

    @property
    def problem(self) -> str:
        """Why nothing comes from the broker; empty while all is well."""

    @property
    def last_input_at(self) -> float:
        """When messages came last, on the path's clock; 0 when none did."""

    def inputs(self) -> list[HeldInput]:
        """All that are held now."""

    def blocked(self) -> list[Blocked]:
        """Receivers that outputs wait for, besides those that the outbox knows."""

    def start_pulling(self) -> None:
        """Idempotent. The consumer must exist; until it does the lane keeps asking."""

    async def stop_pulling(self) -> None:
        """Asks for no more; what was delivered is handled on."""

    def extend(self, now: float, every_s: float) -> None:
        """Restarts the ack deadline of what has been held for that long."""

    def close(self) -> None:
        """Ends at once: what is held is delivered again."""

    def snapshot_of(self, held: HeldInput) -> StepSnapshot | None:
        """What its step keeps for it; None while nothing is."""

    def save(self, held: HeldInput) -> Problem | None:
        """Takes what its call saved, to be stored with it; or says why not."""

    def deliver(self, held: HeldInput) -> None:
        """Its call is done: its outputs, its reply, its acknowledgement. MalformedMessage for a bad output."""

    def deliver_rows(self, rows: list[HeldInput]) -> list[HeldInput]:
        """As `deliver`, of plain inputs with one output at most; answers those that were not taken: `deliver` each."""

    def give_up(self, held: HeldInput, problem: Problem, *, dead_letter: bool) -> None:
        """It is not tried again."""

    def publish_late(self, context: LateContext, emit: Any) -> None:
        """An emit that came after its call's end."""

    def late_context(self, held: HeldInput) -> LateContext:
        """What late emits of this input need."""


class PlainPath:
    """`on_occupancy` is called when it gets its first held input or has settled its last. Messages up to stream
    sequence `redelivered_until` were delivered before. `doubtful` is asked about redelivered ones it does not know."""

    submit: Callable[[list[HeldInput]], None]
    conflict: Callable[[HeldInput, Problem], None]

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
        on_occupancy: Callable[[], None],
        redelivered_until: int = 0,
        doubtful: Callable[[Delivery], bool] = lambda delivery: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._doubtful = doubtful
        self._plan, self._step, self._lane = plan, step, lane
        self._timers, self._counters, self._hops = timers, counters, hops
        self._on_occupancy = on_occupancy
        self._redelivered_until = redelivered_until
        self._newest = 0
        self._clock = clock
        self._held: dict[str, HeldInput] = {}
        self._consumption: Consumption | None = None
        self._to_release = 0
        self.last_input_at = 0.0
        self._memory = SenderMemory(plan.duplicate_window_s)
        self._letters = letters = DeadLetters(plan, step, outbox, counters)
        ends = (plan, step, lane, replies, self._memory, hops, counters)
        closing = closing_of(*ends, outbox=outbox, clock=clock, on_settled=self._settled)
        self._closing = closing
        self._snapshots = snapshots = PlainSnapshots(plan, step, lane, timers, counters)
        self._started = self._stopped = False
        maker = OutputMaker(plan, step)
        settlement = Settlement(
            maker, outbox, letters, closing, self._memory, hops, counters, clock=clock,
            error_step=error_step_of(plan, step, counters), saving=self._saving
        )  # fmt: skip
        self.save = snapshots.save
        self._settlement = settlement
        self.deliver, self.publish_late = settlement.deliver, settlement.publish_late
        self._rows = PlainRows(plan, step, outbox, settlement, closing, self._memory, counters)
        self.deliver_rows = self._rows.deliver
        self._early = EarlyCredit(step.prefetch)
        if plan.group_commits:
            self.deliver, self.deliver_rows = self._deliver_early, self._deliver_rows_early

    def _deliver_early(self, held: HeldInput) -> None:
        """Its call is over: another may begin while its outputs are stored, in one batch with many."""
        self._give_credit_early(held)
        self._settlement.deliver(held)

    def _deliver_rows_early(self, rows: list[HeldInput]) -> list[HeldInput]:
        for held in rows:
            self._give_credit_early(held)
        return self._rows.deliver(rows)

    def _give_credit_early(self, held: HeldInput) -> None:
        if self._early.take(held.message_id, len(held.delivery.payload)):
            self._release()

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def held_back(self) -> int:
        return sum(held.phase is Phase.STUCK for held in self._held.values())

    @property
    def oldest_unix_ns(self) -> int:
        return min((held.delivery.stored_at_unix_ns for held in self._held.values()), default=0)

    @property
    def problem(self) -> str:
        return self._consumption.problem if self._consumption is not None else ""

    def inputs(self) -> list[HeldInput]:
        return list(self._held.values())

    def blocked(self) -> list[Blocked]:
        return []

    def late_context(self, held: HeldInput) -> LateContext:
        return late_context(held)

    def snapshot_of(self, held: HeldInput) -> StepSnapshot | None:
        return self._snapshots.latest if self._snapshots.latest.revision else None

    def _saving(self, held: HeldInput, then: Callable[[], None]) -> None:
        """Its outputs are stored: what it saved is next, and then it is closed."""
        self._snapshots.outputs_stored(held, then, partial(self.conflict, held))

    def give_up(self, held: HeldInput, problem: Problem, *, dead_letter: bool) -> None:
        self._snapshots.drop(held)
        self._settlement.give_up(held, problem, dead_letter=dead_letter)

    def close(self) -> None:
        self._stopped = True
        self._snapshots.close()

    def start_pulling(self) -> None:
        if not self._started:
            self._started = True
            self._snapshots.open(self._pull)

    def _pull(self) -> None:
        if self._consumption is None and not self._stopped:
            self._consumption = self._lane.consume(
                subjects.flow_stream(self._plan.workspace, self._plan.flow),
                subjects.step_consumer(self._plan.deployment, self._step.name),
                credit=self._step.prefetch,
                on_deliveries=self._on_deliveries,
            )

    async def stop_pulling(self) -> None:
        self._stopped = True
        if self._consumption is not None:
            await self._consumption.stop()

    def extend(self, now: float, every_s: float) -> None:
        for held in self._held.values():
            held.extend(self._lane, now, every_s)

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        now = self.last_input_at = self._clock()
        self._counters["received"] += len(deliveries)
        fresh: list[HeldInput] = []
        all_held = self._held
        was_finished, saved_for = self._memory.finished_by(now), self._snapshots.applied
        for delivery in deliveries:
            sequence = delivery.stream_sequence
            if delivery.attempt > 1 or sequence <= self._newest or sequence <= self._redelivered_until:
                held = self._take_again(delivery, now)
                if held is not None:
                    fresh.append(held)
                continue
            self._newest = sequence
            try:
                envelope = decode_envelope(delivery.payload)
            except MalformedMessage as error:
                self._take_unreadable(delivery, str(error), now)
                continue
            message_id, execution_id = envelope.id, envelope.execution_id
            if message_id in all_held or message_id in saved_for or was_finished(message_id):
                self._take(delivery, envelope, now)
                continue
            if is_common(envelope, len(delivery.payload), message_id, execution_id):
                held = HeldInput(delivery, envelope, message_id, now, False, True, True, execution_id)
            else:
                waits = wants_reply(envelope)
                # What an error step leaves unanswered is looked at in the end.
                plain = not envelope.HasField("failure")
                held = HeldInput(delivery, envelope, message_id, now, waits, plain, False, execution_id)
                held.in_doubt = envelope.in_doubt
            all_held[message_id] = held
            if len(all_held) == 1:
                self._on_occupancy()
            fresh.append(held)
        if fresh:
            self.submit(fresh)

    def _take_again(self, delivery: Delivery, now: float) -> HeldInput | None:
        """What was delivered before, to whomever."""
        # First deliveries come in the order of the stream: one below another was made before, and the orchestrator let
        # the consumer begin anew since (a message that was acknowledged and not removed).
        brought_back = delivery.attempt == 1 and delivery.stream_sequence <= self._newest
        self._newest = max(self._newest, delivery.stream_sequence)
        if delivery.attempt == 1:
            delivery.attempt = 2  # the broker's own count began anew with the consumer
        self._counters["redelivered"] += 1
        try:
            envelope = decode_envelope(delivery.payload)
        except MalformedMessage as error:
            self._take_unreadable(delivery, str(error), now)
            return None
        return self._take(delivery, envelope, now, brought_back=brought_back)

    def _take(
        self, delivery: Delivery, envelope: Envelope, now: float, *, brought_back: bool = False
    ) -> HeldInput | None:
        """Takes what may be held or finished already."""
        message_id = envelope.id
        known = self._held.get(message_id)
        if known is not None:
            self._counters["duplicates"] += 1
            if known.delivery.stream_sequence == delivery.stream_sequence:
                self._hops.arrived(known)
                known.delivered_again(delivery)
                known.extended_at = now
            elif known.phase is Phase.ACKNOWLEDGING:
                # Too late to be acknowledged with it.
                self._settlement.acknowledge_again(delivery, self._release)
                return None
            else:
                known.also.append(delivery)
            self._release()
            return None
        if self._memory.is_finished(message_id, now):
            self._counters["duplicates"] += 1
            self._settlement.acknowledge_again(delivery, self._release)
            return None
        held = HeldInput(delivery, envelope, message_id, now, wants_reply(envelope))
        held.in_doubt = envelope.in_doubt
        if brought_back or (delivery.attempt > 1 and self._doubtful(delivery)):
            held.in_doubt = True
            self._letters.note_doubt(held)
        if self._snapshots.was_saved_for(message_id):
            # Done by a process that died before it could acknowledge; its reply, if any, went with it.
            self._counters["duplicates"] += 1
            self._hold(held)
            self._closing.close_with_error(held, REPLY_LOST)
            return None
        return self._hold(held)

    def _take_unreadable(self, delivery: Delivery, message: str, now: float) -> None:
        message_id = unreadable_id(delivery.message_id, delivery.stream_sequence, self._step.name)
        if message_id in self._held:
            self._release()
            return
        held = self._hold(HeldInput(delivery, Envelope(id=message_id), message_id, now, arrival_counted=True))
        self._counters["failed"] += 1
        problem = Problem("MALFORMED_MESSAGE", message)
        self._settlement.dead_letter_unreadable(delivery, held, problem)

    def _hold(self, held: HeldInput) -> HeldInput:
        self._held[held.message_id] = held
        if len(self._held) == 1:
            self._on_occupancy()
        return held

    def _settled(self, held: HeldInput) -> None:
        self._held.pop(held.message_id, None)
        self._counters["processed"] += not (held.dead or held.handed)
        if not self._early.give_back(held.message_id):
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
