"""google.longrunning.Operations over the operation documents."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2

from headrace.model.errors import InvalidInput, NotFound, WrongState
from headrace.model.pages import Page
from headrace.wire.flow import seconds_from_duration
from services.orchestrator.domain.documents import operation_key
from services.orchestrator.domain.operation_filter import operation_filter
from services.orchestrator.flow_messages import operation_message
from services.orchestrator.flow_service import FlowService
from services.orchestrator.operation_view import OperationView

LONGEST_WAIT_S = 60.0
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,200}")


class OperationsRpc(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]
    def __init__(self, service: FlowService, view: OperationView, stopping: asyncio.Event) -> None:
        self._service = service
        self._view = view
        self._stopping = stopping

    async def GetOperation(self, request: Any, context: Any) -> Any:
        return await self._view.message(await self._service.operation(_identifier(request.name)))

    async def ListOperations(self, request: Any, context: Any) -> Any:
        """By name. `filter`: empty, or `flow=orders`, `done=false` or `done=true`, both with `AND` between."""
        wanted = operation_filter(request.filter)
        page = Page.asked(f"the list of operations {request.filter}".rstrip(), request.page_size, request.page_token)
        documents = [document for document in await self._service.stores.operations() if wanted(document)]
        operations, token = page.take(documents, lambda item: item.id, operation_message)
        return operations_pb2.ListOperationsResponse(operations=operations, next_page_token=token)

    async def WaitOperation(self, request: Any, context: Any) -> Any:
        """Answers when the operation is done, or as it is at the end of the timeout (at most 60 s)."""
        identifier = _identifier(request.name)
        limit_s = seconds_from_duration(request.timeout) if request.HasField("timeout") else LONGEST_WAIT_S
        left = context.time_remaining()
        limit_s = min(limit_s, LONGEST_WAIT_S, max(0.0, left - 0.1) if left is not None else LONGEST_WAIT_S)
        document = await self._service.operation(identifier)
        with self._service.loops.watching(document.flow) as changed, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not self._stopping.is_set():
                    changed.clear()
                    document = await self._service.operation(identifier)
                    if document.done:
                        break
                    await changed.wait()
        return await self._view.message(document)

    async def CancelOperation(self, request: Any, context: Any) -> Any:
        """What prepares is undone: a start, publish, restart, rollback or suspend; a repeat changes nothing."""
        await self._service.cancel(_identifier(request.name))
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: Any, context: Any) -> Any:
        """Forgets an operation that is done."""
        identifier = _identifier(request.name)
        found = await self._service.stores.operation(identifier)
        if found is None:
            raise NotFound(f"there is no operation {identifier!r}")
        if not found[0].done:
            raise WrongState(f"operation {identifier!r} is not done", next_step="Wait for it")
        await self._service.stores.flows.delete(operation_key(identifier), found[1])
        return empty_pb2.Empty()


def _identifier(name: str) -> str:
    prefix, _, identifier = name.partition("/")
    if prefix != "operations" or not _IDENTIFIER.fullmatch(identifier):
        raise InvalidInput.at("name", name, "is not an operation's name", next_step="Use operations/{id}")
    return identifier
