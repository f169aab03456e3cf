"""A real Jaeger with memory storage on loopback, and what its HTTP API tells.

`python -m tools.jaeger` runs one on the usual ports until Ctrl-C (OTLP 4317 and 4318, API 16686).

    with jaeger_server() as jaeger:          # free ports, ended with the block
        jaeger.otlp                          # http://127.0.0.1:PORT for OTEL_EXPORTER_OTLP_ENDPOINT
        jaeger.trace(trace_id)               # its spans, by start

A module build of Jaeger has no web pages; its API answers all the same.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import real_tools

from headrace.edge.broker_process import free_port
from headrace.edge.parent_death import tied_command

START_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
ANSWER_LIMIT_S = 10.0
MAX_TRACES = 20_000


@dataclass(frozen=True)
class Ports:
    """Loopback ports of one Jaeger; the defaults are its own."""

    otlp_grpc: int = 4317
    otlp_http: int = 4318
    query_http: int = 16686
    query_grpc: int = 16685
    health: int = 13133

    @classmethod
    def free(cls) -> Ports:
        found: set[int] = set()
        while len(found) < 5:
            found.add(free_port())
        return cls(*found)


def configuration(ports: Ports) -> dict[str, Any]:
    """What Jaeger is given (YAML takes JSON): OTLP in, memory, API out; no port but these."""

    def on(port: int) -> dict[str, str]:
        return {"endpoint": f"127.0.0.1:{port}"}

    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query", "healthcheckv2"],
            "pipelines": {
                "traces": {"receivers": ["otlp"], "processors": ["batch"], "exporters": ["jaeger_storage_exporter"]}
            },
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": MAX_TRACES}}}},
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": on(ports.query_http),
                "grpc": on(ports.query_grpc),
            },
            "healthcheckv2": {"use_v2": True, "http": on(ports.health)},
        },
        "receivers": {"otlp": {"protocols": {"grpc": on(ports.otlp_grpc), "http": on(ports.otlp_http)}}},
        "processors": {"batch": {"timeout": "100ms"}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }


@dataclass(frozen=True)
class Span:
    """One span as Jaeger tells it. Times in Unix nanoseconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    error: str
    """The message of an error status; empty without one."""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    """Trace and span ids."""

    @property
    def duration_ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6


@dataclass(frozen=True)
class Jaeger:
    """What runs at `ports`."""

    ports: Ports

    @property
    def otlp(self) -> str:
        """The endpoint for OTLP over gRPC."""
        return f"http://127.0.0.1:{self.ports.otlp_grpc}"

    @property
    def pages(self) -> str:
        """Where a browser would look."""
        return f"http://127.0.0.1:{self.ports.query_http}"

    def services(self) -> list[str]:
        return sorted(self._get("/api/v3/services").get("services") or [])

    def trace(self, trace_id: str) -> list[Span]:
        """The spans it has of a trace by now, by start; empty while it has none."""
        return self._spans(f"/api/v3/traces/{trace_id}", {"raw_traces": "true"})

    def find(self, service: str, operation: str = "", limit: int = 1000, **more: str) -> list[list[Span]]:
        """Traces of the last hour in which a service took part, newest spans last. `more`: other `query.` fields."""
        now = time.time()
        query = {
            "service_name": service,
            "start_time_min": _rfc3339(now - 3600),
            "start_time_max": _rfc3339(now + 60),
            "num_traces": str(limit),
            "raw_traces": "true",
            **({"operation_name": operation} if operation else {}),
            **more,
        }
        traces: dict[str, list[Span]] = {}
        for span in self._spans("/api/v3/traces", {f"query.{key}": value for key, value in query.items()}):
            traces.setdefault(span.trace_id, []).append(span)
        return list(traces.values())

    def dependencies(self) -> dict[tuple[str, str], int]:
        """{(service, the service it calls): calls} of the last hour: the dependency graph."""
        query = {"endTs": str(int((time.time() + 60) * 1000)), "lookback": "3660000"}
        rows = self._get("/api/dependencies", query).get("data") or []
        return {(row["parent"], row["child"]): row["callCount"] for row in rows}

    def _spans(self, path: str, query: dict[str, str]) -> list[Span]:
        resources = self._get(path, query).get("result", {}).get("resourceSpans", [])
        return sorted((span for part in resources for span in _spans_of(part)), key=lambda span: span.start_ns)

    def _get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        url = f"{self.pages}{path}?{urllib.parse.urlencode(query or {})}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_LIMIT_S) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}
            raise


@contextlib.contextmanager
def jaeger_server(ports: Ports | None = None) -> Iterator[Jaeger]:
    """A Jaeger of one's own, ready when it yields. It must have been built (`make tools`)."""
    program = real_tools.locate("jaeger")
    if program is None:
        raise RuntimeError("jaeger is not built; `make tools` builds it")
    jaeger = Jaeger(ports or Ports.free())
    with tempfile.TemporaryDirectory(prefix="hr-jaeger-") as folder:
        config, output = Path(folder) / "jaeger.yaml", Path(folder) / "log"
        config.write_text(json.dumps(configuration(jaeger.ports)))
        with open(output, "wb") as log:
            process = subprocess.Popen(
                tied_command([program, "--config", str(config)]), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            _await_health(jaeger, process, output)
            yield jaeger
        finally:
            # An orderly end takes it ten seconds, and there is nothing that it keeps.
            process.kill()
            process.wait(STOP_LIMIT_S)


def _await_health(jaeger: Jaeger, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        with contextlib.suppress(OSError):
            # Its parts begin to serve one by one.
            for port in (jaeger.ports.otlp_grpc, jaeger.ports.otlp_http):
                socket.create_connection(("127.0.0.1", port), ANSWER_LIMIT_S).close()
            jaeger.services()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"jaeger did not start:\n{output.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _spans_of(part: dict[str, Any]) -> Iterator[Span]:
    resource = _values(part.get("resource", {}))
    for scope in part.get("scopeSpans", []):
        for span in scope.get("spans", []):
            yield Span(
                service=str(resource.get("service.name", "")),
                name=span["name"],
                trace_id=span["traceId"],
                span_id=span["spanId"],
                parent_id=span.get("parentSpanId", ""),
                kind=_KINDS.get(span.get("kind", 0), ""),
                start_ns=int(span["startTimeUnixNano"]),
                end_ns=int(span["endTimeUnixNano"]),
                attributes=_values(span),
                resource=resource,
                error=_error(span.get("status", {})),
                events=[(event.get("name", ""), _values(event)) for event in span.get("events", [])],
                links=[(link["traceId"], link["spanId"]) for link in span.get("links", [])],
            )


_KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUS_ERROR = 2


def _error(status: dict[str, Any]) -> str:
    return str(status.get("message") or "error") if status.get("code") == _STATUS_ERROR else ""


def _values(holder: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: _value(pair.get("value", {})) for pair in holder.get("attributes", [])}


def _value(value: dict[str, Any]) -> Any:
    for kind, held in value.items():
        if kind == "intValue":
            return int(held)
        if kind == "arrayValue":
            return [_value(each) for each in held.get("values", [])]
        return held
    return None


def main() -> None:
    with jaeger_server(Ports()) as jaeger:
        print(f"Jaeger takes OTLP at {jaeger.otlp} and answers at {jaeger.pages}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
