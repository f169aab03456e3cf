"""Publish, restart, rollback, drafts and versions: the part of `FlowService` about which code runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.client.calls import was_repeated
from headrace.client.operations import OperationCalls, Progress
from headrace.client.session import new_request_id, resource
from headrace.model.errors import InvalidInput, NotFound

READY_TIMEOUT_S = 120.0
# An operation ends by its own limit; the wait for it is this much longer.
WAIT_MARGIN_S = 10.0
WARM_SWITCH = "WARM_SWITCH"
RESTART = "RESTART"

_Request = flow_pb2.PublishFlowRequest | flow_pb2.RestartFlowRequest | flow_pb2.RollbackFlowRequest


class RolloutCalls(OperationCalls):
    """`strategy` is `WARM_SWITCH` or `RESTART`; `strict_order` (WARM_SWITCH only) lets the new trigger wait until
    the old deployment has drained. `timeout_s` is how long the new deployment may take to get ready; past it
    it fails, and with WARM_SWITCH the old one runs on. The results say what differs from what ran."""

    async def publish(
        self,
        flow: str,
        *,
        etag: str = "",
        strategy: str = WARM_SWITCH,
        strict_order: bool = False,
        timeout_s: float = READY_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> flow_pb2.FlowOperationResult:
        """Makes the draft the next version, and waits until it is (and is deployed, where the flow runs).

        WrongState UNCHANGED where the running deployment is exactly that already.
        """
        operation = await self.begin_publish(
            flow, etag=etag, strategy=strategy, strict_order=strict_order, timeout_s=timeout_s
        )
        return await self._rolled_out(operation, strategy, timeout_s, progress)

    async def begin_publish(
        self,
        flow: str,
        *,
        etag: str = "",
        strategy: str = WARM_SWITCH,
        strict_order: bool = False,
        timeout_s: float = READY_TIMEOUT_S,
    ) -> Any:
        """Like `publish`, without waiting: answers the operation."""
        request = flow_pb2.PublishFlowRequest(name=resource("flows", flow), etag=etag, request_id=new_request_id())
        return await self._begin(self._flows().PublishFlow, _filled(request, strategy, strict_order, timeout_s))

    async def restart(
        self,
        flow: str,
        *,
        etag: str = "",
        strategy: str = WARM_SWITCH,
        strict_order: bool = False,
        timeout_s: float = READY_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> flow_pb2.FlowOperationResult:
        """A new deployment of the version that runs, its references resolved afresh; waits until it runs."""
        operation = await self.begin_restart(
            flow, etag=etag, strategy=strategy, strict_order=strict_order, timeout_s=timeout_s
        )
        return await self._rolled_out(operation, strategy, timeout_s, progress)

    async def begin_restart(
        self,
        flow: str,
        *,
        etag: str = "",
        strategy: str = WARM_SWITCH,
        strict_order: bool = False,
        timeout_s: float = READY_TIMEOUT_S,
    ) -> Any:
        """Like `restart`, without waiting: answers the operation."""
        request = flow_pb2.RestartFlowRequest(name=resource("flows", flow), etag=etag, request_id=new_request_id())
        return await self._begin(self._flows().RestartFlow, _filled(request, strategy, strict_order, timeout_s))

    async def rollback(
        self,
        flow: str,
        version: int,
        *,
        etag: str = "",
        strategy: str = WARM_SWITCH,
        strict_order: bool = False,
        timeout_s: float = READY_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> flow_pb2.FlowOperationResult:
        """A deployment of a version with the digests it last ran with (where it runs now: those before).

        A stopped flow is started with them.
        """
        operation = await self.begin_rollback(
            flow, version, etag=etag, strategy=strategy, strict_order=strict_order, timeout_s=timeout_s
        )
        return await self._rolled_out(operation, strategy, timeout_s, progress)

    async def begin_rollback(
        self,
        flow: str,
        version: int,
        *,
        etag: str = "",
        strategy: str = WARM_SWITCH,
        strict_order: bool = False,
        timeout_s: float = READY_TIMEOUT_S,
    ) -> Any:
        """Like `rollback`, without waiting: answers the operation."""
        request = flow_pb2.RollbackFlowRequest(
            name=resource("flows", flow), version=version, etag=etag, request_id=new_request_id()
        )
        return await self._begin(self._flows().RollbackFlow, _filled(request, strategy, strict_order, timeout_s))

    async def draft_from(self, flow: str, version: int, *, etag: str = "") -> flow_pb2.Flow:
        """Makes a version the draft again."""
        request = flow_pb2.UpdateDraftRequest(name=resource("flows", flow), from_version=version, etag=etag)
        return await self._call(self._flows().UpdateDraft, request)

    async def upgrade_draft(
        self, flow: str, *, components: Sequence[str] = (), etag: str = ""
    ) -> flow_pb2.UpgradeDraftResponse:
        """Writes the newest revisions of the components (all, or those named) into the draft, as exact pins."""
        request = flow_pb2.UpgradeDraftRequest(name=resource("flows", flow), components=components, etag=etag)
        return await self._call(self._flows().UpgradeDraft, request)

    async def delete_version(self, flow: str, version: int, *, etag: str = "") -> None:
        """Deletes a version that is not in use: WrongState says who uses it."""
        request = flow_pb2.DeleteVersionRequest(name=f"{resource('flows', flow)}/versions/{version}", etag=etag)
        try:
            await self._call(self._flows().DeleteVersion, request)
        except NotFound as error:
            if not was_repeated(error):
                raise

    async def _rolled_out(
        self, operation: Any, strategy: str, timeout_s: float, progress: Progress | None
    ) -> flow_pb2.FlowOperationResult:
        # With RESTART the old deployment may take as long to drain as the new one to get ready.
        limit_s = (2 if strategy == RESTART else 1) * timeout_s + WAIT_MARGIN_S
        return await self.wait_operation(operation, timeout_s=limit_s, progress=progress)

    def _flows(self) -> flow_pb2_grpc.FlowServiceAsyncStub:
        return flow_pb2_grpc.FlowServiceStub(self.channel)


def _filled(request: _Request, strategy: str, strict_order: bool, timeout_s: float) -> Any:
    try:
        request.strategy = flow_pb2.Strategy.Value(f"STRATEGY_{strategy.upper().replace('-', '_')}")
    except ValueError:
        raise InvalidInput.at("strategy", strategy, f"is not a strategy; use {WARM_SWITCH} or {RESTART}") from None
    request.strict_order = strict_order
    request.timeout.FromMilliseconds(int(timeout_s * 1000))
    return request
