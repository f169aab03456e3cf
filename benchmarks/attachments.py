"""Large bodies by reference: through the gateway into the object store, and as a stream to a component.

How many megabytes a second go the whole way, and the most memory that gateway, sidecar and component have meanwhile,
with several uploads at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from benchmarks.figures import BenchRun
from benchmarks.mesh_bench import BenchMesh, bench_mesh, pss_of

MEGABYTE = 1_000_000
PART = bytes(range(250)) * 1_000
CASES = {"1mb": (MEGABYTE, 48, 4), "100mb": (100 * MEGABYTE, 4, 4)}
"""Bytes, how many, and how many at once."""
LOOK_S = 0.05


async def attachments(run: BenchRun) -> dict[str, Any]:
    """Scenario `attachments`, profile `fast`."""
    found: dict[str, Any] = {}
    async with bench_mesh("fast", run.told) as bench:
        flow = await bench.prepare("carried")
        await bench.client.start(flow)
        await _upload(bench, flow, MEGABYTE)  # opens the store on both sides
        await bench.until_processed(flow, "weigh", 1)
        done = 1
        for name, (size, count, at_once) in CASES.items():
            run.told(f"attachments: {count} of {size // MEGABYTE} MB, {at_once} at once")
            found[name] = measured = await _case(bench, flow, size, count, at_once, done)
            done += count
            run.figures.more(f"attachments.{name}.rate", measured["mb_per_s"], "MB/s")
            for role, peak in measured["peak_mb"].items():
                run.figures.less(f"attachments.{name}.{role}_peak", peak, "MB")
    return found


async def _case(bench: BenchMesh, flow: str, size: int, count: int, at_once: int, done: int) -> dict[str, Any]:
    instance = (await bench.client.get_status(flow)).steps[-1].instances[0]
    pids = {
        "gateway": bench.mesh.pid_of("gateway"),
        "sidecar": instance.sidecar_pid,
        "component": instance.component_pid,
    }
    before = {role: pss_of(pid) for role, pid in pids.items()}
    peaks = dict(before)
    watching = asyncio.create_task(_watch(pids, peaks))
    places = asyncio.Semaphore(at_once)
    began = time.monotonic()
    try:
        async with asyncio.TaskGroup() as uploads:
            for _ in range(count):
                await places.acquire()
                uploads.create_task(_upload(bench, flow, size)).add_done_callback(lambda _: places.release())
        uploaded = time.monotonic()
        ended = await bench.until_processed(flow, "weigh", done + count)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return {
        "bytes": size,
        "count": count,
        "at_once": at_once,
        "mb_per_s": round(size * count / MEGABYTE / (ended - began), 1),
        "upload_mb_per_s": round(size * count / MEGABYTE / (uploaded - began), 1),
        "before_mb": before,
        "peak_mb": peaks,
    }


async def _watch(pids: dict[str, int], peaks: dict[str, float]) -> None:
    while True:
        for role, pid in pids.items():
            peaks[role] = max(peaks[role], pss_of(pid))
        await asyncio.sleep(LOOK_S)


async def _upload(bench: BenchMesh, flow: str, size: int) -> None:
    """One request, whose body is written as fast as it is taken."""
    host, _, port = bench.mesh.endpoints.gateways[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = f"POST /hook/{flow} HTTP/1.1\r\nhost: bench\r\ncontent-length: {size}\r\n\r\n"
        writer.write(head.encode())
        for _ in range(size // len(PART)):
            writer.write(PART)
            await writer.drain()
        status = (await reader.readline()).split()[1]
        if status != b"202":
            raise RuntimeError(f"an upload was answered with {status.decode()}")
    finally:
        writer.close()
