"""grpc.health.v1 of a component, imported at the first question: its sidecar never asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

HEALTH = "grpc.health.v1.Health"
COMPONENT = "headrace.api.component.v1.ComponentService"
_LOOK_S = 0.2


class ComponentHealth(grpc.GenericRpcHandler):
    """SERVING between Init and Shutdown, of the whole process ("") as of its one service; NOT_SERVING else."""

    def __init__(self, serves: Callable[[], bool]) -> None:
        self._serves = serves

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        if method not in (f"/{HEALTH}/Check", f"/{HEALTH}/Watch"):
            return None
        from grpc_health.v1 import health_pb2

        decode, encode = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        if method.endswith("Check"):
            return grpc.unary_unary_rpc_method_handler(self._check, decode, encode)
        return grpc.unary_stream_rpc_method_handler(self._watch, decode, encode)

    def _status(self, service: str) -> str:
        if service not in ("", COMPONENT):
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._serves() else "NOT_SERVING"

    async def _check(self, request: Any, context: Any) -> Any:
        status = self._status(request.service)
        if status == "SERVICE_UNKNOWN":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return _answer(status)

    async def _watch(self, request: Any, context: Any) -> None:
        told = ""
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                await context.write(_answer(status))
            await asyncio.sleep(_LOOK_S)


def _answer(status: str) -> Any:
    from grpc_health.v1 import health_pb2

    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.ServingStatus.Value(status))
