"""Gathers what the diagnosis goes by: two looks at broker, flow and instances, some six tenths of a second apart.

Every question has a limit, and one that is not answered is a fact too. Works in every orchestrator: one that does not
lead watches agent and sidecars for as long as it takes to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import grpc
from nats.aio.client import Client

from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.grpc_channel import open_channel
from headrace.edge.structured_log import get_logger
from headrace.model.errors import HeadraceError, NotFound
from services.orchestrator.broker_check import BrokerFacts, best, check_broker_now
from services.orchestrator.domain.facts import Facts, MeshFacts
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.fact_reader import Answers, FlowFactReader
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.lease import Lease
from services.orchestrator.mesh_queries import flow_traffic
from services.orchestrator.snapshot_reader import SnapshotReader

log = get_logger(__name__)

BETWEEN_LOOKS_S = 0.6
SNAPSHOT_LIMIT_S = 3.0
# Of the first look and of the second: one that answers neither is silent.
EXAMINE_LIMIT_S = (1.0, 2.0)
AT_ONCE = 32
MAX_INSTANCES = 500
OBSERVE_LIMIT_S = 1.5
LEADER_LIMIT_S = 1.0
AGENT_LIMIT_S = 1.5


@dataclass
class FactFinder:
    """`observer` is the leader's; `agent` is where another one finds the agent."""

    connection: Client
    reader: SnapshotReader
    flow_facts: FlowFactReader
    observer: InstanceObserver
    agent: str
    lease: Lease

    async def gather(self, flow: str) -> Facts:
        """NotFound where there is no such flow; never Unavailable."""
        workspace = self.reader.stores.workspace
        first = await check_broker_now(self.connection, workspace)
        if first.ping_problem:
            await asyncio.sleep(BETWEEN_LOOKS_S)
            first = await check_broker_now(self.connection, workspace)
            if first.ping_problem:
                return Facts(await self._mesh([first], agent_known=self.observer.agent_known, gateways=1))
        async with self._watching() as observer:
            began = time.monotonic()
            before, traffic, agent_answers = await asyncio.gather(
                self._look(observer, flow, stacks=False),
                flow_traffic(self.connection, workspace, flow, first.ping_ms or 0.0),
                observer.agent_answers(AGENT_LIMIT_S),
            )
            await asyncio.sleep(max(0.0, BETWEEN_LOOKS_S - (time.monotonic() - began)))
            second, after = await asyncio.gather(
                check_broker_now(self.connection, workspace), self._look(observer, flow, stacks=True)
            )
            snapshot = await self._snapshot(flow, observer)
            looked_s = time.monotonic() - began
            mesh = await self._mesh([first, second], agent_known=agent_answers, gateways=len(traffic))
            if snapshot is None:
                return Facts(mesh, looked_s=looked_s)
            found, steps = await self.flow_facts.read(snapshot, observer.instances, before, after, traffic)
            return Facts(mesh, found, steps, looked_s)

    async def _mesh(self, looks: Sequence[BrokerFacts], *, agent_known: bool, gateways: int) -> MeshFacts:
        broker = best(looks)
        leader = self.lease.leader
        leads = self.lease.leading
        problem = ""
        if not leads and leader is not None and not self.lease.is_own(leader):
            problem = await _unreachable(leader.address)
        return MeshFacts(
            answered_by=self.lease.name,
            leads=leads,
            leader=leader.name if leader is not None and not self.lease.is_own(leader) else "",
            leader_problem=problem,
            broker_ms=broker.ping_ms,
            broker_problem=broker.ping_problem,
            broker_refuses=broker.refuses,
            store_ms=broker.store_ms,
            store_problem=broker.store_problem,
            agent_known=agent_known,
            gateways=gateways,
            broker_clock_ahead_s=min((look.clock_ahead_s for look in looks), key=abs),
        )

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncIterator[InstanceObserver]:
        """The leader's observer; else one for the time of this question."""
        if self.lease.leading:
            yield self.observer
            return
        told = asyncio.Event()
        observer = InstanceObserver(self.agent, self.reader.stores.workspace, lambda _: told.set())
        observer.start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OBSERVE_LIMIT_S):
                    await told.wait()  # by the agent's first word
            yield observer
        finally:
            await observer.stop()

    async def _snapshot(self, flow: str, observer: InstanceObserver) -> Snapshot | None:
        """None where the broker did not answer in time."""
        try:
            async with asyncio.timeout(SNAPSHOT_LIMIT_S):
                snapshot = await self.reader.read(flow)
        except (TimeoutError, HeadraceError) as error:
            log.debug("no snapshot for a diagnosis", flow=flow, error=repr(error)[:200])
            return None
        if snapshot is None:
            raise NotFound(
                f"there is no flow {flow!r}", reason="FLOW_NOT_FOUND", next_step="List them: headrace flow list"
            )
        return snapshot

    async def _look(self, observer: InstanceObserver, flow: str, *, stacks: bool) -> Answers:
        names = list(observer.instances_of(flow))[:MAX_INSTANCES]
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask(name: str) -> tuple[sidecar_pb2.ExamineResponse, float] | None:
            async with gate:
                answer = await observer.examine(name, stacks=stacks, limit_s=EXAMINE_LIMIT_S[stacks])
                return (answer, time.time()) if answer is not None else None

        answers = await asyncio.gather(*map(ask, names))
        found: Mapping[str, tuple[sidecar_pb2.ExamineResponse, float]] = {
            name: answer for name, answer in zip(names, answers, strict=True) if answer is not None
        }
        return found


async def _unreachable(address: str) -> str:
    """Why whoever leads cannot be reached; empty where it can."""
    channel = open_channel(address)
    try:
        async with asyncio.timeout(LEADER_LIMIT_S):
            await channel.channel_ready()
    except TimeoutError:
        return f"nobody accepts connections at {address}"
    except grpc.aio.AioRpcError as error:
        return f"{address}: {error.code().name}"
    finally:
        await channel.close()
    return ""
