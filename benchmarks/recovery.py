"""kill -9 of each kind of process under orders: how soon callers are answered again, and what they felt meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from itertools import pairwise
from typing import Any

from benchmarks.mesh_bench import BenchMesh, bench_mesh
from benchmarks.orders_load import orders_load
from headrace.cli.steady_orders import OrderCall

RATE = 100.0
STEADY_S = 3.0
ROUNDS = 3
STEP = "price"
VICTIMS = ("component", "sidecar", "agent", "gateway", "broker")
# After each kill; an agent's death takes its instances with it, which start anew.
SETTLE_S = 8.0


async def recovery(bench: BenchMesh) -> dict[str, Any]:
    """Orders go on at 100 a second, open loop, each waited for. Per victim: seconds from the kill until an order that
    was sent after it was answered 200, the longest time without such an answer, and how many orders failed."""
    kills: list[tuple[str, int]] = []
    async with orders_load(bench, RATE, steady_s=STEADY_S) as load:
        for _ in range(ROUNDS):
            for victim in VICTIMS:
                pid = await _pid_of(bench, load.flow, victim)
                kills.append((victim, time.perf_counter_ns()))
                os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(SETTLE_S)
    result: dict[str, Any] = {"rate": RATE, "calls": len(load.calls)}
    for victim in VICTIMS:
        rounds = [_felt(load.calls, at) for name, at in kills if name == victim]
        result[victim] = {
            "answered_again_s": sorted(round(each[0], 3) for each in rounds),
            "longest_gap_s": round(max(each[1] for each in rounds), 3),
            "failed": sum(each[2] for each in rounds),
        }
    return result


async def _pid_of(bench: BenchMesh, flow: str, victim: str) -> int:
    async with asyncio.timeout(30):
        while True:
            pid = 0
            if victim in ("component", "sidecar"):
                status = await bench.client.get_status(flow)
                for step in status.steps:
                    for instance in step.instances:
                        if step.step == STEP:
                            pid = instance.component_pid if victim == "component" else instance.sidecar_pid
            else:
                pid = bench.mesh.endpoints.processes.get(victim) or 0
            if pid:
                return pid
            await asyncio.sleep(0.1)


def _felt(calls: list[OrderCall], killed_ns: int) -> tuple[float, float, int]:
    """Seconds until answered again, longest gap, failed orders, of one kill."""
    until_ns = killed_ns + int(SETTLE_S * 1e9)
    mine = [call for call in calls if killed_ns <= call.answer.sent_ns < until_ns]
    good = sorted(call.answer.received_ns for call in mine if call.answer.status == 200)
    failed = sum(call.answer.status != 200 for call in mine)
    if not good:
        return SETTLE_S, SETTLE_S, failed
    gaps = [later - earlier for earlier, later in pairwise([killed_ns, *good])]
    return (good[0] - killed_ns) / 1e9, max(gaps) / 1e9, failed


async def run() -> dict[str, Any]:
    """On a mesh of its own."""
    async with bench_mesh("fast", lambda line: None) as bench:
        return await recovery(bench)


if __name__ == "__main__":
    measured = asyncio.run(run())
    print(json.dumps(measured, indent=2))
