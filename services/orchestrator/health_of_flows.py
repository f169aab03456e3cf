"""Health of `flows/<flow>`: the leader knows it, a standby asks the leader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.edge.grpc_channel import open_channel
from headrace.edge.health_service import SERVICE_UNKNOWN, UNKNOWN
from headrace.model.errors import HeadraceError
from services.orchestrator.flow_board import FlowBoard
from services.orchestrator.lease import Lease
from services.orchestrator.stores import Stores

# Of a standby that watches, and of a leader whose looks told of nothing.
LOOK_S = 1.0
LEADER_LIMIT_S = 2.0
MOST_LISTED = 1000


class HealthOfFlows:
    """A source of `headrace.edge.health_service`. `close` at the end."""

    prefix = "flows/"

    def __init__(self, stores: Stores, board: FlowBoard, lease: Lease) -> None:
        self._stores, self._board, self._lease = stores, board, lease
        self._channel: tuple[str, grpc.aio.Channel] | None = None

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel[1].close()

    async def check(self, name: str) -> str | None:
        """UNKNOWN where it cannot be told: nobody leads, or broker or agent do not answer."""
        flow = name.removeprefix(self.prefix)
        if not self._lease.leading:
            return await self._ask_leader(name)
        health = self._board.health(flow)
        if health is not None:
            return health.value
        try:
            return UNKNOWN if await self._stores.flow(flow) is not None else None
        except HeadraceError:
            return UNKNOWN

    async def watch(self, name: str) -> AsyncGenerator[str, None]:
        told = ""
        flow = name.removeprefix(self.prefix)
        while True:
            with self._board.watching(flow) as changed:
                status = await self.check(name) or SERVICE_UNKNOWN
                if status != told:
                    told = status
                    yield status
                try:
                    async with asyncio.timeout(LOOK_S):
                        await changed.wait()
                except TimeoutError:
                    continue

    async def all(self) -> dict[str, str]:
        """Of the leader's flows; a standby tells of none."""
        if not self._lease.leading:
            return {}
        return {
            f"{self.prefix}{flow}": health.value
            for flow in sorted(self._board.flows())[:MOST_LISTED]
            if (health := self._board.health(flow)) is not None
        }

    async def _ask_leader(self, name: str) -> str | None:
        leader = self._lease.leader
        if leader is None or self._lease.is_own(leader):
            return UNKNOWN
        if self._channel is None or self._channel[0] != leader.address:
            await self.close()
            self._channel = (leader.address, open_channel(leader.address))
        try:
            stub: Any = health_pb2_grpc.HealthStub(self._channel[1])  # type: ignore[no-untyped-call]
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=LEADER_LIMIT_S)
        except grpc.aio.AioRpcError as error:
            return None if error.code() == grpc.StatusCode.NOT_FOUND else UNKNOWN
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
