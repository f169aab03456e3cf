"""kill -9 of the leading orchestrator: how soon another accepts a verb, and what the data plane feels of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from benchmarks.mesh_bench import BenchMesh
from benchmarks.orders_load import felt, orders_load
from headrace.model.errors import HeadraceError
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.wire.flow import flow_spec_to_proto

RATE = 200.0
STEADY_S = 4.0
ROUNDS = 3
AGAIN_LIMIT_S = 30.0
PROBE = FlowSpec("realtime", (StepSpec("start", "bench-opaque@latest", "start"),))


async def fail_over(bench: BenchMesh) -> dict[str, Any]:
    """Needs a mesh with two orchestrators. Orders go on at 200 a second meanwhile, open loop."""
    await bench.prepare("opaque")
    await bench.client.create_flow("probe", flow_spec_to_proto(PROBE))
    times: list[float] = []
    async with orders_load(bench, RATE, steady_s=STEADY_S) as load:
        first = time.perf_counter_ns()
        for _ in range(ROUNDS):
            times.append(await _kill_leader(bench))
    return {
        "rate": RATE,
        "calls": len(load.calls),
        "failed": load.failed,
        "first_verb_s": [round(took_s, 2) for took_s in times],
        "steady": felt(load.steady(first)),
        "killing": felt(load.since(first)),
    }


async def _kill_leader(bench: BenchMesh) -> float:
    """Seconds from the kill until a verb that changes something was accepted."""
    leader = (await bench.client.server_info()).leader
    os.kill(bench.mesh.pid_of(leader), signal.SIGKILL)
    began = time.monotonic()
    while True:
        try:
            await bench.client.update_draft("probe", flow_spec_to_proto(PROBE))
            took_s = time.monotonic() - began
            break
        except HeadraceError:
            if time.monotonic() - began > AGAIN_LIMIT_S:
                raise
    async with asyncio.timeout(AGAIN_LIMIT_S):
        while not bench.mesh.endpoints.processes.get(leader):
            await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)  # the one that was killed stands by again
    return took_s
