"""Spans that a component makes with the stock OpenTelemetry API: they come to stand under its call, and reach the
collector, without any set-up.

Nothing of OpenTelemetry is imported here unless the component's own code has imported it. Then each call gets the
context of its message (trace, parent span, baggage); and, if the OpenTelemetry SDK is there too and the component has
set no provider of its own, a provider whose spans go to the sidecar with the answers of calls. A component that sets
its own provider in its code or `init` keeps it; its spans still have the right parents.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.api.component.v1 import span_pb2
    from headrace.sdk.message import Message

API = "opentelemetry.trace"
FLUSH_S = 0.1
MAX_WAITING = 2_048
MAX_IN_FRAME = 256

_modules = sys.modules
SendSpans = Callable[[Sequence["span_pb2.Span"]], None]


class Telemetry:
    """One per process. `wanted`: whether the sidecar takes spans."""

    def __init__(self) -> None:
        self.wanted = False
        self.dropped = 0
        self._attach: Callable[[Message], None] | None = None
        self._ended: deque[Any] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._send: SendSpans | None = None
        self._timer_set = False

    def prepare(self) -> None:
        """Looks whether the component uses OpenTelemetry, after its code was imported and its init hook run."""
        if API in _modules and self._attach is None:
            self._attach = self._set_up()

    def enter(self, source: Message) -> None:
        """Inside the context of a call, before its function: gives it its place in the trace. Costs a look-up where
        nobody uses OpenTelemetry."""
        if API in _modules and source.traceparent:
            if self._attach is None:
                self._attach = self._set_up()
            self._attach(source)

    def current_ids(self) -> tuple[str, str]:
        """Trace and span of the running code; empty where there is none, or OpenTelemetry is not used."""
        if self._attach is None:
            return "", ""
        found = _modules[API].get_current_span().get_span_context()
        return (f"{found.trace_id:032x}", f"{found.span_id:016x}") if found.is_valid else ("", "")

    def connect(self, loop: asyncio.AbstractEventLoop, send: SendSpans) -> None:
        """Where spans go from now on; `send` is called on the loop."""
        self._loop, self._send = loop, send

    def disconnect(self, send: SendSpans) -> None:
        """Spans that end from now on are dropped and counted, unless somebody else has connected meanwhile."""
        if self._send == send:
            self._send = None

    def flush(self) -> None:
        """Hands over what has ended; on the loop."""
        self._timer_set = False
        if not self._ended:
            return
        from headrace.sdk.span_messages import span_message

        while self._ended and self._send is not None:
            count = min(len(self._ended), MAX_IN_FRAME)
            self._send([span_message(self._ended.popleft()) for _ in range(count)])

    def ended(self, span: Any) -> None:
        """A span has ended, in any thread."""
        loop = self._loop
        if loop is None or self._send is None or len(self._ended) >= MAX_WAITING:
            self.dropped += 1
            return
        self._ended.append(span)
        if not self._timer_set:
            self._timer_set = True
            try:
                loop.call_soon_threadsafe(loop.call_later, FLUSH_S, self.flush)
            except RuntimeError:  # the loop is closed: the process ends
                self.dropped += 1

    def _set_up(self) -> Callable[[Message], None]:
        from opentelemetry import context, trace
        from opentelemetry.baggage.propagation import W3CBaggagePropagator
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

        if self.wanted and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            self._set_provider()
        baggage = W3CBaggagePropagator()

        def attach(source: Message) -> None:
            given = source.traceparent
            try:
                ids = int(given[3:35], 16), int(given[36:52], 16)
                flags = TraceFlags(int(given[53:55], 16))
            except ValueError:
                return
            place = trace.set_span_in_context(NonRecordingSpan(SpanContext(*ids, is_remote=True, trace_flags=flags)))
            if source.baggage:
                place = baggage.extract({"baggage": source.baggage}, place)
            context.attach(place)  # for the context of this call, which ends with it

        return attach

    def _set_provider(self) -> None:
        from opentelemetry import trace

        try:
            from headrace.sdk.span_processor import make_provider
        except ImportError:
            return  # the component has the API only: its spans are none
        trace.set_tracer_provider(make_provider(self.ended))


TELEMETRY = Telemetry()
