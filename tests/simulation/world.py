"""One simulated mesh: what runs, what comes in, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

from headrace.edge.assets_transport import AssetsTransport
from headrace.edge.ingress_publisher import IngressPublisher
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.model import bucket_names, subjects
from headrace.model.deployment import DeploymentPlan, StepPlan, decode_plan, decode_state
from headrace.model.errors import Unavailable
from headrace.model.flow_spec import FlowSpec
from headrace.model.message_ids import execution_id, first_message_id, stimulus_id
from headrace.model.route import Route, decode_route
from headrace.model.slots import keying
from headrace.ports import LaneFull, PublishRefused, PublishUnknown, ReadFailed
from headrace.wire.envelope import Envelope
from services.orchestrator.domain.documents import FlowDocument, OperationDocument, decode, flow_key
from services.orchestrator.domain.leadership import LeaseTerms
from services.orchestrator.pin_sweeper import sweep_pins
from tests.simulation.ears import HEARD, Ear
from tests.simulation.faults import Faults, Network
from tests.simulation.flow_drafts import FLOW, STREAM, WORKSPACE, Trigger, spec
from tests.simulation.laws import Laws
from tests.simulation.ledger import is_ours, number_of
from tests.simulation.links import Host, Link
from tests.simulation.machines import Agent
from tests.simulation.orchestrators import Orchestrator, Registry
from tests.simulation.planes import Plane
from tests.simulation.remote_broker import RemoteBroker
from tests.support.memory_broker import MemoryBroker
from tests.support.memory_bucket import MemoryBucket, matches
from tests.support.memory_stream import Stored, Stream

KEYS = 4


class World:
    """A flow of three steps, two orchestrators, one agent, a registry and a broker."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.trace: list[str] = []
        self.violations: list[str] = []
        loop = asyncio.get_running_loop()
        self.network = Network(self.rng, Faults.draw(self.rng))
        self.broker = MemoryBroker(loop.time)
        self.laws = Laws(self)
        self.broker.on_stored = self._stored
        self.broker.on_config = self.laws.configured
        self.broker.on_purged = self.laws.purged
        self.registry = Registry()
        self.hosts: dict[str, Host] = {}
        self.pullers: dict[tuple[str, str], dict[Plane, None]] = {}
        # Which steps are keyed, by seed: none, all after the trigger, all.
        self.keyed = seed % 3
        # Whether the stream itself says who owns the ingress, as on a cluster, or its transform does.
        self.fenced = seed % 5 == 0
        # Whether the trigger runs a process: it does, it does not (1, 3), or each draft says otherwise (5).
        self.triggers = {1: Trigger.OWN, 3: Trigger.OWN, 5: Trigger.CHANGING}.get(seed % 7, Trigger.PROCESS)
        # How long steps have nothing to do before they sleep; None: the flow is real-time.
        self.idle_timeout_s = {2: 0.0, 4: 1.0}.get(seed % 6)
        self.ears: list[Ear] = []
        self._known_route: Route | None = None
        self._drafts = 0
        self.takers: dict[str, Plane] = {}
        self._pids = 0
        self._background: set[asyncio.Task[Any]] = set()
        self.lease_bucket = MemoryBucket("lease", ttl_s=LeaseTerms().ttl, clock=loop.time)
        self.dead_letters = Stream({"subjects": [subjects.dead_letter_filter(WORKSPACE, FLOW)]})
        self.broker.streams[subjects.dead_letter_stream(WORKSPACE, FLOW)] = self.dead_letters
        self.agent = Agent(self)
        self.hosts["agent"] = self.agent.host
        self.agent.boot()
        self.orchestrators = [Orchestrator(self, name, self.rng.uniform(-2.0, 2.0)) for name in ("left", "right")]
        self.flows = self.broker.bucket(bucket_names.flow_bucket(WORKSPACE))
        self.deployments = self.broker.bucket(bucket_names.deployment_bucket(WORKSPACE))
        self.deployments.on_write = self.laws.deployment_written
        self.routes = self.broker.bucket(bucket_names.route_bucket(WORKSPACE))
        self.routes.on_write = self.laws.route_written
        for orchestrator in self.orchestrators:
            orchestrator.boot()

    # Small things.

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def say(self, what: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():9.4f} {what}")

    async def pause(self, about_s: float) -> None:
        await asyncio.sleep(about_s * (0.5 + self.rng.random()))  # tidy: pace

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def violated(self, law: str) -> None:
        self.say(f"LAW BROKEN {law}")
        self.violations.append(law)

    # What the broker and sidecars tell.

    def _stored(self, stream: str, message: Stored) -> None:
        if stream != STREAM:
            return
        place = subjects.parse_data_subject(message.subject)
        if is_ours(message.subject):
            return
        self.laws.stored(message)
        for plane in self.pullers.get((stream, place.step), {}):
            plane.wake.set()
        for ear in [ear for ear in self.ears if matches(ear.subject, message.subject)]:
            self.ears.remove(ear)
            if not ear.link.dead and self.rng.random() < HEARD:
                self.background(ear.hear(self.rng.uniform(0.0, 0.05)))

    def ack(self, stream: str, durable: str, message: Stored, step: StepPlan, plan: DeploymentPlan) -> None:
        """A sidecar acknowledges an input."""
        held = self.broker.streams.get(stream)
        there = held is not None and message.sequence in held.messages
        acknowledged = self.broker.ack(stream, durable, message.sequence)
        gone = held is None or message.sequence not in held.messages
        if there and acknowledged and gone:
            self.laws.effect(message, step, plan)

    def take_slot(self, stream: str, durable: str, plane: Plane) -> None:
        """A process begins a slot's durable anew; from then on only its commits count."""
        self.broker.reset(stream, durable)
        self.takers[durable] = plane

    # Traffic.

    async def traffic(self, until_s: float) -> None:
        """A gateway: repeats a stimulus under one id until the broker has it, or the flow does not take it."""
        remote = RemoteBroker(Link(self.network, "gateway"), self.broker)
        gateway = IngressPublisher(AssetsTransport(JetStreamAssets(remote, timeout_s=1.0)), WORKSPACE)
        number = 0
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await self.pause(self.rng.choice((0.01, 0.1, 0.8)))
            number += 1
            await self._inject(gateway, number)

    async def _inject(self, gateway: IngressPublisher, number: int) -> None:
        stimulus = stimulus_id(FLOW, "webhook", str(number))
        route = self._route()
        if route is None or not route.trigger:
            return
        identifier = first_message_id(stimulus, route.trigger)
        self.laws.stimuli.add(identifier)
        envelope = Envelope(id=identifier, execution_id=execution_id(stimulus), body=str(number).encode())
        envelope.headers["key"] = f"k{number % KEYS}"
        slot = keying(route.key, route.slots).place(envelope.headers, envelope.body, identifier).slot
        self.laws.ledger.attempted.add(number)
        for _ in range(5):
            try:
                await gateway.publish(
                    FLOW, route.trigger, slot, envelope.SerializeToString(), fenced=self.fenced, message_id=identifier
                )
                self.laws.ledger.accepted.add(number)
                return
            except PublishRefused:
                return
            except PublishUnknown:
                await self.pause(0.05)
            except (Unavailable, ReadFailed, LaneFull):
                continue

    def _route(self) -> Route | None:
        """What a gateway knows, now and then a message too late."""
        if self._known_route is None or self.triggers != Trigger.CHANGING or self.rng.random() < 0.5:
            entry = self.routes.read(FLOW)
            self._known_route = decode_route(entry.value or b"") if entry else None
        return self._known_route

    # Documents.

    def draw_spec(self, replicas: int) -> FlowSpec:
        """What a person makes the draft."""
        own = self.triggers == Trigger.OWN
        if self.triggers == Trigger.CHANGING:
            self._drafts += 1
            own = self._drafts % 2 > 0
        return spec(replicas, self.keyed, own_trigger=own, idle_timeout_s=self.idle_timeout_s)

    def flow(self) -> FlowDocument:
        entry = self.flows.read(flow_key(FLOW))
        assert entry is not None
        return decode(entry.value or b"", FlowDocument)

    def operations(self) -> list[OperationDocument]:
        return [
            decode(value, OperationDocument)
            for key, (value, _) in self.flows.values.items()
            if key.startswith("operation.") and value is not None
        ]

    def plan(self, deployment: int) -> DeploymentPlan | None:
        entry = self.deployments.read(bucket_names.plan_key(FLOW, deployment))
        return decode_plan(entry.value or b"") if entry else None

    def phase(self, deployment: int) -> str:
        entry = self.deployments.read(bucket_names.state_key(FLOW, deployment))
        return str(decode_state(entry.value or b"").phase) if entry else ""

    def stored_numbers(self) -> dict[int, str]:
        stream = self.broker.streams.get(STREAM)
        messages = stream.messages.values() if stream else ()
        return {number_of(item): item.subject for item in messages if not is_ours(item.subject)}

    # The end.

    def heal(self) -> None:
        """Faults stop; whoever is down comes back."""
        self.network.faults.heal()
        if self.registry.host.server is None:
            self.registry.host.server = self.registry
        if self.agent.host.server is None:
            self.agent.boot()
        for orchestrator in self.orchestrators:
            orchestrator.link.crash_at = orchestrator.link.hold_at = 0
            if not orchestrator.up:
                orchestrator.boot()

    async def sweep(self) -> None:
        """What the leader does every hour, tried again where the broker does not answer."""
        for orchestrator in self.orchestrators:
            while orchestrator.lease.leading:
                try:
                    await sweep_pins(orchestrator.stores)
                    break
                except Unavailable:
                    await asyncio.sleep(1.0)  # tidy: pace

    async def close(self) -> None:
        for orchestrator in self.orchestrators:
            orchestrator.crash()
        self.agent.kill()
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
