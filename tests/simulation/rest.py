"""How a run ends: everything comes to rest, and what is left then tells what became of each message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.model import bucket_names
from headrace.model.deployment import decode_state
from headrace.model.route import decode_route
from headrace.wire.envelope import decode_dead_letter
from services.orchestrator.domain.flow_states import RUNS, FlowState
from tests.simulation.flow_drafts import FLOW, STREAM, WORKSPACE, Trigger
from tests.simulation.machines import Supervised

if TYPE_CHECKING:
    from tests.simulation.world import World

SETTLE_LIMIT_S = 400.0
RESTING = (FlowState.STOPPED, FlowState.RUNNING, FlowState.SUSPENDED, FlowState.SLEEPING)


class Rest:
    """Of one world, whose faults have stopped."""

    def __init__(self, world: World) -> None:
        self._world = world

    def unsettled(self) -> str:
        """What is not at rest yet; empty when everything is."""
        flow = self._world.flow()
        if flow.operation is not None or flow.overtaken:
            return f"an operation is on its way: {flow.operation or flow.overtaken}"
        if flow.state not in RESTING or flow.target:
            return f"the flow is {flow.state}, target {flow.target}"
        wanted = {flow.active} - {0}
        if flow.state == FlowState.SUSPENDED:  # what drained is held too
            wanted = set(flow.live)
        if set(flow.live) != wanted:
            return f"live are {flow.live}, wanted {sorted(wanted)}"
        deployments = {item.spec.deployment for item in self._world.agent.instances.values()}
        naps = self._world.idle_timeout_s is not None and flow.active != 0
        if naps and flow.state == FlowState.RUNNING:
            return "the flow does not sleep"
        if naps and flow.state == FlowState.SLEEPING and deployments:
            return f"instances of a flow that sleeps: {sorted(deployments)}"
        if (
            flow.state != FlowState.SLEEPING
            and deployments != wanted
            and not (flow.state == FlowState.SUSPENDED and deployments <= wanted)
        ):
            return f"instances of deployments {sorted(deployments)}, wanted {sorted(wanted)}"
        suspended = flow.state in (FlowState.SUSPENDED, FlowState.SLEEPING)  # or asleep: nobody has to work
        if not suspended and (
            idle := [item.spec.name for item in self._world.agent.instances.values() if not self._works(item)]
        ):
            return f"instances do not work: {idle}"
        if flow.active and not suspended and len(self._world.agent.instances) != self._replicas(flow.active):
            return f"{len(self._world.agent.instances)} instances, wanted {self._replicas(flow.active)}"
        stream = self._world.broker.streams.get(STREAM)
        consumers = {int(name[1:].partition("_")[0]) for name in stream.consumers} if stream else set()
        if consumers != wanted:
            return f"consumers of deployments {sorted(consumers)}, wanted {sorted(wanted)}"
        stored = self._world.stored_numbers()
        if flow.state in RUNS and stored:
            return f"messages wait: {dict(list(stored.items())[:5])}"
        open_operations = [item.id for item in self._world.operations() if not item.done]
        if open_operations:
            return f"operations are not done: {open_operations}"
        return ""

    async def settle(self) -> None:
        """Until everything is at rest, and stays so."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + SETTLE_LIMIT_S
        quiet = 0
        while quiet < 2:
            await asyncio.sleep(1.0)  # tidy: pace
            left = self.unsettled()
            quiet = 0 if left else quiet + 1
            if left and loop.time() > limit:
                self._world.violated(f"it does not settle: {left}")
                return

    def check(self) -> None:
        """Nothing is lost, invented or done twice, and what is left belongs to what runs."""
        world, laws = self._world, self._world.laws
        flow, ledger = world.flow(), laws.ledger
        stored = world.stored_numbers()
        for letter in world.dead_letters.messages.values():
            ledger.dead.add(int(decode_dead_letter(letter.payload).original.body))
        lost = ledger.accepted - ledger.done.keys() - stored.keys() - ledger.dead - ledger.dropped
        if lost:
            world.violated(f"messages are lost: {sorted(lost)[:10]}")
        if invented := ledger.done.keys() - ledger.attempted:
            world.violated(f"messages came from nowhere: {sorted(invented)[:10]}")
        if twice := sorted(number for number, count in ledger.done.items() if count > 1):
            world.violated(f"effects happened twice: {twice[:10]}")
        if (world.fenced or not laws.stale_switches) and len(set(laws.ingress_owners)) != len(laws.ingress_owners):
            world.violated(f"the ingress went back: {laws.ingress_owners}")
        self._check_keys()
        wanted = set(flow.live)
        pins = world.broker.bucket(bucket_names.pin_bucket(WORKSPACE))
        holders = {key.rpartition(".")[2] for key, (value, _) in pins.values.items() if value is not None}
        if {holder for holder in holders if holder.startswith("d")} != {f"d{number}" for number in wanted}:
            world.violated(f"pins of {sorted(holders)}, running is {sorted(wanted)}")
        entry = world.routes.read(FLOW)
        route = decode_route(entry.value or b"") if entry else None
        open_as = FlowState.RUNNING if flow.state in RUNS else flow.state
        if route is None or (route.state, route.epoch) != (open_as, flow.leader_epoch):
            world.violated(f"the route is {route}, the flow {flow.state} in epoch {flow.leader_epoch}")
        if flow.state in RUNS and flow.ingress != f"d{flow.active}":
            world.violated(f"the ingress belongs to {flow.ingress!r}, active is {flow.active}")

    def _check_keys(self) -> None:
        """Where every step that runs is keyed: effects of a key in the order in which its messages came, also across
        switches. Messages that a person moved, or that a stale switch misled, are behind; where the trigger changes,
        keys and slots do."""
        world, laws = self._world, self._world.laws
        moved = {number for number, incarnation in laws.ledger.deployments if incarnation}
        keyed = world.keyed == 2 or (world.keyed and world.triggers == Trigger.OWN)
        if not keyed or laws.stale_switches or world.triggers == Trigger.CHANGING:
            return
        for key, came in laws.entered.items():
            first = {number: place for place, number in reversed([*enumerate(came)])}
            went = [first[number] for number in laws.left.get(key, []) if number not in moved]
            if went != sorted(went):
                world.violated(f"{key} came as {came[:20]}, went as {laws.left[key][:20]}")

    @staticmethod
    def _works(supervised: Supervised) -> bool:
        life = supervised.sidecar.life if supervised.sidecar else None
        return life is not None and life.status.stage == "ACTIVE"

    def _replicas(self, deployment: int) -> int:
        entry = self._world.deployments.read(bucket_names.state_key(FLOW, deployment))
        return sum(decode_state(entry.value or b"").replicas.values()) if entry else 0
