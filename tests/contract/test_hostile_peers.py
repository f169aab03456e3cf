"""Peers that break HTTP/2, flood, or do not read: the stream ends with a cause, and nothing else is touched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.api.component.v1 import component_pb2 as pb
from headrace.edge import http2_transport
from headrace.edge.component_frames import METHOD
from headrace.edge.http2_component_stream import Http2ComponentStream
from headrace.ports import ComponentInput, StreamClosed
from headrace.sdk.process_server import EOF, MAX_CONNECTIONS, ProcessCall, ProcessServer
from headrace.wire import http2_frames as h2
from tests.support.eventually import eventually
from tests.unit.test_http2_bounds import ANSWER, REQUEST, SETTINGS, data

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
FLOOD = 60_000


@pytest.fixture
def path() -> Any:
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        yield str(Path(folder) / "s")


@asynccontextmanager
async def bad_server(path: str, script: Script) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield


async def written(writer: asyncio.StreamWriter, sent: bytes) -> None:
    writer.write(sent)
    await writer.drain()


def input_of(call: int, size: int) -> ComponentInput:
    texts = dict.fromkeys(("content_type", "message_id", "execution_id", "traceparent"), "")
    return ComponentInput(call, bytes(size), headers={}, attempt=1, wants_reply=False, timeout_ms=0, **texts)  # type: ignore[arg-type]


async def sends(reader: Any, writer: Any, sent: bytes) -> None:
    await written(writer, SETTINGS + ANSWER + sent)
    while await reader.read(65_536):
        pass


FLOODS = {
    "pings": h2.frame(h2.PING, 0, 0, bytes(8)) * FLOOD,
    "settings": SETTINGS * FLOOD,
    "empty frames": h2.frame(h2.DATA, 0, 1) * FLOOD,
    "empty messages": data(b"") * FLOOD,
    "unknown frames": h2.frame(77, 0, 0) * FLOOD,
}


@pytest.mark.parametrize(
    ("sent", "code", "cause"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "UNAVAILABLE", "a frame of"),
        (data(b"\x0a\xff"), "DATA_LOSS", "no ProcessResponse"),
        (b"\xff\xff\xff" + bytes(6), "UNAVAILABLE", "a frame of"),
        (h2.frame(h2.DATA, 0, 1, h2.message_prefix(1 << 25)), "RESOURCE_EXHAUSTED", "a message of 33554432 bytes"),
        (h2.frame(h2.DATA, h2.END_STREAM, 1), "UNKNOWN", "without a status"),
        (h2.reset(1, h2.ENHANCE_YOUR_CALM), "RESOURCE_EXHAUSTED", "reset"),
        *((flood, "UNAVAILABLE", "frames without a message") for flood in FLOODS.values()),
    ],
    ids=["garbage", "no protobuf", "huge frame", "huge message", "no status", "reset", *FLOODS],
)
async def test_a_bad_server_ends_the_stream_only(path: str, sent: bytes, code: str, cause: str) -> None:
    causes: list[StreamClosed] = []
    async with bad_server(path, lambda reader, writer: sends(reader, writer, sent)):
        stream = Http2ComponentStream(path, on_events=lambda events: None, on_closed=causes.append)
        try:
            await stream.start()
        except StreamClosed as closed:  # it came in the first read
            causes.append(closed)
        await eventually(lambda: causes)
        await stream.close()
    assert causes[0].code == code
    assert cause in str(causes[0])
    assert len(causes) == 1


async def test_what_is_no_http2_at_all_fails_the_start(path: str) -> None:
    for greeting in (b"", b"SSH-2.0-x\r\n" * 9):

        async def greet(reader: Any, writer: Any, greeting: bytes = greeting) -> None:
            await written(writer, greeting)

        async with bad_server(path, greet):
            stream = Http2ComponentStream(path, on_events=lambda events: None, on_closed=pytest.fail)
            with pytest.raises(StreamClosed):
                await stream.start(1.0)
            await stream.close()
        Path(path).unlink(missing_ok=True)


async def test_a_server_that_does_not_read_holds_little(path: str) -> None:
    opened = h2.window_update(0, 1 << 30) + h2.window_update(1, 1 << 30)

    async def silent(reader: Any, writer: Any) -> None:
        await written(writer, SETTINGS + opened)
        await asyncio.sleep(30)  # tidy: pace

    async with bad_server(path, silent):
        stream = Http2ComponentStream(path, on_events=lambda events: None, on_closed=pytest.fail)
        await stream.start()
        stream.send([input_of(call, 1 << 20) for call in range(40)])
        await eventually(lambda: stream._transport.paused)
        assert stream.queued >= 30, "what the socket does not take waits in the bounded queue"
        async with asyncio.timeout(3):
            await stream.close(0.1)


async def answers(call: ProcessCall) -> None:
    while (request := await call.read()) is not EOF:
        await call.write(pb.ProcessResponse(pong=pb.Pong(nonce=request.ping.nonce)))


async def pinged(channel: Any) -> bool:
    call = channel.stream_stream(METHOD)()
    await call.write(pb.ProcessRequest(ping=pb.Ping(nonce=7)).SerializeToString())
    answer = pb.ProcessResponse.FromString(await call.read())
    await call.done_writing()
    return answer.pong.nonce == 7 and await call.read() is grpc.aio.EOF


BAD_CLIENTS = {
    "http1": b"GET / HTTP/1.1\r\n\r\n",
    "noise": h2.PREFACE + SETTINGS + REQUEST + os.urandom(64) + b"\xff" * 9,
    "twice": h2.PREFACE + SETTINGS + (REQUEST + h2.reset(1, 8)) * 10 + h2.frame(h2.DATA, 0, 5),
    # Empty messages are answered as they come, as slowly as that goes.
    **{name: h2.PREFACE + SETTINGS + REQUEST + flood for name, flood in FLOODS.items() if name != "empty messages"},
}


@pytest.mark.parametrize("sent", BAD_CLIENTS.values(), ids=BAD_CLIENTS)
async def test_a_bad_client_harms_no_other(path: str, sent: bytes) -> None:
    server = ProcessServer(answers)
    await server.start(path)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        assert await pinged(channel)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(sent)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                while await reader.read(65_536):
                    pass
        assert await pinged(channel)
        writer.close()
    await server.stop(0.5)


async def test_rapid_resets_end_the_connection(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_transport, "MAX_CHORES", 2000)
    server = ProcessServer(answers)
    await server.start(path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(h2.PREFACE + SETTINGS)
    for number in range(1, 4001, 2):
        writer.write(h2.frame(h2.HEADERS, h2.END_HEADERS, number, REQUEST[9:]) + h2.reset(number, 8))
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                pass
    await server.stop(0.5)


async def test_calls_that_are_none_of_process(path: str) -> None:
    server = ProcessServer(answers)
    await server.start(path)
    async with grpc.aio.insecure_channel(f"unix:{path}", compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="main socket") as other:
            await channel.unary_unary("/headrace.api.component.v1.ComponentService/Handshake")(b"", timeout=5)
        assert other.value.code() is grpc.StatusCode.UNIMPLEMENTED
        call = channel.stream_stream(METHOD)(timeout=5)
        with pytest.raises(grpc.aio.AioRpcError, match="compressed"):
            await call.read()
    streams = [await asyncio.open_unix_connection(path) for _ in range(MAX_CONNECTIONS + 1)]
    async with asyncio.timeout(5):
        assert await streams[-1][0].read() == b""
    for _, writer in streams:
        writer.close()
    await server.stop(0.5)
