"""How cost grows: processor time a message over the number of flows at a fixed total, and rate over replicas."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.figures import BenchRun
from benchmarks.flows_at_work import OPAQUE_BODY, OPAQUE_TYPE, chain, finished, flow, saturated, step, until_finished
from benchmarks.load import IngressLoad
from benchmarks.mesh_bench import BenchMesh, bench_mesh
from benchmarks.sampling import open_loop

FLOWS = (1, 5, 20, 50)
TOTAL_RATE = 500.0
REPLICAS = (1, 2, 4, 8)
WORK_MS = 1
STARTED_TOGETHER = 10
SERVICES = ("broker", "gateway", "orchestrator")


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
        await _in_turn(bench, names, loads, 1.0)  # first messages: imports and allocations
        before = await _cpu(bench, names)
        fired = await _in_turn(bench, names, loads, seconds)
        after = await _cpu(bench, names)
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


async def _in_turn(bench: BenchMesh, names: list[str], loads: list[IngressLoad], seconds: float) -> int:
    """Answers how many were fired, when all are finished."""
    before = {name: await finished(bench, name, "s2") for name in names}
    turn = 0

    def fire(due_ns: int) -> None:
        nonlocal turn
        loads[turn % len(loads)].fire(due_ns)
        turn += 1

    fired = await open_loop(TOTAL_RATE, seconds, fire)
    for index, (name, load) in enumerate(zip(names, loads, strict=True)):
        await load.settle()
        mine = fired // len(names) + (index < fired % len(names))
        await until_finished(bench, name, ["s2"], before[name] + mine, TOTAL_RATE)
    return fired


async def _cpu(bench: BenchMesh, names: list[str]) -> dict[str, float]:
    """Of all flows; what belongs to the mesh counts once."""
    total: dict[str, float] = {}
    for name in names:
        for kind, used in (await bench.cpu_s(name)).items():
            total[kind] = used if kind in SERVICES else total.get(kind, 0.0) + used
    return total


async def _replicas(bench: BenchMesh, replicas: int, seconds: float) -> dict[str, Any]:
    await bench.prepare("opaque")
    burn = step("burn", function="burn", config={"ms": WORK_MS}, replicas=replicas)
    name = await bench.begin("replicas", flow(step("start", "burn", function="start"), burn))
    load = await bench.load(name, OPAQUE_BODY, OPAQUE_TYPE)
    try:
        return await saturated(bench, name, ["burn"], load, seconds)
    finally:
        load.close()
