"""The watches of FlowService that resume: flows, deployments, operations. Each follows its documents in KV."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from headrace.api.flow.v1 import flow_pb2
from headrace.edge.resumable_watch import ResumableWatch, WatchStep, messages_of
from headrace.model.deployment import decode_state
from services.orchestrator.domain.documents import FlowDocument, OperationDocument, decode
from services.orchestrator.flow_messages import deployment_message, flow_message, operation_message
from services.orchestrator.flow_service import FlowService
from services.orchestrator.rpc_rollouts import flow_of


class WatchRpc:
    """Mixed into the servicer of FlowService; answered by every orchestrator, leader or not."""

    _service: FlowService
    _stopping: asyncio.Event

    async def WatchFlows(
        self, request: flow_pb2.WatchFlowsRequest, context: Any
    ) -> AsyncIterator[flow_pb2.WatchFlowsResponse]:
        watch = ResumableWatch(self._service.stores.flows, "flow.*", "a watch of flows")
        shown: dict[str, bytes] = {}

        async def message(step: WatchStep) -> flow_pb2.WatchFlowsResponse:
            answer = flow_pb2.WatchFlowsResponse(revision=step.token, synced=step.synced)
            for entry in step.entries:
                name = f"flows/{entry.key.removeprefix('flow.')}"
                if entry.value is None:
                    shown.pop(name, None)
                    answer.deleted.append(name)
                    continue
                flow = flow_message(decode(entry.value, FlowDocument))
                # The document also holds what only the orchestrator needs.
                raw = flow.SerializeToString(deterministic=True)
                if shown.get(name) != raw:
                    shown[name] = raw
                    answer.flows.append(flow)
            return answer

        async for answer in messages_of(watch, request.revision, self._stopping, message):
            yield answer

    async def WatchDeployments(
        self, request: flow_pb2.WatchDeploymentsRequest, context: Any
    ) -> AsyncIterator[flow_pb2.WatchDeploymentsResponse]:
        flow = await self._parent(request.parent)
        kind = f"a watch of the deployments of {flow or 'all flows'}"
        watch = ResumableWatch(self._service.stores.deployments, f"state.{flow or '*'}.*", kind)

        async def message(step: WatchStep) -> flow_pb2.WatchDeploymentsResponse:
            answer = flow_pb2.WatchDeploymentsResponse(revision=step.token, synced=step.synced)
            for entry in step.entries:
                _, of, number = entry.key.split(".")
                if entry.value is None:
                    answer.deleted.append(f"flows/{of}/deployments/{number}")
                    continue
                plan = await self._service.reader.plan(of, int(number))
                digest = self._service.stores.digest_of(plan) if plan is not None else ""
                answer.deployments.append(deployment_message(of, int(number), plan, decode_state(entry.value), digest))
            return answer

        async for answer in messages_of(watch, request.revision, self._stopping, message):
            yield answer

    async def WatchOperations(
        self, request: flow_pb2.WatchOperationsRequest, context: Any
    ) -> AsyncIterator[flow_pb2.WatchOperationsResponse]:
        flow = await self._parent(request.parent)
        kind = f"a watch of the operations of {flow or 'all flows'}"
        watch = ResumableWatch(self._service.stores.flows, "operation.*", kind)

        async def message(step: WatchStep) -> flow_pb2.WatchOperationsResponse:
            answer = flow_pb2.WatchOperationsResponse(revision=step.token, synced=step.synced)
            for entry in step.entries:
                identifier = entry.key.removeprefix("operation.")
                if entry.value is None:  # whose it was is not known any more: the name begins with verb and flow
                    if not flow or f"-{flow}-" in identifier:
                        answer.deleted.append(f"operations/{identifier}")
                    continue
                document = decode(entry.value, OperationDocument)
                if flow in ("", document.flow):
                    answer.operations.append(operation_message(document))
            return answer

        async for answer in messages_of(watch, request.revision, self._stopping, message):
            yield answer

    async def _parent(self, parent: str) -> str:
        """Name of the flow, empty for all; NotFound where there is none."""
        if not parent:
            return ""
        flow = flow_of(parent, "parent")
        await self._service.stores.existing_flow(flow)
        return flow
