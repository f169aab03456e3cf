"""A collector that takes spans and looks at none: `python -m benchmarks.otlp_sink` writes its address."""

from __future__ import annotations

import asyncio
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.edge.otlp_channel import TRACES


async def main() -> None:
    async def export(request: bytes, context: Any) -> bytes:
        return b""

    _, service, method = TRACES.split("/")
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 * 1024 * 1024)])
    handler: Any = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"http://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
