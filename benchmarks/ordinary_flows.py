"""Ordinary flows: how long a sleeping step takes to answer, how late ticks are, what 200 flows cost that sleep."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from typing import Any

from benchmarks.figures import BenchRun
from benchmarks.flows_at_work import OPAQUE_BODY
from benchmarks.many_flows import count_messages, processes_by_kind
from benchmarks.mesh_bench import BenchMesh, bench_mesh, cpu_of, pss_of
from benchmarks.raw_nats import RawNats
from headrace.api.flow.v1 import flow_pb2
from headrace.model.flow_spec import ORDINARY, FlowSpec, StepSpec
from headrace.wire.envelope import decode_envelope
from headrace.wire.flow import flow_spec_to_proto

WAKES = 20
TICKS = 1_000
EVERY_S = 0.01
FLOWS = 200
AT_ONCE = 10
REST_S = 8.0
# What falling asleep itself wrote is over by then.
SETTLE_S = 12.0
LIMIT_S = 60.0
NAP = StepSpec("one", "bench-opaque@latest", "relay", idle_timeout_s=0.0)
ASKED = FlowSpec(
    ORDINARY,
    (StepSpec("ask", to=("answer",)), StepSpec("answer", "bench-opaque@latest", "answer", idle_timeout_s=0.0)),
    reply_timeout_s=20.0,
)
TICKING = FlowSpec(ORDINARY, (StepSpec("tick", every_s=EVERY_S, to=("one",)), NAP))
SLEEPING = FlowSpec(ORDINARY, (StepSpec("ask", to=("one",)), NAP))


async def ordinary(run: BenchRun) -> dict[str, Any]:
    """Scenario `ordinary`, profile `fast`."""
    found: dict[str, Any] = {}
    async with bench_mesh("fast", run.told) as bench:
        await bench.prepare("opaque")  # pushes the component
        run.told(f"ordinary: {WAKES} wakes")
        found["wake_ms"] = wakes = sorted(await _wakes(bench))
        run.told(f"ordinary: {TICKS} ticks")
        found["late_ms"] = late = sorted(await _ticks(bench))
        run.told(f"ordinary: {FLOWS} flows asleep")
        found["asleep"] = rest = await _asleep(bench)
    run.figures.less("ordinary.wake.p50", wakes[len(wakes) // 2], "ms")
    run.figures.less("ordinary.wake.max", wakes[-1], "ms")
    run.figures.less("ordinary.tick.late_p50", late[len(late) // 2], "ms")
    run.figures.less("ordinary.tick.late_p99", late[len(late) * 99 // 100], "ms")
    run.figures.less("ordinary.tick.late_max", late[-1], "ms")
    run.figures.less("ordinary.asleep.pss", rest["pss_mb"], "MB")
    run.figures.less("ordinary.asleep.cpu", rest["cpu_percent"], "% of a core")
    run.figures.less("ordinary.asleep.broker_messages", rest["messages_per_s"], "messages/s")
    return found


async def _wakes(bench: BenchMesh) -> list[float]:
    """From a request to its answer by a step that slept, ms; bundle and plan are cached."""
    await bench.begin("asked", ASKED)
    times = []
    for _ in range(WAKES):
        await _sleeps(bench, "asked")
        times.append(await asyncio.to_thread(_ask, bench.mesh.endpoints.gateways[0]))
    await bench.client.stop("asked")
    return times


def _ask(address: str) -> float:
    connection = http.client.HTTPConnection(address, timeout=30)
    began = time.perf_counter()
    try:
        connection.request("POST", "/hook/asked", body=OPAQUE_BODY)
        status = connection.getresponse().status
        assert status == 200, status
        return round((time.perf_counter() - began) * 1000, 1)
    finally:
        connection.close()


async def _sleeps(bench: BenchMesh, flow: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await bench.client.get_flow(flow)).state != flow_pb2.FLOW_STATE_SLEEPING:
            await asyncio.sleep(0.02)


async def _ticks(bench: BenchMesh) -> list[float]:
    """How long after its instant each tick passed the broker, ms."""
    late: list[float] = []
    done = asyncio.Event()

    def on_message(subject: str, reply: str, payload: bytes) -> None:
        now_ms = time.time() * 1000
        late.append(now_ms - json.loads(decode_envelope(payload).body)["unix_ms"])
        if len(late) == TICKS:
            done.set()

    client = await RawNats.connect(*bench.broker, on_message)
    client.subscribe("hr.default.ticking.in.one.*", 1)
    await bench.begin("ticking", TICKING)
    async with asyncio.timeout(LIMIT_S):
        await done.wait()
    client.close()
    await bench.client.stop("ticking")
    return [round(item, 2) for item in late[:TICKS]]


async def _asleep(bench: BenchMesh) -> dict[str, Any]:
    """All started, a few at once, then what the mesh uses while all sleep and nobody asks for anything."""
    places = asyncio.Semaphore(AT_ONCE)

    async def begin(number: int) -> None:
        async with places:
            name = f"nap-{number}"
            await bench.client.create_flow(name, flow_spec_to_proto(SLEEPING))
            await bench.client.publish(name)
            await bench.client.start(name)

    began = time.monotonic()
    await asyncio.gather(*(begin(number) for number in range(FLOWS)))
    for number in range(FLOWS):
        await _sleeps(bench, f"nap-{number}")
    took_s = time.monotonic() - began
    await asyncio.sleep(SETTLE_S)
    by_kind = processes_by_kind(bench)
    pids = {pid for kind in by_kind.values() for pid in kind}
    before = {pid: cpu_of(pid) for pid in pids}
    counted = await count_messages(bench, REST_S)
    return {
        "flows": FLOWS,
        "started_and_asleep_s": round(took_s, 1),
        "processes": len(pids),
        "pss_mb": round(sum(map(pss_of, pids)), 0),
        "pss_mb_by_kind": {kind: round(sum(map(pss_of, found)), 0) for kind, found in by_kind.items()},
        "cpu_percent": round(100 * sum(cpu_of(pid) - used for pid, used in before.items()) / REST_S, 2),
        "messages_per_s": round(sum(counted.values()) / REST_S, 2),
        "messages": dict(counted),
    }
