"""The effective policy of a flow and of each of its steps, as text."""

from __future__ import annotations

from typing import Any

from headrace.api.flow.v1 import flow_pb2
from headrace.cli.plain import enum_word
from headrace.cli.tables import table
from headrace.model.durations import format_duration
from headrace.model.rates import rate_text


def policy_text(status: flow_pb2.FlowStatus) -> str:
    """One line about the flow, a table of its steps; says so where nothing runs."""
    if not status.HasField("policy"):
        return "policy: no deployment; it is resolved when the flow starts"
    flow = status.policy
    words = [f"at most {flow.max_waiting} wait on an edge", f"rate limit {rate_text(flow.rate_limit)}"]
    replies = f"replies within {_span(flow.reply_timeout)}" if flow.HasField("reply_timeout") else "answers 202 at once"
    rows = [
        (
            step.step,
            _span(step.policy.timeout),
            *_retry_cells(step.policy.retry),
            step.policy.prefetch,
            step.policy.replicas,
            rate_text(step.policy.rate_limit),
            _order(step.policy),
            _on_error(step.policy),
        )
        for step in status.steps
    ]
    headings = (
        "STEP",
        "TIMEOUT",
        "ATTEMPTS",
        "BACKOFF",
        "JITTER",
        "RETRIES",
        "PREFETCH",
        "REPLICAS",
        "RATE LIMIT",
        "ORDER",
        "ON ERROR",
    )
    return f"policy: {'; '.join([*words, replies])}\n\n{table(headings, rows)}"


def _retry_cells(retry: flow_pb2.RetryPolicy) -> tuple[object, ...]:
    delays = f"{_span(retry.backoff)} to {_span(retry.max_delay)}"
    if retry.attempts <= 1:
        return retry.attempts, "-", "-", "nothing"
    codes = ", ".join(retry.on) or "retryable, TIMEOUT"
    return retry.attempts, delays, f"{retry.jitter:.0%}", codes


def _on_error(policy: flow_pb2.StepPolicy) -> str:
    if policy.HasField("error_step"):
        return f"step {policy.error_step.step}{' and dead-letter' if policy.error_step.dead_letter else ''}"
    return enum_word(flow_pb2.OnError.DESCRIPTOR, policy.on_error).lower().replace("_", "-")


def _order(policy: flow_pb2.StepPolicy) -> str:
    if not policy.key and not policy.exactly_once:
        return "none"
    words = [f"by {policy.key}"] if policy.key else []
    return ", ".join([*words, "exactly once", f"{policy.slots} slots"])


def _span(duration: Any) -> str:
    return format_duration(duration.ToTimedelta().total_seconds())
