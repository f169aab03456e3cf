"""Metrics as OTLP: what a real gRPC collector takes."""

from __future__ import annotations

import asyncio
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from headrace.edge.otlp_metrics import MetricsExport, encode
from headrace.model.histogram import Histogram
from headrace.model.metric_readings import Exemplar, Readings, Timings, bound_of
from headrace.model.metric_table import BOUNDS_S
from tests.support.eventually import eventually


def readings() -> Readings:
    found, histogram = Readings(), Histogram()
    for ms in (1, 2, 30):
        histogram.record(ms * 1_000_000)
    timings = Timings(histogram, {bound_of(0.03): Exemplar("ab" * 16, "e1", 0.03, 1_700_000_000.0)})
    found.put_timings("hop_phase_duration_seconds", timings, "orders", "price", "hop", "", "0123")
    found.put("step_messages_total", 7, "orders", "price", "processed")
    found.put("step_waiting_messages", 3, "orders", "price")
    return found


def metrics_of(request: Any) -> dict[str, Any]:
    return {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}


def test_what_is_sent_says_the_same() -> None:
    request = metrics_service_pb2.ExportMetricsServiceRequest.FromString(encode(readings(), "headrace-default", 5, 9))
    sent = metrics_of(request)
    point = sent["headrace_hop_phase_duration_seconds"].histogram.data_points[0]
    assert (point.count, list(point.explicit_bounds), len(point.bucket_counts)) == (
        3,
        list(BOUNDS_S),
        len(BOUNDS_S) + 1,
    )
    assert sum(point.bucket_counts) == 3
    assert abs(point.sum - 0.033) < 1e-9
    assert point.exemplars[0].trace_id == bytes.fromhex("ab" * 16)
    assert {item.key: item.value.string_value for item in point.attributes}["phase"] == "hop"
    counter = sent["headrace_step_messages"].sum
    assert (counter.is_monotonic, counter.data_points[0].as_double, counter.data_points[0].start_time_unix_nano) == (
        True,
        7,
        5,
    )
    assert sent["headrace_step_waiting_messages"].gauge.data_points[0].as_double == 3
    assert sent["headrace_hop_phase_duration_seconds"].unit == "s"


class _Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.refuses = True

    async def Export(self, request: Any, context: Any) -> Any:
        if self.refuses:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        self.requests.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def test_a_collector_gets_them_again_and_again_also_when_it_refused_some() -> None:
    collector, server = _Collector(), grpc.aio.server()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def read() -> Readings:
        return readings()

    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_METRIC_EXPORT_INTERVAL": "50"}
    try:
        async with asyncio.TaskGroup() as tasks:
            export = MetricsExport.begin(environ, read, "headrace-default", tasks, shortest_s=0.05)
            assert export is not None
            await asyncio.sleep(0.12)  # tidy: pace
            collector.refuses = False
            await eventually(lambda: len(collector.requests) >= 2)
            await export.close()
    finally:
        await server.stop(0)
    assert "headrace_step_messages" in metrics_of(collector.requests[-1])
    off = {**environ, "OTEL_METRICS_EXPORTER": "none"}
    async with asyncio.TaskGroup() as tasks:
        assert MetricsExport.begin(off, read, "headrace-default", tasks) is None
