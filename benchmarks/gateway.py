"""HTTP request-reply through the gateway and three steps, at a rate; beside it an echo on the same ASGI server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import BenchRun
from benchmarks.flows_at_work import OPAQUE_BODY
from benchmarks.mesh_bench import bench_mesh
from benchmarks.sampling import percentile
from headrace.cli.http_caller import HttpAnswer, HttpRequest, call_all
from headrace.edge.parent_death import PARENT_PID_VARIABLE

RATES = (100.0, 1_000.0)
CONNECTIONS = 32
WARM_UP_S = 1.0
HEADERS = {"content-type": "application/octet-stream"}


async def gateway(run: BenchRun) -> dict[str, Any]:
    """Scenario `gateway`, profile `fast`."""
    found: dict[str, Any] = {}
    for rate in RATES:
        run.told(f"gateway: {rate:g} requests/s")
        echo = await _echo(rate, run.seconds / 2)
        async with bench_mesh("fast", run.told) as bench:
            flow = await bench.prepare("reply")
            await bench.client.start(flow)
            address = bench.mesh.endpoints.gateways[0]
            await _called(address, f"/hook/{flow}", rate, WARM_UP_S)
            before = await bench.cpu_s(flow)
            answers = await _called(address, f"/hook/{flow}", rate, run.seconds)
            after = await bench.cpu_s(flow)
            await bench.client.stop(flow)
        measured = _felt(answers, rate)
        cpu_us = round((after["gateway"] - before["gateway"]) / len(answers) * 1e6, 1)
        found[f"{rate:g}"] = {"request": measured, "echo": echo, "gateway_cpu_us": cpu_us}
        run.figures.less(f"gateway.{rate:g}.p50", measured["p50_us"], "us", echo["p50_us"])
        run.figures.less(f"gateway.{rate:g}.p99", measured["p99_us"], "us")
        run.figures.less(f"gateway.{rate:g}.cpu", cpu_us, "us/request")
    return found


async def _called(address: str, path: str, rate: float, seconds: float) -> Sequence[HttpAnswer]:
    host, _, port = address.rpartition(":")
    requests = [HttpRequest(path, OPAQUE_BODY, HEADERS)] * int(rate * seconds)
    return await asyncio.to_thread(call_all, requests, host=host, port=int(port), connections=CONNECTIONS, rate=rate)


def _felt(answers: Sequence[HttpAnswer], rate: float) -> dict[str, Any]:
    """From when a request was due to its answer; what was sent late counts."""
    began = answers[0].sent_ns
    took_us = [
        (answer.received_ns - min(answer.sent_ns, began + int(index * 1e9 / rate))) / 1e3
        for index, answer in enumerate(answers)
        if answer.status == 200
    ]
    return {
        "p50_us": round(percentile(took_us, 0.5), 1),
        "p99_us": round(percentile(took_us, 0.99), 1),
        "answered": len(took_us),
        "failed": len(answers) - len(took_us),
    }


async def _echo(rate: float, seconds: float) -> dict[str, Any]:
    """The floor: uvicorn as the gateway has it, an application that sends the body back, the same callers."""
    environment = {**os.environ, PARENT_PID_VARIABLE: str(os.getpid())}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.echo_server", "http", "-", env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(10):
            address = (await child.stdout.readline()).decode().strip()
        await _called(address, "/", rate, WARM_UP_S)
        return _felt(await _called(address, "/", rate, seconds), rate)
    finally:
        child.terminate()
        await child.wait()
