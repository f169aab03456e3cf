"""Agents and sidecars in virtual time: the real instance table, lifecycle service and life of an instance, over a
driver, a component and a data plane in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from headrace.model import bucket_names
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, decode_plan, plan_digest
from headrace.model.errors import HeadraceError, NotFound, Unavailable
from services.agent.domain.instances import InstanceSpec, InstanceState, InstanceView
from services.agent.instance_table import InstanceTable
from services.agent.rpc import AgentRpc
from services.sidecar.domain.lifecycle import Happening
from services.sidecar.idleness import Idleness
from services.sidecar.instance import Instance
from services.sidecar.lifecycle_rpc import LifecycleRpc
from services.sidecar.plan_source import PlanSource, step_of
from services.sidecar.settings import Settings
from tests.simulation.links import Host, Link
from tests.simulation.planes import Plane
from tests.simulation.remote_broker import RemoteBucket

if TYPE_CHECKING:
    from tests.simulation.world import World


class Plans(PlanSource):
    """The real source of plan and state, with the machine's disk in memory."""

    def __init__(self, settings: Settings, disk: dict[str, DeploymentPlan]) -> None:
        super().__init__(settings)
        self._disk = disk

    def cached_plan(self) -> DeploymentPlan | None:
        return self._disk.get(self._settings.plan_digest)

    async def plan(self) -> DeploymentPlan:
        plan = self.cached_plan()
        if plan is None:
            assert self._bucket is not None
            key = bucket_names.plan_key(self._settings.flow, self._settings.deployment)
            entry = await self._bucket.get(key)
            if entry is None:
                raise NotFound(f"there is no plan {key}", reason="PLAN_NOT_FOUND")
            assert plan_digest(entry.value or b"") == self._settings.plan_digest, "an instance of another plan"
            plan = self._disk[self._settings.plan_digest] = decode_plan(entry.value or b"")
        return plan


class Life(Instance):
    """The real life of an instance; what it fetches, builds and starts takes a moment of virtual time."""

    def __init__(self, sidecar: Sidecar, settings: Settings, plans: Plans) -> None:
        self._sidecar = sidecar
        mask = SimpleNamespace(known=lambda text: text)
        logs: Any = SimpleNamespace(last_lines=["it broke"], dropped=0, mask=mask)
        nothing: Any = None
        super().__init__(settings, plans, nothing, nothing, logs, nothing)

    async def _supervisor(self) -> Any:
        sidecar, world = self._sidecar, self._sidecar.world
        plan = await self._plans.plan()
        step = step_of(plan, self._settings.step)
        await world.pause(0.003)
        if world.registry.host.server is None and step.pin.digest not in sidecar.agent.bundles:
            raise Unavailable("the registry does not answer", reason="REGISTRY_UNREACHABLE")
        sidecar.agent.bundles.add(step.pin.digest)
        sidecar.digest = step.pin.digest
        self._course.progress(Happening.FETCHED)
        self._course.progress(Happening.BUILT)
        if self.plane is None:
            self.plane = Plane(  # type: ignore[assignment]
                sidecar, plan, step, self.occupancy_changed, self.status.touch
            )
            assert self.plane is not None
            self.plane.own(self._leases)
            if plan.may_sleep(step.name):
                self._idleness = Idleness(step.idle_timeout_s, self.status.touch)
            if self.gave_way:
                self.plane.give_way()
        self.status.board.revision = step.pin.digest
        return SimpleNamespace(run=lambda: self._run_component(step.pin.digest))

    async def _run_component(self, digest: str) -> None:
        """As the supervisor does: starts it, tells of its end, starts it again with a delay."""
        world = self._sidecar.world
        process: Any = SimpleNamespace()
        facts: Any = SimpleNamespace(sdk="", interpreter="")
        while True:
            await world.pause(0.02)
            for happening in (Happening.STARTED, Happening.INITIALISED):
                self._course.progress(happening)
            world.laws.ran(self._settings, digest)
            if digest in world.registry.broken:
                self._failed(HeadraceError("init failed", reason="INIT_FAILED"))
                await world.pause(2.0)
                continue
            self._course.progress(Happening.CHECKED)
            self._recovered()
            self._ready(process, process, facts)
            self._sidecar.component_died = asyncio.Event()
            await self._sidecar.component_died.wait()
            self._lost("exited with status 1", "COMPONENT_EXITED")
            await world.pause(0.2)


class Fenced:
    """Says when a call with a lower generation than one before was accepted."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._highest: dict[str, int] = {}

    def accepted(self, what: str, name: str, generation: int) -> None:
        if generation < self._highest.get(name, 0):
            self._world.violated(f"{what} of {name} with generation {generation} after {self._highest[name]}")
        self._highest[name] = max(generation, self._highest.get(name, 0))


class FencedAgent(AgentRpc):
    """The real service; what it accepted is checked."""

    def __init__(self, world: World, table: InstanceTable) -> None:
        super().__init__(table, cast(Any, None))  # nobody asks for a trial
        self._fenced = Fenced(world)

    async def StartInstance(self, request: Any, context: Any) -> Any:
        answer = await super().StartInstance(request, context)
        self._fenced.accepted("start", request.spec.name, request.generation)
        return answer

    async def StopInstance(self, request: Any, context: Any) -> Any:
        admitted = asyncio.get_running_loop().time()
        answer = await super().StopInstance(request, context)
        if asyncio.get_running_loop().time() == admitted:  # else something newer may have come meanwhile
            self._fenced.accepted("stop", request.name, request.generation)
        return answer


async def _not_asked(*, stacks: bool) -> Any:
    raise AssertionError("nobody asks why in a simulation")


class FencedSidecar(LifecycleRpc):
    """The real service; what it accepted is checked."""

    def __init__(self, world: World, name: str, life: Instance) -> None:
        super().__init__(name, life, _not_asked)
        self._fenced = Fenced(world)

    async def Prepare(self, request: Any, context: Any) -> Any:
        answer = await super().Prepare(request, context)
        self._fenced.accepted("prepare", self._name, request.generation)
        return answer

    async def Activate(self, request: Any, context: Any) -> Any:
        answer = await super().Activate(request, context)
        self._fenced.accepted("activate", self._name, request.generation)
        return answer

    async def Drain(self, request: Any, context: Any) -> Any:
        answer = await super().Drain(request, context)
        self._fenced.accepted("drain", self._name, request.generation)
        return answer


class Sidecar:
    """One sidecar process; `crash` is its kill -9."""

    def __init__(self, world: World, agent: Agent, spec: InstanceSpec, pid: int) -> None:
        self.world = world
        self.agent = agent
        self.spec = spec
        self.host = Host(f"{spec.name}#{pid}")
        self.link = Link(world.network, self.host.name)
        self.digest = ""
        self.component_died = asyncio.Event()
        self.settings = Settings(
            nats_url="",
            registry="",
            cache_dir=Path("/nowhere"),
            run_dir=Path("/nowhere"),
            workspace=spec.workspace,
            flow=spec.flow,
            deployment=spec.deployment,
            step=spec.step,
            replica=spec.replica,
            plan_digest=spec.plan_digest,
            instance=spec.name,
        )
        self.plans = Plans(self.settings, agent.disk)
        self.life = Life(self, self.settings, self.plans)

    async def serve(self) -> None:
        """Returns once it serves; raises where a real one would exit."""
        bucket = RemoteBucket(self.link, self.world.broker.bucket(bucket_names.deployment_bucket(self.spec.workspace)))
        self.plans.connect(bucket)  # type: ignore[arg-type]
        await self.world.pause(0.01)
        state = await self.plans.read_state()
        if state is not None:
            self.life.admit(state.generation)
        if self.plans.goes_on_by_itself:
            assert state is not None
            self.life.own_by_state(state)
            self.life.go_on_by_itself(draining=state.phase is DeploymentPhase.DRAINING)
        self.host.spawn(self.life.work())
        self.host.spawn(self.plans.follow())
        self.host.server = FencedSidecar(self.world, self.spec.name, self.life)

    async def plans_read(self) -> None:
        try:
            await self.plans.read_state()
        except HeadraceError:
            return

    def crash(self) -> None:
        self.link.dead = True
        self.host.kill()


@dataclass
class Supervised:
    """An instance as the agent's driver keeps it running."""

    world: World
    agent: Agent
    spec: InstanceSpec
    on_change: Callable[[], None]
    state: InstanceState = InstanceState.STARTING
    sidecar: Sidecar | None = None
    starts: int = 0
    address: str = ""
    pid: int = 0
    ended: bool = False

    def start(self) -> None:
        self.agent.host.spawn(self._start())

    async def _start(self) -> None:
        self.starts += 1
        self.pid = self.world.next_pid()
        sidecar = self.sidecar = Sidecar(self.world, self.agent, self.spec, self.pid)
        try:
            await sidecar.serve()
        except HeadraceError:
            self.crash()
            return
        if self.ended or self.sidecar is not sidecar:
            return
        self.address = sidecar.host.name
        self.world.hosts[self.address] = sidecar.host
        self._show(InstanceState.UP)

    def crash(self) -> None:
        """kill -9 of the sidecar: the driver starts it again after a moment."""
        if self.sidecar is None or self.ended:
            return
        self.end()
        self.ended = False
        self._show(InstanceState.BACKING_OFF)
        self.agent.host.spawn(self._again())

    async def _again(self) -> None:
        await self.world.pause(0.5)
        if not self.ended:
            self._show(InstanceState.STARTING)
            await self._start()

    def _show(self, state: InstanceState) -> None:
        self.state = state
        self.on_change()

    def end(self) -> None:
        self.ended = True
        if self.sidecar is not None:
            self.sidecar.crash()
            self.world.hosts.pop(self.address, None)
        self.address, self.pid = "", 0

    def view(self, generation: int) -> InstanceView:
        return InstanceView(self.spec, generation, self.state, self.address, self.pid, self.starts)

    async def stop(self, grace_s: float) -> None:
        self._show(InstanceState.STOPPING)
        await self.world.pause(0.02)
        self.end()
        self.agent.instances.pop(self.spec.name, None)


class Agent:
    """One machine: the agent's process, its instances, and its disk (which outlives both)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.host = Host("agent")
        self.disk: dict[str, DeploymentPlan] = {}
        self.bundles: set[str] = set()
        self.instances: dict[str, Supervised] = {}

    async def prepare(self) -> None:
        """Nothing is left over: instances end with their agent."""

    def boot(self) -> None:
        self.host.server = FencedAgent(self.world, InstanceTable(self))

    def start(self, spec: InstanceSpec, on_change: Callable[[], None]) -> Supervised:
        supervised = Supervised(self.world, self, spec, on_change)
        self.instances[spec.name] = supervised
        supervised.start()
        return supervised

    async def close(self) -> None:
        """Never called: agents are killed."""

    def kill(self) -> None:
        """kill -9: instances end with it."""
        self.host.kill()
        for supervised in list(self.instances.values()):
            supervised.end()
        self.instances.clear()
