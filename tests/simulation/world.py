"""One simulated mesh: what runs, what goes wrong, and the laws that hold all the while."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from headrace.edge.assets_transport import AssetsTransport
from headrace.edge.ingress_publisher import IngressPublisher
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.model import subjects
from headrace.model.deployment import DeploymentPlan, StepPlan, decode_plan, decode_state
from headrace.model.errors import Unavailable
from headrace.model.flow_spec import FlowSpec
from headrace.model.message_ids import execution_id, first_message_id, stimulus_id
from headrace.model.route import Route, decode_route
from headrace.model.slots import keying
from headrace.ports import LaneFull, PublishRefused, PublishUnknown, ReadFailed
from headrace.wire.envelope import Envelope, decode_dead_letter, decode_envelope
from services.orchestrator.domain.deployment_phases import TRANSITIONS
from services.orchestrator.domain.documents import FlowDocument, OperationDocument, decode, flow_key
from services.orchestrator.domain.flow_states import RUNS, FlowState
from services.orchestrator.domain.leadership import LeaseTerms
from services.orchestrator.pin_sweeper import sweep_pins
from services.sidecar.settings import Settings
from tests.simulation.ears import HEARD, Ear
from tests.simulation.faults import Faults, Network
from tests.simulation.flow_drafts import Trigger, spec
from tests.simulation.links import Host, Link
from tests.simulation.machines import Agent, Supervised
from tests.simulation.orchestrators import WORKSPACE, Orchestrator, Registry
from tests.simulation.planes import Plane
from tests.simulation.remote_broker import RemoteBroker
from tests.support.memory_broker import MemoryBroker
from tests.support.memory_bucket import MemoryBucket, matches
from tests.support.memory_stream import Stored, Stream

FLOW = "orders"
STREAM = subjects.flow_stream(WORKSPACE, FLOW)
KEYS = 4
SETTLE_LIMIT_S = 400.0
RESTING = (FlowState.STOPPED, FlowState.RUNNING, FlowState.SUSPENDED, FlowState.SLEEPING)


@dataclass
class Ledger:
    """What happened to each stimulus, by its number."""

    attempted: set[int] = field(default_factory=set)
    accepted: set[int] = field(default_factory=set)
    done: dict[int, int] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    # By number and incarnation (a message that was moved has a new one).
    deployments: dict[tuple[int, int], set[int]] = field(default_factory=dict)


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
        self.broker.on_stored = self._stored
        self.broker.on_config = self._configured
        self.broker.on_purged = self._purged
        self.registry = Registry()
        self.hosts: dict[str, Host] = {}
        self.pullers: dict[tuple[str, str], dict[Plane, None]] = {}
        self.ledger = Ledger()
        self.ingress_owners: list[str] = []
        self.ran_digests: dict[tuple[int, str], set[str]] = {}
        self.stale_switches = 0
        # Which steps are keyed, by seed: none, all after the trigger, all.
        self.keyed = seed % 3
        # Whether the stream itself says who owns the ingress, as on a cluster, or its transform does.
        self.fenced = seed % 5 == 0
        # Whether the trigger runs a process: it does, it does not (1, 3), or each draft says otherwise (5).
        self.triggers = {1: Trigger.OWN, 3: Trigger.OWN, 5: Trigger.CHANGING}.get(seed % 7, Trigger.PROCESS)
        # How long steps have nothing to do before they sleep; None: the flow is real-time.
        self.idle_timeout_s = {2: 0.0, 4: 1.0}.get(seed % 6)
        self.ears: list[Ear] = []
        self.stimuli: set[str] = set()
        self._known_route: Route | None = None
        self._drafts = 0
        self.takers: dict[str, Plane] = {}
        self.owners: dict[str, set[int]] = {}
        self.committed: dict[tuple[int, str, int], int] = {}
        self.entered: dict[str, list[int]] = {}
        self.left: dict[str, list[int]] = {}
        self._pids = 0
        self._background: set[asyncio.Task[Any]] = set()
        self.lease_bucket = MemoryBucket("lease", ttl_s=LeaseTerms().ttl, clock=loop.time)
        self.epochs: set[int] = set()
        self.newest_config = 0
        self.dead_letters = Stream({"subjects": [subjects.dead_letter_filter(WORKSPACE, FLOW)]})
        self.broker.streams[subjects.dead_letter_stream(WORKSPACE, FLOW)] = self.dead_letters
        self.agent = Agent(self)
        self.hosts["agent"] = self.agent.host
        self.agent.boot()
        self.orchestrators = [Orchestrator(self, name, self.rng.uniform(-2.0, 2.0)) for name in ("left", "right")]
        self.flows = self.broker.bucket(subjects.flow_bucket(WORKSPACE))
        self.deployments = self.broker.bucket(subjects.deployment_bucket(WORKSPACE))
        self.deployments.on_write = self._deployment_written
        self.routes = self.broker.bucket(subjects.route_bucket(WORKSPACE))
        self.routes.on_write = self._route_written
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

    # Laws that hold at each moment, told by the broker.

    def _purged(self, stream: str, gone: list[Stored]) -> None:
        """Messages go only where a person said so, now."""
        stimuli = [item for item in gone if not is_ours(item.subject)]
        if stream != STREAM or not stimuli:
            return
        flow = self.flow()
        if flow.state != FlowState.STOPPING or flow.stop_mode != "DROP":
            self.violated(f"{len(stimuli)} messages were purged while the flow is {flow.state} {flow.stop_mode}")
        self.ledger.dropped |= {number_of(item) for item in stimuli}

    def _plan(self, deployment: int) -> DeploymentPlan | None:
        entry = self.deployments.read(subjects.plan_key(FLOW, deployment))
        return decode_plan(entry.value or b"") if entry else None

    def phase(self, deployment: int) -> str:
        entry = self.deployments.read(subjects.state_key(FLOW, deployment))
        return str(decode_state(entry.value or b"").phase) if entry else ""

    def _stored(self, stream: str, message: Stored) -> None:
        if stream != STREAM:
            return
        place = subjects.parse_data_subject(message.subject)
        if is_ours(message.subject):
            return
        fresh = decode_envelope(message.payload).id in self.stimuli
        if fresh and self.ingress_owners[-1:] != [place.owner]:
            self.ingress_owners.append(place.owner)
            self.say(f"the ingress stores for {place.owner}")
        if fresh:
            self.entered.setdefault(key_of(message), []).append(number_of(message))
        if place.owner == subjects.INGRESS:
            self.violated("a message is stored under the ingress itself")
        elif (
            place.owner.startswith("d")
            and self.phase(int(place.owner[1:])) not in ("ACTIVE", "DRAINING")
            and not self.stale_switches
        ):
            phase = self.phase(int(place.owner[1:])) or "unknown"
            self.violated(f"a message for {place.step} is stored for {place.owner}, which is {phase}")
        for plane in self.pullers.get((stream, place.step), {}):
            plane.wake.set()
        for ear in [ear for ear in self.ears if matches(ear.subject, message.subject)]:
            self.ears.remove(ear)
            if not ear.link.dead and self.rng.random() < HEARD:
                self.background(ear.hear(self.rng.uniform(0.0, 0.05)))

    def _configured(self, stream: str, config: dict[str, Any]) -> None:
        if stream != STREAM:
            return
        generation = int(config["metadata"]["headrace-generation"])
        if generation < self.newest_config:
            # The broker has no compare-and-set here: what a late switch does is found and mended.
            self.stale_switches += 1
            self.say("a stale switch")
        self.newest_config = max(generation, self.newest_config)
        transform = config.get("subject_transform")
        owner = str(transform["dest"]).split(".")[3] if transform else "nobody"
        listed = " ".join(item.split(".")[3] for item in config["subjects"])
        self.say(f"stream lists {listed}; ingress to {owner}; generation {config['metadata']['headrace-generation']}")

    def _deployment_written(self, key: str, old: bytes | None, new: bytes | None) -> None:
        kind, _, number = key.split(".")
        if new is None:
            return
        if kind == "plan":
            if old is not None and old != new:
                self.violated(f"the plan of d{number} was changed")
            return
        after = decode_state(new)
        self.say(f"d{number} is {after.phase}, generation {after.generation} {after.cause_reason}")
        if old is None:
            return
        before = decode_state(old)
        if after.generation < before.generation:
            self.violated(f"d{number} went back from generation {before.generation} to {after.generation}")
        if after.phase != before.phase and after.phase not in TRANSITIONS[before.phase]:
            self.violated(f"d{number} went from {before.phase} to {after.phase}")
        if after.phase != before.phase and after.generation == before.generation:
            self.violated(f"d{number} became {after.phase} without a new generation")

    def _route_written(self, key: str, old: bytes | None, new: bytes | None) -> None:
        if old is not None and new is not None and decode_route(new).epoch < decode_route(old).epoch:
            self.violated(f"the route of an earlier leader was written over {decode_route(old)}")

    def leads(self, epoch: int) -> None:
        """An orchestrator has begun its term. Each has an epoch of its own, and no two lead at a time."""
        if epoch in self.epochs:
            self.violated(f"two orchestrators lead in epoch {epoch}")
        self.epochs.add(epoch)
        leading = [item.name for item in self.orchestrators if item.up and item.lease.leading]
        if len(leading) > 1:
            self.violated(f"{leading} lead at once")

    # What sidecars tell.

    def ran(self, settings: Settings, digest: str) -> None:
        """A component of an instance was started."""
        plan = self._plan(settings.deployment)
        pinned = plan.step(settings.step).pin.digest if plan else "nothing"
        if digest != pinned:
            self.violated(f"{settings.instance} runs {digest[:14]}, pinned is {pinned[:14]}")
        self.ran_digests.setdefault((settings.deployment, settings.step), set()).add(digest)

    def handling(self, message: Stored, plan: DeploymentPlan, step: StepPlan, digest: str) -> None:
        number = number_of(message)
        touched = self.ledger.deployments.setdefault((number, decode_envelope(message.payload).incarnation), set())
        touched.add(plan.deployment)
        if len(touched) > 1:
            self.violated(f"message {number} was handled by deployments {sorted(touched)}")
        if digest != step.pin.digest:
            self.violated(f"message {number} was handled by code that is not pinned")

    def ack(self, stream: str, durable: str, message: Stored, step: StepPlan, plan: DeploymentPlan) -> None:
        """The last step's acknowledgement is the effect."""
        held = self.broker.streams.get(stream)
        there = held is not None and message.sequence in held.messages
        acknowledged = self.broker.ack(stream, durable, message.sequence)
        gone = held is None or message.sequence not in held.messages
        if not (there and acknowledged and gone):
            return
        if step.keyed:
            self._in_order(plan, step, message)
        if not step.receivers:
            number = number_of(message)
            self.ledger.done[number] = self.ledger.done.get(number, 0) + 1
            if self.ledger.done[number] == 1:
                self.left.setdefault(key_of(message), []).append(number)

    def _in_order(self, plan: DeploymentPlan, step: StepPlan, message: Stored) -> None:
        """What is committed of a slot is committed in the order in which it was stored there."""
        place = (plan.deployment, step.name, subjects.parse_data_subject(message.subject).slot)
        before = self.committed.get(place, 0)
        if message.sequence < before:
            self.violated(f"slot {place}: {message.sequence} was committed after {before}")
        self.committed[place] = message.sequence

    def taken(self, durable: str, replica: int) -> None:
        """Somebody was given a message of a slot's durable: each of these has one owner for ever."""
        owners = self.owners.setdefault(durable, set())
        owners.add(replica)
        if len(owners) > 1:
            self.violated(f"replicas {sorted(owners)} pull from {durable}")

    def take_slot(self, stream: str, durable: str, plane: Plane) -> None:
        """A process begins a slot's durable anew; from then on only its commits count."""
        self.broker.reset(stream, durable)
        self.takers[durable] = plane

    def dead_letter(self, message: Stored) -> None:
        self.ledger.dead.add(number_of(message))

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
        self.stimuli.add(identifier)
        envelope = Envelope(id=identifier, execution_id=execution_id(stimulus), body=str(number).encode())
        envelope.headers["key"] = f"k{number % KEYS}"
        slot = keying(route.key, route.slots).place(envelope.headers, envelope.body, identifier).slot
        self.ledger.attempted.add(number)
        for _ in range(5):
            try:
                await gateway.publish(
                    FLOW, route.trigger, slot, envelope.SerializeToString(), fenced=self.fenced, message_id=identifier
                )
                self.ledger.accepted.add(number)
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

    def unsettled(self) -> str:
        """What is not at rest yet; empty when everything is."""
        flow = self.flow()
        if flow.operation is not None or flow.overtaken:
            return f"an operation is on its way: {flow.operation or flow.overtaken}"
        if flow.state not in RESTING or flow.target:
            return f"the flow is {flow.state}, target {flow.target}"
        wanted = {flow.active} - {0}
        if flow.state == FlowState.SUSPENDED:  # what drained is held too
            wanted = set(flow.live)
        if set(flow.live) != wanted:
            return f"live are {flow.live}, wanted {sorted(wanted)}"
        deployments = {item.spec.deployment for item in self.agent.instances.values()}
        naps = self.idle_timeout_s is not None and flow.active != 0
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
            idle := [item.spec.name for item in self.agent.instances.values() if not self._works(item)]
        ):
            return f"instances do not work: {idle}"
        if flow.active and not suspended and len(self.agent.instances) != self._replicas(flow.active):
            return f"{len(self.agent.instances)} instances, wanted {self._replicas(flow.active)}"
        stream = self.broker.streams.get(STREAM)
        consumers = {int(name[1:].partition("_")[0]) for name in stream.consumers} if stream else set()
        if consumers != wanted:
            return f"consumers of deployments {sorted(consumers)}, wanted {sorted(wanted)}"
        stored = self.stored_numbers()
        if flow.state in RUNS and stored:
            return f"messages wait: {dict(list(stored.items())[:5])}"
        open_operations = [item.id for item in self.operations() if not item.done]
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
                self.violated(f"it does not settle: {left}")
                return

    async def sweep(self) -> None:
        """What the leader does every hour, tried again where the broker does not answer."""
        for orchestrator in self.orchestrators:
            while orchestrator.lease.leading:
                try:
                    await sweep_pins(orchestrator.stores)
                    break
                except Unavailable:
                    await asyncio.sleep(1.0)  # tidy: pace

    def check_end(self) -> None:
        flow, ledger = self.flow(), self.ledger
        stored = self.stored_numbers()
        for letter in self.dead_letters.messages.values():
            ledger.dead.add(int(decode_dead_letter(letter.payload).original.body))
        lost = ledger.accepted - ledger.done.keys() - stored.keys() - ledger.dead - ledger.dropped
        if lost:
            self.violated(f"messages are lost: {sorted(lost)[:10]}")
        if invented := ledger.done.keys() - ledger.attempted:
            self.violated(f"messages came from nowhere: {sorted(invented)[:10]}")
        if twice := sorted(number for number, count in ledger.done.items() if count > 1):
            self.violated(f"effects happened twice: {twice[:10]}")
        if (self.fenced or not self.stale_switches) and len(set(self.ingress_owners)) != len(self.ingress_owners):
            self.violated(f"the ingress went back: {self.ingress_owners}")
        self._check_keys()
        wanted = set(flow.live)
        pins = self.broker.bucket(subjects.pin_bucket(WORKSPACE))
        holders = {key.rpartition(".")[2] for key, (value, _) in pins.values.items() if value is not None}
        if {holder for holder in holders if holder.startswith("d")} != {f"d{number}" for number in wanted}:
            self.violated(f"pins of {sorted(holders)}, running is {sorted(wanted)}")
        entry = self.routes.read(FLOW)
        route = decode_route(entry.value or b"") if entry else None
        open_as = FlowState.RUNNING if flow.state in RUNS else flow.state
        if route is None or (route.state, route.epoch) != (open_as, flow.leader_epoch):
            self.violated(f"the route is {route}, the flow {flow.state} in epoch {flow.leader_epoch}")
        if flow.state in RUNS and flow.ingress != f"d{flow.active}":
            self.violated(f"the ingress belongs to {flow.ingress!r}, active is {flow.active}")

    def _check_keys(self) -> None:
        """Where every step that runs is keyed: effects of a key in the order in which its messages came, also across
        switches. Messages that a person moved, or that a stale switch misled, are behind; where the trigger changes,
        keys and slots do."""
        moved = {number for number, incarnation in self.ledger.deployments if incarnation}
        keyed = self.keyed == 2 or (self.keyed and self.triggers == Trigger.OWN)
        if not keyed or self.stale_switches or self.triggers == Trigger.CHANGING:
            return
        for key, came in self.entered.items():
            first = {number: place for place, number in reversed([*enumerate(came)])}
            went = [first[number] for number in self.left.get(key, []) if number not in moved]
            if went != sorted(went):
                self.violated(f"{key} came as {came[:20]}, went as {self.left[key][:20]}")

    @staticmethod
    def _works(supervised: Supervised) -> bool:
        life = supervised.sidecar.life if supervised.sidecar else None
        return life is not None and life.status.stage == "ACTIVE"

    def _replicas(self, deployment: int) -> int:
        entry = self.deployments.read(subjects.state_key(FLOW, deployment))
        return sum(decode_state(entry.value or b"").replicas.values()) if entry else 0

    async def close(self) -> None:
        for orchestrator in self.orchestrators:
            orchestrator.crash()
        self.agent.kill()
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)


def number_of(message: Stored) -> int:
    return int(decode_envelope(message.payload).body)


def key_of(message: Stored) -> str:
    return decode_envelope(message.payload).headers["key"]


def is_ours(subject: str) -> bool:
    """A barrier, or what says who owns the ingress: no message of anybody."""
    return subjects.parse_data_subject(subject).step.startswith("_")
