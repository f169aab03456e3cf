"""Passes RegistryService calls on to the registry, so that the orchestrator is the one API address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from headrace.api.registry.v1 import registry_pb2
from services.orchestrator.call_passage import pass_on

REGISTRY_SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name


class RegistryPassage(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method of the registry's service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if not method or not method.startswith(f"/{REGISTRY_SERVICE}/"):
            return None

        async def passed_on(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for answer in pass_on(self._channel, method, requests, context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(passed_on)
