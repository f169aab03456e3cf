"""The hand-made OTLP beside the protobuf classes of opentelemetry-proto: what goes in comes out, nothing is lost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from headrace.model.hop_record import HopOutcome, HopRecord, ReplyPart, RootRecord, Site
from headrace.wire import otlp_fields
from headrace.wire.otlp_spans import SpanEncoder

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SECOND = 1_000_000_000
STORED = 1_790_000_000 * SECOND
texts = st.text(max_size=40)
hex_ids = st.text("0123456789abcdef", min_size=16, max_size=16).filter(lambda text: text != "0" * 16)


def site(name: str = "price", **more: Any) -> Site:
    values: dict[str, Any] = {
        "service": name, "workspace": "default", "flow": "orders", "version": 3, "deployment": 7, "step": name,
        "component": name, "revision": "sha256:ab", "revision_number": 12, "instance": f"default.orders.7.{name}.0",
    }  # fmt: skip
    return Site(**(values | more))


PRICE, START = site(), site("start", instance="")


def hop(**more: Any) -> HopRecord:
    """A common hop: 1 ms of queue, 0.2 ms in, 3 ms component, 0.3 ms out."""
    common = HopRecord(
        site=PRICE, sender=START, trace_id=TRACE, parent_id="00f067aa0ba902b7", span_id="c" * 16, sampled=True,
        message_id="a" * 8 + "b" * 8 + "c" * 16, execution_id="e" * 32, attempt=1, opens=True, delivered=1,
        in_doubt=False, outputs=1, replied=False, outcome=HopOutcome.PROCESSED, code="", problem="", retry_after_ns=0,
        slot=-1, sent_at_unix_ns=STORED - 400_000, stored_at_unix_ns=STORED, received_at_unix_ns=STORED + 1_000_000,
        received_at_mono_ns=5_000_000, began_at_mono_ns=5_000_000, entered_at_mono_ns=5_200_000,
        left_at_mono_ns=8_200_000, written_at_mono_ns=8_500_000, ended_at_mono_ns=9_000_000,
    )  # fmt: skip
    return common._replace(**more)


def encoded(*records: HopRecord | RootRecord) -> list[tuple[dict[str, Any], Span]]:
    """Resource attributes and span of each span, as protobuf reads them; no unknown field anywhere."""
    encoder = SpanEncoder()
    for record in records:
        encoder.add(record)
    raw, count = encoder.take()
    request = ExportTraceServiceRequest.FromString(raw)
    assert not len(UnknownFieldSet(request))
    found = []
    for group in request.resource_spans:
        assert group.schema_url == otlp_fields.SCHEMA_URL
        (scope,) = group.scope_spans
        assert scope.scope.name == "headrace"
        for span in scope.spans:
            assert not len(UnknownFieldSet(span))
            found.append((plain(group.resource.attributes), span))
    assert len(found) == count
    return found


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as a dict; a key that is there twice fails."""
    keys = [item.key for item in attributes]
    assert len(keys) == len(set(keys)), keys
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


def by_name(spans: list[tuple[dict[str, Any], Span]]) -> dict[str, Span]:
    return {span.name: span for _, span in spans}


def test_a_hop_has_six_spans_that_add_up() -> None:
    spans = encoded(hop())
    named = by_name(spans)
    assert set(named) == {
        "publish price", "queue price", "process price", "sidecar-in price", "component price", "sidecar-out price"
    }  # fmt: skip
    publish, queue, process = named["publish price"], named["queue price"], named["process price"]
    assert publish.parent_span_id.hex() == "00f067aa0ba902b7"
    assert queue.parent_span_id == publish.span_id == bytes.fromhex("a" * 8 + "b" * 8)
    assert process.parent_span_id == queue.span_id
    assert process.span_id == bytes.fromhex("c" * 16)
    parts = [named[f"{part} price"] for part in ("sidecar-in", "component", "sidecar-out")]
    assert {part.parent_span_id for part in parts} == {process.span_id}
    assert len({span.span_id for _, span in spans}) == 6
    assert {span.trace_id.hex() for _, span in spans} == {TRACE}
    assert publish.end_time_unix_nano == queue.start_time_unix_nano == STORED
    assert queue.end_time_unix_nano == process.start_time_unix_nano
    moments = [process.start_time_unix_nano]
    for part in parts:
        assert part.start_time_unix_nano == moments[-1]
        moments.append(part.end_time_unix_nano)
    assert moments[-1] == process.end_time_unix_nano == STORED + 1_000_000 + 3_500_000
    assert (publish.kind, process.kind) == (Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER)


def test_resources_and_attributes() -> None:
    spans = encoded(hop())
    services = {span.name: resource["service.name"] for resource, span in spans}
    assert services["publish price"] == "start"
    assert services["queue price"] == services["process price"] == "price"
    resource = next(found for found, span in spans if span.name == "process price")
    assert resource == {
        "service.name": "price", "service.namespace": "default", "service.instance.id": PRICE.instance,
        "service.version": "12", "headrace.workspace": "default", "headrace.flow": "orders", "headrace.version": 3,
        "headrace.deployment": 7, "headrace.step": "price", "headrace.component": "price",
        "headrace.revision": "sha256:ab", "headrace.revision_number": 12, "headrace.instance": PRICE.instance,
    }  # fmt: skip
    process = plain(by_name(spans)["process price"].attributes)
    assert process == {
        "headrace.phase": "process", "messaging.system": "nats", "messaging.operation.name": "process",
        "messaging.operation.type": "process", "messaging.destination.name": "hr.default.orders.d7.price",
        "messaging.consumer.group.name": "d7_price", "messaging.message.id": "a" * 8 + "b" * 8 + "c" * 16,
        "headrace.execution": "e" * 32, "headrace.attempt": 1,
    }  # fmt: skip


def test_a_failed_attempt_is_an_error_and_the_next_one_a_further_span_of_the_same_hop() -> None:
    failed = hop(outcome=HopOutcome.RETRIED, code="TIMEOUT", problem="too slow", retry_after_ns=200_000_000,
                 written_at_mono_ns=0)  # fmt: skip
    second = hop(attempt=2, opens=False, span_id="d" * 16, began_at_mono_ns=210_000_000,
                 entered_at_mono_ns=210_200_000, left_at_mono_ns=213_000_000, written_at_mono_ns=213_500_000,
                 ended_at_mono_ns=214_000_000)  # fmt: skip
    attempts = [span for _, span in encoded(failed, second) if span.name == "process price"]
    assert [plain(span.attributes)["headrace.attempt"] for span in attempts] == [1, 2]
    first, last = attempts
    assert (first.status.code, first.status.message) == (Status.STATUS_CODE_ERROR, "TIMEOUT: too slow")
    (told,) = first.events
    assert told.name == "exception"
    assert plain(told.attributes) == {
        "exception.type": "TIMEOUT", "exception.message": "too slow", "headrace.retry_after_ms": 200,
    }  # fmt: skip
    assert last.status.code == Status.STATUS_CODE_UNSET
    assert last.parent_span_id == bytes.fromhex("a" * 8 + "b" * 8)
    assert last.start_time_unix_nano - first.start_time_unix_nano == 205_000_000


def test_dead_letters_redeliveries_and_doubt_are_marked() -> None:
    dead = hop(outcome=HopOutcome.DEAD_LETTERED, code="BAD", problem="no", outputs=0, delivered=3, attempt=4,
               in_doubt=True, slot=2)  # fmt: skip
    named = by_name(encoded(dead))
    said = plain(named["process price"].attributes)
    assert said["headrace.dead_letter"] is True
    assert said["headrace.in_doubt"] is True
    assert (said["headrace.attempt"], said["headrace.delivered"], said["error.type"]) == (4, 3, "BAD")
    assert said["messaging.destination.partition.id"] == "2"
    assert named["ack price"].parent_span_id == named["process price"].span_id


def test_negative_durations_are_clock_skew() -> None:
    spans = by_name(encoded(hop(stored_at_unix_ns=STORED + 3_000_000)))
    queue = spans["queue price"]
    assert queue.start_time_unix_nano == queue.end_time_unix_nano == STORED + 1_000_000
    assert plain(queue.attributes)["headrace.clock_skew_ns"] == 2_000_000
    assert "headrace.clock_skew_ns" not in plain(spans["process price"].attributes)


def test_a_call_without_times_of_its_own_has_no_parts() -> None:
    died = hop(entered_at_mono_ns=0, left_at_mono_ns=0, written_at_mono_ns=0, outcome=HopOutcome.RETRIED, code="X")
    assert set(by_name(encoded(died))) == {"publish price", "queue price", "process price"}


def root(**more: Any) -> RootRecord:
    gateway = Site("headrace-gateway", "default", "orders", step="gateway", instance="gateway-1")
    common = RootRecord(
        site=gateway, kind="webhook", name="POST /hook/orders", trace_id=TRACE, parent_id="", span_id="1" * 16,
        sampled=True, execution_id="e" * 32, started_at_unix_ns=STORED, ended_at_unix_ns=STORED + 9_000_000,
        phases=(("queue", STORED, STORED + 5), ("gateway-in", STORED + 5, STORED + 9)), status=200,
    )  # fmt: skip
    return common._replace(**more)


def test_a_root_with_its_phases_and_its_reply() -> None:
    reply = ReplyPart(PRICE, "c" * 16, STORED + 10, STORED + 90)
    spans = encoded(root(reply=reply))
    named = by_name(spans)
    top = named["POST /hook/orders"]
    assert (top.kind, top.parent_span_id) == (Span.SPAN_KIND_SERVER, b"")
    assert plain(top.attributes) == {
        "headrace.execution": "e" * 32, "headrace.stimulus": "webhook", "http.response.status_code": 200,
        "http.request.method": "POST", "http.route": "/hook/orders",
    }  # fmt: skip
    assert named["gateway-in"].parent_span_id == named["queue"].parent_span_id == top.span_id
    back = named["reply price"]
    assert back.parent_span_id == bytes.fromhex("c" * 16)
    assert {resource["service.name"] for resource, span in spans if span is back} == {"price"}


def test_a_root_that_failed_and_one_that_is_linked() -> None:
    other = f"00-{'9' * 32}-{'8' * 16}-01"
    ((_, span), *_) = encoded(root(phases=(), code="NO_REPLY", problem="late", status=504, link=other, duplicate=True))
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert plain(span.attributes)["headrace.duplicate"] is True
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in span.links] == [("9" * 32, "8" * 16)]


rising = st.lists(st.integers(0, 10**9), min_size=7, max_size=7).map(lambda gaps: [*itertools.accumulate(gaps)])


@given(
    ids=st.tuples(hex_ids, hex_ids, hex_ids, hex_ids),
    gaps=rising,
    ends=st.booleans(),
    step=st.text("abcdefghij-", min_size=1, max_size=40),
)
def test_the_short_way_gives_the_same_bytes(ids: Any, gaps: list[int], ends: bool, step: str) -> None:
    """Most hops are packed at once: nobody can tell from the bytes."""
    offset = 5_000_000 - STORED - gaps[1]
    entered, left, written, ended = (STORED + offset + gap for gap in gaps[3:])
    record = hop(
        site=site(step), message_id=ids[0] + ids[1], span_id=ids[1], parent_id=ids[2], trace_id=ids[3] + ids[0],
        outputs=not ends, sent_at_unix_ns=STORED, stored_at_unix_ns=STORED + gaps[0],
        received_at_unix_ns=STORED + gaps[1], received_at_mono_ns=5_000_000, entered_at_mono_ns=entered,
        left_at_mono_ns=left, written_at_mono_ns=written, ended_at_mono_ns=ended,
    )  # fmt: skip
    short, long = SpanEncoder(), SpanEncoder()
    assert short._add_common_hop(record)
    long._add_hop(record)
    assert (short.spans, short.size) == (long.spans, long.size)
    assert short.take() == long.take()


@pytest.mark.parametrize("broken", [{"trace_id": "xy"}, {"span_id": ""}, {"parent_id": "12"}, {"message_id": "z" * 32}])
def test_what_has_no_ids_is_refused_whole(broken: dict[str, str]) -> None:
    encoder = SpanEncoder()
    with pytest.raises(ValueError):
        encoder.add(hop(**broken))
    assert encoder.take()[1] == 0


values = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)


@given(texts, values)
def test_attributes_read_as_protobuf_writes_them(key: str, value: Any) -> None:
    expected = AnyValue(**{_field_of(value): value})
    read = Span.FromString(otlp_fields.attribute(key, value)).attributes
    assert list(read) == [KeyValue(key=key, value=expected)]


def _field_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool_value"
    return {int: "int_value", float: "double_value", str: "string_value"}[type(value)]


moments = st.integers(0, 2**63 - 1)


@given(
    ids=st.tuples(hex_ids, hex_ids, hex_ids, hex_ids, hex_ids),
    message_id=texts | st.just("ab" * 16),
    execution=texts,
    code=texts,
    problem=texts,
    outcome=st.sampled_from(HopOutcome),
    numbers=st.tuples(st.integers(1, 10**6), st.integers(1, 1000), st.integers(-1, 64), st.integers(0, 999)),
    flags=st.tuples(*[st.booleans()] * 4),
    times=st.tuples(*[moments] * 9),
)
def test_any_record_reads_back(
    ids: Any, message_id: str, execution: str, code: str, problem: str, outcome: HopOutcome, numbers: Any, flags: Any,
    times: Any,
) -> None:  # fmt: skip
    attempt, delivered, slot, outputs = numbers
    opens, in_doubt, replied, known = flags
    record = hop(
        trace_id=ids[0] + ids[1], parent_id=ids[2], span_id=ids[3], message_id=message_id, execution_id=execution,
        code=code, problem=problem, outcome=outcome, attempt=attempt, delivered=delivered, slot=slot, outputs=outputs,
        opens=opens, in_doubt=in_doubt, replied=replied, sender=START if known else None,
        **dict(zip(HopRecord._fields[-9:], times, strict=True)),
    )  # fmt: skip
    try:
        spans = encoded(record)
    except ValueError:
        assert len(message_id) == 32
        return
    process = by_name(spans)["process price"]
    said = plain(process.attributes)
    assert process.trace_id.hex() == ids[0] + ids[1]
    assert said["headrace.attempt"] == attempt
    assert said.get("headrace.execution", "") == execution
    assert said.get("messaging.message.id", "") == message_id
    assert (process.status.code == Status.STATUS_CODE_ERROR) is record.failed
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for _, span in spans)


@given(st.integers(0, 2**62), texts)
def test_rejected_spans_are_counted(rejected: int, message: str) -> None:
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    raw = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    if len(raw) < 128:
        assert otlp_fields.rejected_items(raw) == rejected


@given(st.binary(max_size=40))
def test_nonsense_for_an_answer_is_no_error(raw: bytes) -> None:
    assert otlp_fields.rejected_items(raw) >= 0
