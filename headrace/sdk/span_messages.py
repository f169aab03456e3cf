"""Spans of the stock OpenTelemetry SDK as messages of `component/v1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.api.component.v1 import span_pb2

MAX_TEXT = 8_192
SCOPE_KEY = "otel.scope.name"


def span_message(span: Any) -> span_pb2.Span:
    """Of an ended ReadableSpan. Texts are cut to 8 KiB."""
    context, parent = span.context, span.parent
    message = span_pb2.Span(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        parent_span_id=parent.span_id.to_bytes(8, "big") if parent is not None else b"",
        trace_state=context.trace_state.to_header() if context.trace_state else "",
        name=str(span.name)[:MAX_TEXT],
        kind=span.kind.value + 1,
        start_time_unix_nano=span.start_time or 0,
        end_time_unix_nano=span.end_time or 0,
        attributes=_attributes(span.attributes),
        dropped_attributes_count=span.dropped_attributes,
        dropped_events_count=span.dropped_events,
        dropped_links_count=span.dropped_links,
    )
    if (scope := span.instrumentation_scope) is not None and scope.name:
        message.attributes.add(key=SCOPE_KEY, value=_value(scope.name))
    for event in span.events:
        message.events.add(time_unix_nano=event.timestamp, name=event.name, attributes=_attributes(event.attributes))
    for link in span.links:
        message.links.add(
            trace_id=link.context.trace_id.to_bytes(16, "big"),
            span_id=link.context.span_id.to_bytes(8, "big"),
            attributes=_attributes(link.attributes),
        )
    if span.status.status_code.value:
        message.status.code = span.status.status_code.value
        message.status.message = (span.status.description or "")[:MAX_TEXT]
    return message


def _attributes(found: Mapping[str, Any] | None) -> list[span_pb2.SpanAttribute]:
    return [span_pb2.SpanAttribute(key=key, value=_value(value)) for key, value in (found or {}).items()]


def _value(value: Any) -> span_pb2.SpanValue:
    if isinstance(value, bool):
        return span_pb2.SpanValue(bool_value=value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return span_pb2.SpanValue(int_value=value)
    if isinstance(value, float):
        return span_pb2.SpanValue(double_value=value)
    if isinstance(value, bytes):
        return span_pb2.SpanValue(bytes_value=value[:MAX_TEXT])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return span_pb2.SpanValue(array_value=span_pb2.SpanValues(values=[_value(each) for each in value]))
    text = str(value)[:MAX_TEXT].encode("utf-8", "replace").decode()
    return span_pb2.SpanValue(string_value=text)
