"""What is measured: hop latency at 200 messages a second, saturated throughput, start, memory."""

from __future__ import annotations

import asyncio
import http.client
import time
from typing import Any

from benchmarks.load import IngressLoad, typed_body
from benchmarks.mesh_bench import BenchMesh
from headrace.api.hop.v1 import hop_pb2

RATE = 200.0
OPAQUE_BODY = b"x" * 256
STEPS = ("start", "one", "two")


async def _warm_up(bench: BenchMesh, flow: str, load: IngressLoad) -> int:
    """A second of load, so that imports and first allocations are not what is measured."""
    fired = await load.paced(RATE, 1.0)
    await load.settle()
    await bench.until_processed(flow, STEPS[-1], fired)
    return fired


async def latency(bench: BenchMesh, seconds: float) -> dict[str, Any]:
    """Open loop at 200 messages a second through trigger + 2 actions, opaque bodies of 256 bytes."""
    flow = await bench.prepare("opaque")
    await bench.client.start(flow)
    load = await bench.load(flow, OPAQUE_BODY, "application/octet-stream")
    try:
        fired = await _warm_up(bench, flow, load)
        fired += await load.paced(RATE, seconds)
        await load.settle()
        await bench.until_processed(flow, STEPS[-1], fired)
        answer = await bench.client.hops(flow)
        memory = await bench.pss_mb(flow)
    finally:
        load.close()
    await bench.client.stop(flow)
    return {"rate": RATE, "hops": _hop_rows(answer), "hop": _whole_hop(answer), "pss_mb": memory}


def _hop_rows(answer: hop_pb2.GetHopsResponse) -> list[dict[str, Any]]:
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
        if row.step == "one" and row.phase == "hop":
            return {"p50_us": round(row.p50_us, 1), "p95_us": round(row.p95_us, 1), "p99_us": round(row.p99_us, 1)}
    return {}


async def throughput(bench: BenchMesh, kind: str, count: int) -> dict[str, Any]:
    """Saturated: from the first stimulus to the last message finished by the last step."""
    flow = await bench.prepare(kind)
    await bench.client.start(flow)
    body = OPAQUE_BODY if kind == "opaque" else typed_body()
    content_type = "application/octet-stream" if kind == "opaque" else "application/json"
    load = await bench.load(flow, body, content_type)
    try:
        before = await bench.processed(flow, STEPS[-1])
        cpu_before = await bench.cpu_s(flow)
        began = time.monotonic()
        await load.saturate(count)
        await load.settle()
        ended = await bench.until_processed(flow, STEPS[-1], before + count)
        cpu_after = await bench.cpu_s(flow)
    finally:
        load.close()
    await bench.client.stop(flow)
    seconds = ended - began
    return {
        "messages": count,
        "seconds": round(seconds, 2),
        "messages_per_s": round(count / seconds),
        "refused_by_full_edges": load.refused,
        "cpu_us_per_message": {
            name: round((cpu_after[name] - cpu_before[name]) / count * 1e6, 1) for name in cpu_after
        },
    }


async def start(bench: BenchMesh) -> dict[str, Any]:
    """From the start call to the first answer over HTTP: first with empty caches, then with bundles cached."""
    flow = await bench.prepare("reply")
    result: dict[str, Any] = {}
    for name in ("cold", "cached"):
        began = time.monotonic()
        await bench.client.start(flow)
        running = time.monotonic()
        status = await asyncio.to_thread(_post, bench.mesh.endpoints.gateways[0], flow)
        answered = time.monotonic()
        deployments = await bench.client.list_deployments(flow)
        newest = max(deployments, key=lambda deployment: deployment.number)
        result[name] = {
            "running_s": round(running - began, 3),
            "first_answer_s": round(answered - began, 3),
            "http_status": status,
            "stages_ms": {stage: round(ms, 1) for stage, ms in newest.start_ms.items()},
        }
        await bench.client.stop(flow)
    return result


def _post(address: str, flow: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", f"/hook/{flow}", body=OPAQUE_BODY)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()
