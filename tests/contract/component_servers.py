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
from headrace.sdk.call_lot import calls_of
from headrace.sdk.lot_frame import LotFrame
from headrace.sdk.process_server import EOF, Process, ProcessCall, ProcessServer

SERVICE = "headrace.api.component.v1.ComponentService"


class EchoComponent:
    """Echoes each input as one data event and an end. Bodies with a meaning: `silent` (no answer at all),
    `abort` (the stream fails), `finish` (the stream ends with OK), `unknown-call` (events for a call nobody made)."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.inputs: list[component_pb2.Input] = []
        self.answers_pings = True
        self.breaks_lots = False
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
            calls = list(calls_of(request))
            self.frames.append(len(calls))
            self.inputs.extend(calls)
            if request.HasField("lot"):
                yield self._answer_in_lots(calls)
                continue
            bodies = {given.body for given in request.inputs if len(given.body) < 32}
            if b"abort" in bodies:
                await context.abort(grpc.StatusCode.INTERNAL, "told to abort")
            if b"finish" in bodies:
                return
            yield component_pb2.ProcessResponse(
                events=itertools.chain.from_iterable(_answer(given) for given in request.inputs)
            )
        self.half_closed.set()

    def _answer_in_lots(self, calls: list[Any]) -> component_pb2.ProcessResponse:
        """Ends without an output where the body is empty; after all ends, one late emit."""
        frame = LotFrame()
        for item in calls:
            frame.done(item.call, item.body or None, item.content_type, 1, 2)
        frame.data(calls[0].call, b"late", "", None, "")
        response = frame.finished()
        if self.breaks_lots:
            response.ended[0].calls.append(1)
        return response


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
async def serve_over_http2(folder: Path, component: EchoComponent) -> AsyncIterator[tuple[str, ProcessServer]]:
    """The same as `serve_over_grpc`, on the server of our SDK."""

    async def process(call: ProcessCall) -> None:
        async for answer in component.process(_requests(call), call):  # type: ignore[arg-type]
            await call.write(answer)

    async with _own_server(folder / "c.sock", process) as server:
        yield f"unix:{folder}/c.sock", server
    component.hold.set()


@asynccontextmanager
async def _own_server(path: Path, process: Process) -> AsyncIterator[ProcessServer]:
    server = ProcessServer(process)
    await server.start(str(path))
    try:
        yield server
    finally:
        await server.stop(0)


async def _requests(call: ProcessCall) -> AsyncIterator[component_pb2.ProcessRequest]:
    while (request := await call.read()) is not EOF:
        yield request


@asynccontextmanager
async def serve_over_grpc(folder: Path, component: EchoComponent) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
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


class _Raw:
    """Bytes in the place of a message."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def SerializeToString(self) -> bytes:
        return self._raw


@asynccontextmanager
async def bytes_over_http2(folder: Path, answer: bytes) -> AsyncIterator[str]:
    """The same as `bytes_over_grpc`, on the server of our SDK."""

    async def process(call: ProcessCall) -> None:
        async for _ in _requests(call):
            await call.write(_Raw(answer))  # type: ignore[arg-type]

    async with _own_server(folder / "b.sock", process):
        yield f"unix:{folder}/b.sock"


@asynccontextmanager
async def bytes_over_grpc(folder: Path, answer: bytes) -> AsyncIterator[str]:
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
