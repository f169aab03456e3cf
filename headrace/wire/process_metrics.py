"""What processes tell of themselves, to totals, to readings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from headrace.api.hop.v1.hop_pb2 import PhaseHistogram
from headrace.api.metrics.v1.metrics_pb2 import FlowMetrics, ProcessMetrics
from headrace.model.histogram import Histogram
from headrace.model.letter_reasons import COUNTED_AS, reason_label
from headrace.model.metric_readings import Exemplar, Readings, Timings, bound_of
from headrace.model.metric_totals import HistogramTotals, Totals
from headrace.wire.hops import phase_from_proto

REVISION_DIGITS = 12
MOST_BYTES = 512 * 1024
"""Of one message; what a process tells beyond goes into the next."""

# Counters of a sidecar that are metrics of their own, and those that are outcomes of a message.
STEP_COUNTERS: Mapping[str, str] = {
    "received": "step_received_total",
    "emitted": "step_emitted_total",
    "failed": "step_failed_attempts_total",
    "retried": "step_retries_total",
    "rebounds": "step_rebounds_total",
    "timeouts": "step_timeouts_total",
    "crashed_calls": "step_crashed_calls_total",
    "redelivered": "step_redeliveries_total",
    "duplicates": "step_duplicates_total",
    "in_doubt": "step_in_doubt_total",
    "refused_full": "step_edge_full_total",
}
GATEWAY_STEP = "gateway"
OUTCOMES = ("processed", "rejected", "handed_over", "dead_lettered")

PhaseLabels = tuple[str, str, str, str, str]


def parts(whole: ProcessMetrics, *, most_bytes: int = MOST_BYTES) -> Iterator[ProcessMetrics]:
    """Messages of at most about that size, which together tell the same."""
    flows = list(whole.flows)
    del whole.flows[:]
    part = ProcessMetrics()
    part.CopyFrom(whole)
    size = 0
    for flow in flows:
        grown = flow.ByteSize()
        if size and size + grown > most_bytes:
            yield part
            part, size = ProcessMetrics(process=whole.process, incarnation=whole.incarnation), 0
        part.flows.append(flow)
        size += grown
    yield part


class ProcessTotals:
    """Totals over all processes that told of themselves; see `headrace.model.metric_totals`."""

    def __init__(self) -> None:
        self._hops: HistogramTotals[PhaseLabels] = HistogramTotals()
        self._counters: Totals[tuple[str, ...]] = Totals()
        self._exemplars: dict[PhaseLabels, dict[int, Exemplar]] = {}
        self._requests_in_work = 0
        self._processes: set[str] = set()
        self._gateways: set[str] = set()

    @property
    def processes(self) -> int:
        """How many told of themselves at the last look."""
        return len(self._processes)

    def take(self, reports: Iterable[ProcessMetrics], now: float) -> None:
        """One look at all processes, at `now` of a clock that does not go back."""
        self._hops.next_look(now)
        self._counters.next_look(now)
        self._processes, self._gateways, self._requests_in_work = set(), set(), 0
        self._exemplars = {}
        for report in reports:
            if not report.process:  # the broker's "no responders"
                continue
            self._processes.add(report.process)
            if report.HasField("gateway"):
                self._gateways.add(report.process)
                self._requests_in_work += report.gateway.requests_in_work
            # Of several parts only the first tells of spans.
            spans = {"spans_sent_total": report.spans_sent, "spans_dropped_total": report.spans_dropped}
            counted: dict[tuple[str, ...], int] = {(name,): count for name, count in spans.items() if count}
            phases: dict[PhaseLabels, Histogram] = {}
            for flow in report.flows:
                counted.update(_counted(flow))
                for labels, proto in _phases(flow):
                    _merge(phases, labels, proto)
                    self._note_exemplars(labels, proto)
            self._counters.take(report.process, report.incarnation, counted)
            self._hops.take(report.process, report.incarnation, phases)

    def _note_exemplars(self, labels: PhaseLabels, proto: PhaseHistogram) -> None:
        """The newest one for each bound."""
        for sample in proto.exemplars:
            known = self._exemplars.setdefault(labels, {})
            bound, at_s = bound_of(sample.ns / 1e9), sample.time_unix_ns / 1e9
            if bound not in known or known[bound].at_s < at_s:
                known[bound] = Exemplar(sample.trace_id.hex(), sample.execution_id, sample.ns / 1e9, at_s)

    def fill(self, readings: Readings) -> None:
        """Adds the totals to what is told."""
        for labels, histogram in self._hops.items().items():
            if histogram.count:
                timings = Timings(histogram, self._exemplars.get(labels, {}))
                readings.put_timings("hop_phase_duration_seconds", timings, *labels)
            if histogram.skewed:
                readings.add("hop_clock_skew_total", histogram.skewed, *labels[:3])
        for name in ("spans_sent_total", "spans_dropped_total"):
            readings.add(name, 0)
        for (name, *rest), count in self._counters.items().items():
            readings.add(name, count, *rest)
        if self._gateways:
            readings.put("gateway_requests_in_work", self._requests_in_work)
        readings.put("gateways", len(self._gateways))
        readings.put("metrics_processes", len(self._processes))


def _counted(flow: FlowMetrics) -> Iterator[tuple[tuple[str, ...], int]]:
    step, counters = flow.hops.step, flow.hops.counters
    if step not in ("", GATEWAY_STEP):
        for counter, name in STEP_COUNTERS.items():
            yield (name, flow.flow, step), counters.get(counter, 0)
        for outcome in OUTCOMES:
            yield ("step_messages_total", flow.flow, step, outcome), counters.get(outcome, 0)
        for reason, count in _reasons(counters):
            yield ("step_dead_letters_total", flow.flow, step, reason), count
    for answer in flow.answers:
        yield ("gateway_requests_total", flow.flow, answer.status, answer.reason), answer.count


def _reasons(counters: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Dead letters by reason. A sidecar of another version may tell of reasons that are none of ours: they are one."""
    found: dict[str, int] = {}
    for name, count in counters.items():
        if name.startswith(COUNTED_AS):
            label = reason_label(name.removeprefix(COUNTED_AS))
            found[label] = found.get(label, 0) + count
    yield from found.items()


def _phases(flow: FlowMetrics) -> Iterator[tuple[PhaseLabels, PhaseHistogram]]:
    for proto in flow.hops.histograms:
        short = proto.revision.removeprefix("sha256:")[:REVISION_DIGITS]
        yield (flow.flow, proto.step, proto.phase, proto.receiver, short), proto


def _merge(phases: dict[PhaseLabels, Histogram], labels: PhaseLabels, proto: PhaseHistogram) -> None:
    """Revisions of one step whose digests begin alike are told as one."""
    histogram = phase_from_proto(proto)
    if labels in phases:
        histogram.merge(phases[labels])
    phases[labels] = histogram
