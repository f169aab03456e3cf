"""A small real gRPC component server on a Unix socket, scripted by the bodies it gets."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from headrace.api.component.v1 import component_pb2
from headrace.edge.grpc_server import SERVER_OPTIONS

SERVICE = "headrace.api.component.v1.ComponentService"


class EchoComponent:
    """Echoes each input as one data event and an end. Bodies with a meaning: `silent` (no answer at all),
    `abort` (the stream fails), `finish` (the stream ends with OK), `unknown-call` (events for a call nobody made)."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.inputs: list[component_pb2.Input] = []
        self.answers_pings = True
        self.half_closed = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()

    async def process(
        self,
        request_iterator: AsyncIterator[component_pb2.ProcessRequest],
        context: grpc.aio.ServicerContext[component_pb2.ProcessRequest, component_pb2.ProcessResponse],
    ) -> AsyncIterator[component_pb2.ProcessResponse]:
        async for request in request_iterator:
            await self.hold.wait()
            if request.HasField("ping"):
                if self.answers_pings:
                    yield component_pb2.ProcessResponse(pong=component_pb2.Pong(nonce=request.ping.nonce))
                continue
            self.frames.append(len(request.inputs))
            self.inputs.extend(request.inputs)
            bodies = {given.body for given in request.inputs if len(given.body) < 32}
            if b"abort" in bodies:
                await context.abort(grpc.StatusCode.INTERNAL, "told to abort")
            if b"finish" in bodies:
                return
            yield component_pb2.ProcessResponse(
                events=itertools.chain.from_iterable(_answer(given) for given in request.inputs)
            )
        self.half_closed.set()


def _answer(given: component_pb2.Input) -> list[component_pb2.Event]:
    if given.body == b"silent":
        return []
    call = given.call + 1_000_000 if given.body == b"unknown-call" else given.call
    now = time.monotonic_ns()
    return [
        component_pb2.Event(call=call, data=component_pb2.Emit(body=given.body, content_type=given.content_type)),
        component_pb2.Event(call=call, end=component_pb2.End(started_at_mono_ns=now, ended_at_mono_ns=now)),
    ]


@asynccontextmanager
async def serve_component(folder: Path, component: EchoComponent) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """Serves on `unix:<folder>/c.sock`; answers the address and the server (for a test that stops it)."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    method = grpc.stream_stream_rpc_method_handler(
        component.process,
        component_pb2.ProcessRequest.FromString,
        component_pb2.ProcessResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),))
    address = f"unix:{folder}/c.sock"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address, server
    finally:
        component.hold.set()
        await server.stop(0)


@asynccontextmanager
async def serve_bytes(folder: Path, answer: bytes) -> AsyncIterator[str]:
    """Serves a `Process` that answers every frame with these bytes, whatever they are."""

    async def process(request_iterator: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for _ in request_iterator:
            yield answer

    server = grpc.aio.server(options=SERVER_OPTIONS)
    method: Any = grpc.stream_stream_rpc_method_handler(process)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),))
    address = f"unix:{folder}/b.sock"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)
