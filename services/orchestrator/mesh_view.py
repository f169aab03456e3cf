"""What people look at: a flow's status and the server's, put together from all sources."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from nats.aio.client import Client

import headrace
from headrace import compiled
from headrace.api.flow.v1 import flow_pb2
from headrace.edge.structured_log import get_logger
from headrace.model.errors import NotFound
from headrace.model.pages import MAX_ANSWER_BYTES
from services.orchestrator.backlog import Backlogs
from services.orchestrator.domain.flow_metrics import StepBacklog
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.domain.tick_plan import wanted_timer
from services.orchestrator.doubt_records import DoubtRecords
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.lease import Lease
from services.orchestrator.mesh_queries import gateway_addresses
from services.orchestrator.resolution import Resolver
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.status_view import flow_status
from services.orchestrator.timer_status import timer_message

log = get_logger(__name__)

REMEMBER_S = 2.0
NEWEST_LIMIT_S = 1.0


@dataclass
class MeshView:
    """Answers of gateways and registry are remembered for 2 s, so that watchers do not multiply questions."""

    connection: Client
    reader: SnapshotReader
    observer: InstanceObserver
    resolver: Resolver
    profile: str
    lease: Lease
    doubts: DoubtRecords
    # How many streams this orchestrator serves.
    open_streams: Callable[[], int]
    _gateways: tuple[float, list[str]] = (0.0, [])
    _newest: dict[str, tuple[float, int]] = field(default_factory=dict)

    async def flow_status(self, flow: str) -> flow_pb2.FlowStatus:
        snapshot = await self.reader.read(flow)
        if snapshot is None:
            raise NotFound(f"there is no flow {flow!r}", next_step="List them: headrace flow list")
        gateways, newer = await asyncio.gather(self.gateways(), self._newer(snapshot))
        url = f"{_http(gateways[0])}/hook/{flow}" if gateways and snapshot.wanted_route.trigger else ""
        status = flow_status(snapshot, self.observer.statuses, profile=self.profile, webhook_url=url, newer=newer)
        timer, status.in_doubt = await asyncio.gather(self._timer(snapshot), self.doubts.count(flow))
        if timer is not None:
            status.timer.CopyFrom(timer)
        return shortened(status)

    async def _timer(self, snapshot: Snapshot) -> flow_pb2.TimerStatus | None:
        view = snapshot.deployments.get(snapshot.flow.active or snapshot.flow.target)
        timer = view.plan.timer if view is not None and view.plan is not None else None
        if timer is None:
            return None
        found = await self.reader.stores.tick_cursor(snapshot.flow.flow)
        cursor = found[0] if found is not None else None
        return timer_message(wanted_timer(snapshot), timer, cursor, int(snapshot.now * 1e9))

    async def backlog(self, flow: str) -> dict[str, StepBacklog]:
        """What is stored for each step of a flow; NotFound when there is none."""
        await self.reader.stores.existing_flow(flow)
        return await Backlogs(self.reader.assets, self.reader.stores.workspace).steps_of(flow)

    async def server_info(self) -> flow_pb2.ServerInfo:
        gateways, flows = await asyncio.gather(self.gateways(), self.reader.stores.all_flows())
        leader = self.lease.leader
        return flow_pb2.ServerInfo(
            version=headrace.__version__,
            workspace=self.reader.stores.workspace,
            broker_version=broker_version(self.connection),
            profile=self.profile,
            leader=leader.name if leader is not None else "",
            leader_address=leader.address if leader is not None else "",
            epoch=leader.epoch if leader is not None else 0,
            answered_by=self.lease.name,
            ingress_repairs=sum(flow.ingress_repairs for flow in flows),
            strays_moved=sum(flow.strays_moved for flow in flows),
            gateways=len(gateways),
            open_streams=self.open_streams(),
            code=compiled.code(),
        )

    async def gateways(self) -> list[str]:
        asked_at, known = self._gateways
        if known and time.monotonic() - asked_at < REMEMBER_S:
            return known
        found = await gateway_addresses(self.connection, self.reader.stores.workspace)
        self._gateways = (time.monotonic(), found)
        return found

    async def _newer(self, snapshot: Snapshot) -> dict[str, int]:
        """Newest revision per component of the deployment shown; a registry that is away leaves it empty."""
        view = snapshot.deployments.get(snapshot.flow.active or snapshot.flow.target)
        if view is None or view.plan is None:
            return {}
        components = {step.pin.component for step in view.plan.steps}
        numbers = await asyncio.gather(*(self._newest_of(component) for component in components))
        return dict(zip(components, numbers, strict=True))

    async def _newest_of(self, component: str) -> int:
        asked_at, number = self._newest.get(component, (0.0, 0))
        if asked_at and time.monotonic() - asked_at < REMEMBER_S:
            return number
        try:
            async with asyncio.timeout(NEWEST_LIMIT_S):
                number = (await self.resolver.newest_revision(component)).number
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            log.debug("newest revision is not known", component=component, error=repr(error)[:200])
        self._newest[component] = (time.monotonic(), number)
        return number


def broker_version(connection: Client) -> str:
    """`2.15.1`; empty while no server is connected."""
    found = connection.connected_server_version
    return f"{found.major}.{found.minor}.{found.patch}" if found is not None else ""


def _http(address: str) -> str:
    return address if address.startswith("http") else f"http://{address}"


def shortened(status: flow_pb2.FlowStatus) -> flow_pb2.FlowStatus:
    """Without the last log lines of its instances where they make it more than an answer may be; logs have them."""
    if status.ByteSize() > MAX_ANSWER_BYTES:
        for step in status.steps:
            for instance in step.instances:
                instance.ClearField("last_log_lines")
    return status
