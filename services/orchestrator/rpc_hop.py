"""HopService: asks sidecars and gateways for their histograms and merges them."""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client

from headrace.api.hop.v1 import hop_pb2, hop_pb2_grpc
from headrace.model.names import parse_resource
from services.orchestrator.flow_service import FlowService
from services.orchestrator.mesh_queries import hop_snapshots, merge_hops


class HopRpc(hop_pb2_grpc.HopServiceServicer):
    def __init__(self, service: FlowService, connection: Client) -> None:
        self._service = service
        self._connection = connection

    async def GetHops(  # type: ignore[override]
        self, request: hop_pb2.GetHopsRequest, context: Any
    ) -> hop_pb2.GetHopsResponse:
        (flow,) = parse_resource("flow", request.flow, "flows")
        document, _ = await self._service.stores.existing_flow(flow)
        snapshots = await hop_snapshots(self._connection, self._service.stores.workspace, flow)
        return merge_hops(snapshots, request.deployment or document.active)
