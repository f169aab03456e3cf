"""Publish, restart, rollback, drafts and versions: the part of `FlowService` about which code runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.client.operations import OperationCalls, Progress, VerbOptions
from headrace.client.session import resource
from headrace.model.errors import InvalidInput

READY_TIMEOUT_S = 120.0
WARM_SWITCH = "WARM_SWITCH"
RESTART = "RESTART"

_Request = flow_pb2.PublishFlowRequest | flow_pb2.RestartFlowRequest | flow_pb2.RollbackFlowRequest


class RolloutOptions(VerbOptions, total=False):
    """How a new deployment takes over. `timeout_s` (120 s) is how long it may take to get ready; past it it fails,
    and with WARM_SWITCH the old one runs on."""

    strategy: str
    """`WARM_SWITCH` (the default) or `RESTART`."""
    strict_order: bool
    """WARM_SWITCH only: the new trigger waits until the old deployment has drained."""
    validate_only: bool
    """All checks, nothing written."""


class RolloutCalls(OperationCalls):
    """The results say what the new deployment runs otherwise than the one before."""

    async def publish(
        self, flow: str, *, progress: Progress | None = None, **options: Unpack[RolloutOptions]
    ) -> flow_pb2.FlowOperationResult:
        """Makes the draft the next version, and waits until it is (and is deployed, where the flow runs).

        WrongState UNCHANGED where the running deployment is exactly that already.
        """
        return await self._rolled_out(await self.begin_publish(flow, **options), options, progress)

    async def begin_publish(self, flow: str, **options: Unpack[RolloutOptions]) -> Any:
        """Like `publish`, without waiting: answers the operation."""
        request = flow_pb2.PublishFlowRequest(name=resource("flows", flow))
        return await self._begin(self._flows().PublishFlow, _filled(request, options), options, READY_TIMEOUT_S)

    async def restart(
        self, flow: str, *, progress: Progress | None = None, **options: Unpack[RolloutOptions]
    ) -> flow_pb2.FlowOperationResult:
        """A new deployment of the version that runs, its references resolved afresh; waits until it runs."""
        return await self._rolled_out(await self.begin_restart(flow, **options), options, progress)

    async def begin_restart(self, flow: str, **options: Unpack[RolloutOptions]) -> Any:
        """Like `restart`, without waiting: answers the operation."""
        request = flow_pb2.RestartFlowRequest(name=resource("flows", flow))
        return await self._begin(self._flows().RestartFlow, _filled(request, options), options, READY_TIMEOUT_S)

    async def rollback(
        self, flow: str, version: int, *, progress: Progress | None = None, **options: Unpack[RolloutOptions]
    ) -> flow_pb2.FlowOperationResult:
        """A deployment of a version with the digests it last ran with (where it runs now: those before).

        A stopped flow is started with them.
        """
        return await self._rolled_out(await self.begin_rollback(flow, version, **options), options, progress)

    async def begin_rollback(self, flow: str, version: int, **options: Unpack[RolloutOptions]) -> Any:
        """Like `rollback`, without waiting: answers the operation."""
        request = flow_pb2.RollbackFlowRequest(name=resource("flows", flow), version=version)
        return await self._begin(self._flows().RollbackFlow, _filled(request, options), options, READY_TIMEOUT_S)

    async def draft_from(self, flow: str, version: int, *, etag: str = "", request_id: str = "") -> flow_pb2.Flow:
        """Makes a version the draft again."""
        request = flow_pb2.UpdateDraftRequest(
            name=resource("flows", flow), from_version=version, etag=etag, request_id=request_id
        )
        return await self._call(self._flows().UpdateDraft, request)

    async def upgrade_draft(
        self,
        flow: str,
        *,
        components: Sequence[str] = (),
        etag: str = "",
        validate_only: bool = False,
        request_id: str = "",
    ) -> flow_pb2.UpgradeDraftResponse:
        """Writes the newest revisions of the components (all, or those named) into the draft, as exact pins."""
        request = flow_pb2.UpgradeDraftRequest(
            name=resource("flows", flow),
            components=components,
            etag=etag,
            validate_only=validate_only,
            request_id=request_id,
        )
        return await self._call(self._flows().UpgradeDraft, request)

    async def set_type(
        self, flow: str, flow_type: str, *, etag: str = "", validate_only: bool = False, request_id: str = ""
    ) -> flow_pb2.Flow:
        """Makes a stopped flow `ordinary` or `realtime`, by a version that differs in nothing else. WrongState while it
        is not stopped."""
        known = {"ordinary": flow_pb2.FLOW_TYPE_ORDINARY, "realtime": flow_pb2.FLOW_TYPE_REALTIME}
        if flow_type not in known:
            raise InvalidInput.at("type", flow_type, "is not ordinary or realtime", reason="BAD_TYPE")
        request = flow_pb2.SetFlowTypeRequest(
            name=resource("flows", flow),
            type=known[flow_type],
            etag=etag,
            validate_only=validate_only,
            request_id=request_id,
        )
        return await self._call(self._flows().SetFlowType, request)

    async def delete_version(self, flow: str, version: int, *, etag: str = "", request_id: str = "") -> None:
        """Deletes a version that is not in use: WrongState says who uses it."""
        request = flow_pb2.DeleteVersionRequest(
            name=f"{resource('flows', flow)}/versions/{version}", etag=etag, request_id=request_id
        )
        await self._call(self._flows().DeleteVersion, request)

    async def _rolled_out(
        self, operation: Any, options: RolloutOptions, progress: Progress | None
    ) -> flow_pb2.FlowOperationResult:
        # With RESTART the old deployment may take as long to drain as the new one to get ready.
        times = 2 if options.get("strategy", "").upper() == RESTART else 1
        return await self._finished(operation, options, times * READY_TIMEOUT_S, progress, times=times)

    def _flows(self) -> flow_pb2_grpc.FlowServiceAsyncStub:
        return flow_pb2_grpc.FlowServiceStub(self.channel)


def _filled(request: _Request, options: RolloutOptions) -> Any:
    strategy = options.get("strategy", WARM_SWITCH)
    try:
        request.strategy = flow_pb2.Strategy.Value(f"STRATEGY_{strategy.upper().replace('-', '_')}")
    except ValueError:
        raise InvalidInput.at("strategy", strategy, f"is not a strategy; use {WARM_SWITCH} or {RESTART}") from None
    request.strict_order = options.get("strict_order", False)
    request.validate_only = options.get("validate_only", False)
    return request
