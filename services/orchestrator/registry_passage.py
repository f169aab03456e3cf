"""Passes RegistryService calls on to the registry, so that the orchestrator is the one API address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from headrace.api.registry.v1 import registry_pb2
from services.orchestrator.call_passage import pass_on

_SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"]
REGISTRY_SERVICE = _SERVICE.full_name
WATCHES = frozenset(method.name for method in _SERVICE.methods if method.name.startswith("Watch"))


class RegistryPassage(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method of the registry's service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if not method or not method.startswith(f"/{REGISTRY_SERVICE}/"):
            return None

        async def passed_on(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            endless = method.rpartition("/")[2] in WATCHES
            async for answer in pass_on(self._channel, method, requests, context, endless=endless):
                yield answer

        return grpc.stream_stream_rpc_method_handler(passed_on)
