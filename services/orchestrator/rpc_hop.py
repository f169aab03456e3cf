"""HopService: asks sidecars and gateways for their histograms and merges them, once or every second."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nats.aio.client import Client

from headrace.api.hop.v1 import hop_pb2, hop_pb2_grpc
from headrace.model.names import check_name, parse_resource
from headrace.wire.hops import merge_snapshots
from services.orchestrator.flow_service import FlowService
from services.orchestrator.hop_feed import HopFeed
from services.orchestrator.hop_messages import hops_message, period_of, view_of
from services.orchestrator.mesh_queries import hop_snapshots
from services.orchestrator.shared_feed import SharedFeeds


class HopRpc(hop_pb2_grpc.HopServiceServicer):
    """Answered by every orchestrator, leader or not: instances are asked over the broker."""

    def __init__(self, service: FlowService, connection: Client, feeds: SharedFeeds[HopFeed]) -> None:
        self._service = service
        self._connection = connection
        self._feeds = feeds

    async def GetHops(  # type: ignore[override]
        self, request: hop_pb2.GetHopsRequest, context: Any
    ) -> hop_pb2.GetHopsResponse:
        (flow,) = parse_resource("flow", request.flow, "flows")
        document, _ = await self._service.stores.existing_flow(flow)
        snapshots = await hop_snapshots(self._connection, self._service.stores.workspace, flow)
        return merge_snapshots(snapshots, deployment=request.deployment or document.active)

    async def WatchHops(
        self, request: hop_pb2.WatchHopsRequest, context: Any
    ) -> AsyncIterator[hop_pb2.WatchHopsResponse]:
        (flow,) = parse_resource("flow", request.flow, "flows")
        view, period, left = view_of(request), period_of(request), request.messages
        if view.step:
            check_name("step", view.step)
        await self._service.stores.existing_flow(flow)
        async with self._feeds.watching(flow) as feed:
            # The first tick only says where the instances stand.
            ticks = 1
            while True:
                await feed.wait(ticks, self._feeds.closed)
                if self._feeds.closed.is_set():
                    return
                yield feed.made(view, hops_message)
                ticks = feed.told + period - 1
                if left and (left := left - 1) == 0:
                    return
