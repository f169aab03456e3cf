"""FlowService: conversion between messages and the verbs of `flow_service`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.edge.request_book import RequestBook, Ticket
from headrace.model.errors import InvalidInput
from headrace.model.names import check_name, parse_resource
from headrace.model.pages import Page, bounded
from headrace.wire.file_schemas import COMPONENT, FLOW, file_schema
from headrace.wire.flow import flow_spec_from_proto, seconds_from_duration
from services.orchestrator.bulk_injection import BulkInjection
from services.orchestrator.domain.documents import DRAIN, DROP
from services.orchestrator.domain.flow_verbs import no_version
from services.orchestrator.flow_messages import (
    deployment_message,
    flow_message,
    operation_message,
    version_message,
)
from services.orchestrator.flow_service import FlowService
from services.orchestrator.history_log import HistoryReader
from services.orchestrator.injection import Injector
from services.orchestrator.interventions import Interventions
from services.orchestrator.log_tail import LEVELS, MAX_LINES, LogFilter, tail
from services.orchestrator.mesh_view import MeshView
from services.orchestrator.rollouts import Rollouts
from services.orchestrator.rpc_history import HistoryRpc
from services.orchestrator.rpc_interventions import InterventionRpc
from services.orchestrator.rpc_rollouts import RolloutRpc, flow_of
from services.orchestrator.rpc_watches import WatchRpc
from services.orchestrator.shared_feed import SharedFeeds
from services.orchestrator.status_feed import StatusFeed
from services.orchestrator.verb_call import verb_call

STATUS_EVERY_S = 5.0


class FlowRpc(RolloutRpc, InterventionRpc, HistoryRpc, WatchRpc, flow_pb2_grpc.FlowServiceServicer):  # type: ignore[misc]
    def __init__(
        self,
        service: FlowService,
        rollouts: Rollouts,
        mesh: MeshView,
        history: HistoryReader,
        requests: RequestBook,
        stopping: asyncio.Event,
        injector: Injector,
        statuses: SharedFeeds[StatusFeed],
    ) -> None:
        self._statuses = statuses
        self._requests = requests
        self._history = history
        self._service = service
        self._rollouts = rollouts
        self._interventions = Interventions(service)
        self._injector = injector
        self._mesh = mesh
        self._stopping = stopping
        self.read_mesh: Callable[[], Awaitable[flow_pb2.MeshStatus]] | None = None

    async def GetMeshStatus(  # type: ignore[override]
        self, request: flow_pb2.GetMeshStatusRequest, context: Any
    ) -> flow_pb2.MeshStatus:
        assert self.read_mesh is not None
        return await self.read_mesh()

    async def CreateFlow(self, request: flow_pb2.CreateFlowRequest, context: Any) -> flow_pb2.Flow:  # type: ignore[override]
        spec = flow_spec_from_proto(request.spec)

        async def create(ticket: Ticket) -> flow_pb2.Flow:
            return flow_message(
                await self._service.create(request.flow_id, spec, validate_only=request.validate_only, mark=ticket.mark)
            )

        return await self._requests.once("FlowService/CreateFlow", request, flow_pb2.Flow, create)

    async def GetFlow(self, request: flow_pb2.GetFlowRequest, context: Any) -> flow_pb2.Flow:  # type: ignore[override]
        document, _ = await self._service.stores.existing_flow(flow_of(request.name))
        return flow_message(document)

    async def ListFlows(  # type: ignore[override]
        self, request: flow_pb2.ListFlowsRequest, context: Any
    ) -> flow_pb2.ListFlowsResponse:
        page = Page.asked("the list of flows", request.page_size, request.page_token)
        documents = await self._service.stores.all_flows()
        flows, token = page.take(documents, lambda item: item.flow, flow_message)
        return flow_pb2.ListFlowsResponse(flows=flows, next_page_token=token)

    async def DeleteFlow(  # type: ignore[override]
        self, request: flow_pb2.DeleteFlowRequest, context: Any
    ) -> flow_pb2.DeleteFlowResponse:
        flow = flow_of(request.name)

        async def delete(ticket: Ticket) -> flow_pb2.DeleteFlowResponse:
            await self._service.delete(flow, request.etag, ticket.mark)
            return flow_pb2.DeleteFlowResponse()

        return await self._requests.once("FlowService/DeleteFlow", request, flow_pb2.DeleteFlowResponse, delete)

    async def StartFlow(self, request: flow_pb2.StartFlowRequest, context: Any) -> Any:  # type: ignore[override]
        timeout_s = seconds_from_duration(request.timeout)
        call = verb_call(request, context)
        operation = await self._service.start(flow_of(request.name), request.version, timeout_s, call)
        return operation_message(operation)

    async def StopFlow(self, request: flow_pb2.StopFlowRequest, context: Any) -> Any:  # type: ignore[override]
        mode = DROP if request.mode == flow_pb2.STOP_MODE_DROP else DRAIN
        timeout_s = seconds_from_duration(request.timeout)
        operation = await self._service.stop(flow_of(request.name), mode, timeout_s, verb_call(request, context))
        return operation_message(operation)

    async def GetVersion(self, request: flow_pb2.GetVersionRequest, context: Any) -> flow_pb2.Version:  # type: ignore[override]
        flow, number = parse_resource("name", request.name, "flows", "versions")
        document, _ = await self._service.stores.existing_flow(flow)
        if not 0 < int(number) <= document.latest_version:
            raise no_version(document, int(number))
        return version_message(await self._service.reader.version(flow, int(number)))

    async def ListVersions(  # type: ignore[override]
        self, request: flow_pb2.ListVersionsRequest, context: Any
    ) -> flow_pb2.ListVersionsResponse:
        flow = flow_of(request.parent, "parent")
        page = Page.asked(f"the versions of {flow}", request.page_size, request.page_token)
        document, _ = await self._service.stores.existing_flow(flow)
        found = [item for item in await self._service.stores.versions(flow) if item.number <= document.latest_version]
        versions, token = page.take(found, lambda item: f"{item.number:012}", version_message)
        return flow_pb2.ListVersionsResponse(versions=versions, next_page_token=token)

    async def ListDeployments(  # type: ignore[override]
        self, request: flow_pb2.ListDeploymentsRequest, context: Any
    ) -> flow_pb2.ListDeploymentsResponse:
        flow = flow_of(request.parent, "parent")
        page = Page.asked(f"the deployments of {flow}", request.page_size, request.page_token)
        document, _ = await self._service.stores.existing_flow(flow)
        found: list[flow_pb2.Deployment] = []
        number = page.number
        while len(found) < page.size and (number := number + 1) < document.next_deployment:
            plan, state = await asyncio.gather(
                self._service.reader.plan(flow, number), self._service.stores.state(flow, number)
            )
            if plan is not None or state is not None:  # else it belonged to a deleted flow of this name
                digest = self._service.stores.digest_of(plan) if plan is not None else ""
                found.append(deployment_message(flow, number, plan, state[0] if state else None, digest))
        shown = bounded(found)
        last = shown[-1].number if shown else number
        more = len(shown) < len(found) or number < document.next_deployment - 1
        return flow_pb2.ListDeploymentsResponse(deployments=shown, next_page_token=page.token(last) if more else "")

    async def GetFlowStatus(  # type: ignore[override]
        self, request: flow_pb2.GetFlowStatusRequest, context: Any
    ) -> flow_pb2.FlowStatus:
        return await self._mesh.flow_status(flow_of(request.name))

    async def WatchFlowStatus(  # type: ignore[override]
        self, request: flow_pb2.WatchFlowStatusRequest, context: Any
    ) -> AsyncIterator[flow_pb2.WatchFlowStatusResponse]:
        flow = flow_of(request.name)
        loop = asyncio.get_running_loop()
        last: flow_pb2.FlowStatus | None = None
        sent_at = 0.0
        async with self._statuses.watching(flow) as feed:
            told = feed.look_now()
            while True:
                await feed.wait(told, self._statuses.closed)
                if self._statuses.closed.is_set():
                    return
                told = feed.told
                if feed.status != last or loop.time() - sent_at >= STATUS_EVERY_S:
                    last, sent_at = feed.status, loop.time()
                    yield flow_pb2.WatchFlowStatusResponse(status=last)

    async def InjectMessage(  # type: ignore[override]
        self, request: flow_pb2.InjectMessageRequest, context: Any
    ) -> flow_pb2.InjectMessageResponse:
        said = dict(context.invocation_metadata() or ())
        execution, duplicate = await self._injector.inject(
            flow_of(request.name),
            request.body,
            request.content_type,
            dict(request.headers),
            request.request_id,
            traceparent=str(said.get("traceparent", "")),
            baggage=str(said.get("baggage", "")),
            attachments=request.attachments,
        )
        return flow_pb2.InjectMessageResponse(execution_id=execution, duplicate=duplicate)

    async def InjectMessages(  # type: ignore[override]
        self, request: flow_pb2.InjectMessagesRequest, context: Any
    ) -> flow_pb2.InjectMessagesResponse:
        said = dict(context.invocation_metadata() or ())
        bulk = BulkInjection(
            self._injector, flow_of(request.name), str(said.get("traceparent", "")), str(said.get("baggage", ""))
        )
        return flow_pb2.InjectMessagesResponse(outcomes=await bulk.run(request.messages))

    async def RunFlowNow(  # type: ignore[override]
        self, request: flow_pb2.RunFlowNowRequest, context: Any
    ) -> flow_pb2.RunFlowNowResponse:
        execution, duplicate = await self._injector.run_now(flow_of(request.name), request.request_id)
        return flow_pb2.RunFlowNowResponse(execution_id=execution, duplicate=duplicate)

    async def TailLogs(  # type: ignore[override]
        self, request: flow_pb2.TailLogsRequest, context: Any
    ) -> AsyncIterator[flow_pb2.TailLogsResponse]:
        flow = flow_of(request.name)
        await self._service.stores.existing_flow(flow)
        if request.lines > MAX_LINES:
            raise InvalidInput.at("lines", request.lines, f"is more than {MAX_LINES}")
        if request.step:  # it becomes part of a subject
            check_name("step", request.step)
        if request.level and request.level not in LEVELS:
            raise InvalidInput.at("level", request.level, f"is not a level. Write one of {', '.join(LEVELS)}")
        wanted = LogFilter(request.step, request.execution_id, request.level, request.since.ToNanoseconds() / 1e9)
        lines = tail(
            self._mesh.connection,
            self._service.stores.workspace,
            flow,
            wanted,
            request.lines,
            follow=request.follow,
            stopping=self._stopping,
        )
        async with contextlib.aclosing(lines) as batches:  # type: ignore[type-var]
            async for batch in batches:
                yield batch

    async def GetFileSchema(  # type: ignore[override]
        self, request: flow_pb2.GetFileSchemaRequest, context: Any
    ) -> flow_pb2.FileSchema:
        try:
            schema = file_schema(request.kind)
        except KeyError as error:
            raise InvalidInput.at(
                "kind", request.kind, "is not a kind of file", next_step=f"Write {FLOW} or {COMPONENT}"
            ) from error
        return flow_pb2.FileSchema(kind=request.kind, json_schema=json.dumps(schema))

    async def GetServerInfo(  # type: ignore[override]
        self, request: flow_pb2.GetServerInfoRequest, context: Any
    ) -> flow_pb2.ServerInfo:
        return await self._mesh.server_info()
