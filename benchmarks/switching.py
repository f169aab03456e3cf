"""What callers at 500 orders a second feel of a WARM_SWITCH, and how soon new code answers after a person asked."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.mesh_bench import BenchMesh
from benchmarks.sampling import percentile
from headrace.cli.demo_example import load_example
from headrace.cli.steady_orders import OrderCall, SteadyOrders

RATE = 500.0
STEADY_S = 4.0
SWITCHES = 3
AFTER_S = 0.5


async def switching(bench: BenchMesh) -> dict[str, Any]:
    """The orders example, restarted under load; p99 and longest pause against the steady part of the same run."""
    effects = Path(bench.mesh.directory.path) / "switching.jsonl"
    example = load_example(None, effects=effects)
    await bench.client.apply(example.flow_file)
    await bench.client.publish(example.flow)
    await bench.client.start(example.flow)
    host, _, port = bench.mesh.endpoints.gateways[0].rpartition(":")
    orders = SteadyOrders(
        example.plain_orders(), path=f"/hook/{example.flow}", host=host, port=int(port), rate=RATE, timeout_s=30.0
    )
    switches: list[tuple[int, int, int]] = []
    orders.start()
    try:
        await asyncio.sleep(STEADY_S)
        for _ in range(SWITCHES):
            began = time.perf_counter_ns()
            result = await bench.client.restart(example.flow)
            await asyncio.sleep(AFTER_S)
            switches.append((result.deployment, began, time.perf_counter_ns()))
    finally:
        calls = await asyncio.to_thread(orders.stop)
    await bench.client.stop(example.flow)
    first = switches[0][1]
    return {
        "rate": RATE,
        "calls": len(calls),
        "failed": sum(call.answer.status != 200 for call in calls),
        "steady": felt([call for call in calls if call.answer.sent_ns < first][len(calls) // 20 :]),
        "switching": felt([call for call in calls if call.answer.sent_ns >= first]),
        "first_on_new_code_s": [round(_first_answer_s(calls, number, began), 3) for number, began, _ in switches],
    }


def felt(calls: list[OrderCall]) -> dict[str, float]:
    """Latencies from the moment a request was due, and the longest time without any answer."""
    latencies = [call.answer.latency_us / 1000 for call in calls]
    times = sorted(call.answer.received_ns for call in calls)
    gaps = [(later - earlier) / 1e6 for earlier, later in pairwise(times)]
    return {
        "p50_ms": round(percentile(latencies, 0.5), 2),
        "p99_ms": round(percentile(latencies, 0.99), 2),
        "longest_gap_ms": round(max(gaps, default=0.0), 1),
    }


def _first_answer_s(calls: list[OrderCall], deployment: int, began_ns: int) -> float:
    """From the restart call to the first answer of its deployment."""
    by_it = [
        call.answer.received_ns for call in calls if call.answer.headers.get("headrace-deployment") == str(deployment)
    ]
    return (min(by_it) - began_ns) / 1e9 if by_it else 0.0
