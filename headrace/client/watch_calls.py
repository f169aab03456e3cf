"""Watches that go on by themselves: flows, deployments, operations, components."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.client.session import Session, resource


class WatchCalls(Session):
    """Each begins with all that is there (`synced` says when that is told), then tells of each change. A connection
    that breaks is made again, and the watch goes on where it was: nothing is missed, what changed several times
    meanwhile comes once. Unavailable once no mesh has answered for `away_s` seconds.

    `revision` of any message begins a later watch where that message was; OutOfRange where that is not known any more.
    """

    async def watch_flows(
        self, *, revision: str = "", away_s: float = 30.0
    ) -> AsyncGenerator[flow_pb2.WatchFlowsResponse, None]:
        """Flows as they are now, and names of those that are gone."""
        request = flow_pb2.WatchFlowsRequest(revision=revision)
        async for message in self._watch(lambda: self._flow_stub().WatchFlows, request, away_s):
            yield message

    async def watch_deployments(
        self, flow: str = "", *, revision: str = "", away_s: float = 30.0
    ) -> AsyncGenerator[flow_pb2.WatchDeploymentsResponse, None]:
        """Deployments of a flow, or of all."""
        parent = resource("flows", flow) if flow else ""
        request = flow_pb2.WatchDeploymentsRequest(parent=parent, revision=revision)
        async for message in self._watch(lambda: self._flow_stub().WatchDeployments, request, away_s):
            yield message

    async def watch_operations(
        self, flow: str = "", *, revision: str = "", away_s: float = 30.0
    ) -> AsyncGenerator[flow_pb2.WatchOperationsResponse, None]:
        """Operations on a flow, or on all."""
        parent = resource("flows", flow) if flow else ""
        request = flow_pb2.WatchOperationsRequest(parent=parent, revision=revision)
        async for message in self._watch(lambda: self._flow_stub().WatchOperations, request, away_s):
            yield message

    async def watch_components(
        self, *, revision: str = "", away_s: float = 30.0
    ) -> AsyncGenerator[registry_pb2.WatchComponentsResponse, None]:
        """Components: pushes, tags, deletes."""

        def method() -> Any:
            stub: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(self.channel)
            return stub.WatchComponents

        async for message in self._watch(method, registry_pb2.WatchComponentsRequest(revision=revision), away_s):
            yield message

    async def _watch(self, method: Any, request: Any, away_s: float) -> AsyncGenerator[Any, None]:
        async for message in self._stream_again(method, request, away_s):
            request.revision = message.revision
            yield message

    def _flow_stub(self) -> flow_pb2_grpc.FlowServiceAsyncStub:
        return flow_pb2_grpc.FlowServiceStub(self.channel)
