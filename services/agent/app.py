"""Wires the agent: driver, table, gRPC server; ordered stop within three seconds."""

from __future__ import annotations

import asyncio

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.edge.grpc_server import GrpcServer
from headrace.edge.own_metrics import OwnMetrics
from headrace.edge.parent_death import parent_is_gone
from headrace.edge.readiness import report_ready
from headrace.edge.structured_log import get_logger
from services.agent.driver import InstanceDriver
from services.agent.instance_table import InstanceTable
from services.agent.rpc import AgentRpc
from services.agent.trials import Trials

log = get_logger(__name__)

STOP_GRACE_S = 2.0
SERVICE_NAME = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name


class AgentApp:
    """The agent as a service of `run_service`."""

    def __init__(
        self, driver: InstanceDriver, listen: str, *, instance_limit: int, metrics: str = "", admin: str = ""
    ) -> None:
        """`metrics` and `admin` are addresses of ports for operators; empty: none."""
        self._metrics_address, self._admin = metrics, admin
        self._metrics: OwnMetrics | None = None
        self._stops = False
        self._driver = driver
        self._listen = listen
        self._table = InstanceTable(driver, limit=instance_limit)
        self._trials = Trials(driver)
        self._server: GrpcServer | None = None

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        await self._driver.prepare()
        server = GrpcServer()
        server.add(agent_pb2_grpc.add_AgentServiceServicer_to_server, AgentRpc(self._table, self._trials), SERVICE_NAME)
        server.on_stop(self._table.refuse_new)
        address = await server.start(self._listen)
        self._server = server
        if self._admin:
            await server.serve_admin(self._admin)
        self._metrics = OwnMetrics(lambda: not self._stops, calls=lambda: server.calls.counts)
        await self._metrics.start(self._metrics_address)
        report_ready({"address": address})
        log.info("agent serves", address=address)

    async def stop(self) -> None:
        """Refuses new instances, ends all of them in parallel, then the server. When the parent has died the rest
        of the mesh is gone as well: nothing is waited for."""
        self._stops = True
        self._table.refuse_new()
        await self._trials.close()
        await self._table.close(0.0 if parent_is_gone() else STOP_GRACE_S)
        if self._server is not None:
            await self._server.stop(0.2)
        if self._metrics is not None:
            await self._metrics.stop()
