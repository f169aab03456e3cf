"""A sidecar whose broker is slow, silent, full, or has no connection left for it: it waits, and loses and doubles
nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model.errors import Unavailable
from tests.support.eventually import eventually
from tests.support.sidecar import SidecarBench, sidecar_bench
from tests.support.tcp_proxy import TcpProxy

MESSAGES = 200
LIMIT = 8
BODIES = {b"%d" % number for number in range(MESSAGES)}


@dataclass
class LimitedBroker(BrokerProcess):
    """A broker with limits of its own; `limits` is text of its configuration, read at each start."""

    limits: str = ""
    store_bytes: str = "1GB"

    def configuration(self) -> str:
        whole = (
            super().configuration().replace("max_memory_store", f"max_file_store: {self.store_bytes}, max_memory_store")
        )
        return whole + self.limits


@contextlib.asynccontextmanager
async def bench_behind_proxy(broker: BrokerProcess, folder: Path) -> AsyncIterator[tuple[SidecarBench, TcpProxy]]:
    """A sidecar that works, whose connection runs through a proxy; the bench's own does not."""
    proxy = TcpProxy(broker.port)
    await proxy.start()
    try:
        async with sidecar_bench(broker.url, folder, ack_wait_s=2.0) as bench:
            await bench.prepare()
            bench.nats_url = proxy.url
            await bench.start()
            await bench.until_active()
            yield bench, proxy
    finally:
        await proxy.stop()


async def feed(bench: SidecarBench) -> None:
    await asyncio.gather(*(bench.inject(body, body.decode()) for body in sorted(BODIES)))


async def everything_arrived_once(bench: SidecarBench) -> None:
    await bench.until_done(within_s=40)
    arrived = [found.envelope.body for found in await bench.take(MESSAGES, within_s=20)]
    assert sorted(arrived) == sorted(BODIES)

    async def nothing_more() -> bool:
        return await bench.waiting("next") == 0

    await eventually(nothing_more)
    assert await bench.dead_letters() == []


async def test_a_slow_broker_makes_it_slow(broker: BrokerProcess, tmp_path: Path) -> None:
    async with bench_behind_proxy(broker, tmp_path) as (bench, proxy):
        proxy.delay_s = 0.15
        proxy.bytes_per_s = 200_000
        await feed(bench)
        await everything_arrived_once(bench)


async def test_a_silent_connection_is_left_for_a_new_one(broker: BrokerProcess, tmp_path: Path) -> None:
    """Nothing comes through for longer than the ack deadline, and no reset tells of it."""
    async with bench_behind_proxy(broker, tmp_path) as (bench, proxy):
        proxy.drop_sent = lambda chunk: b"next" in chunk  # its outputs vanish
        await feed(bench)
        held = await bench.until(lambda status: status.in_flight > 0)
        assert held.in_flight > 0
        proxy.black_hole()
        proxy.drop_sent = lambda chunk: False
        await asyncio.sleep(2.5)  # tidy: pace
        proxy.heal()
        await everything_arrived_once(bench)


async def test_a_full_store_is_waited_for(tmp_path: Path) -> None:
    broker = LimitedBroker(tmp_path / "broker", store_bytes="120KB")
    await broker.start()
    try:
        async with bench_behind_proxy(broker, tmp_path) as (bench, _):
            padding = b"x" * 2_000
            stored: list[bytes] = []
            with contextlib.suppress(TimeoutError):  # what is refused is tried again until then
                for number in range(200):
                    body = b"%d " % number + padding
                    await asyncio.wait_for(bench.inject(body, f"n{number}"), 2.0)
                    stored.append(body)
            assert 10 < len(stored) < 200, "the store takes everything"
            broker.store_bytes = "1GB"
            broker.kill()
            assert broker.process is not None
            await broker.process.wait()
            await broker.start()
            await eventually(lambda: bench.connection.is_connected)
            await bench.until_done(within_s=40)
            arrived = [found.envelope.body for found in await bench.take(await bench.waiting(), within_s=20)]
            assert set(stored) <= set(arrived)
            assert len(arrived) == len(set(arrived)) <= len(stored) + 1  # the last one may have come in unseen
            assert await bench.dead_letters() == []
    finally:
        await broker.stop()


async def test_a_broker_without_connections_left_is_asked_until_it_has_one(tmp_path: Path) -> None:
    broker = LimitedBroker(tmp_path / "broker", limits=f"max_connections: {LIMIT}\n")
    await broker.start()
    others = []
    try:
        async with bench_behind_proxy(broker, tmp_path) as (bench, proxy):
            await feed(bench)
            proxy.cut()
            with contextlib.suppress(Unavailable):  # whoever is faster has the places; the last is refused in time
                while len(others) < 2 * LIMIT:
                    others.append(await connect_nats(broker.url, "crowd", timeout_s=0.5))
            assert len(others) < LIMIT
            await asyncio.sleep(1.0)  # tidy: pace
            for other in others:
                await close_nats(other)
            await everything_arrived_once(bench)
    finally:
        await broker.stop()
