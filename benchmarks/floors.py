"""What the machine allows: raw round trips over a Unix socket and a gRPC stream, and a raw fsync.

Measured in the same minute as what is held against them, since a shared machine's speed changes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.sampling import open_loop, summary_us
from headrace.edge.parent_death import PARENT_PID_VARIABLE

BODY = b"x" * 256
BATCH = 100
Send = Callable[[bytes], object]
Close = Callable[[], Awaitable[None]]
Opener = Callable[[str, Callable[[bytes], None]], Awaitable[tuple[Send, Close]]]


async def _echo_round_trips(
    server: str, prepare: Opener, rate: float, seconds: float, size: int = len(BODY)
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s")
        environment = {**os.environ, PARENT_PID_VARIABLE: str(os.getpid())}
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.echo_server", server, path, env=environment
        )
        try:
            samples: list[int] = []
            send, close = await prepare_client(prepare, path, samples)
            rest = bytes(size - 20)
            await open_loop(rate, seconds, lambda _due: send(b"%020d" % time.monotonic_ns() + rest))
            await asyncio.sleep(0.1)
            await close()
        finally:
            child.terminate()
            await child.wait()
    return summary_us(samples[len(samples) // 10 :])


async def prepare_client(prepare: Opener, path: str, samples: list[int]) -> tuple[Send, Close]:
    """Connects as soon as the server's socket is there (within 10 s)."""

    def on_echo(payload: bytes) -> None:
        samples.append(time.monotonic_ns() - int(payload[:20]))

    deadline = time.monotonic() + 10
    while True:
        try:
            return await prepare(path, on_echo)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


class _SocketClient(asyncio.Protocol):
    def __init__(self, on_echo: Callable[[bytes], None]) -> None:
        self._on_echo = on_echo
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= len(BODY):
            self._on_echo(self._buffer[: len(BODY)])
            self._buffer = self._buffer[len(BODY) :]


async def _open_socket(path: str, on_echo: Callable[[bytes], None]) -> tuple[Send, Close]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(lambda: _SocketClient(on_echo), path)

    async def close() -> None:
        transport.close()

    return transport.write, close


async def _open_grpc(path: str, on_echo: Callable[[bytes], None]) -> tuple[Send, Close]:
    from headrace.edge.grpc_channel import open_channel

    if not os.path.exists(path):
        raise FileNotFoundError(path)
    channel = open_channel(f"unix:{path}")
    call: Any = channel.stream_stream("/floor.Echo/Echo")()
    pending: asyncio.Queue[bytes] = asyncio.Queue(maxsize=10_000)

    async def write() -> None:
        while True:
            await call.write(await pending.get())

    async def read() -> None:
        async for payload in call:
            on_echo(payload)

    tasks = [asyncio.ensure_future(write()), asyncio.ensure_future(read())]

    async def close() -> None:
        call.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await channel.close()

    return pending.put_nowait, close


async def unix_socket_round_trip(rate: float, seconds: float) -> dict[str, float]:
    """256 bytes to another process and back over a raw Unix socket."""
    return await _echo_round_trips("socket", _open_socket, rate, seconds)


async def grpc_round_trip(rate: float, seconds: float) -> dict[str, float]:
    """256 bytes to another process and back on one bidirectional grpc.aio stream over a Unix socket."""
    return await _echo_round_trips("grpc", _open_grpc, rate, seconds)


async def grpc_batch_round_trip(rate: float, seconds: float) -> dict[str, float]:
    """The same with frames of 100 such messages."""
    return await _echo_round_trips("grpc", _open_grpc, rate, seconds, BATCH * len(BODY))


def raw_fsync(folder: Path, count: int = 200) -> dict[str, float]:
    """256 bytes appended to a file and fsynced, one after another."""
    samples: list[int] = []
    descriptor = os.open(folder / "fsync", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(count):
            began = time.monotonic_ns()
            os.write(descriptor, BODY)
            os.fsync(descriptor)
            samples.append(time.monotonic_ns() - began)
    finally:
        os.close(descriptor)
    return summary_us(samples)
