"""Flows, versions, deployments, messages and logs: `FlowService` and `HopService`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.api.flow.v1 import flow_pb2
from headrace.api.hop.v1 import hop_pb2, hop_pb2_grpc
from headrace.client.intervention_calls import InterventionCalls
from headrace.client.operations import Progress, VerbOptions
from headrace.client.session import PAGE_SIZE, resource

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


class StartOptions(VerbOptions, total=False):
    """Of a start; `timeout_s` is for the whole of it."""

    version: int
    """Absent or 0: the newest."""


class StopOptions(VerbOptions, total=False):
    """Of a stop; `timeout_s` is for the drain."""

    drop: bool
    """Throw away what waits."""


class FlowCalls(InterventionCalls):
    """Flow names may be given as `orders` or as `flows/orders`."""

    async def create_flow(
        self, flow: str, spec: flow_pb2.FlowSpec, *, validate_only: bool = False, request_id: str = ""
    ) -> flow_pb2.Flow:
        """Creates a flow with a draft. AlreadyExists if the name is taken (by another call than one under this id)."""
        request = flow_pb2.CreateFlowRequest(
            flow_id=flow, spec=spec, validate_only=validate_only, request_id=request_id
        )
        return await self._call(self._flows().CreateFlow, request)

    async def update_draft(
        self,
        flow: str,
        spec: flow_pb2.FlowSpec,
        *,
        fields: Sequence[str] = (),
        etag: str = "",
        validate_only: bool = False,
        request_id: str = "",
    ) -> flow_pb2.Flow:
        """Replaces the draft, or only those `fields` of it (`description`, `steps`, ...). With an etag that is not the
        flow's: Conflict."""
        request = flow_pb2.UpdateDraftRequest(
            name=resource("flows", flow), spec=spec, etag=etag, validate_only=validate_only, request_id=request_id
        )
        request.update_mask.paths.extend(fields)
        return await self._call(self._flows().UpdateDraft, request)

    async def get_flow(self, flow: str) -> flow_pb2.Flow:
        return await self._call(self._flows().GetFlow, flow_pb2.GetFlowRequest(name=resource("flows", flow)))

    async def list_flows(self) -> list[flow_pb2.Flow]:
        stub = self._flows()

        async def page(token: str) -> tuple[list[flow_pb2.Flow], str]:
            request = flow_pb2.ListFlowsRequest(page_size=PAGE_SIZE, page_token=token)
            answer = await self._call(stub.ListFlows, request)
            return list(answer.flows), answer.next_page_token

        return await self._collect(page)

    async def delete_flow(self, flow: str, *, etag: str = "", request_id: str = "") -> None:
        """Deletes a stopped flow with its versions. WrongState while it runs."""
        request = flow_pb2.DeleteFlowRequest(name=resource("flows", flow), etag=etag, request_id=request_id)
        await self._call(self._flows().DeleteFlow, request)

    async def get_version(self, flow: str, number: int) -> flow_pb2.Version:
        request = flow_pb2.GetVersionRequest(name=f"{resource('flows', flow)}/versions/{number}")
        return await self._call(self._flows().GetVersion, request)

    async def list_versions(self, flow: str) -> list[flow_pb2.Version]:
        stub = self._flows()

        async def page(token: str) -> tuple[list[flow_pb2.Version], str]:
            request = flow_pb2.ListVersionsRequest(
                parent=resource("flows", flow), page_size=PAGE_SIZE, page_token=token
            )
            answer = await self._call(stub.ListVersions, request)
            return list(answer.versions), answer.next_page_token

        return await self._collect(page)

    async def list_deployments(self, flow: str) -> list[flow_pb2.Deployment]:
        stub = self._flows()

        async def page(token: str) -> tuple[list[flow_pb2.Deployment], str]:
            request = flow_pb2.ListDeploymentsRequest(
                parent=resource("flows", flow), page_size=PAGE_SIZE, page_token=token
            )
            answer = await self._call(stub.ListDeployments, request)
            return list(answer.deployments), answer.next_page_token

        return await self._collect(page)

    async def start(
        self, flow: str, *, progress: Progress | None = None, **options: Unpack[StartOptions]
    ) -> flow_pb2.FlowOperationResult:
        """Starts the newest version (or the one given) and waits until it runs.

        Past `timeout_s` (120 s) the mesh undoes the start, and its error says which step did not get ready.
        """
        return await self._finished(await self.begin_start(flow, **options), options, START_TIMEOUT_S, progress)

    async def begin_start(self, flow: str, **options: Unpack[StartOptions]) -> Any:
        """Like `start`, without waiting: answers the operation."""
        request = flow_pb2.StartFlowRequest(name=resource("flows", flow), version=options.get("version", 0))
        return await self._begin(self._flows().StartFlow, request, options, START_TIMEOUT_S)

    async def stop(
        self, flow: str, *, progress: Progress | None = None, **options: Unpack[StopOptions]
    ) -> flow_pb2.FlowOperationResult:
        """Stops the flow and waits until it is: messages that wait are finished, or with `drop` thrown away.

        Past `timeout_s` (60 s) the operation fails, and the flow goes on draining.
        """
        return await self._finished(await self.begin_stop(flow, **options), options, STOP_TIMEOUT_S, progress)

    async def begin_stop(self, flow: str, **options: Unpack[StopOptions]) -> Any:
        """Like `stop`, without waiting: answers the operation."""
        mode = flow_pb2.STOP_MODE_DROP if options.get("drop") else flow_pb2.STOP_MODE_DRAIN
        request = flow_pb2.StopFlowRequest(name=resource("flows", flow), mode=mode)
        return await self._begin(self._flows().StopFlow, request, options, STOP_TIMEOUT_S)

    async def get_status(self, flow: str) -> flow_pb2.FlowStatus:
        """Steps, pins, instances, waiting messages, as they are now."""
        request = flow_pb2.GetFlowStatusRequest(name=resource("flows", flow))
        return await self._call(self._flows().GetFlowStatus, request)

    async def watch_status(self, flow: str, *, away_s: float = 0.0) -> AsyncGenerator[flow_pb2.FlowStatus, None]:
        """The present status, then each change, and at least one every 5 s. With `away_s` a connection that breaks is
        made again, until no mesh has answered for so many seconds."""
        request = flow_pb2.WatchFlowStatusRequest(name=resource("flows", flow))
        messages = (
            self._stream_again(lambda: self._flows().WatchFlowStatus, request, away_s)
            if away_s
            else self._stream(self._flows().WatchFlowStatus, request)
        )
        async for message in messages:
            yield message.status

    async def inject(
        self,
        flow: str,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        request_id: str = "",
        attachments: Sequence[Attachment] = (),
    ) -> flow_pb2.InjectMessageResponse:
        """Publishes one message to the flow's trigger. The same `request_id` is accepted once. `attachments`: answers
        of `upload_attachment`; one with `is_body` is the body, and `body` is empty then."""
        request = flow_pb2.InjectMessageRequest(
            name=resource("flows", flow),
            body=body,
            content_type=content_type,
            headers=dict(headers or {}),
            request_id=request_id,
            attachments=attachments,
        )
        return await self._call(self._flows().InjectMessage, request)

    async def run_now(self, flow: str, *, request_id: str = "") -> flow_pb2.RunFlowNowResponse:
        """One tick now for a flow that a timer starts. The same `request_id` sends one."""
        request = flow_pb2.RunFlowNowRequest(name=resource("flows", flow), request_id=request_id or uuid.uuid4().hex)
        return await self._call(self._flows().RunFlowNow, request)

    async def tail_logs(
        self,
        flow: str,
        *,
        step: str = "",
        lines: int = 50,
        follow: bool = False,
        execution: str = "",
        level: str = "",
        since: datetime | None = None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[flow_pb2.LogLine, None]:
        """Log lines, oldest first: `lines` of the past (at most 1000), then new ones with `follow`. Only those of an
        execution, of a level (`debug`, `info`, `warning`, `error`) and above, written since then (with a time zone).
        `on_gone` is called if lines since then were kept no longer: the mesh keeps so many bytes."""
        request = flow_pb2.TailLogsRequest(
            name=resource("flows", flow), step=step, lines=lines, follow=follow, execution_id=execution, level=level
        )
        if since is not None:
            request.since.FromDatetime(since)
        async for message in self._stream(self._flows().TailLogs, request):
            if message.older_lines_are_gone:
                on_gone()
            for line in message.lines:
                yield line

    async def hops(self, flow: str, *, deployment: int = 0) -> hop_pb2.GetHopsResponse:
        """Latency per hop and phase since the instances of the active (or given) deployment started."""
        stub: hop_pb2_grpc.HopServiceAsyncStub = hop_pb2_grpc.HopServiceStub(self.channel)
        request = hop_pb2.GetHopsRequest(flow=resource("flows", flow), deployment=deployment)
        return await self._call(stub.GetHops, request)

    async def watch_hops(
        self,
        flow: str,
        *,
        windows: Sequence[int] = (10,),
        step: str = "",
        phases: Sequence[str] = (),
        away_s: float = 30.0,
    ) -> AsyncGenerator[hop_pb2.WatchHopsResponse, None]:
        """Percentiles, rates and errors of the last 1, 10 or 60 seconds, every second. A connection that breaks is made
        again, and the windows fill anew; Unavailable once no mesh has answered for `away_s` seconds. NotFound where
        there is no such flow, or none any more."""
        request = hop_pb2.WatchHopsRequest(flow=resource("flows", flow), windows=windows, step=step, phases=phases)

        def method() -> Any:
            stub: hop_pb2_grpc.HopServiceAsyncStub = hop_pb2_grpc.HopServiceStub(self.channel)
            return stub.WatchHops

        async for message in self._stream_again(method, request, away_s):
            yield message

    async def list_history(
        self, flow: str = "", *, limit: int = 50, page_token: str = ""
    ) -> tuple[list[flow_pb2.HistoryEntry], str]:
        """Who decided what, newest first: of a flow, or of all flows and the leader. At most `limit` entries (500 a
        page), and the token with which the list goes on (empty at its end)."""
        stub, token = self._flows(), page_token
        found: list[flow_pb2.HistoryEntry] = []
        while True:
            size = min(PAGE_SIZE, limit - len(found))
            request = flow_pb2.ListHistoryRequest(
                parent=resource("flows", flow) if flow else "", page_size=size, page_token=token
            )
            answer = await self._call(stub.ListHistory, request)
            found.extend(answer.entries)
            token = answer.next_page_token
            if not token or len(found) >= limit:
                return found, token

    async def mesh_status(self) -> flow_pb2.MeshStatus:
        """Leader, broker, all flows in a line each, and what is wrong: as the leader sees it."""
        return await self._call(self._flows().GetMeshStatus, flow_pb2.GetMeshStatusRequest())

    async def server_info(self) -> flow_pb2.ServerInfo:
        """Version, broker, durability profile, number of gateways."""
        return await self._call(self._flows().GetServerInfo, flow_pb2.GetServerInfoRequest())
