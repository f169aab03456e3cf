"""A real orchestrator process on a real broker and registry, with a scripted agent in the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis  # noqa: F401  (else its pytest plugin imports it at the end, where gRPC finalises inside the import)
from nats.aio.client import Client

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.edge.broker_process import BrokerProcess
from headrace.edge.child_process import ChildProcess, Command, own_module
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.wire.flow import flow_spec_to_proto
from services.orchestrator.stores import Stores
from tests.support.eventually import eventually
from tests.support.registry_rig import Registry, running_registry
from tests.support.scripted_agent import ScriptedAgent

HOOK = "name: hook\nfunctions:\n  receive: {kind: trigger}\n"
WORK = """name: work
functions:
  work:
    kind: action
    config: {type: object, properties: {limit: {type: integer, minimum: 1}}, additionalProperties: false}
"""


@dataclass
class Orchestrator:
    """One that was added to a rig."""

    name: str
    process: ChildProcess
    address: str


@dataclass
class OrchestratorRig:
    """Everything of one test. `restart` runs the orchestrator anew on the same port."""

    folder: Path
    broker: BrokerProcess
    connection: Client
    registry: Registry
    agent: ScriptedAgent
    agent_address: str
    stores: Stores
    assets: JetStreamAssets
    process: ChildProcess
    address: str
    pushes: int = 0
    others: list[ChildProcess] = field(default_factory=list)
    options: tuple[str, ...] = ()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def restart(self) -> None:
        self.process = _spawn(
            self.folder, self.broker, self.registry, self.agent_address, self.address, options=self.options
        )
        await self.process.ready(20.0)

    def client(self) -> AsyncClient:
        return AsyncClient(self.address)

    async def add_orchestrator(self, name: str, address: str = "127.0.0.1:0", *, nats: str = "") -> Orchestrator:
        """One more orchestrator of that name; ended with the rig."""
        process = _spawn(self.folder, self.broker, self.registry, self.agent_address, address, name, nats)
        self.others.append(process)
        ready = await process.ready(20.0)
        return Orchestrator(name, process, str(ready["address"]))

    async def push(self, manifest: str) -> str:
        """Pushes a new revision of a component with this manifest; answers its digest."""
        self.pushes += 1
        name = manifest.split(":")[1].split()[0]
        folder = self.folder / "components" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "component.yaml").write_text(manifest)
        (folder / "component.py").write_text(f"revision = {self.pushes}\n")
        return (await self.registry.push(folder)).revision.digest

    async def counts(self, flow: str) -> dict[str, int]:
        """Messages per subject of the flow's stream."""
        info = await self.assets.stream_info(f"hr_default_{flow}", ">")
        return dict(info["state"].get("subjects") or {}) if info else {}

    async def stream_config(self, flow: str) -> dict[str, object]:
        info = await self.assets.stream_info(f"hr_default_{flow}")
        assert info is not None
        config: dict[str, object] = info["config"]
        return config


def chain(*names: str, flow_type: str = "realtime", max_waiting: int = 1000) -> FlowSpec:
    """trigger -> work -> work ..., components `hook` and `work`."""
    steps = []
    for index, name in enumerate(names):
        component = "hook" if index == 0 else "work"
        steps.append(StepSpec(name, component, to=tuple(names[index + 1 : index + 2])))
    return FlowSpec(flow_type, tuple(steps), max_waiting=max_waiting)


async def published(rig: OrchestratorRig, client: AsyncClient, flow: str, spec: FlowSpec) -> None:
    """Pushes both components, creates and publishes the flow."""
    await rig.push(HOOK)
    await rig.push(WORK)
    await client.create_flow(flow, flow_spec_to_proto(spec))
    await client.publish(flow)


async def led_by(address: str, name: str, *, within_s: float = 10.0) -> flow_pb2.ServerInfo:
    """Waits until the orchestrator at this address says that `name` leads."""
    async with AsyncClient(address) as client:

        async def asked() -> flow_pb2.ServerInfo:
            info = await client.server_info()
            assert info.leader == name, f"{info.leader!r} leads"
            return info

        return await eventually(asked, within_s=within_s)


def _spawn(
    folder: Path,
    broker: BrokerProcess,
    registry: Registry,
    agent: str,
    listen: str,
    name: str = "orchestrator",
    nats: str = "",
    options: tuple[str, ...] = (),
) -> ChildProcess:
    arguments = own_module(
        "services.orchestrator",
        *("--nats", nats or broker.url, "--registry", registry.address, "--agent", agent),
        *("--listen", listen, "--profile", broker.profile, "--log-level", "info", "--name", name),
        *options,
    )
    return ChildProcess.spawn(Command(arguments, log_file=folder / f"{name}.log"), readiness=True)


@contextlib.asynccontextmanager
async def orchestrator_rig(folder: Path, *options: str) -> AsyncIterator[OrchestratorRig]:
    """Starts everything, ends everything. `options` are more arguments of the orchestrator."""
    broker = BrokerProcess(folder / "broker")
    await broker.start()
    connection = await connect_nats(broker.url, "test")
    agent = ScriptedAgent(connection, folder)
    process: ChildProcess | None = None
    try:
        async with running_registry(broker.url, folder / "registry.log") as registry:
            agent_address = await agent.serve()
            process = _spawn(folder, broker, registry, agent_address, "127.0.0.1:0", options=options)
            ready = await process.ready(20.0)
            rig = OrchestratorRig(
                folder,
                broker,
                connection,
                registry,
                agent,
                agent_address,
                await Stores.open(connection, "default"),
                JetStreamAssets(connection),
                process,
                str(ready["address"]),
                options=options,
            )
            try:
                yield rig
            finally:
                for process in (rig.process, *rig.others):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGCONT)
                await asyncio.gather(*(process.end(3.0) for process in (rig.process, *rig.others)))
    finally:
        await agent.stop()
        await close_nats(connection)
        await broker.stop()
