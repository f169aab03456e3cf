"""Keyed steps: throughput with one key, with a hundred, and with ten thousand; the same messages without keys."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.flows_at_work import chain, flow, last_of, saturated, step
from benchmarks.mesh_bench import BenchMesh
from headrace.model.flow_spec import FlowSpec

KEYS = (1, 100, 10_000)
BODY_BYTES = 256
SPEC = flow(
    step("start", "one", function="start"),
    step("one", "two", key="body:/key", slots=8),
    step("two", key="body:/key", slots=8),
)


def body_of(keys: int, index: int) -> bytes:
    """JSON of 256 bytes; keys take turns."""
    head = b'{"key":"k%d","n":%d,"pad":"' % (index % keys, index)
    return head + b"x" * (BODY_BYTES - len(head) - 2) + b'"}'


async def keyed(bench: BenchMesh, seconds: float) -> dict[str, Any]:
    """Saturated trigger + 2 keyed actions (8 slots each), for each number of keys; `unkeyed` the same bodies through
    steps without keys. PSS of sidecars after each."""
    await bench.prepare("opaque")  # pushes the component
    result: dict[str, Any] = {"keyed": []}
    name = await bench.begin("keyed", SPEC)
    for keys in KEYS:
        measured = await _saturated(bench, name, SPEC, keys, seconds)
        memory = {step: pair["sidecar"] for step, pair in (await bench.pss_mb(name)).items()}
        result["keyed"].append({"keys": keys, "sidecar_pss_mb": memory, **measured})
    await bench.client.stop(name)
    name = await bench.begin("unkeyed", chain(3))
    result["unkeyed"] = await _saturated(bench, name, chain(3), KEYS[-1], seconds)
    await bench.client.stop(name)
    return result


async def _saturated(bench: BenchMesh, name: str, spec: FlowSpec, keys: int, seconds: float) -> dict[str, Any]:
    async with bench.blast(name, partial(body_of, keys), "application/json") as load:
        return await saturated(bench, name, last_of(spec), load, seconds)
