"""The other end of the floor measurements: echoes over a raw Unix socket, a gRPC stream or HTTP."""

from __future__ import annotations

import asyncio
import socket
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


async def serve_http(_path: str) -> None:
    """On a free port of the loopback, which is printed."""
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    listening = socket.create_server(("127.0.0.1", 0))
    print(f"127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(echo, http=HttpToolsProtocol, ws="none", lifespan="off", access_log=False, log_config=None)
    await uvicorn.Server(config).serve([listening])


SERVERS = {"socket": serve_socket, "grpc": serve_grpc, "http": serve_http}

if __name__ == "__main__":
    import uvloop

    tie_to_parent()
    uvloop.run(SERVERS[sys.argv[1]](sys.argv[2]))
