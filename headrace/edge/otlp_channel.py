"""The gRPC call to an OTLP collector: bytes in, a count of rejected items out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.edge.grpc_channel import channel_options
from headrace.edge.otlp_target import OtlpRefused, OtlpTarget
from headrace.wire.otlp_fields import rejected_items

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LONGEST_CAUSE = 200

# OTLP specification, "Failures".
_REPEATABLE = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)


class OtlpChannel:
    """One connection to a collector; gRPC makes it anew as often as it breaks. Create inside the running loop."""

    def __init__(self, target: OtlpTarget, method: str = TRACES) -> None:
        self._target = target
        options = channel_options(target.address, keepalive=False)
        if target.secure:
            roots = Path(target.certificate).read_bytes() if target.certificate else None
            self._channel = grpc.aio.secure_channel(target.address, grpc.ssl_channel_credentials(roots), options)
        else:
            self._channel = grpc.aio.insecure_channel(target.address, options)
        self._export: Any = self._channel.unary_unary(method)  # bytes in, bytes out

    async def send(self, request: bytes) -> int:
        """Answers how many items the collector rejected. OtlpRefused, within the target's limit."""
        try:
            answer: bytes = await self._export(request, timeout=self._target.timeout_s, metadata=self._target.headers)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            raise OtlpRefused(f"{code}: {(error.details() or '')[:LONGEST_CAUSE]}", again=code in _REPEATABLE) from None
        except Exception as error:  # never a reason to end; its own words would hold the headers
            raise OtlpRefused(f"the request cannot be sent ({type(error).__name__})", again=False) from None
        return rejected_items(answer)

    async def close(self) -> None:
        await self._channel.close(0)
