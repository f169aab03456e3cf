"""Domain errors to gRPC status with details, at the door; whatever else fails is masked and logged.

`ErrorInfo{reason, domain, metadata}` always, with `next_step`, and `field` and `value` where one field is wrong,
in its metadata; `BadRequest` for wrong fields, `PreconditionFailure` for a state that does not fit, `QuotaFailure`
for a bound that is reached, `RetryInfo` where metadata has `retry_after_ms` (AIP-193). No stack trace and no text
of an unexpected exception leaves.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from headrace.edge.status_size import fitting
from headrace.edge.structured_log import get_logger
from headrace.edge.wrapped_handler import wrapped_handler
from headrace.model.errors import Exhausted, HeadraceError, InvalidInput, WrongState

log = get_logger(__name__)

ERROR_DOMAIN = "headrace"


def status_of(error: HeadraceError) -> status_pb2.Status:
    """google.rpc.Status with details of a domain error."""
    details: list[any_pb2.Any] = []
    metadata = dict(error.metadata)
    if error.next_step:
        metadata["next_step"] = error.next_step
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata)
    details.append(_pack(info))
    if error.violations:
        request = error_details_pb2.BadRequest()
        for violation in error.violations:
            request.field_violations.add(field=violation.field, description=violation.description)
        details.append(_pack(request))
    subject = error.metadata.get("flow", "")
    if isinstance(error, WrongState):
        failure = error_details_pb2.PreconditionFailure()
        failure.violations.add(type=error.reason, subject=subject, description=error.message)
        details.append(_pack(failure))
    if isinstance(error, Exhausted):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=subject, description=error.message)
        details.append(_pack(quota))
    if error.metadata.get("retry_after_ms", "").isdigit():
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.metadata["retry_after_ms"]))
        details.append(_pack(retry))
    code = code_pb2.Code.Value(error.code)
    return status_pb2.Status(code=code, message=str(error), details=details)


def _pack(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _status_of_unexpected(error: BaseException, method: str) -> status_pb2.Status:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, HeadraceError):
        return status_of(error)
    incident = uuid.uuid4().hex[:12]
    log.error("call failed unexpectedly", method=method, incident=incident, error=repr(error))
    log.exception("traceback", incident=incident)
    masked = HeadraceError(
        f"internal error, incident {incident}",
        next_step="The service's log has the details under that incident",
        metadata={"incident": incident},
    )
    return status_of(masked)


async def _abort(context: Any, error: BaseException, method: str) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, grpc.aio.AioRpcError):  # a call passed on: its status goes through as it is
        passed = rpc_status.from_call(error)  # type: ignore[arg-type]
        if passed is not None:
            await context.abort_with_status(rpc_status.to_status(passed))
        await context.abort(error.code(), error.details() or "")
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error  # the caller went away or its deadline passed
        # Cancelled from inside: without an answer the client would wait for its deadline.
        await context.abort(grpc.StatusCode.ABORTED, "the call was cancelled inside the service; try again")
    if isinstance(error, grpc.aio.InternalError):  # what a write is told whose caller has just gone away
        raise asyncio.CancelledError from error
    await context.abort_with_status(rpc_status.to_status(fitting(_status_of_unexpected(error, method))))
    raise AssertionError("abort returned")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, unary and streaming."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        decode = handler.request_deserializer
        return wrapped_handler(
            handler,
            unary=lambda inner: _wrap_unary(inner, method),
            stream=lambda inner: _wrap_stream(inner, method),
            decode=decode and _tolerant(decode),
        )


def undecodable() -> InvalidInput:
    """For bytes that are no such message; handlers that take bytes and decode them themselves raise it."""
    return InvalidInput(
        "the request's bytes are not the message that this method takes",
        reason="UNDECODABLE_REQUEST",
        next_step="See the protos, or `grpcurl describe` the method",
    )


class _Undecodable:
    """A request whose bytes are no such message: gRPC itself would call that INTERNAL, with a traceback in the log."""


def _tolerant(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def tolerant(raw: bytes) -> Any:
        try:
            return decode(raw)
        except Exception:
            return _Undecodable()

    return tolerant


async def _decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Undecodable):
            raise undecodable()
        yield request


def _checked(request: Any) -> Any:
    """The request, or the stream of requests; InvalidInput for bytes that are none, and for moments that are none."""
    if isinstance(request, _Undecodable):
        raise undecodable()
    if hasattr(request, "__aiter__"):
        return _decoded(request)
    for name in _moments(getattr(request, "DESCRIPTOR", None)):
        try:
            getattr(request, name).ToNanoseconds()
        except ValueError as error:
            raise InvalidInput.at(name, str(error), "is not a moment", next_step="Write RFC 3339") from None
    return request


@lru_cache(maxsize=512)
def _moments(descriptor: Any) -> tuple[str, ...]:
    """Fields of a request that are timestamps; whoever reads one goes by its being valid."""
    if descriptor is None:
        return ()
    kind = timestamp_pb2.Timestamp.DESCRIPTOR
    return tuple(field.name for field in descriptor.fields if field.message_type is kind and not field.is_repeated)


def _wrap_unary(inner: Any, method: str) -> Any:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await inner(_checked(request), context)
        except BaseException as error:
            await _abort(context, error, method)

    return call


def _wrap_stream(inner: Any, method: str) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            result = inner(_checked(request), context)
            if hasattr(result, "__aiter__"):
                async for response in result:
                    yield response
            else:  # a coroutine that writes through the context
                await result
        except GeneratorExit:
            raise
        except BaseException as error:
            await _abort(context, error, method)

    return call
