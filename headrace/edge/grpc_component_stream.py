"""`GrpcComponentStream`: the batched `Process` stream to one component over grpc.aio.

One frame is in flight at a time; what comes meanwhile waits and leaves together in the next one, so that frames
grow exactly as fast as the component falls behind, without any timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from google.protobuf.message import DecodeError

from headrace.api.component.v1.component_pb2 import (
    EarlierOutput,
    Event,
    Input,
    KeptSnapshot,
    Ping,
    ProcessRequest,
    ProcessResponse,
)
from headrace.edge.grpc_server import MAX_MESSAGE_BYTES
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.step_snapshot import StepSnapshot
from headrace.ports import ComponentInput, StreamClosed, StreamFull

log = get_logger(__name__)

METHOD = "/headrace.api.component.v1.ComponentService/Process"
MAX_FRAME_INPUTS = 300
MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_INPUT_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024
MAX_QUEUED = 4096
MAX_QUEUED_BYTES = 64 * 1024 * 1024
_INPUT_OVERHEAD = 256
_HEADER_OVERHEAD = 16


class GrpcComponentStream:
    """`on_events` gets the events of one frame as a list, synchronously on the loop; `on_closed` is called once
    with the cause when the stream dies by itself, not after `close`. `on_spans` gets spans of
    the component's own code. The channel stays its owner's to close."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        on_events: Callable[[list[Event]], None],
        on_closed: Callable[[StreamClosed], None],
        on_spans: Callable[[Sequence[Any]], None] | None = None,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._channel = channel
        self._on_events, self._on_closed, self._on_spans = on_events, on_closed, on_spans
        self._max_queued = max_queued
        self._queue: deque[ComponentInput] = deque()
        self._queued_bytes = 0
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._unsent_pings: deque[int] = deque()
        self._nonce = 0
        self._wake = asyncio.Event()
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._closing = False
        self._cause: StreamClosed | None = None

    @property
    def queued(self) -> int:
        """Inputs that wait for a frame."""
        return len(self._queue)

    async def start(self, timeout_s: float = 5.0) -> None:
        """Opens the call; StreamClosed when the component cannot be reached within the limit."""
        method: Any = self._channel.stream_stream(METHOD, request_serializer=ProcessRequest.SerializeToString)
        # Responses stay bytes: one that cannot be parsed must end this stream with a clear cause.
        self._call = method(wait_for_ready=True)
        try:
            async with asyncio.timeout(timeout_s):
                await self._call.wait_for_connection()
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            self._call.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise self._cause_of(error) from error
        self._reader = asyncio.create_task(self._read(), name="component-stream-reader")
        self._writer = asyncio.create_task(self._write(), name="component-stream-writer")

    def send(self, inputs: Sequence[ComponentInput]) -> None:
        """See the port."""
        if self._cause is not None or self._closing or self._call is None:
            raise self._cause or StreamClosed("the stream is closed", "CANCELLED")
        waiting, size = len(self._queue), 0
        for given in inputs:
            input_size = _size(given)
            if input_size > MAX_INPUT_BYTES:
                raise ValueError(f"body: {len(given.body)} bytes fit no frame (limit {MAX_INPUT_BYTES})")
            size += input_size
        # What comes while nothing waits is always let in, whatever its size.
        too_many = waiting + len(inputs) > self._max_queued or self._queued_bytes + size > MAX_QUEUED_BYTES
        if waiting and too_many:
            raise StreamFull(f"{waiting} inputs ({self._queued_bytes} bytes) wait for the component")
        self._queue.extend(inputs)
        self._queued_bytes += size
        self._wake.set()

    async def ping(self, timeout_s: float) -> None:
        """See the port."""
        if self._cause is not None or self._closing or self._call is None:
            raise self._cause or StreamClosed("the stream is closed", "CANCELLED")
        self._nonce += 1
        nonce = self._nonce
        pong = self._pings[nonce] = asyncio.get_running_loop().create_future()
        self._unsent_pings.append(nonce)
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                await pong
        finally:
            self._pings.pop(nonce, None)

    async def close(self, timeout_s: float = 2.0) -> None:
        """See the port."""
        self._closing = True
        self._wake.set()
        tasks = [task for task in (self._writer, self._reader) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        if self._call is not None:
            self._call.cancel()
        await end_tasks(tasks)
        self._end(StreamClosed("the stream is closed", "CANCELLED"))

    async def _write(self) -> None:
        try:
            while True:
                if not (self._queue or self._unsent_pings):
                    if self._closing:
                        await self._call.done_writing()
                        return
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                await self._call.write(self._next_frame())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            # The reader learns the status and tells it; this is only the first to notice.
            log.debug("a frame could not be written", error=repr(error))
        except Exception as error:
            log.exception("writing to the component failed")
            self._call.cancel()
            self._end(StreamClosed(f"writing to the component failed: {error!r}", "INTERNAL"))

    def _next_frame(self) -> ProcessRequest:
        if self._unsent_pings:
            return ProcessRequest(ping=Ping(nonce=self._unsent_pings.popleft()))
        queue = self._queue
        inputs: list[Input] = []
        size = 0
        while queue and len(inputs) < MAX_FRAME_INPUTS:
            given = queue[0]
            input_size = _size(given)
            if inputs and size + input_size > MAX_FRAME_BYTES:
                break
            size += input_size
            queue.popleft()
            inputs.append(
                Input(
                    call=given.call,
                    body=given.body,
                    content_type=given.content_type,
                    headers=given.headers,
                    message_id=given.message_id,
                    execution_id=given.execution_id,
                    attempt=given.attempt,
                    wants_reply=given.wants_reply,
                    timeout_ms=given.timeout_ms,
                    traceparent=given.traceparent,
                    passthrough=[_earlier(item) for item in given.passthrough] if given.passthrough else None,
                    baggage=given.baggage,
                    snapshot=_kept(given.snapshot) if given.snapshot is not None else None,
                )
            )
        self._queued_bytes -= size
        return ProcessRequest(inputs=inputs)

    async def _read(self) -> None:
        call = self._call
        try:
            while True:
                raw = await call.read()
                if raw is grpc.aio.EOF:
                    break
                self._take(raw)
            code, details = await call.code(), await call.details()
            if code is grpc.StatusCode.OK:
                cause = StreamClosed("the component ended the stream", "OK")
            else:
                cause = StreamClosed(details or code.name, code.name)
        except asyncio.CancelledError:
            self._end(StreamClosed("the call was cancelled", "CANCELLED"))
            raise
        except DecodeError:
            cause = StreamClosed("the component sent what is no ProcessResponse", "DATA_LOSS")
            call.cancel()
        except grpc.aio.AioRpcError as error:
            cause = self._cause_of(error)
        self._end(cause)

    def _take(self, raw: bytes) -> None:
        response = ProcessResponse.FromString(raw)
        if response.HasField("pong"):
            pong = self._pings.get(response.pong.nonce)
            if pong is not None and not pong.done():
                pong.set_result(None)
        if response.events:
            try:
                self._on_events(list(response.events))
            except Exception:
                log.exception("events could not be handed over", count=len(response.events))
        if response.spans and self._on_spans is not None:
            self._on_spans(response.spans)

    @staticmethod
    def _cause_of(error: BaseException) -> StreamClosed:
        if isinstance(error, grpc.aio.AioRpcError):
            return StreamClosed(error.details() or error.code().name, error.code().name)
        return StreamClosed(f"the component did not answer: {error!r}", "DEADLINE_EXCEEDED")

    def _end(self, cause: StreamClosed) -> None:
        """First cause wins; wakes whoever waits, tells the owner unless it asked for the end."""
        if self._cause is not None:
            return
        self._cause = cause
        self._queue.clear()
        self._queued_bytes = 0
        self._unsent_pings.clear()
        for pong in self._pings.values():
            if not pong.done():
                pong.set_exception(cause)
        if not self._closing:
            if self._writer is not None:
                self._writer.cancel()
            self._on_closed(cause)


def _size(given: ComponentInput) -> int:
    """Upper estimate of the bytes of one input in a frame."""
    size = len(given.body) + _INPUT_OVERHEAD
    for key, value in given.headers.items():
        size += len(key) + 4 * len(value) + _HEADER_OVERHEAD
    for item in given.passthrough:
        size += item.ByteSize() + _HEADER_OVERHEAD
    if given.snapshot is not None:
        size += len(bytes(given.snapshot.value)) + _HEADER_OVERHEAD
    return size


def _kept(snapshot: StepSnapshot) -> KeptSnapshot:
    return KeptSnapshot(json=bytes(snapshot.value).decode(), revision=snapshot.revision)


def _earlier(item: Any) -> EarlierOutput:
    return EarlierOutput(step=item.step, body=item.body, content_type=item.content_type, headers=item.headers)
