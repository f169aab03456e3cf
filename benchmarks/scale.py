"""How cost grows: processor time a message over the number of flows at a fixed total, and rate over replicas."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.figures import BenchRun
from benchmarks.flows_at_work import OPAQUE_BODY, OPAQUE_TYPE, chain, finished, flow, saturated, step, until_finished
from benchmarks.load import IngressLoad
from benchmarks.mesh_bench import BenchMesh, bench_mesh, cpu_of
from benchmarks.sampling import open_loop

FLOWS = (1, 5, 20, 50)
TOTAL_RATE = 500.0
REPLICAS = (1, 2, 4, 8)
WORK_MS = 1
STARTED_TOGETHER = 10
SERVICES = ("broker", "gateway", "orchestrator")
LAST_S = 0.1
"""From the last stimulus stored to the last message ended, with room."""


async def scale(run: BenchRun) -> dict[str, Any]:
    """Scenario `scale`, profile `fast`."""
    found: dict[str, Any] = {"total_rate": TOTAL_RATE, "flows": {}, "replicas": {}}
    async with bench_mesh("fast", run.told) as bench:
        await bench.prepare("opaque")  # pushes the component
        names: list[str] = []
        for count in FLOWS:
            run.told(f"scale: {count} flows at {TOTAL_RATE:g} messages/s together")
            names += await _more_flows(bench, len(names), count)
            measured = await _spread_over(bench, names, run.seconds)
            found["flows"][str(count)] = measured
            run.figures.less(f"scale.flows-{count}.cpu_all", sum(measured["cpu_us_per_message"].values()), "us/message")
            orchestrator = measured["cpu_us_per_message"]["orchestrator"]
            run.figures.less(f"scale.flows-{count}.cpu_orchestrator", orchestrator, "us/message")
            run.figures.less(f"scale.flows-{count}.hop_p50", measured["hop_p50_us"], "us")
    for replicas in REPLICAS:
        run.told(f"scale: {replicas} replicas of a step with {WORK_MS} ms of work")
        async with bench_mesh("fast", run.told) as bench:
            measured = await _replicas(bench, replicas, run.seconds)
        found["replicas"][str(replicas)] = measured
        run.figures.more(f"scale.replicas-{replicas}.rate", measured["messages_per_s"], "messages/s")
    return found


async def _more_flows(bench: BenchMesh, have: int, want: int) -> list[str]:
    names = [f"scale-{number}" for number in range(have, want)]
    for first in range(0, len(names), STARTED_TOGETHER):
        together = names[first : first + STARTED_TOGETHER]
        await asyncio.gather(*(bench.begin(name, chain(2)) for name in together))
    return names


async def _spread_over(bench: BenchMesh, names: list[str], seconds: float) -> dict[str, Any]:
    """The total rate, flow after flow in turn; processor time of everything per message."""
    loads = [await bench.load(name, OPAQUE_BODY, OPAQUE_TYPE) for name in names]
    try:
        counts = [await finished(bench, name, "s2") for name in names]
        await _all_finished(bench, names, counts, await _in_turn(loads, 1.0))  # imports and allocations
        pids = await _pids(bench, names)
        counts = [await finished(bench, name, "s2") for name in names]
        before = _cpu(pids)
        fired = await _in_turn(loads, seconds)
        await asyncio.sleep(LAST_S)
        after = _cpu(pids)
        await _all_finished(bench, names, counts, fired)
        hops = await bench.client.hops(names[0])
    finally:
        for load in loads:
            load.close()
    p50 = next(row.p50_us for row in hops.phases if (row.step, row.phase) == ("start", "hop"))
    return {
        "messages": fired,
        "cpu_us_per_message": {kind: round((after[kind] - before[kind]) / fired * 1e6, 1) for kind in after},
        "hop_p50_us": round(p50, 1),
    }


async def _in_turn(loads: list[IngressLoad], seconds: float) -> int:
    """Answers how many were fired, when all are stored."""
    turn = 0

    def fire(due_ns: int) -> None:
        nonlocal turn
        loads[turn % len(loads)].fire(due_ns)
        turn += 1

    fired = await open_loop(TOTAL_RATE, seconds, fire)
    for load in loads:
        await load.settle()
    return fired


async def _all_finished(bench: BenchMesh, names: list[str], before: list[int], fired: int) -> None:
    for index, name in enumerate(names):
        mine = fired // len(names) + (index < fired % len(names))
        await until_finished(bench, name, ["s2"], before[index] + mine, TOTAL_RATE)


async def _pids(bench: BenchMesh, names: list[str]) -> dict[str, list[int]]:
    """Asked for beforehand: what asking costs is no cost of a message."""
    instances = [
        instance
        for name in names
        for found in (await bench.client.get_status(name)).steps
        for instance in found.instances
    ]
    return {
        **{service: [bench.mesh.pid_of(service)] for service in SERVICES},
        "sidecars": [instance.sidecar_pid for instance in instances],
        "components": [instance.component_pid for instance in instances],
    }


def _cpu(pids: dict[str, list[int]]) -> dict[str, float]:
    return {kind: sum(map(cpu_of, found)) for kind, found in pids.items()}


async def _replicas(bench: BenchMesh, replicas: int, seconds: float) -> dict[str, Any]:
    await bench.prepare("opaque")
    burn = step("burn", function="burn", config={"ms": WORK_MS}, replicas=replicas)
    name = await bench.begin("replicas", flow(step("start", "burn", function="start"), burn))
    async with bench.blast(name, OPAQUE_BODY, OPAQUE_TYPE) as load:
        return await saturated(bench, name, ["burn"], load, seconds)
