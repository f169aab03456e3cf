"""Readings as OpenMetrics text, or Prometheus' older one, as the caller accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Exemplar as SampleExemplar

from headrace.model.metric_readings import Exemplar, Readings, Timings
from headrace.model.metric_table import BOUNDS_S, Kind, Metric

_BOUND_TEXTS = (*(repr(bound) for bound in BOUNDS_S), "+Inf")


def render(readings: Readings, accept: str) -> tuple[bytes, str]:
    """The text and its content type. About 10 µs a series: call it in a thread where there may be many."""
    encode, content_type = choose_encoder(accept)
    source: Any = _Source(readings)
    return encode(source), content_type


class _Source:
    """What the library's encoders ask for families."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Family]:
        yield from ProcessCollector(registry=None).collect()  # process_*, of the process that answers
        for metric, values, timings in self._readings.families():
            family = Family(metric.family, f"{metric.meaning}.", metric.kind.value, metric.unit)
            if metric.kind is Kind.HISTOGRAM:
                for labels, found in sorted(timings.items(), key=lambda item: item[0]):
                    _add_timings(family, metric, dict(zip(metric.labels, labels, strict=True)), found)
            else:
                for labels, value in sorted(values.items()):
                    family.add_sample(metric.name, dict(zip(metric.labels, labels, strict=True)), value)
            yield family


def _add_timings(family: Family, metric: Metric, labels: dict[str, str], timings: Timings) -> None:
    bucket, counts = f"{metric.name}_bucket", timings.cumulative()
    for index, (bound, count) in enumerate(zip(_BOUND_TEXTS, counts, strict=True)):
        exemplar = timings.exemplars.get(index)
        shown = _exemplar(exemplar) if exemplar is not None else None
        family.add_sample(bucket, {**labels, "le": bound}, count, exemplar=shown)
    family.add_sample(f"{metric.name}_count", labels, counts[-1])
    family.add_sample(f"{metric.name}_sum", labels, timings.histogram.sum_ns / 1e9)


def _exemplar(exemplar: Exemplar) -> SampleExemplar:
    """With what is known of it; OpenMetrics allows 128 characters in all."""
    found = {"trace_id": exemplar.trace_id, "execution_id": exemplar.execution_id[:64]}
    return SampleExemplar({name: value for name, value in found.items() if value}, exemplar.value_s, exemplar.at_s)
