"""One slot of a keyed step, as long as this instance owns it: what is pulled, in which order it is called, and what
became of it until it is committed and acknowledged.

The slot is taken (`SlotCommit.take`) at its first delivery: its consumer exists only once its former owner is done,
or gone. Deliveries are numbered; a hole means that one went elsewhere (lost with a connection, or pulled by a process
that should be dead), and the consumer begins anew. Bounded by its credit.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.ports import Consumption, Delivery, JetStreamLane
from services.sidecar.domain.retry_delay import republish_delay_s
from services.sidecar.domain.slot_order import Arrival, SlotOrder
from services.sidecar.held_input import HeldInput, Phase
from services.sidecar.keyed_snapshots import KeyedSnapshots
from services.sidecar.outbox import Blocked, Outgoing
from services.sidecar.slot_commit import SlotCommit, SlotTaken
from services.sidecar.slot_results import Result, ResultHost, SlotResults

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.commit_turns import CommitTurns
    from services.sidecar.timers import Timers

log = get_logger(__name__)

# Makes a durable begin anew; answers up to which stream sequence it had delivered before.
RestartConsumer = Callable[[str, str], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class SlotLease:
    """A slot, and the generation at which it got its owner."""

    slot: int
    generation: int


class SlotHost(ResultHost, Protocol):
    """The path that the slot belongs to."""

    def now(self) -> float:
        """Of the path's clock."""

    def read(self, slot: Slot, delivery: Delivery) -> tuple[HeldInput, str]:
        """The input of a delivery, and its key."""

    def admit(self, held: HeldInput) -> None:
        """It may be called."""

    def arrived_before(self, held: HeldInput) -> None:
        """It is held, and was just delivered once more."""

    def acknowledge_again(self, delivery: Delivery, done: Callable[[], None]) -> None:
        """It was committed before."""

    def changed(self, slot: Slot) -> None:
        """It holds its first input, or none any more, or it is over."""


class Slot:
    """`close` of a result must end in `settled`."""

    def __init__(
        self,
        lease: SlotLease,
        plan: DeploymentPlan,
        step: StepPlan,
        lane: JetStreamLane,
        host: SlotHost,
        restart_consumer: RestartConsumer,
        timers: Timers,
        tasks: asyncio.TaskGroup,
        counters: dict[str, int],
        turns: CommitTurns,
        *,
        credit: int,
        instance: str,
        retired: Callable[[], bool],
        no_responders: Callable[[], None],
    ) -> None:
        self.lease = lease
        self._lane, self._host, self._restart_consumer = lane, host, restart_consumer
        self._tasks, self._counters, self._credit = tasks, counters, credit
        self._stream = subjects.flow_stream(plan.workspace, plan.flow)
        self._consumer = subjects.slot_consumer(plan.deployment, step.name, lease.slot, lease.generation)
        cursor = subjects.cursor_subject(plan.workspace, plan.flow, plan.deployment, step.name, lease.slot)
        self.snapshots = KeyedSnapshots(plan, step, lane)
        self._results = SlotResults(host, on_stored=self._stored, on_lost=self.lost)
        self._commit = SlotCommit(
            lane,
            self._stream,
            cursor,
            (lease.generation, f"{instance}/{uuid.uuid4().hex[:12]}"),
            self._results,
            timers,
            tasks,
            counters,
            turns,
            retired=retired,
            no_responders=no_responders,
        )
        self._held: dict[int, HeldInput] = {}
        self._early: list[Delivery] = []
        self.last_input_at = 0.0
        self._consumption: Consumption | None = None
        self._epoch = 0
        self._redelivered_until = 0
        self._restarts = 0
        self._taken = self._taking = self._recovering = False
        self._leaving = False
        self.lost_because = ""

    # Life

    @property
    def held(self) -> int:
        return len(self._held) + len(self._early) + self._results.late_emits

    @property
    def oldest_unix_ns(self) -> int:
        """When the oldest of what is held was stored; 0 while nothing is."""
        return min((held.delivery.stored_at_unix_ns for held in self._held.values()), default=0)

    @property
    def held_back(self) -> int:
        """Of those: all, where one is stuck and the others have come as far as they can: commits keep the order."""
        phases = [held.phase for held in self._held.values()]
        stuck = phases.count(Phase.STUCK)
        return (
            self.held
            if stuck and not {Phase.RUNNING, Phase.RETRYING, Phase.ROUTING, Phase.STORING} & {*phases}
            else stuck
        )

    def inputs(self) -> list[HeldInput]:
        """Of those: what has been read."""
        return list(self._held.values())

    def blocked(self) -> list[Blocked]:
        """Receivers that its outputs wait for."""
        return self._commit.blocked()

    @property
    def late_emits(self) -> int:
        """Not stored yet."""
        return self._results.late_emits

    @property
    def over(self) -> bool:
        """Nothing is pulled and nothing is held."""
        stopped = self._leaving and self._consumption is None and not (self._recovering or self._taking)
        return bool(self.lost_because) or (stopped and not self.held and not self._commit.busy)

    @property
    def problem(self) -> str:
        if self.lost_because:
            return f"slot {self.lease.slot} was taken by another owner: {self.lost_because}"
        return self._commit.problem or (self._consumption.problem if self._consumption is not None else "")

    def start(self) -> None:
        self._recovering = True
        self._tasks.create_task(self._consume(), name=f"slot {self.lease.slot}")

    def leave(self) -> asyncio.Task[None] | None:
        """Pulls no more (when the answered task is over); what is held is finished."""
        if self._leaving:
            return None
        self._leaving = True
        return self._tasks.create_task(self._stop_pulling(), name=f"slot {self.lease.slot} leaves")

    def drop(self) -> None:
        """Ends at once: what is held is delivered again, to whoever is next."""
        self._leaving = True
        self._commit.end()
        self._early.clear()

    def extend(self, now: float, every_s: float) -> None:
        for held in self._held.values():
            held.extend(self._lane, now, every_s)

    async def _stop_pulling(self) -> None:
        if self._consumption is not None:
            consumption = self._consumption
            await consumption.stop()  # bounded by the lane; hands over what has arrived
            if self._consumption is consumption:
                self._consumption = None
        self._host.changed(self)

    async def _consume(self) -> None:
        """Lets the consumer begin anew, unless it never began, and pulls from it."""
        self._epoch += 1
        await self._stop_pulling()
        before = await self._restart_consumer(self._stream, self._consumer)
        self._redelivered_until = max(self._redelivered_until, before)
        self._results.order.restart()
        self._recovering = False
        if self._leaving or self.lost_because:
            self._host.changed(self)
            return
        self._consumption = self._lane.consume(
            self._stream,
            self._consumer,
            credit=self._credit,
            on_deliveries=partial(self._on_deliveries, self._epoch),
        )

    async def _recover(self) -> None:
        self._recovering = True
        self._counters["slot_restarts"] += 1
        self._early.clear()
        if not await self._commit.still_ours():
            self._recovering = False
            self.lost("its cursor was written by another owner")
            return
        self._restarts += 1
        await asyncio.sleep(republish_delay_s(min(self._restarts, 6)) / 4)
        await self._consume()

    # Intake

    def _on_deliveries(self, epoch: int, deliveries: list[Delivery]) -> None:
        self.last_input_at = self._host.now()
        if epoch != self._epoch or self.lost_because or self._recovering:
            return
        if self._leaving and not self._taken:
            return
        if not self._taken:
            self._early += deliveries
            if not self._taking:
                self._taking = True
                self._tasks.create_task(self._take(), name=f"slot {self.lease.slot} taken")
            self._host.changed(self)
            return
        for delivery in deliveries:
            if not self._arrived(delivery):
                self._recovering = True
                self._tasks.create_task(self._recover(), name=f"slot {self.lease.slot} anew")
                return

    async def _take(self) -> None:
        try:
            self._results.order = SlotOrder(await self._commit.take())
            await self.snapshots.open()
        except SlotTaken as error:
            self._taking = False
            self.lost(str(error))
            return
        self._taken, self._taking = True, False
        early, self._early = self._early, []
        self._on_deliveries(self._epoch, early)
        self._host.changed(self)

    def _arrived(self, delivery: Delivery) -> bool:
        """False at a gap."""
        sequence = delivery.stream_sequence
        if delivery.attempt == 1 and sequence <= self._redelivered_until:
            delivery.attempt = 2  # the broker's own count began anew with the consumer
        known = self._held.get(sequence)
        found = None
        order = self._results.order
        if known is None and not order.is_covered(sequence):
            found = self._host.read(self, delivery)
        holes = order.holes
        arrival = order.arrive(sequence, delivery.consumer_sequence, found[1] if found is not None else "")
        if arrival is Arrival.GAP:
            return False
        if order.holes > holes:
            self._counters["slot_holes"] += 1
            log.warning("a message was passed over, and is taken in now", slot=self.lease.slot, sequence=sequence)
        self._restarts = 0
        self._counters["received"] += 1
        self._counters["redelivered"] += delivery.attempt > 1
        if known is not None:
            self._counters["duplicates"] += 1
            self._host.arrived_before(known)
            known.delivered_again(delivery)
            known.epoch = self._epoch
            if arrival is Arrival.COVERED:
                self._host.acknowledge_again(delivery, lambda: None)
        elif found is None:
            self._counters["duplicates"] += 1
            self._host.acknowledge_again(delivery, partial(self._release, self._epoch))
        else:
            held = found[0]
            held.epoch = self._epoch
            self._held[sequence] = held
            if len(self._held) == 1:
                self._host.changed(self)
            if arrival is not Arrival.WAIT:
                self._admit(held)
        return True

    def _admit(self, held: HeldInput) -> None:
        """It may be called, once the snapshot of its key is known."""
        if self.snapshots.is_known(held.key):
            self._host.admit(held)
        else:
            self._tasks.create_task(self._admit_later(held), name=f"snapshot of slot {self.lease.slot}")

    async def _admit_later(self, held: HeldInput) -> None:
        await self.snapshots.load(held.key)
        self._host.admit(held)

    def _release(self, epoch: int) -> None:
        if epoch == self._epoch and self._consumption is not None:
            self._consumption.release(1)

    # Outcome

    def owns(self, held: HeldInput) -> bool:
        """False for an input that was dropped with the slot."""
        return not self.lost_because and self._held.get(held.delivery.stream_sequence) is held

    def result(self, result: Result) -> None:
        """What an input became, for good."""
        sequence = result.held.delivery.stream_sequence
        self._results.add(sequence, result)
        following = self._results.order.ended(sequence)
        if following is not None:
            self._admit(self._held[following])
        self._commit.pump()

    def late(self, outgoing: Outgoing) -> bool:
        """An emit that came after its call's end goes with the next batch; False when the slot is over."""
        if self.over:
            return False
        self._results.add_late(outgoing)
        self._commit.pump()
        return True

    def settled(self, held: HeldInput) -> None:
        """Its acknowledgement is confirmed, or was given up."""
        if self._held.pop(held.delivery.stream_sequence, None) is not None:
            self._release(held.epoch)
        if not self._held:
            self._host.changed(self)

    def _stored(self) -> None:
        if not self.held:
            self._host.changed(self)

    def lost(self, cause: str) -> None:
        """Somebody else owns the slot: what is held is theirs."""
        if self.lost_because:
            return
        log.warning("slot lost", slot=self.lease.slot, generation=self.lease.generation, cause=cause)
        self.lost_because = cause
        self._counters["slots_lost"] += 1
        self._commit.end()
        self._held.clear()
        self._results.clear()
        self._early.clear()
        self.leave()
        self._host.changed(self)
