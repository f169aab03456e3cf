"""Orchestrators in virtual time: the real stores, reader, planner, applier, loops, observer, resolver and verbs,
over links; and the registry that they ask."""

from __future__ import annotations

import asyncio
import contextlib
from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from headrace.api.component.v1 import component_pb2
from headrace.api.registry.v1 import registry_pb2
from headrace.document_ports import Bucket
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.model import bucket_names
from headrace.model.errors import HeadraceError, NotFound
from services.orchestrator.applier import Applier
from services.orchestrator.flow_board import FlowBoard
from services.orchestrator.flow_service import FlowService
from services.orchestrator.history_log import HistoryLog
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.interventions import Interventions
from services.orchestrator.lease import Lease
from services.orchestrator.nudges import Nudges
from services.orchestrator.reconcile_loop import RESYNC_S, FlowLoops
from services.orchestrator.resolution import Resolver
from services.orchestrator.rollouts import Rollouts
from services.orchestrator.scheduler import Scheduler
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stores import Stores
from services.orchestrator.term import Term
from services.orchestrator.wall_clock import WallClock
from tests.simulation.ears import Ears
from tests.simulation.flow_drafts import WORKSPACE
from tests.simulation.links import Host, Link
from tests.simulation.remote_broker import RemoteBroker, RemoteBucket

if TYPE_CHECKING:
    from tests.simulation.world import World

EPOCH_S = 1_700_000_000.0
ACK_WAIT_S = 5.0


class Registry:
    """Revisions of `hook` and `work`; `push` makes one more the newest."""

    def __init__(self) -> None:
        self.host = Host("registry", self)
        self.revisions: dict[str, list[str]] = {"hook": [], "work": []}
        self.broken: set[str] = set()
        for component in self.revisions:
            self.push(component)

    def push(self, component: str, *, broken: bool = False) -> None:
        known = self.revisions[component]
        digest = "sha256:" + sha256(f"{component} {len(known)}".encode()).hexdigest()
        known.append(digest)
        if broken:
            self.broken.add(digest)

    async def ResolveReference(self, request: Any, context: Any) -> registry_pb2.Revision:
        component, _, which = request.reference.partition("@")
        known = self.revisions[component]
        number = known.index(which) + 1 if which.startswith("sha256:") else len(known)
        if which.startswith("sha256:") and which not in known:
            raise NotFound(f"there is no {request.reference}")
        kinds = component_pb2
        kind = kinds.FUNCTION_KIND_TRIGGER if component == "hook" else kinds.FUNCTION_KIND_ACTION
        function = registry_pb2.Function(name="run", kind=kind)
        manifest = registry_pb2.Manifest(component=component, functions=[function])
        return registry_pb2.Revision(number=number, digest=known[number - 1], manifest=manifest)

    async def GetComponent(self, request: Any, context: Any) -> registry_pb2.Component:
        component = request.name.removeprefix("components/")
        return registry_pb2.Component(name=request.name, latest_revision=len(self.revisions[component]))


class SkewedClock(WallClock):
    """A wall clock that is off."""

    def __init__(self, skew_s: float) -> None:
        self._skew_s = skew_s

    def now(self) -> float:
        return EPOCH_S + self._skew_s + asyncio.get_running_loop().time()


class SimulatedLease(Lease):
    """The real lease on a bucket in memory, by the virtual clock."""

    def __init__(self, world: World, link: Link, incarnation: str) -> None:
        clock = asyncio.get_running_loop().time
        connection: Any = SimpleNamespace(is_connected=True)
        epochs: Any = RemoteBucket(link, world.broker.bucket(bucket_names.flow_bucket(WORKSPACE)))
        super().__init__(connection, WORKSPACE, epochs, name=incarnation, monotonic=clock)
        self._incarnation = incarnation
        self._place: Any = RemoteBucket(link, world.lease_bucket)

    async def _open(self) -> Bucket:
        self._bucket = self._place
        return self._place  # type: ignore[no-any-return]


class Orchestrator:
    """One orchestrator process; `crash` is its kill -9, `boot` starts it anew."""

    def __init__(self, world: World, name: str, skew_s: float) -> None:
        self.world = world
        self.name = name
        self.clock = SkewedClock(skew_s)
        self.up = False
        self.boots = 0

    def boot(self) -> None:
        """As services/orchestrator/app.py wires it."""
        world = self.world
        self.boots += 1
        self.up = True
        self.link = link = Link(world.network, f"{self.name}.{self.boots}")
        link.on_crash = self.crash
        broker = RemoteBroker(link, world.broker, cluster=world.fenced)
        self.lease = lease = SimulatedLease(world, link, f"{self.name}.{self.boots}")
        self.assets = assets = JetStreamAssets(broker, guard=lease.check)
        names = (
            bucket_names.flow_bucket,
            bucket_names.deployment_bucket,
            bucket_names.route_bucket,
            bucket_names.pin_bucket,
        )
        buckets: list[Any] = [
            RemoteBucket(link, world.broker.bucket(name(WORKSPACE)), guard=lease.check) for name in names
        ]
        self.stores = stores = Stores(WORKSPACE, *buckets, now=self.clock.now)
        channel: Any = link.channel(world.registry.host)
        resolver = Resolver(channel, stores, self.clock, ACK_WAIT_S)
        channel_to: Any = lambda address: link.channel(world.hosts.get(address))  # noqa: E731
        self.observer = InstanceObserver("agent", WORKSPACE, self.wake, channel_to=channel_to, guard=lease.check)
        ears: Any = Ears(world, link)
        nudges = Nudges(ears, ears, WORKSPACE, self.wake)
        self.reader = SnapshotReader(stores, assets, self.observer, self.clock, epoch=lambda: lease.epoch)
        self.reader.nudged = nudges.fresh
        scheduler = Scheduler(
            stores, assets, is_leader=lambda: lease.leading, clock_ns=lambda: int(self.clock.now() * 1e9)
        )
        applier = Applier(stores, assets, self.observer, resolver, self.reader)
        board = FlowBoard(self.observer, scheduler.observe, nudges.observe)
        self.loops = FlowLoops(self.reader, applier, board.observe)
        self.loops.stopped = True
        self.service = FlowService(stores, assets, resolver, self.reader, self.loops, self.clock)
        self.rollouts = Rollouts(self.service)
        self.interventions = Interventions(self.service)
        history = HistoryLog(assets, WORKSPACE)
        self.term = Term(lease, stores, self.loops, scheduler, self.observer, history, nudges)
        self.host = Host(self.name)
        self.host.spawn(lease.run(self._begin, self._end_term))
        self.host.spawn(self._watch())
        self.host.spawn(self._resync())

    async def _begin(self) -> None:
        self.world.say(f"{self.name} leads, epoch {self.lease.epoch}")
        self.world.laws.leads(self.lease.epoch)
        await self.term.begin()

    async def _end_term(self) -> None:
        self.world.say(f"{self.name} does not lead any more")
        await self.term.end()

    def wake(self, flow: str) -> None:
        if self.up:
            self.loops.wake(flow)

    async def _watch(self) -> None:
        async with contextlib.aclosing(self.stores.flows.watch("flow.*")) as watch:
            async for entry in watch:
                if entry is not None:
                    self.wake(entry.key.removeprefix("flow."))

    async def _resync(self) -> None:
        while True:
            with contextlib.suppress(HeadraceError):
                await self.term.find_new()
            await asyncio.sleep(RESYNC_S)  # tidy: pace

    def crash(self) -> None:
        """At whatever it waits for: nothing is cleaned up, what was sent may still arrive."""
        if not self.up:
            return
        self.up = False
        self.link.dead = True
        self.host.kill()
        self.world.background(self._end())

    async def _end(self) -> None:
        await self.term.end()
        await self.observer.stop()
