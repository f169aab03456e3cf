"""`GrpcComponentStream`: the batched `Process` stream to one component over grpc.aio.

One frame is in flight at a time; what comes meanwhile waits and leaves together in the next one. The fallback of
`Http2ComponentStream`, and its twin in the contract tests.
"""

from __future__ import annotations

import asyncio
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from google.protobuf.message import DecodeError

from headrace.edge.component_frames import MAX_QUEUED, METHOD, ComponentFrames, OnClosed, OnEvents, OnSpans
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.ports import StreamClosed

log = get_logger(__name__)


class GrpcComponentStream(ComponentFrames):
    """The channel stays its owner's to close."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        on_events: OnEvents,
        on_closed: OnClosed,
        on_spans: OnSpans | None = None,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        super().__init__(on_events=on_events, on_closed=on_closed, on_spans=on_spans, max_queued=max_queued)
        self._channel = channel
        self._wakened = asyncio.Event()
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float = 5.0) -> None:
        """Opens the call; StreamClosed when the component cannot be reached within the limit."""
        method: Any = self._channel.stream_stream(METHOD)
        # Frames are bytes both ways: one that cannot be parsed must end this stream with a clear cause.
        self._call = method(wait_for_ready=True)
        try:
            async with asyncio.timeout(timeout_s):
                await self._call.wait_for_connection()
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            self._call.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise self._cause_of(error) from error
        self._started = True
        self._reader = asyncio.create_task(self._read(), name="component-stream-reader")
        self._writer = asyncio.create_task(self._write(), name="component-stream-writer")

    async def close(self, timeout_s: float = 2.0) -> None:
        """See the port."""
        self._closing = True
        self._wakened.set()
        tasks = [task for task in (self._writer, self._reader) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        if self._call is not None:
            self._call.cancel()
        await end_tasks(tasks)
        self._end(StreamClosed("the stream is closed", "CANCELLED"))

    def _wake(self) -> None:
        self._wakened.set()

    def _ended(self) -> None:
        if self._writer is not None:
            self._writer.cancel()

    async def _write(self) -> None:
        try:
            while True:
                if not self._waiting:
                    if self._closing:
                        await self._call.done_writing()
                        return
                    self._wakened.clear()
                    await self._wakened.wait()
                    continue
                await self._call.write(self._next_frame())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            # The reader learns the status and tells it; this is only the first to notice.
            log.debug("a frame could not be written", error=repr(error))
        except Exception as error:
            log.exception("writing to the component failed")
            self._call.cancel()
            self._end(StreamClosed(f"writing to the component failed: {error!r}", "INTERNAL"))

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

    @staticmethod
    def _cause_of(error: BaseException) -> StreamClosed:
        if isinstance(error, grpc.aio.AioRpcError):
            return StreamClosed(error.details() or error.code().name, error.code().name)
        return StreamClosed(f"the component did not answer: {error!r}", "DEADLINE_EXCEEDED")
