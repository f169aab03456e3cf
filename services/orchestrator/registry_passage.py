"""Passes RegistryService calls on to the registry as bytes: requests, answers, deadlines, metadata, statuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from headrace.api.registry.v1 import registry_pb2

REGISTRY_SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name
# For callers that set no deadline; a push of the largest bundle takes seconds.
DEFAULT_LIMIT_S = 300.0
_OWN_METADATA = ("user-agent", "content-type", "te", "grpc-", ":")


class RegistryPassage(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method as a stream of bytes both ways: on the wire a unary call is a stream of one."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if not method or not method.startswith(f"/{REGISTRY_SERVICE}/"):
            return None

        async def passed_on(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for answer in self._pass_on(method, requests, context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(passed_on)

    async def _pass_on(self, method: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        left = context.time_remaining()
        metadata = [
            (key, value) for key, value in context.invocation_metadata() or () if not key.startswith(_OWN_METADATA)
        ]
        call: Any = self._channel.stream_stream(method)(
            timeout=DEFAULT_LIMIT_S if left is None else max(0.001, left), metadata=metadata
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
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def _send(requests: AsyncIterator[bytes], call: Any) -> None:
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the registry ended the call; its status says why
