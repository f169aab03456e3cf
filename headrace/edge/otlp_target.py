"""Where a process sends its telemetry: OTEL_EXPORTER_OTLP_* as the OpenTelemetry specification has them, gRPC only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from headrace.model.errors import InvalidInput

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
DEFAULT_PORT = 4317
DEADLINE_S = 5.0
JAEGER_VARIABLE = "HEADRACE_JAEGER"
JAEGER_PORT = 16686

HANDED_ON = (
    *("OTEL_EXPORTER_OTLP_", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"),
    *("OTEL_METRICS_EXPORTER", "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_LOGS_EXPORTER"),
)
"""Beginnings of the variables that are a matter of the whole mesh. They go from process to process in the environment,
never on a command line: headers are secrets."""


# gRPC metadata that is text; `-bin` names hold bytes, `grpc-` ones are its own.
_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class OtlpTarget:
    """A collector. `headers` may hold secrets: they are in no log and in no repr."""

    address: str
    secure: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    certificate: str = ""
    """File with the authorities to trust; "" for gRPC's own."""
    timeout_s: float = DEADLINE_S

    @property
    def url(self) -> str:
        """To be shown to people."""
        return f"{'https' if self.secure else 'http'}://{self.address}"


class OtlpRefused(Exception):
    """The collector did not take a request; `again` when it may take the same one later."""

    def __init__(self, cause: str, *, again: bool) -> None:
        super().__init__(cause)
        self.again = again


def jaeger_pages(environ: Mapping[str, str]) -> str:
    """Where a person finds traces: $HEADRACE_JAEGER, else the usual port of a Jaeger that takes OTLP on its usual port;
    empty where neither is known."""
    if given := environ.get(JAEGER_VARIABLE, "").strip():
        return given.rstrip("/")
    try:
        target = read_target(environ)
    except InvalidInput:
        return ""
    host, _, port = target.address.rpartition(":") if target is not None else ("", "", "")
    return f"http://{host}:{JAEGER_PORT}" if port == str(DEFAULT_PORT) else ""


def read_target(environ: Mapping[str, str], signal: str = "TRACES") -> OtlpTarget | None:
    """What is set for a signal (`TRACES`, `METRICS`, `LOGS`), else for all; None where there is no endpoint, or the
    signal is off. `http://` is without TLS, `https://` with; without scheme ..._INSECURE decides. InvalidInput."""
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or environ.get(f"OTEL_{signal}_EXPORTER", "").lower() == "none":
        return None

    def given(name: str) -> str:
        return (
            environ.get(f"OTEL_EXPORTER_OTLP_{signal}_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""
        ).strip()

    endpoint = given("ENDPOINT")
    if not endpoint:
        return None
    if (protocol := given("PROTOCOL")) not in ("", "grpc"):
        raise InvalidInput.at("OTEL_EXPORTER_OTLP_PROTOCOL", protocol, "is not supported", next_step="Use grpc")
    address, secure = parse_endpoint(endpoint, insecure=given("INSECURE").lower() == "true")
    timeout = given("TIMEOUT")
    limit_s = int(timeout) / 1000 if timeout.isdigit() and int(timeout) else DEADLINE_S
    return OtlpTarget(address, secure, parse_headers(given("HEADERS")), given("CERTIFICATE"), limit_s)


def parse_endpoint(endpoint: str, *, insecure: bool = False) -> tuple[str, bool]:
    """`host:port`, and whether TLS is used; InvalidInput names the endpoint without what may be secret in it."""
    scheme, found, rest = endpoint.partition("://")
    if not found:
        scheme, rest = ("http" if insecure else "https"), endpoint
    host, port, problem = "", 0, ""
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port or DEFAULT_PORT
    except ValueError:
        problem = "is no HOST:PORT"
    else:
        if scheme not in ("http", "https"):
            problem = "is neither http:// nor https://"
        elif "@" in rest:
            problem = "holds a user name; give secrets in OTEL_EXPORTER_OTLP_HEADERS"
        elif not host:
            problem = "names no host"
        elif parts.path.strip("/") or parts.query or parts.fragment:
            problem = "has a path, which OTLP over gRPC does not have"
    if problem:
        shown = f"{scheme}://...@{rest.rpartition('@')[2]}" if "@" in rest else endpoint
        raise InvalidInput.at("otlp", shown, problem, next_step="Use http://HOST:4317, or https://HOST:4317 for TLS")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", scheme == "https"


def parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """`name=value,name=value`, values percent-encoded, as gRPC metadata. What is no pair, or cannot be sent, is left
    out."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    found = ((name.strip().lower(), unquote(value.strip())) for name, _, value in pairs)
    return tuple((name, value) for name, value in found if _NAME.fullmatch(name) and _VALUE.fullmatch(value))


def handed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Those variables that processes started from here need."""
    return {name: value for name, value in environ.items() if name.startswith(HANDED_ON)}
