"""Waits for long-running operations: level-based long polls, progress, one limit for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypedDict

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import status_pb2

from headrace.api.flow.v1 import flow_pb2
from headrace.client.errors import error_of_status
from headrace.client.session import Session
from headrace.model.errors import DeadlineExceeded, HeadraceError, Unavailable

# How long one look lasts; progress is told at its end.
LOOK_S = 0.25
# A look answered at once (a server without WaitOperation's waiting) is not repeated sooner than this.
LEAST_PAUSE_S = 0.05
# An operation ends by its own limit; the wait for it is this much longer.
WAIT_MARGIN_S = 10.0

Progress = Callable[[flow_pb2.FlowOperationMetadata], None]


class VerbOptions(TypedDict, total=False):
    """What every verb takes that begins an operation on a flow."""

    timeout_s: float
    """The operation's own limit, seconds; each verb has its default. Past it the operation fails."""
    request_id: str
    """The same id answers the same operation, also of an earlier process; one is drawn where none is given."""
    etag: str
    """The flow's as it was read: Conflict where somebody changed it since."""


class OperationCalls(Session):
    """`google.longrunning.Operations`."""

    async def _begin(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Any],
        request: Any,
        options: VerbOptions,
        default_s: float,
    ) -> Any:
        """A call that begins an operation on a flow."""
        request.request_id = options.get("request_id", "")
        request.etag = options.get("etag", "")
        request.timeout.FromMilliseconds(int(options.get("timeout_s", default_s) * 1000))
        if self.queue_s > 0:
            request.wait_for_running = True
        return await self._call(method, request, timeout_s=self.timeout_s + self.queue_s)

    async def _finished(
        self, operation: Any, options: VerbOptions, default_s: float, progress: Progress | None, *, times: int = 1
    ) -> flow_pb2.FlowOperationResult:
        """The result of an operation that was begun with these options."""
        limit_s = times * options["timeout_s"] if "timeout_s" in options else default_s
        return await self.wait_operation(operation, timeout_s=limit_s + WAIT_MARGIN_S, progress=progress)

    async def get_operation(self, name: str) -> Any:
        """The operation as it is now (`google.longrunning.Operation`)."""
        stub = operations_pb2_grpc.OperationsStub(self.channel)
        return await self._call(stub.GetOperation, operations_pb2.GetOperationRequest(name=name))

    async def wait_operation(
        self, operation: Any, *, timeout_s: float, progress: Progress | None = None
    ) -> flow_pb2.FlowOperationResult:
        """Waits until the operation is done; answers its result or raises its error.

        `progress` is called with the metadata about four times a second, and once at the end. An orchestrator
        that is being restarted is waited for. DeadlineExceeded past `timeout_s`; the operation goes on.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not operation.done:
            if progress is not None:
                progress(metadata_of(operation))
            if loop.time() >= deadline:
                raise DeadlineExceeded(
                    f"{operation.name} was not done within {timeout_s:g} s",
                    reason="OPERATION_NOT_DONE",
                    next_step="It goes on by itself; see `headrace flow status`",
                    metadata={"operation": operation.name},
                )
            began = loop.time()
            operation = await self._look(operation)
            if not operation.done and loop.time() - began < LEAST_PAUSE_S:
                await asyncio.sleep(LEAST_PAUSE_S)
        if progress is not None:
            progress(metadata_of(operation))
        return result_of(operation)

    async def _look(self, operation: Any) -> Any:
        stub = operations_pb2_grpc.OperationsStub(self.channel)
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        request.timeout.FromMilliseconds(int(LOOK_S * 1000))
        try:
            return await self._call(stub.WaitOperation, request)
        except (Unavailable, DeadlineExceeded):
            return operation  # a broker cluster that elects a leader lets it wait for seconds
        except HeadraceError as error:
            if error.reason != grpc.StatusCode.UNIMPLEMENTED.name:
                raise
            return await self.get_operation(operation.name)


def metadata_of(operation: Any) -> flow_pb2.FlowOperationMetadata:
    """What the operation is about, and how far each step is."""
    metadata = flow_pb2.FlowOperationMetadata()
    if operation.metadata.Is(metadata.DESCRIPTOR):
        operation.metadata.Unpack(metadata)
    return metadata


def result_of(operation: Any) -> flow_pb2.FlowOperationResult:
    """Result of an operation that is done; raises the error of one that failed."""
    if operation.WhichOneof("result") == "error":
        error = error_of_status(status_pb2.Status.FromString(operation.error.SerializeToString()))
        error.metadata.setdefault("operation", operation.name)
        raise error
    result = flow_pb2.FlowOperationResult()
    if operation.response.Is(result.DESCRIPTOR):
        operation.response.Unpack(result)
    return result
