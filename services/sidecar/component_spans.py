"""Spans that the component's own code made, on their way to the collector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.model.hop_record import ComponentSpan, Site, SpanCounts

if TYPE_CHECKING:
    from headrace.edge.span_log import Exporter

MAX_FRAME_SPANS = 512
MAX_SPAN_BYTES = 64 * 1024


class ComponentSpans:
    """`take` gets the spans of a frame; what is none, or too much, is dropped and counted."""

    def __init__(self, exporter: Exporter, site: Site, counts: SpanCounts) -> None:
        self._exporter = exporter
        self._site = site
        self._counts = counts

    def take(self, spans: Sequence[Any]) -> None:
        """Messages of `component/v1` Span."""
        taken = []
        for span in spans[:MAX_FRAME_SPANS]:
            # What this version does not know could be anything to a collector.
            span.DiscardUnknownFields()
            well_formed = len(span.trace_id) == 16 and len(span.span_id) == 8 and len(span.parent_span_id) in (0, 8)
            if well_formed and 0 < span.ByteSize() <= MAX_SPAN_BYTES:
                taken.append(ComponentSpan(self._site, span.SerializeToString()))
        self._counts.dropped += len(spans) - len(taken)
        self._exporter.put(taken)
