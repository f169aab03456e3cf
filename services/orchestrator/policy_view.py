"""The effective policy of a deployment as the API tells it: every value filled in, as its sidecars go by it."""

from __future__ import annotations

from headrace.api.flow.v1 import flow_pb2
from headrace.model.deployment import DeploymentPlan
from headrace.wire.flow import duration_from_seconds, on_error_to_proto, retry_policy_to_proto


def flow_policy(plan: DeploymentPlan) -> flow_pb2.FlowPolicy:
    """What the flow as a whole goes by."""
    message = flow_pb2.FlowPolicy(max_waiting=plan.max_waiting, rate_limit=plan.rate_limit)
    if plan.reply_timeout_s:
        message.reply_timeout.CopyFrom(duration_from_seconds(plan.reply_timeout_s))
    return message


def step_policy(plan: DeploymentPlan, name: str, replicas: int) -> flow_pb2.StepPolicy:
    """What the instances of a step go by, `replicas` of them."""
    step = plan.step(name)
    message = flow_pb2.StepPolicy(
        timeout=duration_from_seconds(step.timeout_s),
        retry=retry_policy_to_proto(step.retry),
        prefetch=step.prefetch,
        replicas=replicas,
        rate_limit=step.rate_limit,
        replica_rate_limit=step.rate_limit / max(1, replicas),
        max_waiting=plan.max_waiting,
        key=step.key,
        slots=step.slots,
        exactly_once=step.exactly_once,
        on_error=on_error_to_proto("" if step.error_step else step.on_error),
    )
    if step.error_step:
        message.error_step.step, message.error_step.dead_letter = step.error_step, step.error_letter
    if plan.may_sleep(name):
        message.idle_timeout.CopyFrom(duration_from_seconds(step.idle_timeout_s))
    if step.every_s:
        message.every.CopyFrom(duration_from_seconds(step.every_s))
    return message
