"""Suspend, resume, scale, cancel, and the choice of a drain too long: the part of `FlowService` for flows at work."""

from __future__ import annotations

from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc

from headrace.api.flow.v1 import flow_pb2
from headrace.client.operations import Progress
from headrace.client.rollout_calls import WAIT_MARGIN_S, RolloutCalls
from headrace.client.session import new_request_id, resource

SUSPEND_TIMEOUT_S = 60.0
SCALE_TIMEOUT_S = 120.0
SETTLE_TIMEOUT_S = 60.0
WAIT = "WAIT"
DEAD_LETTER = "DEAD_LETTER"
MOVE = "MOVE"


class InterventionCalls(RolloutCalls):
    """What is not done within `timeout_s` fails as an operation; what was decided goes on."""

    async def suspend(
        self,
        flow: str,
        *,
        max_time_s: float = 0.0,
        max_messages: int = 0,
        timeout_s: float = SUSPEND_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> flow_pb2.FlowOperationResult:
        """Pauses every step, and waits until what is in work is finished. Messages are kept, and accepted for
        `max_time_s` (0: 24 h) and until `max_messages` wait (0: the flow's max_waiting); the result says so."""
        operation = await self.begin_suspend(
            flow, max_time_s=max_time_s, max_messages=max_messages, timeout_s=timeout_s
        )
        return await self.wait_operation(operation, timeout_s=timeout_s + WAIT_MARGIN_S, progress=progress)

    async def begin_suspend(
        self, flow: str, *, max_time_s: float = 0.0, max_messages: int = 0, timeout_s: float = SUSPEND_TIMEOUT_S
    ) -> Any:
        """Like `suspend`, without waiting: answers the operation."""
        request = flow_pb2.SuspendFlowRequest(
            name=resource("flows", flow), max_messages=max_messages, request_id=new_request_id()
        )
        request.timeout.FromMilliseconds(int(timeout_s * 1000))
        if max_time_s:
            request.max_time.FromMilliseconds(int(max_time_s * 1000))
        return await self._begin(self._flows().SuspendFlow, request)

    async def resume(
        self, flow: str, *, timeout_s: float = SUSPEND_TIMEOUT_S, progress: Progress | None = None
    ) -> flow_pb2.FlowOperationResult:
        """Goes on with the same deployment and the same pins."""
        request = flow_pb2.ResumeFlowRequest(name=resource("flows", flow), request_id=new_request_id())
        request.timeout.FromMilliseconds(int(timeout_s * 1000))
        operation = await self._begin(self._flows().ResumeFlow, request)
        return await self.wait_operation(operation, timeout_s=timeout_s + WAIT_MARGIN_S, progress=progress)

    async def scale(
        self,
        flow: str,
        step: str,
        replicas: int,
        *,
        timeout_s: float = SCALE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> flow_pb2.FlowOperationResult:
        """Gives a step of the running deployment 1 to 64 instances, and waits until they work (and until those
        too many have finished what they held)."""
        operation = await self.begin_scale(flow, step, replicas, timeout_s=timeout_s)
        return await self.wait_operation(operation, timeout_s=timeout_s + WAIT_MARGIN_S, progress=progress)

    async def begin_scale(self, flow: str, step: str, replicas: int, *, timeout_s: float = SCALE_TIMEOUT_S) -> Any:
        """Like `scale`, without waiting: answers the operation."""
        request = flow_pb2.ScaleStepRequest(
            name=resource("flows", flow), step=step, replicas=replicas, request_id=new_request_id()
        )
        request.timeout.FromMilliseconds(int(timeout_s * 1000))
        return await self._begin(self._flows().ScaleStep, request)

    async def resolve_drain(
        self,
        flow: str,
        deployment: int,
        choice: str,
        *,
        timeout_s: float = SETTLE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> flow_pb2.FlowOperationResult:
        """A person's choice for a deployment that drains for too long: `WAIT` (for another `timeout_s`),
        `DEAD_LETTER` or `MOVE` what waits. The result counts the messages."""
        operation = await self.begin_resolve_drain(flow, deployment, choice, timeout_s=timeout_s)
        return await self.wait_operation(operation, timeout_s=timeout_s + WAIT_MARGIN_S, progress=progress)

    async def begin_resolve_drain(
        self, flow: str, deployment: int, choice: str, *, timeout_s: float = SETTLE_TIMEOUT_S
    ) -> Any:
        """Like `resolve_drain`, without waiting: answers the operation."""
        request = flow_pb2.ResolveDrainRequest(
            name=f"{resource('flows', flow)}/deployments/{deployment}",
            choice=flow_pb2.DrainChoice.Value(f"DRAIN_CHOICE_{choice}"),
            request_id=new_request_id(),
        )
        request.timeout.FromMilliseconds(int(timeout_s * 1000))
        return await self._begin(self._flows().ResolveDrain, request)

    async def cancel_operation(self, name: str) -> None:
        """Gives an operation up: a start, publish, restart or rollback that prepares is undone, and a suspend.

        WrongState NOT_CANCELLABLE where it cannot be undone (a drain never can). The operation's own error says
        what was undone."""
        stub = operations_pb2_grpc.OperationsStub(self.channel)
        await self._call(stub.CancelOperation, operations_pb2.CancelOperationRequest(name=name))
