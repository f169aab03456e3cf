"""Keyed steps: throughput with one key, with a hundred, and with ten thousand; the same messages without keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.mesh_bench import BenchMesh

KEYS = (1, 100, 10_000)
# Messages of one key go one after the other: fewer are enough to measure it.
FEWER_FOR_ONE_KEY = 20
BODY_BYTES = 256


def body_of(keys: int, index: int) -> bytes:
    """JSON of 256 bytes; keys take turns."""
    head = b'{"key":"k%d","n":%d,"pad":"' % (index % keys, index)
    return head + b"x" * (BODY_BYTES - len(head) - 2) + b'"}'


async def keyed(bench: BenchMesh, count: int) -> dict[str, Any]:
    """Saturated trigger + 2 keyed actions (8 slots each), for each number of keys; `unkeyed` as many through steps
    without keys. PSS of sidecars after each."""
    result: dict[str, Any] = {"messages": count, "keyed": []}
    flow = await bench.prepare("keyed")
    await bench.client.start(flow)
    for keys in KEYS:
        enough = count // FEWER_FOR_ONE_KEY if keys == 1 else count
        rate = await _saturated(bench, flow, enough, partial(body_of, keys))
        memory = {step: pair["sidecar"] for step, pair in (await bench.pss_mb(flow)).items()}
        result["keyed"].append({"keys": keys, "messages_per_s": rate, "sidecar_pss_mb": memory})
    await bench.client.stop(flow)
    flow = await bench.prepare("opaque")
    await bench.client.start(flow)
    result["unkeyed_per_s"] = await _saturated(bench, flow, count, partial(body_of, 1))
    await bench.client.stop(flow)
    return result


async def _saturated(bench: BenchMesh, flow: str, count: int, body: Callable[[int], bytes]) -> int:
    """Messages a second, from the first stimulus until the last step has finished the last message."""
    load = await bench.load(flow, body, "application/json")
    try:
        before = await bench.processed(flow, "two")
        began = time.monotonic()
        await load.saturate(count)
        await load.settle()
        ended = await bench.until_processed(flow, "two", before + count)
    finally:
        load.close()
    return round(count / (ended - began))
