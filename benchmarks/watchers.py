"""What it costs that somebody watches: 0, 1, 10 and 100 `WatchHops` clients on a flow under 200 messages a second.

python -m benchmarks.watchers
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from nats.aio.client import Client

from benchmarks.flows_at_work import OPAQUE_BODY
from benchmarks.mesh_bench import BenchMesh, bench_mesh, cpu_of
from headrace.client import AsyncClient
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model.histogram_part import HistogramPart, gained
from headrace.wire.hops import look_of
from services.orchestrator.mesh_queries import hop_snapshots

RATE = 200.0
CLIENTS = (0, 1, 10, 100)
SETTLE_S = 1.5
OF_ONE_CONNECTION = 50
WINDOWS = (1, 10, 60)


async def watchers(bench: BenchMesh, seconds: float) -> dict[str, Any]:
    """Each number of clients for so many seconds, one after the other; all ask for all windows and phases."""
    flow = await bench.prepare("opaque")
    await bench.client.start(flow)
    load = await bench.load(flow, OPAQUE_BODY, "application/octet-stream")
    connection = await connect_nats(bench.mesh.endpoints.nats, "bench")
    whole_s = len(CLIENTS) * (seconds + 2 * SETTLE_S) + SETTLE_S
    sending = asyncio.create_task(load.paced(RATE, whole_s))
    result: dict[str, Any] = {"rate": RATE, "seconds": seconds}
    try:
        await asyncio.sleep(SETTLE_S)
        for count in CLIENTS:
            result[str(count)] = await _measured(bench, connection, flow, count, seconds)
        await sending
        await load.settle()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        load.close()
        await close_nats(connection)
    await bench.client.stop(flow)
    return result


async def _measured(bench: BenchMesh, connection: Client, flow: str, count: int, seconds: float) -> dict[str, Any]:
    async with _watching(bench, flow, count) as heard:
        await asyncio.sleep(SETTLE_S)
        before, hop_before, heard_before = await _cpu(bench, flow), await _hop(connection, flow), heard[0]
        await asyncio.sleep(seconds)
        after, hop_after, heard_after = await _cpu(bench, flow), await _hop(connection, flow), heard[0]
    part = gained(hop_before, hop_after)
    assert part is not None, "counts went back: an instance was started anew"
    p50, p99 = part.quantiles([0.5, 0.99])
    return {
        "cpu_percent": {name: round(100 * (after[name] - before[name]) / seconds, 1) for name in after},
        "hop_p50_us": round(p50 / 1e3, 1),
        "hop_p99_us": round(p99 / 1e3, 1),
        "messages_per_s_of_one": round((heard_after - heard_before) / seconds / count, 2) if count else 0.0,
    }


@asynccontextmanager
async def _watching(bench: BenchMesh, flow: str, count: int) -> AsyncIterator[list[int]]:
    """So many clients, at most 50 on a connection; how many messages they have got."""
    heard = [0]

    async def watch(client: AsyncClient) -> None:
        async with aclosing(client.watch_hops(flow, windows=WINDOWS)) as messages:
            async for _ in messages:
                heard[0] += 1

    clients = [AsyncClient(bench.client.address) for _ in range(-(-count // OF_ONE_CONNECTION))]
    for client in clients:
        await client.__aenter__()
    tasks = [asyncio.create_task(watch(clients[number // OF_ONE_CONNECTION])) for number in range(count)]
    try:
        yield heard
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.close()


async def _cpu(bench: BenchMesh, flow: str) -> dict[str, float]:
    """Processor seconds so far of the orchestrator, the broker, and all of the flow's sidecars."""
    used = await bench.cpu_s(flow)
    return {
        "orchestrator": cpu_of(bench.mesh.pid_of("orchestrator")),
        "sidecars": used["sidecars"],
        "broker": used["broker"],
    }


async def _hop(connection: Client, flow: str) -> HistogramPart:
    """The middle step's hops since it started, from the one instance that measures them; asked again while it is too
    busy to answer in time."""
    whole = HistogramPart()
    for snapshot in await hop_snapshots(connection, "default", flow):
        for (step, phase, _, _), part in look_of(snapshot).phases.items():
            if (step, phase) == ("one", "hop"):
                whole.add(part)
    return whole if whole.buckets else await _hop(connection, flow)


async def _alone() -> None:
    async with bench_mesh("fast", print) as bench:
        result = await watchers(bench, 5.0)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    asyncio.run(_alone())
