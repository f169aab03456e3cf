"""Sends metrics to an OTLP collector every minute, as cumulative sums, gauges and histograms.

The same readings as /metrics has, encoded by the protobufs of OpenTelemetry. A collector that is away costs one call a
minute; nothing is kept for it, since the next reading tells all that the last one did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import headrace
from headrace.edge.otlp_target import OtlpRefused, read_target
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import HeadraceError
from headrace.model.metric_readings import Readings, Timings
from headrace.model.metric_table import BOUNDS_S, Kind, Metric

if TYPE_CHECKING:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as OtlpMetric

    from headrace.edge.otlp_channel import OtlpChannel

log = get_logger(__name__)

METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
INTERVAL_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"
INTERVAL_S = 60.0
SHORTEST_S = 1.0


class MetricsExport:
    """`begin` it; `close` at the end."""

    def __init__(
        self, channel: OtlpChannel, read: Callable[[], Awaitable[Readings]], service: str, every_s: float
    ) -> None:
        self._channel, self._read, self._service, self._every_s = channel, read, service, every_s
        self._task: asyncio.Task[None] | None = None
        self._began_ns = time.time_ns()
        self._problem = ""

    @classmethod
    def begin(
        cls,
        environ: Mapping[str, str],
        read: Callable[[], Awaitable[Readings]],
        service: str,
        tasks: asyncio.TaskGroup,
        *,
        shortest_s: float = SHORTEST_S,
    ) -> MetricsExport | None:
        """None where the environment names no collector for metrics, or one that cannot be used (the log says why)."""
        try:
            target = read_target(environ, "METRICS")
        except HeadraceError as error:
            log.error("metrics are not exported", error=error.message)
            return None
        if target is None:
            return None
        from headrace.edge.otlp_channel import OtlpChannel

        try:
            channel = OtlpChannel(target, METRICS)
        except OSError as error:
            log.error("metrics are not exported: the certificate cannot be read", error=str(error))
            return None
        export = cls(channel, read, service, max(shortest_s, interval_s(environ)))
        export._task = tasks.create_task(export._run(), name="metrics export")
        log.info("metrics are exported", collector=target.url)
        return export

    async def close(self) -> None:
        if self._task is not None:
            await end_tasks([self._task])
        await self._channel.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                readings = await self._read()
                request = await asyncio.to_thread(encode, readings, self._service, self._began_ns, time.time_ns())
                await self._channel.send(request)
                problem = ""
            except OtlpRefused as error:
                problem = str(error)
            except Exception as error:  # metrics are no reason for a service to end
                problem = repr(error)[:300]
            if problem != self._problem:  # told once, not every minute
                self._problem = problem
                if problem:
                    log.warning("metrics are not exported now", error=problem)
                else:
                    log.info("metrics are exported again")


def interval_s(environ: Mapping[str, str]) -> float:
    """OTEL_METRIC_EXPORT_INTERVAL is in milliseconds."""
    given = environ.get(INTERVAL_VARIABLE, "")
    return int(given) / 1000 if given.isdigit() else INTERVAL_S


def encode(readings: Readings, service: str, began_ns: int, now_ns: int) -> bytes:
    """An ExportMetricsServiceRequest."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    for key, value in (("service.name", service), ("service.version", headrace.__version__)):
        resource.resource.attributes.append(KeyValue(key=key, value=AnyValue(string_value=value)))
    scope = resource.scope_metrics.add()
    scope.scope.name = "headrace"
    for metric, values, timings in readings.families():
        added = scope.metrics.add(
            name=metric.name.removesuffix("_total"), description=metric.meaning, unit=_unit(metric)
        )
        for labels, number in values.items():
            _add_number(added, metric, labels, number, began_ns, now_ns)
        for labels, found in timings.items():
            _add_timings(added, metric, labels, found, began_ns, now_ns)
    return request.SerializeToString()


def _unit(metric: Metric) -> str:
    """As UCUM has it."""
    return {"seconds": "s", "bytes": "By"}.get(metric.unit, "1")


def _attributes(metric: Metric, labels: tuple[str, ...]) -> list[object]:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    pairs = zip(metric.labels, labels, strict=True)
    return [KeyValue(key=name, value=AnyValue(string_value=value)) for name, value in pairs]


def _add_number(
    added: OtlpMetric, metric: Metric, labels: tuple[str, ...], number: float, began_ns: int, now_ns: int
) -> None:
    from opentelemetry.proto.metrics.v1 import metrics_pb2

    attributes = _attributes(metric, labels)
    if metric.kind is Kind.GAUGE:
        point = added.gauge.data_points.add(attributes=attributes)
    else:
        added.sum.is_monotonic = True
        added.sum.aggregation_temporality = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
        point = added.sum.data_points.add(attributes=attributes, start_time_unix_nano=began_ns)
    point.time_unix_nano = now_ns
    point.as_double = number


def _add_timings(
    added: OtlpMetric, metric: Metric, labels: tuple[str, ...], timings: Timings, began_ns: int, now_ns: int
) -> None:
    from opentelemetry.proto.metrics.v1 import metrics_pb2

    added.histogram.aggregation_temporality = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    counts = timings.cumulative()
    point = added.histogram.data_points.add(
        attributes=_attributes(metric, labels),
        start_time_unix_nano=began_ns,
        time_unix_nano=now_ns,
        count=counts[-1],
        sum=timings.histogram.sum_ns / 1e9,
        explicit_bounds=BOUNDS_S,
        bucket_counts=[count - before for before, count in zip([0, *counts], counts, strict=False)],
    )
    for exemplar in timings.exemplars.values():
        point.exemplars.add(
            time_unix_nano=int(exemplar.at_s * 1e9),
            as_double=exemplar.value_s,
            trace_id=bytes.fromhex(exemplar.trace_id),
        )
