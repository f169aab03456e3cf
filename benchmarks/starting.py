"""How long a flow of three steps takes from the start call to its first answer, and what an instance weighs."""

from __future__ import annotations

import asyncio
import http.client
import time
from typing import Any

from benchmarks.figures import BenchRun
from benchmarks.flows_at_work import OPAQUE_BODY
from benchmarks.mesh_bench import BenchMesh, bench_mesh


async def start(run: BenchRun) -> dict[str, Any]:
    """Scenario `start`, profile `fast`: first with empty caches, then with bundles cached."""
    run.told("start: cold and cached")
    async with bench_mesh("fast", run.told) as bench:
        found = await _starts(bench)
        run.figures.less("start.mesh", bench.mesh.start_s, "s")
    for name in ("cold", "cached"):
        run.figures.less(f"start.{name}.first_answer", found[name]["first_answer_s"], "s")
    memory = [sum(pair.values()) for pair in found["pss_mb"].values()]
    run.figures.less("start.instance_pss", max(memory), "MB")
    return found


async def _starts(bench: BenchMesh) -> dict[str, Any]:
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
        result["pss_mb"] = await bench.pss_mb(flow)
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
