"""The orders example with callers that go on while something is done to the mesh: the set-up of three benches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from benchmarks.mesh_bench import BenchMesh
from benchmarks.sampling import percentile
from headrace.cli.demo_example import load_example
from headrace.cli.steady_orders import OrderCall, SteadyOrders

ANSWER_LIMIT_S = 30.0
CONNECTIONS = 64
"""As many as 500 orders a second need that take an eighth of a second each."""


@dataclass
class OrdersLoad:
    """`calls` are there when the load has ended."""

    flow: str
    calls: list[OrderCall] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(call.answer.status != 200 for call in self.calls)

    def steady(self, until_ns: int) -> list[OrderCall]:
        """Those sent before, without the first twentieth of all."""
        return [call for call in self.calls if call.answer.sent_ns < until_ns][len(self.calls) // 20 :]

    def since(self, from_ns: int) -> list[OrderCall]:
        """Those sent from then on."""
        return [call for call in self.calls if call.answer.sent_ns >= from_ns]


@contextlib.asynccontextmanager
async def orders_load(bench: BenchMesh, rate: float, *, steady_s: float) -> AsyncIterator[OrdersLoad]:
    """Starts the flow and its orders, open loop; yields after `steady_s`. Ends both."""
    example = load_example(None, effects=Path(bench.mesh.directory.path) / "orders.jsonl")
    await bench.client.apply(example.flow_file)
    await bench.client.publish(example.flow)
    await bench.client.start(example.flow)
    host, _, port = bench.mesh.endpoints.gateways[0].rpartition(":")
    path = f"/hook/{example.flow}"
    orders = SteadyOrders(
        example.plain_orders(),
        path=path,
        host=host,
        port=int(port),
        rate=rate,
        timeout_s=ANSWER_LIMIT_S,
        connections=CONNECTIONS,
    )
    load = OrdersLoad(example.flow)
    orders.start()
    try:
        await asyncio.sleep(steady_s)
        yield load
    finally:
        load.calls = await asyncio.to_thread(orders.stop)
    await bench.client.stop(example.flow, drop=True)


def felt(calls: list[OrderCall]) -> dict[str, float]:
    """Latencies from the moment a request was due, and the longest time without any answer."""
    latencies = [(call.late_us + call.answer.latency_us) / 1000 for call in calls]
    times = sorted(call.answer.received_ns for call in calls)
    gaps = [(later - earlier) / 1e6 for earlier, later in pairwise(times)]
    return {
        "p50_ms": round(percentile(latencies, 0.5), 2),
        "p99_ms": round(percentile(latencies, 0.99), 2),
        "longest_gap_ms": round(max(gaps, default=0.0), 1),
    }
