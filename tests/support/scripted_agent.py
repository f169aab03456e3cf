"""An agent and its sidecars in the test's own process: they serve the real protos on real sockets.

Instances live in memory; what a step does is scripted: `fail` names steps that fail to warm, `hold` steps that
stay STARTING until released. Sidecars pull and acknowledge for real once activated. Generations are checked as
the protos say. Used where a test needs an instance to misbehave on demand.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.api.sidecar.v1 import sidecar_pb2, sidecar_pb2_grpc
from headrace.edge.grpc_server import GrpcServer
from headrace.model import subjects
from headrace.model.errors import Conflict, WrongState

PULL_S = 0.1


@dataclass
class ScriptedSidecar(sidecar_pb2_grpc.LifecycleServiceServicer):
    """One instance."""

    agent: ScriptedAgent
    spec: agent_pb2.InstanceSpec
    status: sidecar_pb2.InstanceStatus
    server: GrpcServer = field(default_factory=GrpcServer)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    puller: asyncio.Task[None] | None = None
    # Of a keyed step: slot and generation to the puller of its durable.
    slot_pullers: dict[tuple[int, int], asyncio.Task[None]] = field(default_factory=dict)
    owned: set[tuple[int, int]] = field(default_factory=set)
    ended: bool = False
    calls: list[tuple[str, int]] = field(default_factory=list)

    async def start(self, address: str) -> None:
        register = sidecar_pb2_grpc.add_LifecycleServiceServicer_to_server
        self.server.add(register, self, "headrace.api.sidecar.v1.LifecycleService")
        await self.server.start(address)

    async def stop(self) -> None:
        self.ended = True
        pullers = [*self.slot_pullers.values(), *([self.puller] if self.puller is not None else [])]
        if pullers:  # a cancelled pull would still be given a message
            await asyncio.wait(pullers, timeout=1.0)
            for puller in pullers:
                puller.cancel()
            await asyncio.gather(*pullers, return_exceptions=True)
        async with asyncio.timeout(2.0):
            await self.server.stop(0)

    def show(self, state: str, progress: str, **facts: Any) -> None:
        self.status.state = sidecar_pb2.StepState.Value(f"STEP_STATE_{state}")
        self.status.progress = sidecar_pb2.Progress.Value(f"PROGRESS_{progress}")
        for name, value in facts.items():
            setattr(self.status, name, value)
        self.tell()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _accept(self, verb: str, generation: int) -> None:
        if generation < self.status.generation:
            raise WrongState("a lower generation than seen", reason="STALE_GENERATION")
        self.status.generation = generation
        self.calls.append((verb, generation))

    async def Prepare(self, request: Any, context: Any) -> Any:
        self._accept("Prepare", request.generation)
        if self.status.progress == sidecar_pb2.PROGRESS_UNSPECIFIED:
            self.prepare()
        return sidecar_pb2.PrepareResponse(status=self.status)

    def prepare(self) -> None:
        step = self.spec.step
        if step in self.agent.fail:
            self.status.last_log_lines[:] = ["Traceback (most recent call last):", "ModuleNotFoundError: No module x"]
            cause = "component exited with status 1 before it served"
            self.show("FAILED", "STARTING", cause=cause, cause_reason="COMPONENT_EXITED")
        elif step in self.agent.hold:
            self.show("STARTING", "INIT")
        else:
            self.show("STARTING", "WARM")

    async def Activate(self, request: Any, context: Any) -> Any:
        self._accept("Activate", request.generation)
        self.own({(lease.slot, lease.generation) for lease in request.slots})
        self.show("RUNNING", "ACTIVE")
        if self.puller is None and self.spec.step not in self.agent.keyed:
            self.puller = asyncio.create_task(self._pull(subjects.step_consumer(self.spec.deployment, self.spec.step)))
        return sidecar_pb2.ActivateResponse(status=self.status)

    async def Drain(self, request: Any, context: Any) -> Any:
        self._accept("Drain", request.generation)
        self.own({(lease.slot, lease.generation) for lease in request.slots})
        if request.give_way and not self.status.gave_way:
            self.status.gave_way = True
            self.ended = True
            if self.puller is not None:
                await asyncio.wait([self.puller], timeout=2.0)
        self.show("RUNNING", "DRAINED")
        return sidecar_pb2.DrainResponse(status=self.status)

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return sidecar_pb2.GetStatusResponse(status=self.status)

    async def Shutdown(self, request: Any, context: Any) -> Any:
        self._accept("Shutdown", request.generation)
        return sidecar_pb2.ShutdownResponse(status=self.status)

    async def WatchStatus(self, request: Any, context: Any) -> AsyncIterator[Any]:
        while True:
            changed = self.changed
            yield sidecar_pb2.WatchStatusResponse(status=self.status)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await changed.wait()

    def own(self, leases: set[tuple[int, int]]) -> None:
        """Pulls from what it owns; what it lost it shows while its step is in `clutch`."""
        self.owned = leases
        for slot, generation in leases - self.slot_pullers.keys():
            durable = subjects.slot_consumer(self.spec.deployment, self.spec.step, slot, generation)
            self.slot_pullers[slot, generation] = asyncio.create_task(self._pull(durable, (slot, generation)))
        self.show_slots()

    def show_slots(self) -> None:
        held = set(self.slot_pullers) if self.spec.step in self.agent.clutch else set()
        del self.status.slots[:]
        for slot, generation in sorted(self.owned | held):
            self.status.slots.add(slot=slot, generation=generation)

    async def _pull(self, durable: str, lease: tuple[int, int] | None = None) -> None:
        spec = self.spec
        stream = subjects.flow_stream(spec.workspace, spec.flow)
        reader = await self.agent.connection.jetstream().pull_subscribe_bind(durable, stream=stream)
        while not self.ended and (lease is None or lease in self.owned):
            try:
                messages = await reader.fetch(10, timeout=PULL_S)
            except (TimeoutError, nats.errors.Error):
                await asyncio.sleep(PULL_S / 10)  # tidy: pace
                continue
            for message in messages:
                # In hand: giving it back would break the order of a slot, and be delivered again at once elsewhere.
                while spec.step in self.agent.keep and not self.ended:  # noqa: ASYNC110
                    await asyncio.sleep(PULL_S / 10)  # tidy: pace
                if self.ended and lease is not None:
                    return
                if spec.step in self.agent.keep:
                    await message.nak()
                    continue
                self.agent.handled.append((spec.deployment, spec.step, message.subject, message.data))
                await message.ack()


@dataclass
class ScriptedAgent(agent_pb2_grpc.AgentServiceServicer):
    """The agent; `serve` and `stop`."""

    connection: Client
    run_dir: Path
    fail: set[str] = field(default_factory=set)
    hold: set[str] = field(default_factory=set)
    keep: set[str] = field(default_factory=set)
    # Keyed steps, and those of them whose instances do not let go of slots that they lost.
    keyed: set[str] = field(default_factory=set)
    clutch: set[str] = field(default_factory=set)
    handled: list[tuple[int, str, str, bytes]] = field(default_factory=list)
    sidecars: dict[str, ScriptedSidecar] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    _watchers: list[asyncio.Queue[Any]] = field(default_factory=list)
    _server: GrpcServer = field(default_factory=GrpcServer)
    _sockets: int = 0

    async def serve(self, address: str = "127.0.0.1:0") -> str:
        register = agent_pb2_grpc.add_AgentServiceServicer_to_server
        self._server.add(register, self, "headrace.api.agent.v1.AgentService")
        return await self._server.start(address)

    async def stop(self) -> None:
        async with asyncio.timeout(2.0):
            await self._server.stop(0)
        for sidecar in list(self.sidecars.values()):
            await sidecar.stop()

    def of(self, flow: str, deployment: int) -> list[ScriptedSidecar]:
        return [item for item in self.sidecars.values() if (item.spec.flow, item.spec.deployment) == (flow, deployment)]

    def release(self, step: str) -> None:
        """Lets a held step become warm."""
        self.hold.discard(step)
        for sidecar in self.sidecars.values():
            if sidecar.spec.step == step and sidecar.status.progress == sidecar_pb2.PROGRESS_INIT:
                sidecar.show("STARTING", "WARM")

    def let_go(self, step: str) -> None:
        """Instances that clutched slots finish what they hold of them."""
        self.clutch.discard(step)
        for sidecar in self.sidecars.values():
            if sidecar.spec.step == step:
                sidecar.show_slots()
                sidecar.tell()

    async def lose_all(self) -> None:
        """As if the agent had been restarted: every instance is gone, nobody was told to stop it."""
        for name in list(self.sidecars):
            sidecar = self.sidecars.pop(name)
            await sidecar.stop()
            self._tell(self._instance(sidecar, agent_pb2.INSTANCE_STATE_GONE))

    async def StartInstance(self, request: Any, context: Any) -> Any:
        name = request.spec.name
        if name not in self.sidecars:
            self._sockets += 1
            spec = agent_pb2.InstanceSpec()
            spec.CopyFrom(request.spec)
            status = sidecar_pb2.InstanceStatus(instance=name, state=sidecar_pb2.STEP_STATE_SLEEPING)
            sidecar = ScriptedSidecar(self, spec, status)
            self.sidecars[name] = sidecar
            sidecar.address = f"unix:{self.run_dir}/{self._sockets}.sock"  # type: ignore[attr-defined]
            sidecar.generation = request.generation  # type: ignore[attr-defined]
            await sidecar.start(sidecar.address)  # type: ignore[attr-defined]
            self.started.append(name)
        present: Any = self.sidecars[name]
        if request.generation < present.generation:
            raise Conflict("a lower generation than seen", reason="STALE_GENERATION")
        present.generation = request.generation
        instance = self._instance(present, agent_pb2.INSTANCE_STATE_UP)
        self._tell(instance)
        return agent_pb2.StartInstanceResponse(instance=instance)

    async def StopInstance(self, request: Any, context: Any) -> Any:
        sidecar = self.sidecars.get(request.name)
        if sidecar is not None:
            if request.generation < sidecar.generation:  # type: ignore[attr-defined]
                raise Conflict("a lower generation than seen", reason="STALE_GENERATION")
            del self.sidecars[request.name]
            await sidecar.stop()
            self.stopped.append(request.name)
            self._tell(self._instance(sidecar, agent_pb2.INSTANCE_STATE_GONE))
        return agent_pb2.StopInstanceResponse()

    async def ListInstances(self, request: Any, context: Any) -> Any:
        up = agent_pb2.INSTANCE_STATE_UP
        return agent_pb2.ListInstancesResponse(instances=[self._instance(item, up) for item in self.sidecars.values()])

    async def WatchInstances(self, request: Any, context: Any) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            up = agent_pb2.INSTANCE_STATE_UP
            present = [self._instance(sidecar, up) for sidecar in self.sidecars.values()]
            yield agent_pb2.WatchInstancesResponse(instances=present)
            while True:
                yield agent_pb2.WatchInstancesResponse(instances=[await queue.get()])
        finally:
            self._watchers.remove(queue)

    def _tell(self, instance: agent_pb2.Instance) -> None:
        for queue in self._watchers:
            queue.put_nowait(instance)

    @staticmethod
    def _instance(sidecar: Any, state: Any) -> agent_pb2.Instance:
        return agent_pb2.Instance(
            spec=sidecar.spec,
            state=state,
            address=sidecar.address,
            pid=1,
            generation=sidecar.generation,
            starts=1,
        )
