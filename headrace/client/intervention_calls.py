"""Suspend, resume, scale, cancel, and the choice of a drain too long: the part of `FlowService` for flows at work."""

from __future__ import annotations

from typing import Any, Unpack

from google.longrunning import operations_pb2, operations_pb2_grpc

from headrace.api.flow.v1 import flow_pb2
from headrace.client.operations import Progress, VerbOptions
from headrace.client.rollout_calls import RolloutCalls
from headrace.client.session import resource

SUSPEND_TIMEOUT_S = 60.0
SCALE_TIMEOUT_S = 120.0
SETTLE_TIMEOUT_S = 60.0
WAIT = "WAIT"
DEAD_LETTER = "DEAD_LETTER"
MOVE = "MOVE"


class SuspendOptions(VerbOptions, total=False):
    """Messages are accepted until one of the limits is reached; `timeout_s` (60 s) is for what is in work."""

    max_time_s: float
    """How long messages are accepted meanwhile; 24 h."""
    max_messages: int
    """Until so many wait; the flow's max_waiting."""


class InterventionCalls(RolloutCalls):
    """What is not done within `timeout_s` fails as an operation; what was decided goes on."""

    async def suspend(
        self, flow: str, *, progress: Progress | None = None, **options: Unpack[SuspendOptions]
    ) -> flow_pb2.FlowOperationResult:
        """Pauses every step, and waits until what is in work is finished. Messages are kept, and accepted up to
        limits; the result says so."""
        operation = await self.begin_suspend(flow, **options)
        return await self._finished(operation, options, SUSPEND_TIMEOUT_S, progress)

    async def begin_suspend(self, flow: str, **options: Unpack[SuspendOptions]) -> Any:
        """Like `suspend`, without waiting: answers the operation."""
        request = flow_pb2.SuspendFlowRequest(name=resource("flows", flow), max_messages=options.get("max_messages", 0))
        if options.get("max_time_s"):
            request.max_time.FromMilliseconds(int(options["max_time_s"] * 1000))
        return await self._begin(self._flows().SuspendFlow, request, options, SUSPEND_TIMEOUT_S)

    async def resume(
        self, flow: str, *, progress: Progress | None = None, **options: Unpack[VerbOptions]
    ) -> flow_pb2.FlowOperationResult:
        """Goes on with the same deployment and the same pins; `timeout_s` 60 s."""
        return await self._finished(await self.begin_resume(flow, **options), options, SUSPEND_TIMEOUT_S, progress)

    async def begin_resume(self, flow: str, **options: Unpack[VerbOptions]) -> Any:
        """Like `resume`, without waiting: answers the operation."""
        request = flow_pb2.ResumeFlowRequest(name=resource("flows", flow))
        return await self._begin(self._flows().ResumeFlow, request, options, SUSPEND_TIMEOUT_S)

    async def scale(
        self,
        flow: str,
        step: str,
        replicas: int,
        *,
        progress: Progress | None = None,
        **options: Unpack[VerbOptions],
    ) -> flow_pb2.FlowOperationResult:
        """Gives a step of the running deployment 1 to 64 instances, and waits until they work (and until those
        too many have finished what they held); `timeout_s` 120 s."""
        operation = await self.begin_scale(flow, step, replicas, **options)
        return await self._finished(operation, options, SCALE_TIMEOUT_S, progress)

    async def begin_scale(self, flow: str, step: str, replicas: int, **options: Unpack[VerbOptions]) -> Any:
        """Like `scale`, without waiting: answers the operation."""
        request = flow_pb2.ScaleStepRequest(name=resource("flows", flow), step=step, replicas=replicas)
        return await self._begin(self._flows().ScaleStep, request, options, SCALE_TIMEOUT_S)

    async def resolve_drain(
        self,
        flow: str,
        deployment: int,
        choice: str,
        *,
        progress: Progress | None = None,
        **options: Unpack[VerbOptions],
    ) -> flow_pb2.FlowOperationResult:
        """A person's choice for a deployment that drains for too long: `WAIT` (for another `timeout_s`, 60 s),
        `DEAD_LETTER` or `MOVE` what waits. The result counts the messages."""
        operation = await self.begin_resolve_drain(flow, deployment, choice, **options)
        return await self._finished(operation, options, SETTLE_TIMEOUT_S, progress)

    async def begin_resolve_drain(self, flow: str, deployment: int, choice: str, **options: Unpack[VerbOptions]) -> Any:
        """Like `resolve_drain`, without waiting: answers the operation."""
        request = flow_pb2.ResolveDrainRequest(
            name=f"{resource('flows', flow)}/deployments/{deployment}",
            choice=flow_pb2.DrainChoice.Value(f"DRAIN_CHOICE_{choice}"),
        )
        return await self._begin(self._flows().ResolveDrain, request, options, SETTLE_TIMEOUT_S)

    async def cancel_operation(self, name: str) -> None:
        """Gives an operation up: a start, publish, restart or rollback that prepares is undone, and a suspend.

        WrongState NOT_CANCELLABLE where it cannot be undone (a drain never can). The operation's own error says
        what was undone."""
        stub = operations_pb2_grpc.OperationsStub(self.channel)
        await self._call(stub.CancelOperation, operations_pb2.CancelOperationRequest(name=name))
