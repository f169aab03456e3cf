"""Roots of traces that begin with a tick, a listener's emit or an injected message: a span each, until it is stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from headrace.edge.span_log import SpanLog
from headrace.model import trace_context
from headrace.model.hop_record import RootRecord, Site
from headrace.model.trace_context import TraceContext

MAX_SITES = 1_000


class StimulusTrace(NamedTuple):
    """`traceparent` is what the messages of the stimulus carry; "" where nothing is traced."""

    traceparent: str
    name: str = ""
    flow: str = ""
    execution: str = ""
    context: TraceContext | None = None
    parent_id: str = ""
    begun_at_unix_ns: int = 0


class StimulusTraces:
    """Of one kind of stimulus. `site` tells where the spans of a flow come from; it is asked once per flow. Without a
    log that is wanted, what a caller gave is passed on as it is."""

    def __init__(self, span_log: SpanLog | None, kind: str, site: Callable[[str], Site]) -> None:
        self._log = span_log if span_log is not None and span_log.wanted else None
        self._kind, self._site_of = kind, site
        self._sites: dict[str, Site] = {}

    def begin(self, name: str, flow: str, *, execution: str, stimulus: str, given: str = "") -> StimulusTrace:
        """`name` says what it was, in few values; `given` is a traceparent that came with it."""
        caller = trace_context.parse_traceparent(given) if given else None
        if self._log is None:
            return StimulusTrace(given if caller is not None else "")
        if caller is None:
            trace_id, parent_id, sampled = execution, "", self._log.sampler.begins(flow, execution)
        else:
            trace_id, parent_id, sampled = caller
        context = TraceContext(trace_id, trace_context.root_span_id(stimulus), sampled)
        text = trace_context.format_traceparent(context.trace_id, context.span_id, sampled=sampled)
        return StimulusTrace(text, name, flow, execution, context, parent_id, time.time_ns())

    def end(self, trace: StimulusTrace, *, code: str = "", problem: str = "", duplicate: bool = False) -> None:
        """The broker has it, or it was given up."""
        if self._log is None or trace.context is None:
            return
        trace_id, span_id, sampled = trace.context
        self._log.add(
            RootRecord(
                site=self._site(trace.flow),
                kind=self._kind,
                name=trace.name,
                trace_id=trace_id,
                parent_id=trace.parent_id,
                span_id=span_id,
                sampled=sampled,
                execution_id=trace.execution,
                started_at_unix_ns=trace.begun_at_unix_ns,
                ended_at_unix_ns=time.time_ns(),
                code=code,
                problem=problem,
                duplicate=duplicate,
            )
        )

    def _site(self, flow: str) -> Site:
        found = self._sites.get(flow)
        if found is None:
            if len(self._sites) >= MAX_SITES:
                self._sites.clear()
            found = self._sites[flow] = self._site_of(flow)
        return found
