"""What the broker allows beyond one flow on one server: `python -m benchmarks.limits`, for docs/scaling.md; JSON.

Flows (a stream and three consumers each, as the orchestrator makes them): time to make one, the broker's memory, how
long it takes to come back, and what a message costs with so many beside it. Slots (consumers of one stream).
Sizes of messages. Three servers on this machine against one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.broker_floor import WorkQueue, publish_to_deliver, saturated_broker
from benchmarks.mesh_bench import cpu_of, pss_of
from headrace.edge.broker_process import BrokerProcess
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.model.flow_stream import flow_stream_config
from tests.support.broker_cluster import BrokerCluster

FLOWS = (100, 500, 1_000, 2_000)
SLOTS = (8, 64, 640)
SIZES = (256, 4_096, 65_536, 524_288)
AT_ONCE = 20
RATE, SECONDS = 200.0, 2.0


def _stream(name: str) -> dict[str, object]:
    owners = [subjects.owner_filter("bench", name, owner) for owner in ("d1", "c1")]
    return flow_stream_config(name, [subjects.ingress_filter("bench", name), *owners], max_waiting=10_000)


def _consumer(name: str, flow: str, step: str, slot: int) -> dict[str, Any]:
    return {
        "durable_name": name,
        "ack_policy": "explicit",
        "max_ack_pending": 1_000,
        "filter_subject": f"hr.bench.{flow}.d1.{step}.{slot}",
    }


@contextlib.asynccontextmanager
async def _broker(folder: Path) -> AsyncIterator[tuple[BrokerProcess, JetStreamAssets]]:
    broker = BrokerProcess(folder, profile="fast")
    await broker.start()
    connection = await connect_nats(broker.url, "limits")
    try:
        yield broker, JetStreamAssets(connection, timeout_s=60.0)
    finally:
        await close_nats(connection)
        await broker.stop()


def _pid(broker: BrokerProcess) -> int:
    assert broker.process is not None
    return broker.process.pid


def _cpu_of_all(pids: list[int]) -> float:
    return sum(map(cpu_of, pids))


async def flows() -> list[dict[str, Any]]:
    """More and more of them on one broker."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        async with _broker(Path(folder)) as (broker, assets):
            have = 0
            for want in FLOWS:
                began = time.monotonic()
                for first in range(have, want, AT_ONCE):
                    names = [f"f{number}" for number in range(first, min(want, first + AT_ONCE))]
                    await asyncio.gather(*(_flow(assets, name) for name in names))
                row: dict[str, Any] = {
                    "flows": want,
                    "made_ms": round((time.monotonic() - began) / (want - have) * 1e3, 1),
                }
                have = want
                pid = _pid(broker)
                row["pss_mb"] = pss_of(pid)
                deliver = await publish_to_deliver((broker.host, broker.port), RATE, SECONDS)
                row["deliver_p50_us"], row["deliver_p99_us"] = deliver["p50_us"], deliver["p99_us"]
                before = cpu_of(pid)
                await asyncio.sleep(5)
                row["idle_cpu_percent"] = round((cpu_of(pid) - before) / 5 * 100, 2)
                rows.append(row)
        began = time.monotonic()
        async with _broker(Path(folder)) as (_, assets):
            await assets.stream_info(f"f{have - 1}")
            rows[-1]["restarted_s"] = round(time.monotonic() - began, 2)
    return rows


async def _flow(assets: JetStreamAssets, name: str) -> None:
    await assets.create_stream(_stream(name))
    for step in ("start", "one", "two"):
        await assets.ensure_consumer(name, _consumer(f"d1_{step}", name, step, 0))


async def slots() -> list[dict[str, Any]]:
    """Many consumers on one stream, one of which is at work."""
    rows = []
    for count in SLOTS:
        with tempfile.TemporaryDirectory() as folder:
            async with _broker(Path(folder)) as (broker, assets):
                await assets.create_stream(_stream("f"))
                for slot in range(count):
                    await assets.ensure_consumer("f", _consumer(f"d1_s_{slot}", "f", "s", slot))
                queue = WorkQueue("hr.bench.f.d1.s.0", stream="f", consumer="d1_s_0")
                address, pid = (broker.host, broker.port), _pid(broker)
                rate = await saturated_broker(address, partial(cpu_of, pid), SECONDS, queue)
                rows.append({"consumers": count, **rate, "pss_mb": pss_of(pid)})
    return rows


async def sizes() -> list[dict[str, Any]]:
    """Bodies, saturated: how many, how many bytes, and the broker's time."""
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            async with _broker(Path(folder)) as (broker, _):
                pid = _pid(broker)
                window = max(4, min(512, 4_000_000 // size))
                queue = WorkQueue(body=b"x" * size, window=window)
                rate = await saturated_broker(
                    (broker.host, broker.port),
                    partial(cpu_of, pid),
                    SECONDS,
                    queue,
                )
                rows.append({"bytes": size, **rate, "mb_per_s": round(rate["messages_per_s"] * size / 1e6, 1)})
    return rows


async def copies() -> dict[str, Any]:
    """Three servers on this machine, three copies, against one copy on the same three, and one server alone."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with BrokerCluster(Path(folder)) as cluster:
            for count in (1, 3):
                leader = cluster.nodes[0]
                pids = [_pid(node) for node in cluster.nodes]
                address = (leader.host, leader.port)
                queue = WorkQueue(copies=count)
                deliver = await publish_to_deliver(address, RATE, SECONDS, queue)
                rate = await saturated_broker(
                    address,
                    partial(_cpu_of_all, pids),
                    SECONDS,
                    WorkQueue(copies=count),
                )
                found[f"R{count} on three servers"] = {"deliver_p50_us": deliver["p50_us"], **rate}
        async with _broker(Path(folder) / "alone") as (broker, _):
            address, pid = (broker.host, broker.port), _pid(broker)
            deliver = await publish_to_deliver(address, RATE, SECONDS)
            rate = await saturated_broker(address, partial(cpu_of, pid), SECONDS)
            found["one server"] = {"deliver_p50_us": deliver["p50_us"], **rate}
    return found


async def limits() -> dict[str, Any]:
    return {"copies": await copies(), "sizes": await sizes(), "slots": await slots(), "flows": await flows()}


if __name__ == "__main__":
    import uvloop

    print(json.dumps(uvloop.run(limits()), indent=1))
