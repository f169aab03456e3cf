"""A sidecar's data plane in virtual time: pulls one message at a time from its durable, or from each of its slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import nats.errors

from headrace.model import subjects
from headrace.model.deployment import DeploymentPlan, StepPlan
from headrace.model.message_ids import output_message_id
from headrace.model.slots import keying
from headrace.wire.envelope import decode_envelope
from services.sidecar.slot import SlotLease
from tests.simulation.remote_broker import RemoteBroker
from tests.support.memory_broker import ApiRefusal
from tests.support.memory_stream import Stored

if TYPE_CHECKING:
    from tests.simulation.machines import Sidecar

PULL_S = 2.0
REPUBLISH_S = 0.1
# Instead of how many deliveries of a durable were taken.
NOT_COUNTED, ANEW = -2, -1


class Plane:
    """Works, publishes to every receiver until stored, acknowledges. A slot's owner takes it from where it is: it
    begins its durable anew, and again whenever a delivery may have been lost on its way."""

    def __init__(
        self,
        sidecar: Sidecar,
        plan: DeploymentPlan,
        step: StepPlan,
        on_occupancy: Callable[[], None],
        on_leases: Callable[[], None],
    ) -> None:
        self._sidecar = sidecar
        self._world = sidecar.world
        self._plan = plan
        self._step = step
        self._on_occupancy = on_occupancy
        self._on_leases = on_leases
        self._running = False
        self._pulling = False
        self._stopped = False
        self._owned: set[SlotLease] = set()
        self._pulled: set[SlotLease] = set()
        self._stream = subjects.flow_stream(plan.workspace, plan.flow)
        self.held = self.held_back = 0
        self.problem = self.problem_reason = ""
        self.counters: dict[str, int] = {}
        stuck = SimpleNamespace(present=[])
        self.loop = SimpleNamespace(problem="", component_problem="", stuck=stuck, resume=lambda resumed: None)
        self.wake = asyncio.Event()

    @property
    def drained(self) -> bool:
        return self.held == 0

    @property
    def leases(self) -> list[SlotLease]:
        """What it pulls from or still holds something of."""
        return sorted(self._owned | self._pulled, key=lambda lease: (lease.slot, lease.generation))

    def own(self, leases: Iterable[SlotLease]) -> None:
        if self._step.keyed and self._owned != (owned := set(leases)):
            self._owned = owned
            self._begin()
            self.wake.set()
            self._on_leases()

    def component_ready(self, process: Any, stream: Any) -> None:
        self._running = True
        self.wake.set()

    def component_lost(self, cause: str) -> bool:
        self._running = False
        return False

    def activate(self) -> None:
        if not self._pulling:
            self._pulling = True
            self._begin()

    def _begin(self) -> None:
        if not self._pulling or self._stopped:
            return
        if not self._step.keyed:
            durable = subjects.step_consumer(self._plan.deployment, self._step.name)
            self._sidecar.host.spawn(self._pull(durable, None))
        for lease in sorted(self._owned - self._pulled, key=lambda item: item.slot):
            self._pulled.add(lease)
            durable = subjects.slot_consumer(self._plan.deployment, self._step.name, lease.slot, lease.generation)
            self._sidecar.host.spawn(self._pull(durable, lease))

    def drain(self) -> None:
        """A puller goes on."""

    def give_way(self) -> None:
        self._stopped = True
        self.wake.set()

    async def finish(self, grace_s: float) -> None:
        self._stopped = True
        await asyncio.sleep(min(grace_s, 0.01) if self.held else 0)  # tidy: pace

    async def _pull(self, durable: str, lease: SlotLease | None) -> None:
        waiting = self._world.pullers.setdefault((self._stream, self._step.name), {})
        waiting[self] = None
        taken = ANEW if lease is not None else NOT_COUNTED
        try:
            while not self._stopped and (lease is None or lease in self._owned):
                self.wake.clear()
                message: Stored | None = None
                if self._running:
                    message, taken = await self._next(durable, taken)
                if message is not None:
                    if not await self._handle(durable, message) and lease is not None:
                        taken = ANEW
                    continue
                try:
                    async with asyncio.timeout(PULL_S):
                        await self.wake.wait()
                except TimeoutError:
                    continue
        finally:
            if lease is None or self._pulled == {lease}:
                waiting.pop(self, None)
            if lease is not None:
                self._pulled.discard(lease)
                self._on_leases()

    async def _next(self, durable: str, taken: int) -> tuple[Stored | None, int]:
        """The next message, and how many were taken of the durable. A hole in that number (a delivery was lost on
        its way, or asked for by a call that came late) means that a slot's durable has to be begun anew."""
        world, link, stream = self._world, self._sidecar.link, self._stream
        try:
            if taken == NOT_COUNTED:
                return await link.call(lambda: world.broker.take(stream, durable), PULL_S), taken
            if taken == ANEW:
                await link.call(lambda: world.take_slot(stream, durable, self), PULL_S)
                taken = 0
            message, number = await link.call(lambda: world.broker.take_numbered(stream, durable), PULL_S)
        except (ApiRefusal, TimeoutError):
            return None, taken if taken == NOT_COUNTED else ANEW
        if number != taken + (message is not None):
            return None, ANEW
        if message is not None:
            world.laws.taken(durable, self._sidecar.spec.replica)
        return message, number

    async def _handle(self, durable: str, message: Stored) -> bool:
        """False when the component died with it, or it was not committed: it is delivered again."""
        world, link = self._world, self._sidecar.link
        self.held += 1
        self._on_occupancy()
        try:
            world.laws.handling(message, self._plan, self._step, self._sidecar.digest)
            work_s = world.rng.expovariate(200.0) if world.rng.random() < 0.95 else world.rng.uniform(0.5, 3.0)
            await asyncio.sleep(work_s)  # tidy: pace
            if not self._running:
                return False
            for receiver in self._step.receivers:
                await self._publish(message, receiver)
            while True:
                try:
                    return await link.call(lambda: self._ack(durable, message), PULL_S)
                except TimeoutError:
                    continue
        finally:
            self.held -= 1
            self._on_occupancy()

    def _ack(self, durable: str, message: Stored) -> bool:
        """False where the slot's cursor is another process's by now, so that what this one commits is refused."""
        if self._step.keyed and self._world.takers.get(durable) is not self:
            return False
        self._world.ack(self._stream, durable, message, self._step, self._plan)
        return True

    async def _publish(self, message: Stored, receiver: str) -> None:
        plan, world = self._plan, self._world
        own = subjects.deployment_owner(plan.deployment)
        envelope = decode_envelope(message.payload)
        envelope.parent_id = envelope.id
        envelope.id = identifier = output_message_id(envelope.id, self._step.name, "0", receiver, envelope.incarnation)
        step = plan.step(receiver)
        slot = keying(step.key, step.slots).place(envelope.headers, envelope.body, identifier).slot
        subject = subjects.data_subject(plan.workspace, plan.flow, own, receiver, slot)
        payload = envelope.SerializeToString()
        remote = RemoteBroker(self._sidecar.link, world.broker)
        while True:
            try:
                answer = await remote.request(subject, payload, PULL_S, headers={"Nats-Msg-Id": identifier})
                if b'"error"' not in answer.data:
                    return
            except nats.errors.NoRespondersError:
                await self._sidecar.plans_read()
                if self._sidecar.plans.retired:
                    world.laws.dead_letter(message)
                    return
            except nats.errors.TimeoutError:
                pass
            await asyncio.sleep(REPUBLISH_S)  # tidy: pace
