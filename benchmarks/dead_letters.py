"""What it costs to dead-letter every message, against the same flow when nothing fails."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.mesh_bench import QUIET_LIMIT_S, BenchMesh

BODY = b"x" * 256
LOOK_S = 0.05


async def dead_letters(bench: BenchMesh, count: int) -> dict[str, Any]:
    """Saturated, as fast as the ingress takes them; a flow keeps the newest 10 000 letters."""
    passing = await _run(bench, "passing", "take", count)
    failing = await _run(bench, "failing", "", count)
    return {
        "messages": count,
        "processed_per_s": round(count / passing),
        "dead_lettered_per_s": round(count / failing),
        "cost_us_per_message": round((failing - passing) / count * 1e6, 1),
    }


async def _run(bench: BenchMesh, name: str, step: str, count: int) -> float:
    """Seconds from the first stimulus until the last message is processed, or (without a step) dead-lettered."""
    flow = await bench.prepare(name)
    await bench.client.start(flow)
    async with bench.blast(flow, BODY, "application/octet-stream") as load:
        await load.prepare(count)
        began = time.monotonic()
        await load.send()
        if step:
            ended = await bench.until_processed(flow, step, count)
        else:
            ended = await _until_given_up(bench, flow, count)
    await bench.client.stop(flow)
    return ended - began


async def _until_given_up(bench: BenchMesh, flow: str, count: int) -> float:
    async with asyncio.timeout(QUIET_LIMIT_S):
        while (await bench.client.get_status(flow)).dead_letters.total < count:
            await asyncio.sleep(LOOK_S)
    return time.monotonic()
