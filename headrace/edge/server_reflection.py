"""gRPC server reflection, v1 and v1alpha, imported at the first request: most processes are never asked.

grpcio-reflection serves v1alpha only; the messages of v1 are the same but for the package.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
_METHODS = frozenset(f"/{service}/ServerReflectionInfo" for service in (V1, V1ALPHA))


class ServerReflection(grpc.GenericRpcHandler):
    """Answers which of `services` there are and describes them; `services` may grow until the first request."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = services
        self._servicer: Any = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if handler_call_details.method not in _METHODS:
            return None
        return grpc.stream_stream_rpc_method_handler(self._answer)

    async def _answer(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        if self._servicer is None:
            _describe_v1()
            self._servicer = reflection.aio.ReflectionServicer([*self._services, V1, V1ALPHA])

        async def parsed() -> AsyncIterator[Any]:
            async for request in requests:
                yield reflection_pb2.ServerReflectionRequest.FromString(request)

        async for response in self._servicer.ServerReflectionInfo(parsed(), context):
            yield response.SerializeToString()


def _describe_v1() -> None:
    """Adds v1's descriptor to the pool, so that clients can describe the service itself."""
    from google.protobuf import descriptor_pb2, descriptor_pool, text_format
    from grpc_reflection.v1alpha import reflection_pb2

    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    v1 = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())
