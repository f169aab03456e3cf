"""Bad HTTP requests. Every answer is `{"error": {"code", "message"}}`; what to do next ends the message."""

from __future__ import annotations

from typing import Any

from tests.bad_inputs.row import Row, Section

GATEWAY = "tests/integration/gateway/"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=cut"}


def row(
    id: str,
    what: str,
    status: int,
    code: str,
    says: str,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Row:
    give: dict[str, Any] = {"method": method, "path": path, "body": body, "headers": headers or {}}
    return Row(id, what, f"`{method} {path}`", str(status), code, "", (says,), "", give)


def elsewhere(id: str, what: str, code: str, reason: str, says: str, shown_by: str) -> Row:
    return Row(id, what, "HTTP", code, reason, "", (says,), "", shown_by=GATEWAY + shown_by)


HOOK = "/hook/running"
SECTION = Section(
    "HTTP",
    "The gateway bounds every caller and serves all others meanwhile. Answers are `{\"error\": {\"code\", \"message\"}}`.",
    (
        row("malformed-json", "JSON that is none", 400, "MALFORMED_JSON", "byte 8", "POST", HOOK, b'{"a": 1,}', JSON),
        row("wrong-content-type", "JSON's media type on something else", 400, "MALFORMED_JSON", "the content type says JSON, the body is not", "POST", HOOK, b"<order/>", JSON),
        row("no-such-flow", "a flow there is not", 404, "UNKNOWN_FLOW", "applied and started", "POST", "/hook/nowhere", b"{}"),
        row("never-started", "a flow that was never started", 404, "UNKNOWN_FLOW", "applied and started", "POST", "/hook/resting", b"{}"),
        elsewhere("stopped-flow", "a flow that is stopped", "503", "FLOW_STOPPED", "`retry-after`", "test_answers.py::test_the_route_decides_and_is_followed"),
        row("no-such-path", "a path there is not", 404, "NOT_FOUND", "Post to /hook/<flow>", "POST", "/elsewhere", b"{}"),
        row("path-out", "a path that leads out", 404, "NOT_FOUND", "Post to /hook/<flow>", "POST", "/hook/..%2f..%2fetc", b"{}"),
        row("method-not-allowed", "a method that is not served", 405, "METHOD_NOT_ALLOWED", "Use GET, POST", "PUT", HOOK, b"{}"),
        elsewhere("body-too-large", "a body of more than 100 MB", "413", "BODY_TOO_LARGE", "the limit in bytes", "test_hostile.py::test_too_large_bodies_are_413"),
        row("form-cut-off", "a form that is cut off", 400, "MALFORMED_FORM", "the content type says multipart/form-data, the body is not", "POST", HOOK, b'--cut\r\ncontent-disposition: form-data; name="a"\r\n\r\nhalf', FORM),
        row("form-no-boundary", "a form without a boundary", 400, "MALFORMED_FORM", "the content type says multipart/form-data", "POST", HOOK, b"--cut--", {"content-type": "multipart/form-data"}),
        row("form-nul-name", "a file with NUL in its name", 400, "MALFORMED_FORM", "a file name holds NUL", "POST", HOOK, b'--cut\r\ncontent-disposition: form-data; name="a"; filename="a\0b"\r\n\r\n\r\n--cut--\r\n', FORM),
        row("form-fields-too-large", "fields of a form of 300 kB", 413, "FIELDS_TOO_LARGE", "larger than 262144 bytes", "POST", HOOK, b'--cut\r\ncontent-disposition: form-data; name="a"\r\n\r\n' + b"v" * 300_000 + b"\r\n--cut--\r\n", FORM),
        row("form-too-many-files", "65 files in a form", 413, "TOO_MANY_PARTS", "more than 64 files", "POST", HOOK, b'--cut\r\ncontent-disposition: form-data; name="a"; filename="f"\r\n\r\n\r\n' * 65 + b"--cut--\r\n", FORM),
        row("huge-headers", "17 KB of headers", 431, "HEADERS_TOO_LARGE", "bytes", "POST", HOOK, b"{}", {f"x-{n}": "v" * 1000 for n in range(17)}),
        row("bad-idempotency-key", "an Idempotency-Key of 1 000 characters", 400, "BAD_IDEMPOTENCY_KEY", "255", "POST", HOOK, b"{}", {"idempotency-key": "k" * 1000}),
        elsewhere("chunked-without-end", "chunks without end", "413", "BODY_TOO_LARGE", "answered at the limit, connection closed", "test_hostile.py::test_too_large_bodies_are_413"),
        elsewhere("not-http", "TLS, rubbish, contradicting lengths", "400", "MALFORMED_REQUEST", "connection closed", "test_hostile.py::test_what_is_not_http_is_400"),
        elsewhere("endless-head", "a head without end", "431", "HEADERS_TOO_LARGE", "connection closed", "test_hostile.py::test_huge_heads_are_431"),
        elsewhere("slow-body", "a body that comes too slowly", "408", "BODY_TOO_SLOW", "connection closed", "test_hostile.py::test_slow_callers_are_408"),
        elsewhere("slow-head", "a head that comes too slowly", "408", "HEAD_TOO_SLOW", "connection closed", "test_hostile.py::test_slow_callers_are_408"),
        elsewhere("caller-gone", "a caller who goes away", "-", "-", "its place is free at once; the execution goes on", "test_hostile.py::test_callers_that_go_away_leave_nothing_behind"),
        elsewhere("caller-does-not-read", "a caller who does not read", "-", "-", "cut off", "test_hostile.py::test_callers_that_do_not_read_are_cut_off"),
        elsewhere("many-connections", "1 000 connections at once", "200", "-", "all are answered", "test_answers.py::test_a_thousand_connections_at_once"),
        elsewhere("too-many-requests", "more requests in work than a gateway takes", "429", "GATEWAY_FULL", "`retry-after`", "test_answers.py::test_more_requests_than_may_be_in_work_are_429"),
        elsewhere("full-edge", "a flow whose first step is full", "429", "FLOW_FULL", "`retry-after`", "test_answers.py::test_a_full_edge_is_429"),
        elsewhere("over-rate", "more than the flow's rate limit", "429", "RATE_LIMITED", "`retry-after`", "test_limits.py::test_a_flow_over_its_rate_gets_429_with_the_time_to_wait_and_others_do_not"),
        elsewhere("repeat-in-work", "an Idempotency-Key whose first request is in work", "409", "KEY_IN_WORK", "names the execution", "test_idempotency.py::test_a_repeat_while_the_first_is_worked_on_is_409"),
    ),
)  # fmt: skip
