"""What tests take Jaeger for: spans sent to it are read back as they are, and its dependency graph follows parents."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request

import pytest

from tests.support.eventually import eventually
from tools.jaeger import Jaeger

pytestmark = pytest.mark.needs("jaeger")


async def test_what_is_sent_is_read_back(jaeger: Jaeger) -> None:
    trace, root, child = secrets.token_hex(16), secrets.token_hex(8), secrets.token_hex(8)
    now = time.time_ns()
    root_span = {"name": "POST", "kind": 2, **_between(now, now + 2_000_000)}
    child_span = {
        "name": "process price",
        "kind": 5,
        "parentSpanId": root,
        "status": {"code": 2, "message": "no price"},
        "links": [{"traceId": trace, "spanId": root}],
        "attributes": [{"key": "headrace.attempt", "value": {"intValue": "2"}}],
        **_between(now + 1, now + 1_000_001),
    }
    _send(jaeger, "shop", {"traceId": trace, "spanId": root, **root_span})
    _send(jaeger, "pricing", {"traceId": trace, "spanId": child, **child_span})

    first, second = await eventually(lambda: spans if len(spans := jaeger.trace(trace)) == 2 else [])

    assert (first.service, first.parent_id, first.kind, first.duration_ms) == ("shop", "", "server", 2.0)
    assert (second.service, second.parent_id, second.error) == ("pricing", root, "no price")
    assert second.attributes["headrace.attempt"] == 2
    assert second.start_ns == now + 1
    assert second.links == [(trace, root)]
    assert jaeger.dependencies() == {("shop", "pricing"): 1}
    assert jaeger.services() == ["pricing", "shop"]
    assert [{span.span_id for span in found} for found in jaeger.find("pricing")] == [{root, child}]
    assert jaeger.trace(secrets.token_hex(16)) == []


def _between(start_ns: int, end_ns: int) -> dict[str, str]:
    return {"startTimeUnixNano": str(start_ns), "endTimeUnixNano": str(end_ns)}


def _send(jaeger: Jaeger, service: str, span: dict[str, object]) -> None:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}).encode()
    url = f"http://127.0.0.1:{jaeger.ports.otlp_http}/v1/traces"
    urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"}), timeout=5).close()
