"""Sampling of a mesh at work: a ratio that changes while it runs, what is kept besides, and one execution shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import real_tools

from headrace.api.flow.v1 import flow_pb2
from headrace.api.trace.v1 import trace_pb2
from headrace.client import Client
from headrace.model.errors import HeadraceError, InvalidInput, NotFound
from tests.support.commands import headrace
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.otlp_collector import Collector, SeenSpan, otlp_collector
from tests.support.traced_flow import TracedFlow
from tools.jaeger import Jaeger, jaeger_server

SPANS_CODE = """
import logging
import sys

from headrace.sdk import Component, Context

component = Component()


@component.action
async def plain(order: dict, ctx: Context) -> None:
    ctx.log.info("no span")
    await ctx.emit({"imported": "opentelemetry" in sys.modules})
"""
OTEL_CODE = """
import logging

from opentelemetry import baggage, trace

from headrace.sdk import Component, Context

component = Component()
tracer = trace.get_tracer("shop.tax")


@component.action
def tax(order: dict, ctx: Context) -> None:
    with tracer.start_as_current_span("look up tax", attributes={"country": "FR", "rates": [5, 20]}) as span:
        span.add_event("cache missed")
        logging.getLogger("shop").info("inside")
        with tracer.start_as_current_span("ask the office") as inner:
            inner.record_exception(ValueError("no answer"))
            inner.set_status(trace.StatusCode.ERROR, "no answer")
    ctx.reply({**order, "tenant": baggage.get_baggage("tenant")})
"""


@dataclass
class World:
    mesh: RunningMesh
    collector: Collector
    flow: TracedFlow
    jaeger: Jaeger | None

    def spans_of(self, execution: str) -> list[SeenSpan]:
        return self.collector.trace_of(execution)

    def execution(self, **body: object) -> str:
        return self.flow.post(body).headers["headrace-execution"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("sampling")
    pages = {"HEADRACE_JAEGER": "http://jaeger.example:16686/"}
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(otlp_collector())
        jaeger = stack.enter_context(jaeger_server()) if real_tools.locate("jaeger") else None
        if jaeger is not None:
            collector.forward_to = jaeger.otlp.removeprefix("http://")
        mesh = stack.enter_context(start_mesh(folder, "fast", "--otlp", collector.url, **pages))
        yield World(mesh, collector, TracedFlow.start(mesh, folder / "flow", "shop"), jaeger)


WHOLE = 23
"""Spans of a request through three steps: see test_traces."""


async def quiet(world: World) -> None:
    """Ratio 0."""
    with Client(world.mesh.api) as client:
        client.set_sampling("shop", 0.0)
    await eventually(lambda: world.flow.post().headers["traceparent"].endswith("-00"))


async def test_the_ratio_changes_while_the_flow_runs(world: World) -> None:
    assert "100 % of executions are traced" in headrace("flow", "trace", "shop", data=world.mesh.data).ok()
    first = world.execution()
    await eventually(lambda: len(world.spans_of(first)) == WHOLE)

    assert "25 % of executions" in headrace("flow", "trace", "shop", "--ratio", "0.25", data=world.mesh.data).ok()
    await eventually(lambda: world.flow.post().headers["traceparent"].endswith("-00"))
    answers = [world.flow.post() for _ in range(60)]
    for answer in answers:
        execution = answer.headers["headrace-execution"]
        assert answer.headers["traceparent"].endswith("-01") is (int(execution[16:], 16) < 2**62)
    sampled = [each.headers["headrace-execution"] for each in answers if each.headers["traceparent"].endswith("-01")]
    assert 2 <= len(sampled) <= 35
    await eventually(lambda: all(len(world.spans_of(execution)) == WHOLE for execution in sampled))

    with Client(world.mesh.api) as client:
        assert client.get_sampling("shop").ratio == 0.25
        with pytest.raises(InvalidInput, match="not between 0 and 1"):
            client.set_sampling("shop", 1.5)
        with pytest.raises(NotFound):
            client.set_sampling("nothing", 0.5)
        client.set_sampling("shop", 0.0)
        await eventually(lambda: world.flow.post().headers["traceparent"].endswith("-00"))
        injected = client.inject("shop", b"{}").execution_id
        found = await eventually(lambda: traced(client, injected, 3))
        assert not found.sampled, "who injects goes by the ratio, too"


def traced(client: Client, execution: str, attempts: int) -> trace_pb2.Execution | None:
    """What the mesh remembers of it, once that is so many attempts."""
    with contextlib.suppress(NotFound):
        found = client.get_trace(execution)
        return found if len(found.attempts) >= attempts and found.HasField("root") else None
    return None


async def test_at_ratio_0_failures_retries_and_the_slowest_are_sent_whole(world: World) -> None:
    await quiet(world)
    retried = world.execution(fail=1)
    given_up = world.execution(fail=9)
    await eventually(lambda: len(world.spans_of(retried)) == WHOLE + 3, within_s=15.0)
    whole = {"POST /hook/shop", "gateway-out", "process receive", "sidecar-out receive", "process price", "reply price"}
    await eventually(lambda: whole <= {span.name for span in world.spans_of(given_up)}, within_s=15.0)
    spans = world.spans_of(given_up)
    assert sum(span.name == "process price" for span in spans) == 3
    assert len({span.span_id for span in spans}) == len(spans), "each once"
    slowest = world.execution(wait=0.6)
    await eventually(lambda: len(world.spans_of(slowest)) == WHOLE, within_s=15.0)
    dull = [world.execution() for _ in range(20)]
    kept = [execution for execution in dull if world.spans_of(execution)]
    assert len(kept) <= 8, "none, but for a minute that begins just now"


async def test_the_next_ones_that_fit_are_caught_and_no_others(world: World) -> None:
    await quiet(world)
    words = ["flow", "trace", "shop", "--next", "2", "--where", "step=price AND duration>150ms", "--timeout", "30"]
    waiting = asyncio.create_task(asyncio.to_thread(headrace, *words, data=world.mesh.data))
    with Client(world.mesh.api) as client:
        await eventually(lambda: client.get_sampling("shop").capture.count == 2)
        world.execution()
        slow = [world.execution(wait=0.2) for _ in range(3)]
        assert (await waiting).ok().split() == slow[:2]
        caught = client.get_sampling("shop").capture
        assert [name.rpartition("/")[2] for name in caught.executions] == slow[:2]
    await eventually(lambda: all(len(world.spans_of(execution)) == WHOLE for execution in slow[:2]), within_s=15.0)


async def test_an_execution_is_shown_by_the_mesh_itself(world: World) -> None:
    await quiet(world)
    execution = world.execution(fail=1)
    with Client(world.mesh.api) as client:
        found = await eventually(lambda: traced(client, execution, 4))
        assert [(each.step, each.attempt, each.outcome) for each in found.attempts] == [
            ("receive", 1, "processed"), ("price", 1, "retried"), ("price", 2, "processed"), ("answer", 1, "processed"),
        ]  # fmt: skip
        assert (found.outcome, found.root.status, found.root.name) == ("processed", 200, "POST /hook/shop")
        assert found.link == f"http://jaeger.example:16686/trace/{execution}"
        assert [phase.name for phase in found.attempts[0].phases][:5] == [
            "publish", "queue", "sidecar-in", "component", "sidecar-out",
        ]  # fmt: skip
        hop = found.attempts[-1]
        phases = {phase.name: phase.duration.ToNanoseconds() for phase in hop.phases}
        parts = sum(phases[name] for name in ("queue", "sidecar-in", "component", "sidecar-out"))
        assert abs(parts - hop.duration.ToNanoseconds()) <= 0.01 * hop.duration.ToNanoseconds()
        text = headrace("trace", execution, data=world.mesh.data).ok()
        said = ("POST /hook/shop", "shop-price@1", "1 retried NO_PRICE", "price attempt 1: NO_PRICE: no price yet")
        for words in (*said, "PHASES, MS", found.link):
            assert words in text
        failed = world.execution(fail=9)

        def newest() -> trace_pb2.Execution | None:
            listed = client.list_executions("shop", where="outcome=dead_lettered").executions
            return listed[0] if listed and listed[0].name.endswith(failed) else None

        first = await eventually(newest)
        assert (first.outcome, first.code, first.code_step) == ("dead_lettered", "NO_PRICE", "price")
        assert json.loads(headrace("trace", "--flow", "shop", "--limit", "3", "--json", data=world.mesh.data).ok())
        with pytest.raises(NotFound, match="nothing is remembered"):
            client.get_trace("0" * 32)
        with pytest.raises(InvalidInput, match="32 hexadecimal digits"):
            client.get_trace("nonsense")
        with pytest.raises(InvalidInput, match="asks for 'colour'"):
            client.list_executions("shop", where="colour=red")


async def test_spans_of_a_components_own_code_stand_under_its_call(world: World, tmp_path: Path) -> None:
    for name, code in (("plain", SPANS_CODE), ("tax", OTEL_CODE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "component.py").write_text(code)
        manifest = f"name: own-{name}\nfunctions: {{{name}: {{kind: action}}}}\n"
        (tmp_path / name / "component.yaml").write_text(manifest)
    webhook = Path(__file__).parents[2] / "components" / "webhook"
    (tmp_path / "flow.yaml").write_text(
        "name: own\ntype: realtime\nreply_timeout: 10s\nsteps:\n"
        f"  receive: {{component: {webhook}, function: receive, to: [plain]}}\n"
        "  plain: {component: ./plain, to: [tax]}\n  tax: {component: ./tax}\n"
    )
    headrace("flow", "apply", tmp_path / "flow.yaml", "--run", data=world.mesh.data).ok()
    flow = TracedFlow("own", world.mesh, {})
    answer = flow.post(baggage="tenant=ada")
    assert json.loads(answer.body) == {"imported": False, "tenant": "ada"}, "who does not use it does not pay for it"
    execution = answer.headers["headrace-execution"]

    trace = await eventually(lambda: found if len(found := world.spans_of(execution)) == WHOLE + 2 else None)
    spans = {span.name: span for span in trace}
    outer, inner = spans["look up tax"], spans["ask the office"]
    assert outer.parent_id == spans["process tax"].span_id
    assert inner.parent_id == outer.span_id
    assert (outer.service, outer.resource["headrace.step"]) == ("own-tax", "tax")
    assert (outer.attributes["country"], outer.attributes["otel.scope.name"]) == ("FR", "shop.tax")
    assert (outer.events, inner.error, inner.events) == (["cache missed"], "no answer", ["exception"])
    assert spans["process tax"].start_ns < outer.start_ns < inner.end_ns < spans["process tax"].end_ns
    if world.jaeger is not None:
        await eventually(lambda: {"look up tax"} <= {span.name for span in world.jaeger.trace(execution)})  # type: ignore[union-attr]

    with Client(world.mesh.api) as client:

        def lines() -> dict[str, flow_pb2.LogLine]:
            return {line.message: line for line in client.tail_logs("own", lines=50)}

        told = await eventually(lambda: found if {"inside", "no span"} <= (found := lines()).keys() else None)
    inside, outside = told["inside"], told["no span"]
    assert (inside.trace_id, inside.span_id) == (outer.trace_id, outer.span_id)
    assert inside.execution_id == execution
    assert (outside.trace_id, outside.span_id) == (execution, spans["process plain"].span_id)


async def test_after_the_broker_was_killed_all_is_as_before(world: World) -> None:
    await quiet(world)
    broker = world.mesh.kill("broker")
    await eventually(lambda: world.mesh.endpoints.processes["broker"] not in (0, broker), within_s=15.0)
    await eventually(lambda: world.flow.post().status == 200, within_s=20.0)
    assert world.flow.post().headers["traceparent"].endswith("-00")
    with Client(world.mesh.api) as client:
        await eventually(lambda: sampled(client, 1.0), within_s=15.0)
        await eventually(lambda: world.flow.post().headers["traceparent"].endswith("-01"))
        execution = world.execution()
        await eventually(lambda: traced(client, execution, 3))


def sampled(client: Client, ratio: float) -> bool:
    with contextlib.suppress(HeadraceError):
        return client.set_sampling("shop", ratio).ratio == ratio
    return False
