"""How inputs of a keyed step come and are settled, whichever of the leased slots they are of.

At most `prefetch` inputs of all slots together are with the component; what else is held waits for its turn, its key
or its commit.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.model.limits import MAX_BATCH_OUTPUTS
from headrace.model.message_ids import unreadable_id
from headrace.model.slots import keying
from headrace.model.step_snapshot import StepSnapshot
from headrace.ports import Delivery, JetStreamLane, Stored
from headrace.wire.envelope import Envelope, MalformedMessage, decode_envelope
from services.sidecar.closing import REPLY_LOST
from services.sidecar.commit_turns import CommitTurns
from services.sidecar.dead_letters import DeadLetters, failed_attempt
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.sender_memory import SenderMemory
from services.sidecar.error_step import error_step_of
from services.sidecar.held_input import HeldInput, Phase, wants_reply
from services.sidecar.leased_slots import LeasedSlots
from services.sidecar.outbox import Outgoing
from services.sidecar.outputs import LateContext, OutputMaker, late_context
from services.sidecar.settlement import MAX_LATE
from services.sidecar.slot import RestartConsumer, Slot, SlotLease
from services.sidecar.slot_results import Result
from services.sidecar.stimulus_filing import closing_of

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.hop_phases import HopPhases
    from services.sidecar.outbox import Blocked, Outbox
    from services.sidecar.reply_sender import ReplySender
    from services.sidecar.timers import Timers

log = get_logger(__name__)

# Held by all slots of an instance together, where every slot is its own.
MAX_HELD = 1_024


class SlotPath:
    """Implements `InputPath` and `SlotHost`. `on_occupancy` as in PlainPath; `on_leases` when the leases changed that
    `leases` shows."""

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
        tasks: asyncio.TaskGroup,
        counters: dict[str, int],
        restart_consumer: RestartConsumer,
        *,
        instance: str,
        retired: Callable[[], bool],
        no_responders: Callable[[], None],
        on_occupancy: Callable[[], None],
        on_leases: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._step, self._outbox = plan, step, outbox
        self._hops, self._timers, self._counters = hops, timers, counters
        self._clock = clock
        self._keying = keying(step.key, step.slots)
        self._memory = SenderMemory(plan.duplicate_window_s)
        self._maker = OutputMaker(plan, step)
        self._letters = DeadLetters(plan, step, outbox, counters)
        self._error_step = error_step_of(plan, step, counters)
        ends = (plan, step, lane, replies, self._memory, hops, counters)
        self._closing = closing_of(*ends, outbox=outbox, clock=clock, on_settled=self._settled)
        make_slot = partial(
            Slot,
            plan=plan,
            step=step,
            lane=lane,
            host=self,
            restart_consumer=restart_consumer,
            timers=timers,
            tasks=tasks,
            counters=counters,
            turns=CommitTurns(lane, timers),
            credit=max(1, min(step.prefetch, MAX_HELD // step.slots)),
            instance=instance,
            retired=retired,
            no_responders=no_responders,
        )
        self._leased = LeasedSlots(make_slot, on_occupancy=on_occupancy, on_leases=on_leases)
        self._callable: deque[HeldInput] = deque()
        self._with_component: set[int] = set()
        self._flushing = False
        self._lost_replies: dict[int, tuple[HeldInput, Callable[[], None]]] = {}

    # What is held

    @property
    def held(self) -> int:
        return sum(slot.held for slot in self._leased.slots)

    @property
    def oldest_unix_ns(self) -> int:
        return min((oldest for slot in self._leased.slots if (oldest := slot.oldest_unix_ns)), default=0)

    @property
    def held_back(self) -> int:
        return sum(slot.held_back for slot in self._leased.slots)

    def inputs(self) -> list[HeldInput]:
        return [held for slot in self._leased.slots for held in slot.inputs()]

    def blocked(self) -> list[Blocked]:
        return [edge for slot in self._leased.slots for edge in slot.blocked()]

    @property
    def last_input_at(self) -> float:
        return max((slot.last_input_at for slot in self._leased.slots), default=0.0)

    def now(self) -> float:
        return self._clock()

    @property
    def problem(self) -> str:
        return self._leased.problem

    @property
    def lost_a_slot(self) -> bool:
        """A slot that this instance is still told to own was taken by another."""
        return self._leased.lost_one

    @property
    def leases(self) -> list[SlotLease]:
        """Pulled from, or something of them is still held."""
        return self._leased.leases

    def own(self, leases: Iterable[SlotLease]) -> None:
        """These are all that this instance owns now; the others are finished and let go."""
        self._leased.own(leases)

    def start_pulling(self) -> None:
        self._leased.start_pulling()

    def close(self) -> None:
        """Ends at once: what is held is delivered again."""
        self._leased.close()

    async def stop_pulling(self) -> None:
        await self._leased.stop_pulling()

    def changed(self, slot: Slot) -> None:
        """See SlotHost."""
        self._leased.changed(slot)

    def extend(self, now: float, every_s: float) -> None:
        for slot in self._leased.slots:
            slot.extend(now, every_s)

    # Intake

    def read(self, slot: Slot, delivery: Delivery) -> tuple[HeldInput, str]:
        """See SlotHost."""
        now = self._clock()
        try:
            envelope = decode_envelope(delivery.payload)
        except MalformedMessage as error:
            message_id = unreadable_id(delivery.message_id, delivery.stream_sequence, self._step.name)
            held = HeldInput(delivery, Envelope(id=message_id), message_id, now, slot=slot, arrival_counted=True)
            held.refused = Problem("MALFORMED_MESSAGE", str(error))
            self._counters["failed"] += 1
            return held, message_id
        placement = self._keying.place(envelope.headers, envelope.body, envelope.id)
        self._counters["keyless"] += placement.keyless
        held = HeldInput(delivery, envelope, envelope.id, now, wants_reply(envelope), slot=slot)
        held.in_doubt = envelope.in_doubt
        held.key = placement.key
        return held, placement.key

    def admit(self, held: HeldInput) -> None:
        """See SlotHost."""
        self._callable.append(held)
        self._flush_soon()

    def arrived_before(self, held: HeldInput) -> None:
        """See SlotHost."""
        self._hops.arrived(held)

    def acknowledge_again(self, delivery: Delivery, done: Callable[[], None]) -> None:
        """See SlotHost. A reply that its former owner owed cannot be made again; its caller is told so."""
        try:
            envelope = decode_envelope(delivery.payload)
        except MalformedMessage:
            self._closing.acknowledge_again(delivery, done)
            return
        held = HeldInput(delivery, envelope, envelope.id, self._clock(), wants_reply(envelope))
        held.arrival_counted = True
        if not held.wants_reply or self._memory.is_finished(held.message_id, self._clock()):
            self._closing.acknowledge_again(delivery, done)
            return
        self._lost_replies[id(held)] = (held, done)
        self._closing.close_with_error(held, REPLY_LOST)

    def _flush_soon(self) -> None:
        # One call for all that may go in the same turn of the loop.
        if not self._flushing:
            self._flushing = True
            self._timers.later(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        batch: list[HeldInput] = []
        while self._callable and len(self._with_component) < self._step.prefetch:
            held = self._callable.popleft()
            if not held.slot.owns(held):
                continue
            if held.refused is not None:
                held.problem = held.refused
                self._letters.put_unreadable(held.delivery, held, held.refused, partial(self._put_away, held))
            elif self._memory.is_finished(held.message_id, self._clock()):
                self._counters["duplicates"] += 1
                self._put_away(held)
            else:
                self._with_component.add(id(held))
                batch.append(held)
        if batch:
            self.submit(batch)

    def _put_away(self, held: HeldInput) -> None:
        """Nothing but its acknowledgement is left to do, in its turn."""
        if held.slot.owns(held):
            held.slot.result(Result(held, [], partial(self._closing.acknowledge, held)))

    # Outcome

    def snapshot_of(self, held: HeldInput) -> StepSnapshot | None:
        """See InputPath."""
        state: StepSnapshot = held.slot.snapshots.state_of(held.key)
        return state if state.revision else None

    def save(self, held: HeldInput) -> Problem | None:
        """See InputPath."""
        problem: Problem | None = held.slot.snapshots.save(held) if held.slot.owns(held) else None
        return problem

    def deliver(self, held: HeldInput) -> None:
        """See InputPath."""
        held.phase = Phase.SETTLING
        context = late_context(held)
        messages: list[Outgoing] = []
        for index, emit in enumerate(held.outputs):
            messages += self._maker.make(context, index, emit, _ignore, _ignore)
        problem = self._too_many(messages, len(held.snapshots))
        if problem is not None:
            held.attempts.append(failed_attempt(held.attempt, problem))
            self._counters["failed"] += 1
            self.give_up(held, problem, dead_letter=True)
            return
        if self._called(held):
            self._counters["emitted"] += len(messages)
            held.slot.result(Result(held, messages, partial(self._closing.close, held)))

    def deliver_rows(self, rows: list[HeldInput]) -> list[HeldInput]:
        """See InputPath. No input of a slot is plain."""
        return rows

    def give_up(self, held: HeldInput, problem: Problem, *, dead_letter: bool) -> None:
        """See InputPath. The dead letter, whose id is the same whoever writes it, comes before the commit; what goes to
        the error step is a part of it."""
        held.phase = Phase.SETTLING
        held.outputs, held.reply = [], None
        held.slot.snapshots.take_back(held)
        if not self._called(held):
            return
        messages: list[Outgoing] = []
        close = partial(self._closing.close_with_error, held, problem)
        if dead_letter and self._error_step is not None:
            given = self._error_step.hand_over(held, problem, _ignore, _ignore)
            messages, close, dead_letter = [given.outgoing], partial(self._closing.acknowledge, held), given.letter
        after = partial(self._gave_up, held, messages, close)
        if dead_letter:
            self._letters.put_input(held, problem, after)
        else:
            after()

    def publish_late(self, context: LateContext, emit: Any) -> None:
        """See InputPath. Bounded as in a plain step."""
        if sum(slot.late_emits for slot in self._leased.slots) >= MAX_LATE:
            self._counters["late_refused"] += 1
            return
        index = context.next_index
        context.next_index += 1
        context.input_stored_at_unix_ns = 0
        for outgoing in self._maker.make(context, index, emit, _ignore, self._late_refused):
            self._counters["emitted_late"] += 1
            if not context.slot.late(outgoing):
                self._outbox.put(outgoing)

    def late_context(self, held: HeldInput) -> LateContext:
        """See InputPath."""
        context = late_context(held)
        context.slot = held.slot
        return context

    def stored_output(self, held: HeldInput, outgoing: Outgoing) -> None:
        """See SlotHost."""
        self._hops.output_written(held, outgoing)

    def dead_letter_output(self, outgoing: Outgoing, problem: Problem, after: Callable[[], None]) -> None:
        """See SlotHost."""
        self._letters.put_output(outgoing, problem, after)

    def _called(self, held: HeldInput) -> bool:
        """Its call is over; False when its slot was lost meanwhile: then nothing of it counts."""
        self._with_component.discard(id(held))
        if self._callable:
            self._flush_soon()
        return bool(held.slot.owns(held))

    def _gave_up(self, held: HeldInput, messages: list[Outgoing], close: Callable[[], None]) -> None:
        if held.slot.owns(held):
            held.slot.result(Result(held, messages, close))

    def _too_many(self, messages: list[Outgoing], snapshots: int) -> Problem | None:
        if len(messages) + snapshots > MAX_BATCH_OUTPUTS:
            text = f"{len(messages)} messages for one input; a keyed step stores at most {MAX_BATCH_OUTPUTS} at once"
            return Problem("OUTPUT_REFUSED", text)
        limit = self._plan.max_waiting
        if len(messages) > limit:
            subject, most = Counter(outgoing.subject for outgoing in messages).most_common(1)[0]
            if most > limit:
                text = f"{most} messages for one input to {subject}, which takes {limit} (max_waiting)"
                return Problem("OUTPUT_REFUSED", text)
        return None

    def _late_refused(self, outgoing: Outgoing, problem: Problem) -> None:
        self._letters.put_output(outgoing, problem, _nothing)

    def _settled(self, held: HeldInput) -> None:
        lost_reply = self._lost_replies.pop(id(held), None)
        if lost_reply is not None:
            lost_reply[1]()
            return
        self._counters["processed"] += not (held.dead or held.handed)
        held.slot.settled(held)


def _ignore(outgoing: Outgoing, answer: Stored | Problem) -> None:
    del outgoing, answer


def _nothing() -> None:
    pass
