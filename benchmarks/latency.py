"""Latency of a hop and of a whole flow of trigger + 2 actions, open loop, at 1 to 5 000 messages a second.

What is sent late counts from when it was due, so a stall is felt by all that wait behind it. Floors are measured in the
same minute at the same rate, against the same broker.
"""

from __future__ import annotations

from typing import Any

from benchmarks.broker_floor import publish_to_deliver
from benchmarks.figures import BenchRun
from benchmarks.floors import unix_socket_round_trip
from benchmarks.flows_at_work import OPAQUE_BODY, OPAQUE_TYPE, flow, step, until_finished
from benchmarks.load import IngressLoad
from benchmarks.mesh_bench import BenchMesh, bench_mesh
from benchmarks.sampling import summary_us
from headrace.api.hop.v1 import hop_pb2

RATES = (1.0, 10.0, 200.0, 1_000.0, 5_000.0)
MIDDLE, LAST = "one", "answer"
SPEC = flow(step("start", MIDDLE, function="start"), step(MIDDLE, LAST), step(LAST, function="answer"))
SLOW_RATE_S = 8.0
WARM_UP_S = 1.0
# Past this rate every tenth message tells for all: a reply each would be part of the load.
ALL_ASK_UP_TO, ONE_IN = 1_000.0, 10


async def latency(run: BenchRun) -> dict[str, Any]:
    """Scenario `latency`, profile `fast`; each rate in a mesh of its own, whose histograms hold nothing else."""
    found: dict[str, Any] = {}
    for rate in RATES:
        run.told(f"latency at {rate:g}/s")
        async with bench_mesh("fast", run.told) as bench:
            measured = await at_rate(bench, rate, SLOW_RATE_S if rate < 10 else run.seconds)
        put(run, f"latency.{rate:g}", measured)
        found[f"{rate:g}"] = measured
    return found


def put(run: BenchRun, name: str, measured: dict[str, Any]) -> None:
    """The figures of one rate."""
    hop, whole, floor_us = measured["hop"], measured["end_to_end"], measured["floor_us"]
    run.figures.less(f"{name}.hop_p50", hop["p50_us"], "us", floor_us)
    run.figures.less(f"{name}.hop_p99", hop["p99_us"], "us")
    run.figures.less(f"{name}.end_to_end_p50", whole["p50_us"], "us")
    run.figures.less(f"{name}.end_to_end_p99", whole["p99_us"], "us")


async def at_rate(bench: BenchMesh, rate: float, seconds: float, *, sampled: float | None = None) -> dict[str, Any]:
    """Floors, then the flow; `sampled`: the ratio of traces, if it is not to be the default."""
    floor_s = max(2.0, seconds / 2) if rate >= 10 else seconds
    floors = {
        "publish_to_deliver": await publish_to_deliver(bench.broker, rate, floor_s),
        "unix_socket_round_trip": await unix_socket_round_trip(rate, floor_s),
    }
    await bench.prepare("opaque")  # pushes the component
    name = await bench.begin("latency", SPEC, sampled=sampled)
    load = await bench.load(name, OPAQUE_BODY, OPAQUE_TYPE, ask_one_in=1 if rate <= ALL_ASK_UP_TO else ONE_IN)
    try:
        fired = await _warm_up(bench, name, load, min(rate, 200.0))
        load.answered_ns.clear()
        fired += await load.paced(rate, seconds)
        await load.settle()
        await load.all_answered()
        await until_finished(bench, name, [LAST], fired, rate)
        answer = await bench.client.hops(name)
        memory = await bench.pss_mb(name)
    finally:
        load.close()
    await bench.client.stop(name)
    return {
        "rate": rate,
        "floors": floors,
        "floor_us": round(sum(each["p50_us"] for each in floors.values()), 1),
        "hop": _whole_hop(answer),
        "end_to_end": summary_us(load.answered_ns),
        "hops": hop_rows(answer),
        "pss_mb": memory,
    }


async def _warm_up(bench: BenchMesh, name: str, load: IngressLoad, rate: float) -> int:
    """A second of load, so that imports and first allocations are not what is measured."""
    fired = await load.paced(rate, WARM_UP_S)
    await load.settle()
    await load.all_answered()
    await until_finished(bench, name, [LAST], fired, rate)
    return fired


def hop_rows(answer: hop_pb2.GetHopsResponse) -> list[dict[str, Any]]:
    """Every phase of every step."""
    return [
        {
            "step": row.step,
            "phase": row.phase,
            "receiver": row.receiver,
            "p50_us": round(row.p50_us, 1),
            "p95_us": round(row.p95_us, 1),
            "p99_us": round(row.p99_us, 1),
            "mean_us": round(row.mean_us, 1),
            "count": row.count,
        }
        for row in answer.phases
    ]


def _whole_hop(answer: hop_pb2.GetHopsResponse) -> dict[str, float]:
    """The middle step's hop: stored to stored."""
    for row in answer.phases:
        if row.step == MIDDLE and row.phase == "hop":
            return {"p50_us": round(row.p50_us, 1), "p95_us": round(row.p95_us, 1), "p99_us": round(row.p99_us, 1)}
    raise AssertionError(f"no hop of step {MIDDLE}")
