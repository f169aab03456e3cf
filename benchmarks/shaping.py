"""What shaping costs a message: a condition, a mapping, both, and passthrough of the steps before, against plain edges.

Trigger + 2 actions with JSON of 300 bytes, saturated. Processor time is that of all processes of the mesh, since
expressions are evaluated in processes beside the sidecars.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from benchmarks.figures import BenchRun
from benchmarks.flows_at_work import chain, last_of, saturated
from benchmarks.many_flows import processes_by_kind
from benchmarks.mesh_bench import BenchMesh, bench_mesh, cpu_of
from headrace.model.flow_spec import EdgeSpec, FlowSpec

CONDITION = "body.total <= 100 and body.customer != 'test'"
MAPPING = '{"order": body.id, "total": body.total, "lines": body.lines.{"sku": sku, "sum": pieces * price}}'
BODY = json.dumps(
    {
        "id": "O-1",
        "total": 42.5,
        "customer": "ann",
        "lines": [{"sku": f"S-{number}", "pieces": number, "price": 2.5} for number in range(1, 5)],
        "note": "n" * 80,
    }
).encode()
CASES: dict[str, tuple[EdgeSpec | None, bool]] = {
    "plain": (None, False),
    "condition": (EdgeSpec(condition=CONDITION), False),
    "mapping": (EdgeSpec(mapping=MAPPING), False),
    "both": (EdgeSpec(condition=CONDITION, mapping=MAPPING), False),
    "passthrough": (None, True),
}


async def shaping(run: BenchRun) -> dict[str, Any]:
    """Scenario `shaping`, profile `fast`. One edge of two is shaped, so a difference is the cost of one expression."""
    found: dict[str, Any] = {}
    for name, (edge, passthrough) in CASES.items():
        run.told(f"shaping: {name}")
        async with bench_mesh("fast", run.told) as bench:
            found[name] = measured = await _case(bench, _spec(edge, passthrough), run.seconds / 2)
        run.figures.more(f"shaping.{name}.rate", measured["messages_per_s"], "messages/s")
        run.figures.less(f"shaping.{name}.cpu_all", measured["cpu_us_of_all"], "us/message")
    return found


def _spec(edge: EdgeSpec | None, passthrough: bool) -> FlowSpec:
    spec = chain(3, passthrough=passthrough)
    if edge is None:
        return spec
    first, *rest = spec.steps
    shaped = msgspec.structs.replace(first, edges={first.to[0]: edge})
    return msgspec.structs.replace(spec, steps=(shaped, *rest))


async def _case(bench: BenchMesh, spec: FlowSpec, seconds: float) -> dict[str, Any]:
    await bench.prepare("opaque")  # pushes the component
    name = await bench.begin("shaped", spec)
    async with bench.blast(name, BODY, "application/json") as load:
        await saturated(bench, name, last_of(spec), load, 0.5)
        pids = [pid for kind in processes_by_kind(bench).values() for pid in kind]
        before = {pid: cpu_of(pid) for pid in pids}
        measured = await saturated(bench, name, last_of(spec), load, seconds)
        used = sum(cpu_of(pid) - before[pid] for pid in pids)
    # `saturated` warms up once more, which is in what the processes used.
    return measured | {"cpu_us_of_all": round(used / (measured["messages"] + measured["warm_up"]) * 1e6, 1)}
