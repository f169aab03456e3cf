"""What the machine allows: raw publish→deliver, raw Unix socket and raw gRPC round trips, at 200 per second.

Measured in the same run as the mesh, since a shared machine's speed changes from minute to minute.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.raw_nats import RawNats
from benchmarks.sampling import open_loop, summary_us
from headrace.edge.broker_process import BrokerProcess
from headrace.edge.parent_death import PARENT_PID_VARIABLE

BODY = b"x" * 256
RATE = 200.0
Send = Callable[[bytes], object]
Close = Callable[[], Awaitable[None]]
Opener = Callable[[str, Callable[[bytes], None]], Awaitable[tuple[Send, Close]]]


async def publish_to_deliver(broker: BrokerProcess, seconds: float) -> dict[str, float]:
    """Write a message with an id into a file-stored work queue, read it from a pull consumer, acknowledge."""
    samples: list[int] = []
    answered: dict[str, asyncio.Future[bytes]] = {}

    def on_message(subject: str, reply: str, payload: bytes) -> None:
        if subject in answered:
            answered.pop(subject).set_result(payload)
        elif reply.startswith("$JS.ACK"):
            samples.append(time.time_ns() - int(payload[:20]))
            client.publish(reply, b"+ACK")

    client = await RawNats.connect(broker.host, broker.port, on_message)
    client.subscribe("floor.inbox.*", 1)

    async def api(subject: str, body: dict[str, Any]) -> None:
        inbox = f"floor.inbox.{len(answered)}{time.time_ns()}"
        answered[inbox] = asyncio.get_running_loop().create_future()
        waiter = answered[inbox]
        client.publish(f"$JS.API.{subject}", json.dumps(body).encode(), inbox)
        async with asyncio.timeout(5):
            answer = json.loads(await waiter)
        if "error" in answer:
            raise RuntimeError(answer["error"])

    await api(
        "STREAM.CREATE.floor", {"name": "floor", "subjects": ["floor.s"], "retention": "workqueue", "storage": "file"}
    )
    consumer = {"durable_name": "c", "ack_policy": "explicit", "max_ack_pending": 10_000, "filter_subject": "floor.s"}
    await api("CONSUMER.DURABLE.CREATE.floor.c", {"stream_name": "floor", "config": consumer})
    client.publish("$JS.API.CONSUMER.MSG.NEXT.floor.c", b'{"batch":100000,"expires":600000000000}', "floor.inbox.pull")
    client.subscribe("floor.acks", 2)

    def fire(due_ns: int) -> None:
        client.publish("floor.s", b"%020d" % time.time_ns() + BODY[20:], "floor.acks", f"m{due_ns}")

    await open_loop(RATE, seconds, fire)
    await asyncio.sleep(0.2)
    await api("STREAM.DELETE.floor", {})
    client.close()
    return summary_us(samples[len(samples) // 10 :])


async def _echo_round_trips(server: str, prepare: Opener, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s")
        environment = {**os.environ, PARENT_PID_VARIABLE: str(os.getpid())}
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.echo_server", server, path, env=environment
        )
        try:
            samples: list[int] = []
            send, close = await prepare_client(prepare, path, samples)
            await open_loop(RATE, seconds, lambda _due: send(b"%020d" % time.monotonic_ns() + BODY[20:]))
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


async def unix_socket_round_trip(seconds: float) -> dict[str, float]:
    """256 bytes to another process and back over a raw Unix socket."""
    return await _echo_round_trips("socket", _open_socket, seconds)


async def grpc_round_trip(seconds: float) -> dict[str, float]:
    """256 bytes to another process and back on one bidirectional grpc.aio stream over a Unix socket."""
    return await _echo_round_trips("grpc", _open_grpc, seconds)


async def measure_floors(broker: BrokerProcess, seconds: float) -> dict[str, dict[str, float]]:
    return {
        "publish_to_deliver": await publish_to_deliver(broker, seconds),
        "unix_socket_round_trip": await unix_socket_round_trip(seconds),
        "grpc_round_trip": await grpc_round_trip(seconds),
    }
