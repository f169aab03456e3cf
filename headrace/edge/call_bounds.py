"""What one caller can make a server spend: a limit for calls without a deadline, for answers, and for streams.

A stream (a watch, logs) has a place while it is open. Its reader may be slow only for so long: gRPC takes no more from
us once the reader's window is full, and then the stream ends with RESOURCE_EXHAUSTED instead of being kept for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.edge.wrapped_handler import wrapped_handler
from headrace.model.errors import DeadlineExceeded, Exhausted

# Of a unary call whose caller set no deadline.
UNARY_LIMIT_S = 65.0
# What gRPC clients take unless they were told otherwise.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MOST_STREAMS = 500
MOST_OF_ONE_CONNECTION = 100
SLOW_READER_S = 20.0
# Health, reflection, channelz: not ours to bound.
_INFRASTRUCTURE = "/grpc."


class CallBounds(grpc.aio.ServerInterceptor):
    """Stands behind the error interceptor. `open_streams` is how many there are now."""

    def __init__(
        self,
        *,
        most_streams: int = MOST_STREAMS,
        most_of_one: int = MOST_OF_ONE_CONNECTION,
        slow_reader_s: float = SLOW_READER_S,
        unary_limit_s: float = UNARY_LIMIT_S,
    ) -> None:
        self._most_streams = most_streams
        self._most_of_one = most_of_one
        self._slow_reader_s = slow_reader_s
        self._unary_limit_s = unary_limit_s
        self._streams: Counter[str] = Counter()

    @property
    def open_streams(self) -> int:
        return self._streams.total()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or str(handler_call_details.method).startswith(_INFRASTRUCTURE):
            return handler
        if handler.request_streaming and not handler.response_streaming:
            return handler  # a push: it has limits of its own
        return wrapped_handler(handler, unary=self._unary, stream=self._stream)

    def _unary(self, inner: Any) -> Any:
        async def call(request: Any, context: Any) -> Any:
            limit_s = self._unary_limit_s if context.time_remaining() is None else None
            try:
                async with asyncio.timeout(limit_s) as limit:
                    answer = await inner(request, context)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise DeadlineExceeded(
                    f"the call took longer than {limit_s:g} s, the limit of calls without a deadline",
                    reason="NO_DEADLINE",
                    next_step="Give the call a deadline of its own (grpcurl: -max-time)",
                ) from None
            size = answer.ByteSize() if hasattr(answer, "ByteSize") else 0
            if size > MAX_ANSWER_BYTES:
                raise Exhausted(
                    f"the answer has {size:,} bytes, more than {MAX_ANSWER_BYTES:,}",
                    reason="ANSWER_TOO_LARGE",
                    next_step="Ask for less: a smaller page_size, fewer names, a shorter body",
                )
            return answer

        return call

    def _stream(self, inner: Any) -> Any:
        async def call(request: Any, context: Any) -> None:
            with self._place(str(context.peer())):
                async with contextlib.aclosing(inner(request, context)) as messages:
                    await self._write(messages, context)

        return call

    async def _write(self, messages: AsyncIterator[Any], context: Any) -> None:
        async for message in messages:
            try:
                async with asyncio.timeout(self._slow_reader_s) as limit:
                    await context.write(message)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise Exhausted(
                    f"nothing was read for {self._slow_reader_s:g} s, so the stream was ended",
                    reason="SLOW_READER",
                    next_step="Read faster; a watch goes on with the `revision` of the last message",
                ) from None

    @contextlib.contextmanager
    def _place(self, caller: str) -> Iterator[None]:
        if self._streams[caller] >= self._most_of_one or self.open_streams >= self._most_streams:
            of = "by this connection" if self._streams[caller] >= self._most_of_one else "in all"
            raise Exhausted(
                f"{self._streams[caller] if of != 'in all' else self.open_streams} streams are open {of}",
                reason="TOO_MANY_STREAMS",
                next_step="End some, then try again; one watch without a parent tells of all flows",
                metadata={"retry_after_ms": "1000"},
            )
        self._streams[caller] += 1
        try:
            yield
        finally:
            self._streams[caller] -= 1
            if not self._streams[caller]:
                del self._streams[caller]
