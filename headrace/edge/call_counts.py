"""How the gRPC calls of a server ended, by method and code: for the metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.edge.wrapped_handler import wrapped_handler

# Health, reflection, channelz.
_INFRASTRUCTURE = "/grpc."


class CallCounts(grpc.aio.ServerInterceptor):
    """Stands before the error interceptor, so that it sees the code that the caller gets. Methods that are not served
    are not counted, so there are only as many counts as there are methods and codes."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """By method, as `FlowService/GetFlow`, and code, as `NOT_FOUND`."""
        return self._counts

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_INFRASTRUCTURE):
            return handler
        service, _, verb = method.rpartition("/")
        name = f"{service.rpartition('.')[2]}/{verb}"
        return wrapped_handler(
            handler, unary=lambda inner: self._unary(inner, name), stream=lambda inner: self._stream(inner, name)
        )

    def _unary(self, inner: Any, name: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            try:
                answer = await inner(request, context)
            except BaseException as error:
                self._ended(name, context, error)
                raise
            self._ended(name, context, None)
            return answer

        return call

    def _stream(self, inner: Any, name: str) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for answer in inner(request, context):
                    yield answer
            except BaseException as error:
                self._ended(name, context, error)
                raise
            self._ended(name, context, None)

        return call

    def _ended(self, name: str, context: Any, error: BaseException | None) -> None:
        if error is None:
            code = "OK"
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            code = "CANCELLED"  # its caller went away, or was too late
        else:
            found = context.code()
            code = found.name if isinstance(found, grpc.StatusCode) else "UNKNOWN"
        self._counts[name, code] += 1
