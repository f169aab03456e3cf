"""A provider of the stock OpenTelemetry SDK whose spans are handed on as they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider


class HandOver(SpanProcessor):
    """Gives each sampled span to `ended`."""

    def __init__(self, ended: Callable[[Any], None]) -> None:
        self._ended = ended

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._ended(span)


def make_provider(ended: Callable[[Any], None]) -> TracerProvider:
    """Samples as its parent was, so as the mesh has decided (OTEL_TRACES_SAMPLER changes it)."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(HandOver(ended))
    return provider
