"""Passes a gRPC call on to another server as bytes: requests, answers, deadline, metadata, status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from headrace.edge.task_ending import end_tasks

# For callers that set no deadline; a push of the largest bundle takes seconds.
DEFAULT_LIMIT_S = 300.0
_OWN_METADATA = ("user-agent", "content-type", "te", "grpc-", ":")


async def pass_on(
    channel: grpc.aio.Channel,
    method: str,
    requests: AsyncIterator[bytes],
    context: Any,
    *,
    extra: Sequence[tuple[str, str]] = (),
    endless: bool = False,
) -> AsyncIterator[bytes]:
    """The answers, as a stream of bytes both ways: on the wire a unary call is a stream of one.

    `extra` metadata replaces what the caller sent under the same keys. A caller that set no deadline gets one, unless
    the call is `endless`: a watch.
    """
    left = context.time_remaining()
    default = None if endless else DEFAULT_LIMIT_S
    replaced = {key for key, _ in extra}
    metadata = [
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if not key.startswith(_OWN_METADATA) and key not in replaced
    ]
    call: Any = channel.stream_stream(method)(
        timeout=default if left is None else max(0.001, left), metadata=[*metadata, *extra]
    )
    sending = asyncio.create_task(_send(requests, call), name=f"pass on {method}")
    try:
        while True:
            answer = await call.read()
            if answer is grpc.aio.EOF:
                break
            yield answer
        code = await call.code()
        if code != grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                code, await call.initial_metadata(), await call.trailing_metadata(), details=await call.details()
            )
    finally:
        call.cancel()
        await end_tasks([sending])


async def _send(requests: AsyncIterator[bytes], call: Any) -> None:
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the other server ended the call; its status says why
