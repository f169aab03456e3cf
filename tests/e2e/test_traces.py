"""Traces of a real mesh, as a collector gets them and as Jaeger tells them: whole, joined, and adding up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from headrace.cli.http_caller import HttpAnswer
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.otlp_collector import Collector, SeenSpan, otlp_collector
from tests.support.traced_flow import TracedFlow

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HOP = {"publish", "queue", "process", "sidecar-in", "component", "sidecar-out"}


class World(NamedTuple):
    mesh: RunningMesh
    collector: Collector
    flow: TracedFlow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("traces")
    with (
        otlp_collector() as collector,
        start_mesh(folder, "fast", "--otlp", collector.url, OTEL_EXPORTER_OTLP_HEADERS="x-key=s%20ecret") as mesh,
    ):
        yield World(mesh, collector, TracedFlow.start(mesh, folder / "flow", "shop"))


async def trace_of(world: World, answer: HttpAnswer, spans: int) -> list[SeenSpan]:
    """The trace of an answered request, once it has so many spans."""
    execution = answer.headers["headrace-execution"]

    def found() -> list[SeenSpan]:
        trace = world.collector.trace_of(execution)
        return trace if len(trace) >= spans else []

    return await eventually(found, within_s=20.0)


# Root, queue, gateway-in, gateway-out, reply; three hops.
WHOLE = 5 + 3 * len(HOP)


async def test_a_request_is_one_trace_from_the_first_byte_to_the_answer(world: World) -> None:
    answer = world.flow.post()
    assert answer.status == 200, answer
    trace = await trace_of(world, answer, WHOLE)
    by_id = {span.span_id: span for span in trace}
    assert len(by_id) == len(trace) == WHOLE
    (root,) = [span for span in trace if not span.parent_id]
    assert root.name == "POST /hook/shop"
    assert root.trace_id == answer.headers["headrace-execution"]
    assert answer.headers["traceparent"] == f"00-{root.trace_id}-{root.span_id}-01"
    edges = {(by_id[span.parent_id].service, span.service) for span in trace if span.parent_id}
    between = {edge for edge in edges if edge[0] != edge[1]}
    assert between == {("headrace-gateway", "webhook"), ("webhook", "shop-price"), ("shop-price", "shop-answer")}
