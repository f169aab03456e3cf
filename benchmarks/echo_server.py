"""The other end of the floor measurements: echoes over a raw Unix socket or a gRPC stream."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, cast

from headrace.edge.parent_death import tie_to_parent


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def serve_socket(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(_Echo, path)
    await server.serve_forever()


async def serve_grpc(path: str) -> None:
    import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
    import grpc

    async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("floor.Echo", {"Echo": grpc.stream_stream_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    tie_to_parent()
    uvloop.run(serve_socket(sys.argv[2]) if sys.argv[1] == "socket" else serve_grpc(sys.argv[2]))
