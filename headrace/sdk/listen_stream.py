"""The `Listen` stream: a listener's emits out, the broker's answers in.

An emit returns when the broker has it, or raises, so that the function knows what it may commit at its source.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Protocol

import grpc

from headrace.api.component.v1 import component_pb2
from headrace.model.limits import MAX_BODY_BYTES
from headrace.sdk.attachments import Attachment
from headrace.sdk.context import _CURRENT, DONE, Context, StepScope, encoded, made_emit
from headrace.sdk.errors import OUTPUT_REFUSED, SNAPSHOT_REFUSED, ComponentError, EmitRefused
from headrace.sdk.function import Function

DEFAULT_MAX_UNRESOLVED = 256
# How long a listener may take to see `ctx.draining` by itself before it is cancelled.
DRAIN_GRACE_S = 0.5
MAX_SOURCE_ID_CHARACTERS = 512
MAX_EMITS_A_FRAME = 100


class ListenRpc(Protocol):
    """The sidecar's side of the stream (a gRPC servicer context, or the test harness)."""

    async def read(self) -> Any:
        """The next ListenRequest, or grpc.aio.EOF."""

    async def write(self, frame: component_pb2.ListenResponse, /) -> None: ...


class ListenContext(Context):
    """The Context of a listener: `emit` waits for the broker."""

    __slots__ = ("_stream",)

    def __init__(self, scope: StepScope, stream: ListenStream) -> None:
        super().__init__(scope, component_pb2.Input(), _NoCall())
        self._stream = stream

    def emit(
        self,
        value: Any,
        *,
        headers: Mapping[str, str] | None = None,
        key: str = "",
        content_type: str = "",
        source_id: str = "",
        attachments: Iterable[Attachment] = (),
    ) -> Awaitable[None]:
        """Returns when the broker has the message; EmitRefused says it has not: do not commit then.

        `source_id` (an offset, a delivery tag) makes a repeat of the same emit harmless; without it the emit
        is at-least-once. At most `max_unresolved` emits wait at once; more wait for their turn. Await it in an
        async listener; in a plain one the call itself waits.
        """
        prepared = self._prepared(
            value, headers=headers, key=key, content_type=content_type, source_id=source_id, attachments=attachments
        )
        return self._stream.emit(*prepared)

    def _prepared(
        self,
        value: Any,
        *,
        headers: Mapping[str, str] | None = None,
        key: str = "",
        content_type: str = "",
        source_id: str = "",
        attachments: Iterable[Attachment] = (),
    ) -> tuple[component_pb2.Emit, str]:
        if len(source_id) > MAX_SOURCE_ID_CHARACTERS:
            raise ComponentError(OUTPUT_REFUSED, f"source_id is longer than {MAX_SOURCE_ID_CHARACTERS} characters")
        if attachments or type(value) is Attachment:
            body, content_type, references, _ = self.by_reference(value, content_type, attachments)
            return made_emit(body, content_type, headers, key, references), source_id
        body, content_type = encoded(value, content_type)
        if len(body) > MAX_BODY_BYTES:
            body, content_type, references, _ = self.by_reference(body, content_type)
            return made_emit(body, content_type, headers, key, references), source_id
        return made_emit(body, content_type, headers, key, ()), source_id

    def reply(self, *_: Any, **__: Any) -> Awaitable[None]:
        raise ComponentError(OUTPUT_REFUSED, "a listener has no caller to reply to")


class _NoCall:
    """A listener is not a call: nothing of it ends in call events."""

    def _refuse(self, *_: Any) -> None:
        raise AssertionError("a listener has no call events")

    def snapshot(self, *_: Any) -> None:
        raise ComponentError(
            SNAPSHOT_REFUSED,
            "a listener keeps no snapshot: it is saved when a call ends, and a listener is none. Commit to the source, "
            "or keep it in the step that receives from the listener",
        )

    data = reply = error = rebound = end = output = answer = done = _refuse


class PlainListenContext(ListenContext):
    """For a listener that is not async: its thread waits inside `emit`."""

    __slots__ = ()

    def emit(self, value: Any, **options: Any) -> Awaitable[None]:
        waiting = self._stream.emit(*self._prepared(value, **options))
        asyncio.run_coroutine_threadsafe(waiting, self._stream.loop).result()
        return DONE


class ListenStream:
    """Serves one Listen stream: `await run(rpc)`."""

    def __init__(self, function: Function, scope: StepScope) -> None:
        self._function = function
        self._scope = scope
        self.loop = asyncio.get_running_loop()
        self._emits = 0
        self._unresolved: dict[int, asyncio.Future[None]] = {}
        self._slots = asyncio.Semaphore(DEFAULT_MAX_UNRESOLVED)
        self._out: deque[component_pb2.ListenEmit] = deque()
        self._to_write = asyncio.Event()
        self._stopping = asyncio.Event()
        self._closed = False

    async def run(self, rpc: ListenRpc) -> None:
        """Runs the listener until it returns, fails, or is drained; raises what it raised."""
        first: Any = await rpc.read()
        if first is grpc.aio.EOF or first.WhichOneof("kind") != "start":
            raise ValueError("the first message of Listen must be `start`")
        self._slots = asyncio.Semaphore(first.start.max_unresolved or DEFAULT_MAX_UNRESOLVED)
        listener = self.loop.create_task(self._listen())
        reader = self.loop.create_task(self._read(rpc))
        writer = self.loop.create_task(self._write(rpc))
        stopping = self.loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait({listener, writer, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not listener.done():
                await self._end_listener(listener, reader)
            while self._unresolved and not reader.done() and not writer.done():
                waited = {*self._unresolved.values(), reader, writer}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if listener.done() and not listener.cancelled():
                listener.result()
        finally:
            self._close()
            tasks = {listener, reader, writer, stopping}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=DRAIN_GRACE_S)

    async def _end_listener(self, listener: asyncio.Task[None], reader: asyncio.Task[None]) -> None:
        """Gives the function a moment to see `draining`, and the sidecar its time to answer open emits."""
        self._scope.draining.set()
        while not listener.done():
            await asyncio.wait({listener}, timeout=DRAIN_GRACE_S)
            if not listener.done() and (reader.done() or not self._unresolved):
                listener.cancel()
                await asyncio.wait({listener}, timeout=DRAIN_GRACE_S)
                return

    def _close(self) -> None:
        self._closed = True
        self._scope.draining.set()
        for future in self._unresolved.values():
            if not future.done():
                future.set_exception(EmitRefused("CLOSED", "the stream to the sidecar is closed"))
        self._unresolved.clear()

    async def _listen(self) -> None:
        if self._function.is_async:
            context = ListenContext(self._scope, self)
            _CURRENT.set(context)
            await self._function.invoke(None, context)
        else:
            plain = PlainListenContext(self._scope, self)
            await asyncio.to_thread(self._function.invoke, None, plain)

    async def emit(self, emit: component_pb2.Emit, source_id: str) -> None:
        """Returns once the broker has it; EmitRefused if not. Bounded: waits for a free place first."""
        await self._slots.acquire()
        if self._closed:
            self._slots.release()
            raise EmitRefused("CLOSED", "the stream to the sidecar is closed")
        self._emits += 1
        resolved: asyncio.Future[None] = self.loop.create_future()
        resolved.add_done_callback(self._free_place)
        self._unresolved[self._emits] = resolved
        self._out.append(component_pb2.ListenEmit(emit=self._emits, source_id=source_id, data=emit))
        self._to_write.set()
        # Shielded: the place stays taken until the sidecar answers, even if the listener gives up waiting.
        await asyncio.shield(resolved)

    def _free_place(self, resolved: asyncio.Future[None]) -> None:
        self._slots.release()
        if not resolved.cancelled():
            resolved.exception()

    async def _write(self, rpc: ListenRpc) -> None:
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            while self._out:
                frame = component_pb2.ListenResponse()
                while self._out and len(frame.emits) < MAX_EMITS_A_FRAME:
                    frame.emits.append(self._out.popleft())
                await rpc.write(frame)

    async def _read(self, rpc: ListenRpc) -> None:
        try:
            while True:
                request: Any = await rpc.read()
                if request is grpc.aio.EOF:
                    return
                if request.WhichOneof("kind") == "resolved":
                    self._resolve(request.resolved)
                elif request.WhichOneof("kind") == "drain":
                    self._stopping.set()
        finally:
            self._stopping.set()

    def _resolve(self, answer: component_pb2.ListenResolved) -> None:
        future = self._unresolved.pop(answer.emit, None)
        if future is None or future.done():
            return
        if answer.error_code:
            future.set_exception(EmitRefused(answer.error_code, answer.error_message))
        else:
            future.set_result(None)
