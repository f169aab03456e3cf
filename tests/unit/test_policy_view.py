"""The effective policy that `flow status` shows: from the plan, every default filled in."""

from __future__ import annotations

from headrace.api.flow.v1 import flow_pb2
from headrace.cli.policy_table import policy_text
from headrace.model.deployment import DeploymentPlan, PinPlan, StepPlan
from headrace.model.flow_spec import RetryPolicy
from services.orchestrator.policy_view import flow_policy, step_policy

PIN = PinPlan("price", 1, "sha256:0", "", "", "")


def plan() -> DeploymentPlan:
    first = StepPlan("order", "trigger", "receive", PIN, {}, ("price",), 64, 60.0, RetryPolicy())
    retry = RetryPolicy(attempts=5, backoff_s=0.25, max_delay_s=60, jitter=0.5, on=("BUSY", "TIMEOUT"))
    price = StepPlan(
        "price", "action", "price", PIN, {}, (), 8, 1.5, retry, rate_limit=0.5, key="header:customer", slots=8
    )
    return DeploymentPlan("default", "orders", "realtime", 1, 1, "order", (first, price), 500, 10.0, 0, rate_limit=100)


def status(found: DeploymentPlan) -> flow_pb2.FlowStatus:
    steps = [
        flow_pb2.StepStatus(step=step.name, policy=step_policy(found, step.name, replicas))
        for step, replicas in zip(found.steps, (1, 4), strict=True)
    ]
    return flow_pb2.FlowStatus(policy=flow_policy(found), steps=steps)


def test_every_value_is_filled_in_and_shown() -> None:
    found = status(plan())
    price = found.steps[1].policy
    assert (price.rate_limit, price.replica_rate_limit, price.replicas, price.max_waiting) == (0.5, 0.125, 4, 500)
    assert (price.retry.attempts, price.retry.jitter, list(price.retry.on)) == (5, 0.5, ["BUSY", "TIMEOUT"])
    text = policy_text(found)
    for part in ("at most 500 wait", "rate limit 100/s", "replies within 10s", "200ms to 30s", "20%", "250ms to 1m"):
        assert part in text
    for part in ("retryable, TIMEOUT", "BUSY, TIMEOUT", "1500ms", "30/m"):
        assert part in text
    assert "by header:customer, exactly once, 8 slots" in text


def test_a_flow_without_a_deployment_says_so() -> None:
    assert "no deployment" in policy_text(flow_pb2.FlowStatus())
