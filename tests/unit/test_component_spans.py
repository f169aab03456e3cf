"""Spans of a component's own code: from the stock SDK's objects to the bytes that a collector reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.trace import ReadableSpan

from headrace.api.component.v1 import span_pb2
from headrace.model.hop_record import ComponentSpan, Exportable, SpanCounts
from headrace.sdk.span_messages import span_message
from headrace.sdk.span_processor import make_provider
from headrace.sdk.telemetry import MAX_WAITING, Telemetry
from headrace.wire.otlp_spans import SpanEncoder
from services.sidecar.component_spans import MAX_FRAME_SPANS, MAX_SPAN_BYTES, ComponentSpans
from tests.support.records import PRICE, hop

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ended_spans() -> list[ReadableSpan]:
    """One with everything, and its child."""
    found: list[ReadableSpan] = []
    tracer = make_provider(found.append).get_tracer("shop.tax", "1.2")
    link = trace.Link(trace.SpanContext(7, 9, is_remote=True), {"why": "batch"})
    with tracer.start_as_current_span(
        "look up", kind=trace.SpanKind.CLIENT, links=[link], attributes={"country": "FR", "rates": [5, 20], "ok": True}
    ) as span:
        span.add_event("cache missed", {"tries": 2, "share": 0.5})
        with tracer.start_as_current_span("ask") as inner:
            inner.set_status(trace.StatusCode.ERROR, "no answer")
    return found


def test_a_collector_reads_what_the_stock_sdk_recorded() -> None:
    inner, outer = ended_spans()
    read = otlp.Span.FromString(span_message(outer).SerializeToString())
    assert outer.context is not None
    assert (read.trace_id, read.span_id) == (
        outer.context.trace_id.to_bytes(16, "big"), outer.context.span_id.to_bytes(8, "big"),
    )  # fmt: skip
    assert (read.name, read.kind, read.parent_span_id) == ("look up", otlp.Span.SPAN_KIND_CLIENT, b"")
    assert (read.start_time_unix_nano, read.end_time_unix_nano) == (outer.start_time, outer.end_time)
    values = {pair.key: pair.value for pair in read.attributes}
    assert (values["country"].string_value, values["ok"].bool_value) == ("FR", True)
    assert [each.int_value for each in values["rates"].array_value.values] == [5, 20]
    assert values["otel.scope.name"].string_value == "shop.tax"
    assert [event.name for event in read.events] == ["cache missed"]
    assert {pair.key: pair.value.double_value for pair in read.events[0].attributes}["share"] == 0.5
    assert read.links[0].span_id == (9).to_bytes(8, "big")
    child = otlp.Span.FromString(span_message(inner).SerializeToString())
    assert child.parent_span_id == read.span_id
    assert (child.status.code, child.status.message) == (otlp.Status.STATUS_CODE_ERROR, "no answer")


def test_they_share_a_request_with_the_hops_of_their_step() -> None:
    encoder = SpanEncoder()
    encoder.add(hop(1))
    for span in ended_spans():
        encoder.add(ComponentSpan(PRICE, span_message(span).SerializeToString()))
    raw, count = encoder.take()
    request = ExportTraceServiceRequest.FromString(raw)
    found = [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]
    assert count == len(found)
    assert {"process price", "look up", "ask"} <= {span.name for span in found}


class _Exporter:
    def __init__(self) -> None:
        self.taken: list[Exportable] = []

    def put(self, records: Sequence[Exportable]) -> None:
        self.taken += records


def test_what_is_no_span_or_too_much_is_dropped_and_counted() -> None:
    exporter, counts = _Exporter(), SpanCounts()
    good = span_message(ended_spans()[0])
    large = span_pb2.Span()
    large.CopyFrom(good)
    large.name = "x" * MAX_SPAN_BYTES
    frame: list[Any] = [good, span_pb2.Span(name="no ids"), large, *[good] * MAX_FRAME_SPANS]
    ComponentSpans(exporter, PRICE, counts).take(frame)
    assert len(exporter.taken) == MAX_FRAME_SPANS - 2
    assert counts.dropped == len(frame) - len(exporter.taken)


async def test_ended_spans_wait_bounded_and_go_where_the_stream_is() -> None:
    telemetry, sent = Telemetry(), []
    (inner, outer), loop = ended_spans(), asyncio.get_running_loop()
    telemetry.ended(inner)
    assert telemetry.dropped == 1, "no stream yet"
    telemetry.connect(loop, sent.extend)
    for _ in range(MAX_WAITING + 5):
        telemetry.ended(outer)
    telemetry.flush()
    assert (len(sent), telemetry.dropped) == (MAX_WAITING, 6)


@pytest.mark.parametrize("given", ["", "00-zz-b7ad6b7169203331-01", "x" * 55])
def test_a_call_without_a_valid_context_has_none(given: str) -> None:
    telemetry = Telemetry()
    telemetry.enter(_Message(given))  # type: ignore[arg-type]
    assert not trace.get_current_span().get_span_context().is_valid
    assert telemetry.current_ids() == ("", "")


def test_a_call_gets_the_context_of_its_message() -> None:
    import contextvars

    telemetry = Telemetry()

    def call() -> tuple[str, str]:
        telemetry.enter(_Message(SAMPLED))  # type: ignore[arg-type]
        return telemetry.current_ids()

    assert contextvars.copy_context().run(call) == (SAMPLED[3:35], SAMPLED[36:52])
    assert telemetry.current_ids() == ("", ""), "it ends with the call"


class _Message:
    baggage = "tenant=7"

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent
