"""A small OTLP collector for tests: takes spans over gRPC, keeps them, and can be made deaf."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from headrace.edge.log_export import LOGS
from headrace.edge.otlp_channel import TRACES


@dataclass(frozen=True)
class SeenSpan:
    """A span as it arrived; ids are hexadecimal."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    error: str
    events: list[str]
    links: list[str]

    @property
    def ns(self) -> int:
        return self.end_ns - self.start_ns

    @property
    def phase(self) -> str:
        return str(self.attributes.get("headrace.phase", ""))


@dataclass
class Collector:
    """`headers` are the metadata of the last call."""

    url: str = ""
    spans: list[SeenSpan] = field(default_factory=list)
    records: list[SeenRecord] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    deaf: threading.Event = field(default_factory=threading.Event)
    """While set, calls are taken and not answered."""
    closing: threading.Event = field(default_factory=threading.Event)
    forward_to: str = ""
    """Another collector (`host:port`) that gets the same bytes."""

    def trace_of(self, execution: str) -> list[SeenSpan]:
        """All spans of the trace that the execution is in."""
        found = {span.trace_id for span in self.spans if span.attributes.get("headrace.execution") == execution}
        return [span for span in self.spans if span.trace_id in found]

    def export_logs(self, raw: bytes, context: grpc.ServicerContext) -> ExportLogsServiceResponse:
        self.records += read_records(ExportLogsServiceRequest.FromString(raw))
        return ExportLogsServiceResponse()

    def export(self, raw: bytes, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        self.calls += 1
        while self.deaf.is_set() and not self.closing.wait(0.05):
            pass
        self.headers = {key: str(value) for key, value in context.invocation_metadata()}
        self.spans += read_spans(ExportTraceServiceRequest.FromString(raw))
        if self.forward_to:
            with grpc.insecure_channel(self.forward_to) as channel:
                channel.unary_unary(TRACES)(raw, timeout=5.0)
        return ExportTraceServiceResponse()


@dataclass(frozen=True)
class SeenRecord:
    """A log record as it arrived; ids are hexadecimal."""

    body: str
    severity: str
    trace_id: str
    span_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


def read_records(request: ExportLogsServiceRequest) -> list[SeenRecord]:
    """Log records of a request."""
    return [
        SeenRecord(
            item.body.string_value,
            item.severity_text,
            item.trace_id.hex(),
            item.span_id.hex(),
            plain(item.attributes),
            plain(group.resource.attributes),
        )
        for group in request.resource_logs
        for scope in group.scope_logs
        for item in scope.log_records
    ]


def read_spans(request: ExportTraceServiceRequest) -> list[SeenSpan]:
    """Spans of a request."""
    found = []
    for group in request.resource_spans:
        resource = plain(group.resource.attributes)
        for scope in group.scope_spans:
            found += [_seen(span, resource) for span in scope.spans]
    return found


def _seen(span: Any, resource: dict[str, Any]) -> SeenSpan:
    return SeenSpan(
        service=resource["service.name"],
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=plain(span.attributes),
        resource=resource,
        error=span.status.message if span.status.code == 2 else "",
        events=[event.name for event in span.events],
        links=[link.trace_id.hex() for link in span.links],
    )


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as a dict."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


@contextmanager
def otlp_collector(tls: tuple[bytes, bytes] | None = None) -> Iterator[Collector]:
    """Serves on a free port of 127.0.0.1; with key and certificate by TLS."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    handler = grpc.unary_unary_rpc_method_handler(
        collector.export,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    _, service, method = TRACES.split("/")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    logs = grpc.unary_unary_rpc_method_handler(
        collector.export_logs, response_serializer=ExportLogsServiceResponse.SerializeToString
    )
    _, service, method = LOGS.split("/")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: logs})])
    if tls is None:
        collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        credentials = grpc.ssl_server_credentials([tls])
        collector.url = f"https://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    try:
        yield collector
    finally:
        collector.closing.set()
        server.stop(0.2).wait()
