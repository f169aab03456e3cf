"""An idle connection to a component stays: gRPC servers with default options end one that is pinged without data."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.edge import grpc_channel
from headrace.edge.grpc_channel import open_channel
from headrace.edge.grpc_component_stream import METHOD
from headrace.sdk import server as sdk_server

PING_MS = 1000  # gRPC makes it no less
IDLE_S = 7.0


async def silent(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield b""


async def stays(options: Any, *, keepalive: bool) -> bool:
    """Whether a stream that says nothing is still there after a while of many pings."""
    server = grpc.aio.server(options=options)
    service, name = METHOD.strip("/").split("/")
    handlers = {name: grpc.stream_stream_rpc_method_handler(silent)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 's'}"
        server.add_insecure_port(address)
        await server.start()
        try:
            async with open_channel(address, keepalive=keepalive) as channel:
                call: Any = channel.stream_stream(METHOD)()
                await call.write(b"")
                assert await call.read() == b""
                await asyncio.sleep(IDLE_S)  # tidy: pace
                try:
                    await call.write(b"")
                    return bool(await call.read() == b"")
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return False
        finally:
            await server.stop(0)


@pytest.fixture(autouse=True)
def many_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    often = [(name, PING_MS if name == "grpc.keepalive_time_ms" else value)
             for name, value in grpc_channel.CHANNEL_OPTIONS]  # fmt: skip
    monkeypatch.setattr(grpc_channel, "CHANNEL_OPTIONS", tuple(often))


async def test_a_component_of_any_language_keeps_its_connection() -> None:
    """Found by a session of `headrace dev`: components that had nothing to do were started again every 90 s."""
    sdk = {**dict(sdk_server.SERVER_OPTIONS), "grpc.http2.min_ping_interval_without_data_ms": PING_MS // 2}
    assert set(sdk) == set(dict(sdk_server.SERVER_OPTIONS)), "the SDK's server takes pings that are far apart"
    unpinged, pinged, tolerant = await asyncio.gather(
        stays((), keepalive=False), stays((), keepalive=True), stays(tuple(sdk.items()), keepalive=True)
    )
    assert unpinged
    assert not pinged, "this test no longer shows anything"
    assert tolerant
