"""A listener in a test: takes the sidecar's part of the Listen stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from headrace.api.component.v1 import component_pb2
from headrace.sdk.context import StepScope
from headrace.sdk.function import Function
from headrace.sdk.listen_stream import ListenStream
from headrace.sdk.testing.memory_transfers import MemoryTransfers
from headrace.sdk.testing.results import Output, output_of

END_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class HeardEmit:
    """One emit, not resolved yet: `store()` or `refuse(...)` it."""

    number: int
    source_id: str
    output: Output
    harness: ListenerHarness

    def store(self) -> None:
        """The broker has it: the listener's `await ctx.emit(...)` returns."""
        self.harness.resolve(self.number, "", "")

    def refuse(self, code: str, message: str = "") -> None:
        """The broker has it not: `ctx.emit` raises EmitRefused."""
        self.harness.resolve(self.number, code, message)


class ListenerHarness:
    """Runs the listener inside `async with`; leaving drains it. What the listener raises comes out there."""

    def __init__(self, function: Function, scope: StepScope, max_unresolved: int) -> None:
        self._scope = scope
        self._to_component: asyncio.Queue[Any] = asyncio.Queue()
        self._heard: asyncio.Queue[HeardEmit] = asyncio.Queue()
        self._stream = ListenStream(function, scope)
        self._max_unresolved = max_unresolved
        self._task: asyncio.Task[None] | None = None

    async def next(self, timeout_s: float = 5.0) -> HeardEmit:
        """The next emit, still unresolved; TimeoutError if none comes."""
        return await asyncio.wait_for(self._heard.get(), timeout_s)

    async def drain(self) -> None:
        """Asks the listener to end, and waits until it has; raises what it raised."""
        self._to_component.put_nowait(component_pb2.ListenRequest(drain=component_pb2.ListenDrain()))
        assert self._task is not None
        await asyncio.wait_for(self._task, END_LIMIT_S)

    def resolve(self, number: int, code: str, message: str) -> None:
        resolved = component_pb2.ListenResolved(emit=number, error_code=code, error_message=message)
        self._to_component.put_nowait(component_pb2.ListenRequest(resolved=resolved))

    async def read(self) -> Any:
        return await self._to_component.get()

    async def write(self, frame: component_pb2.ListenResponse) -> None:
        for emit in frame.emits:
            transfers = self._scope.transfers
            assert isinstance(transfers, MemoryTransfers)
            for reference in emit.data.attachments:
                await transfers.complete_reference(reference)
            output = output_of(emit.data, transfers.stored)
            self._heard.put_nowait(HeardEmit(emit.emit, emit.source_id, output, self))

    async def __aenter__(self) -> ListenerHarness:
        self._scope.draining.clear()
        start = component_pb2.ListenStart(max_unresolved=self._max_unresolved)
        self._to_component.put_nowait(component_pb2.ListenRequest(start=start))
        self._task = asyncio.create_task(self._stream.run(self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._to_component.put_nowait(grpc.aio.EOF)
        assert self._task is not None
        await asyncio.wait_for(self._task, END_LIMIT_S)
