"""Saturated flows of several shapes, bodies and kinds of work, and where the processor time of a message goes."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.blast import Body
from benchmarks.broker_floor import saturated_broker
from benchmarks.figures import BenchRun
from benchmarks.flows_at_work import OPAQUE_BODY, OPAQUE_TYPE, chain, direct, flow, last_of, saturated, step
from benchmarks.keyed import SPEC as KEYED
from benchmarks.keyed import body_of
from benchmarks.load import typed_body
from benchmarks.mesh_bench import BenchMesh, bench_mesh, cpu_of
from headrace.model.flow_spec import FlowSpec
from headrace.model.mesh_trigger import entry_of

FAN_OUT = ("a", "b", "c", "d")
KEYS = 100
BROKER_S = 2.0
SHAPES: dict[str, FlowSpec] = {
    "one-step": chain(1),
    "trigger+1": chain(2),
    "trigger+2": chain(3),
    "trigger+5": chain(6),
    "direct+1": direct(1),
    "direct+2": direct(2),
    "fan-out-4": flow(step("start", *FAN_OUT, function="start"), *(step(name) for name in FAN_OUT)),
    "keyed": KEYED,
    "cpu-1ms": flow(step("start", "burn", function="start"), step("burn", function="burn", config={"ms": 1})),
    "wait-10ms": flow(step("start", "rest", function="start"), step("rest", function="rest", config={"ms": 10})),
}
BODIES = {"64B": b"x" * 64, "1KB": b"x" * 1024, "64KB": b"x" * 65_536}


def body_for(shape: str) -> Body:
    """Keyed steps look into it."""
    return partial(body_of, KEYS) if shape == "keyed" else OPAQUE_BODY


async def throughput(run: BenchRun) -> dict[str, Any]:
    """Scenario `throughput`, profile `fast`. Bodies of 1 MB go by reference: see scenario `attachments`."""
    found: dict[str, Any] = {}
    async with bench_mesh("fast", run.told) as bench:
        floor = await saturated_broker(bench.broker, lambda: cpu_of(bench.mesh.pid_of("broker")), BROKER_S)
        found["broker_alone"] = floor
        run.figures.more("throughput.broker_alone.rate", floor["messages_per_s"], "messages/s")
        run.figures.less("throughput.broker_alone.cpu", floor["broker_us"], "us/message")
        await bench.prepare("opaque")  # pushes the component
        for name, spec in SHAPES.items():
            found[name] = await _case(run, bench, name, spec, body_for(name), stores=len(spec.steps))
        for name, body in BODIES.items():
            found[f"body-{name}"] = await _case(run, bench, f"body-{name}", chain(3), body, stores=3)
        found["typed"] = await _typed(run, bench)
    return found


async def _case(
    run: BenchRun, bench: BenchMesh, name: str, spec: FlowSpec, body: Body, *, stores: int
) -> dict[str, Any]:
    run.told(f"throughput: {name}")
    flow_name = await bench.begin("t-" + name.lower().replace("+", "-"), spec)
    content_type = "application/json" if callable(body) else OPAQUE_TYPE
    entry = entry_of(spec, "start").name
    async with bench.blast(flow_name, body, content_type, trigger=entry) as load:
        measured = await saturated(bench, flow_name, last_of(spec), load, run.seconds)
    await bench.client.stop(flow_name)
    put(run, f"throughput.{name}", measured)
    return measured | {"stores": stores}


async def _typed(run: BenchRun, bench: BenchMesh) -> dict[str, Any]:
    run.told("throughput: typed")
    name = await bench.prepare("typed")
    await bench.client.start(name)
    async with bench.blast(name, typed_body(), "application/json") as load:
        measured = await saturated(bench, name, ["two"], load, run.seconds)
    await bench.client.stop(name)
    put(run, "throughput.typed", measured)
    return measured


def put(run: BenchRun, name: str, measured: dict[str, Any]) -> None:
    """Rate, and processor time a message by process."""
    run.figures.more(f"{name}.rate", measured["messages_per_s"], "messages/s")
    cpu = measured["cpu_us_per_message"]
    for kind in ("broker", "sidecars", "components"):
        run.figures.less(f"{name}.cpu_{kind}", cpu[kind], "us/message")
    run.figures.less(f"{name}.cpu_all", sum(cpu.values()), "us/message")
