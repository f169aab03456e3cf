"""Everything the gateway says no with: HTTP status, code, message, and when to try again.

The body is always `{"error": {"code", "message"[, "execution"]}}`.
"""

from __future__ import annotations

import math

import msgspec

from headrace.model.rates import format_rate

RawHeaders = list[tuple[bytes, bytes]]


class Refusal(Exception):
    """An answer that is not the flow's. `execution` is set where the stimulus may have been accepted."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_s: int = 0,
        execution: str = "",
        close: bool = False,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.execution = execution
        self.close = close
        self.allow = allow
        self.traceparent = ""
        """Of the request's span, where it has one."""

    def body(self) -> bytes:
        return error_body(self.code, self.message, self.execution)

    def headers(self) -> RawHeaders:
        """Response headers, without content-length."""
        headers: RawHeaders = [(b"content-type", b"application/json")]
        if self.retry_after_s:
            headers.append((b"retry-after", b"%d" % self.retry_after_s))
        if self.execution:
            headers.append((b"headrace-execution", self.execution.encode()))
        if self.traceparent:
            headers.append((b"traceparent", self.traceparent.encode()))
        if self.allow:
            headers.append((b"allow", self.allow.encode()))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers


def error_body(code: str, message: str, execution: str = "") -> bytes:
    """JSON of an error."""
    error = {"code": code, "message": message}
    if execution:
        error["execution"] = execution
    return msgspec.json.encode({"error": error})


def not_found(path: str) -> Refusal:
    return Refusal(404, "NOT_FOUND", f"nothing is at {path[:120]}. Post to /hook/<flow>")


def unknown_flow(flow: str) -> Refusal:
    return Refusal(404, "UNKNOWN_FLOW", f"there is no flow {flow[:60]!r} with a webhook. Is it applied and started?")


def method_not_allowed(method: str, allow: str = "GET, POST") -> Refusal:
    return Refusal(405, "METHOD_NOT_ALLOWED", f"{method[:20]} is not served here. Use {allow}", allow=allow)


def flow_stopped(flow: str, state: str) -> Refusal:
    message = f"flow {flow} is {state}. Start it with: headrace flow start {flow}"
    return Refusal(503, "FLOW_STOPPED", message, retry_after_s=5)


def flow_suspended(flow: str) -> Refusal:
    """A limit of the suspension is reached: nothing more is kept."""
    message = f"flow {flow} is suspended and keeps all that it may. Go on with: headrace flow resume {flow}"
    return Refusal(503, "FLOW_SUSPENDED", message, retry_after_s=30)


def gateway_stopping(execution: str = "") -> Refusal:
    message = "this gateway is stopping. Try again, or another gateway"
    return Refusal(503, "GATEWAY_STOPPING", message, retry_after_s=1, execution=execution, close=True)


def gateway_full(what: str, limit: int) -> Refusal:
    return Refusal(429, "GATEWAY_FULL", f"{limit} {what} are in work, which is the limit. Try again", retry_after_s=1)


def flow_share_used(flow: str, held: str) -> Refusal:
    message = f"flow {flow} has {held} in work, its share of this gateway: the rest is for other flows. Try again"
    return Refusal(429, "FLOW_SHARE_USED", message, retry_after_s=1)


def rate_limited(flow: str, rate: float, wait_s: float) -> Refusal:
    message = f"flow {flow} takes {format_rate(rate)} (rate_limit). Try again later"
    return Refusal(429, "RATE_LIMITED", message, retry_after_s=max(1, math.ceil(wait_s)))


def edge_full(flow: str) -> Refusal:
    message = f"as many messages wait in flow {flow} as may wait (max_waiting). Try again later"
    return Refusal(429, "FLOW_FULL", message, retry_after_s=1)


def body_too_large(limit: int, why: str = "") -> Refusal:
    message = f"the body is larger than {limit} bytes{why}. Send a reference instead"
    return Refusal(413, "BODY_TOO_LARGE", message, close=True)


def file_too_large(name: str, limit: int) -> Refusal:
    message = f"file {name[:80]!r} is larger than {limit} bytes, which is the limit of an attachment"
    return Refusal(413, "ATTACHMENT_TOO_LARGE", message, close=True)


def fields_too_large(limit: int) -> Refusal:
    message = f"the fields of the form are larger than {limit} bytes together. Send what is large as a file"
    return Refusal(413, "FIELDS_TOO_LARGE", message, close=True)


def too_many_parts(what: str, limit: int) -> Refusal:
    return Refusal(413, "TOO_MANY_PARTS", f"the form has more than {limit} {what}", close=True)


def malformed_form(problem: str) -> Refusal:
    message = f"the content type says multipart/form-data, the body is not: {problem[:200]}"
    return Refusal(400, "MALFORMED_FORM", message, close=True)


def body_too_slow(limit_s: float) -> Refusal:
    return Refusal(408, "BODY_TOO_SLOW", f"the body did not arrive within {limit_s:g} s", close=True)


def headers_too_large(limit: int) -> Refusal:
    return Refusal(431, "HEADERS_TOO_LARGE", f"the headers are larger than {limit} bytes", close=True)


def bad_content_length(value: str) -> Refusal:
    return Refusal(400, "BAD_CONTENT_LENGTH", f"content-length {value[:40]!r} is not a number", close=True)


def malformed_json(problem: str) -> Refusal:
    return Refusal(400, "MALFORMED_JSON", f"the content type says JSON, the body is not: {problem}")


def bad_idempotency_key(problem: str) -> Refusal:
    return Refusal(400, "BAD_IDEMPOTENCY_KEY", f"Idempotency-Key {problem}. Use one key of 1 to 255 characters")


def key_in_work(execution: str, retry_after_s: int) -> Refusal:
    message = "the first request with this Idempotency-Key is still being worked on. Try again"
    return Refusal(409, "KEY_IN_WORK", message, retry_after_s=retry_after_s, execution=execution)


def key_in_doubt(execution: str) -> Refusal:
    message = (
        "the gateway that took the first request with this Idempotency-Key died, and it is too late to tell "
        "whether the flow got it. Look for its execution; send it again under another key if it is not there"
    )
    return Refusal(409, "KEY_IN_DOUBT", message, execution=execution)


def key_with_other_body(execution: str) -> Refusal:
    message = "this Idempotency-Key was used with another body. Use another key for another request"
    return Refusal(422, "KEY_WITH_OTHER_BODY", message, execution=execution)


def broker_unavailable(execution: str = "") -> Refusal:
    """Definite: the stimulus was not stored."""
    message = "the broker did not take the message. Try again"
    return Refusal(503, "BROKER_UNAVAILABLE", message, retry_after_s=1, execution=execution)


def outcome_unknown(execution: str) -> Refusal:
    """The broker may have stored the stimulus."""
    message = "the broker did not say whether it took the message; the execution may run"
    return Refusal(504, "OUTCOME_UNKNOWN", message, execution=execution)


def no_reply(execution: str, limit_s: float) -> Refusal:
    message = f"no reply within {limit_s:g} s; the execution goes on"
    return Refusal(504, "REPLY_TIMEOUT", message, execution=execution)


def bad_reply(step: str, problem: str, execution: str) -> Refusal:
    return Refusal(502, "BAD_REPLY", f"step {step} replied with {problem}", execution=execution)
