"""What callers at 500 orders a second feel of a WARM_SWITCH, and how soon new code answers after a person asked."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.mesh_bench import BenchMesh
from benchmarks.orders_load import felt, orders_load
from headrace.cli.steady_orders import OrderCall

RATE = 500.0
STEADY_S = 4.0
SWITCHES = 3
AFTER_S = 0.5


async def switching(bench: BenchMesh) -> dict[str, Any]:
    """The orders example, restarted under load; p99 and longest pause against the steady part of the same run."""
    switches: list[tuple[int, int, int]] = []
    async with orders_load(bench, RATE, steady_s=STEADY_S) as load:
        for _ in range(SWITCHES):
            began = time.perf_counter_ns()
            result = await bench.client.restart(load.flow)
            await asyncio.sleep(AFTER_S)
            switches.append((result.deployment, began, time.perf_counter_ns()))
    first = switches[0][1]
    return {
        "rate": RATE,
        "calls": len(load.calls),
        "failed": load.failed,
        "steady_rate": _rate(load.steady(first)),
        "steady": felt(load.steady(first)),
        "switching": felt(load.since(first)),
        "first_on_new_code_s": [round(_first_answer_s(load.calls, number, began), 3) for number, began, _ in switches],
    }


def _rate(calls: list[OrderCall]) -> float:
    """Answers a second: below RATE, the mesh was saturated before anything was switched."""
    times = [call.answer.received_ns for call in calls]
    return round(1e9 * len(times) / max(1, max(times, default=0) - min(times, default=0)), 1)


def _first_answer_s(calls: list[OrderCall], deployment: int, began_ns: int) -> float:
    """From the restart call to the first answer of its deployment."""
    by_it = [
        call.answer.received_ns for call in calls if call.answer.headers.get("headrace-deployment") == str(deployment)
    ]
    return (min(by_it) - began_ns) / 1e9 if by_it else 0.0
