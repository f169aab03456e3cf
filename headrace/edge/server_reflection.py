"""gRPC server reflection, v1 and v1alpha, imported at the first request: most processes are never asked.

grpcio-reflection serves v1alpha only; the messages of v1 are the same but for the package. Generated modules know
their descriptors without comments, so those with comments are taken from the file beside them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.edge.error_interceptor import undecodable

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
        from google.protobuf.message import DecodeError
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        if self._servicer is None:
            _describe_v1()
            services = [*self._services, V1, V1ALPHA]
            self._servicer = reflection.aio.ReflectionServicer(services, _PoolWithMethods())

        async def parsed() -> AsyncIterator[Any]:
            async for request in requests:
                try:
                    yield reflection_pb2.ServerReflectionRequest.FromString(request)
                except DecodeError:
                    raise undecodable() from None

        async for response in self._servicer.ServerReflectionInfo(parsed(), context):
            if response.HasField("file_descriptor_response"):
                files = response.file_descriptor_response.file_descriptor_proto
                files[:] = [_with_comments(file) for file in files]
            yield response.SerializeToString()


@cache
def _commented() -> dict[str, bytes]:
    """Serialized descriptors by file name; empty where the package was built without them.

    The modules' descriptors give fields no JSON name, and clients print them as they are written; these do likewise.
    """
    from google.protobuf import descriptor_pb2

    file = Path(__file__).parent.parent / "api" / "commented.binpb"
    if not file.exists():
        return {}
    described = descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes())
    open_types = [message for file in described.file for message in file.message_type]
    while open_types:
        message = open_types.pop()
        open_types.extend(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")
    return {item.name: item.SerializeToString() for item in described.file}


def _with_comments(serialized: bytes) -> bytes:
    from google.protobuf import descriptor_pb2

    return _commented().get(descriptor_pb2.FileDescriptorProto.FromString(serialized).name, serialized)


class _PoolWithMethods:
    """The default pool, which also finds `package.Service.Method`; by itself it knows types and services only."""

    def __init__(self) -> None:
        from google.protobuf import descriptor_pool

        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, _, method = symbol.rpartition(".")
            service = self._pool.FindServiceByName(parent)
            if method not in service.methods_by_name:
                raise
            return service.file


def _describe_v1() -> None:
    """Adds v1's descriptor to the pool, so that clients can describe the service itself."""
    from google.protobuf import descriptor_pb2, descriptor_pool, text_format
    from grpc_reflection.v1alpha import reflection_pb2

    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    v1 = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())
